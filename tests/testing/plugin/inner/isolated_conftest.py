from __future__ import annotations

import os

import pytest
from shop import create_app
from shop import db
from shop import Item
from sqlalchemy import select

from flask_scopedsession.testing import database_for_worker

apps = []


def make():
    return create_app(database_for_worker(os.environ["URL"]))


@pytest.fixture(scope="session")
def seed():
    """Make the tables and a row; see at the end that there is nothing else."""
    app = make()
    with app.app_context():
        db.drop_all()
        db.create_all()
        db.session.add(Item(name="seed"))
        db.session.commit()
    yield
    with app.app_context():
        left = db.session.scalars(select(Item.name)).all()
        db.session.rollback()
        db.drop_all()
    db.dispose(app)
    assert [name for name in left if name != "real"] == ["seed"]
    assert "real" in left


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    monkeypatch.setenv("BEFORE_THE_APP", "1")


@pytest.fixture(scope=os.environ["SCOPE"])
def app(seed, request):
    has_flask = request.config.pluginmanager.has_plugin("flask")
    assert request.scope == "session" or has_flask or os.environ["BEFORE_THE_APP"]
    app = make()
    apps.append(app)
    yield app
    db.dispose(app)


@pytest.fixture(autouse=True)
def made(app, request):
    """Commit a row in each test that is isolated, before what the test asks for."""
    if request.node.get_closest_marker("real_commits"):
        return
    with app.app_context():
        db.session.add(Item(name="made"))
        db.session.commit()
