"""With pytest-flask, which pushes a request context around every test.

The extension's scope is the application context: on Flask 3.1 the test client's
requests share the test's, and so its session; on Flask 3.2 they have their own.
"""

from __future__ import annotations

import pytest
from clients import Client
from flask import url_for
from flask.globals import app_ctx
from models import Base
from models import User
from sqlalchemy import select

from flask_scopedsession import ScopedSession

CLIENT = Client(
    name="pytest-flask",
    url="https://pytest-flask.readthedocs.io/",
    works="as it is",
    does="gives each test its session; see [Testing](testing.md)",
)

db = ScopedSession(model_class=Base)


@pytest.fixture(params=["file", "memory"])
def app(request, make_app, sqlite_url):
    """The application under the name that pytest-flask uses."""
    url = sqlite_url if request.param == "file" else "sqlite://"
    app = make_app(db, SQLALCHEMY_DATABASE_URI=url)
    with app.app_context():
        db.create_all()

    @app.post("/users/<name>")
    def add(name):
        db.session.add(User(name=name))
        db.session.commit()
        return ""

    @app.get("/whose")
    def whose():
        context = id(app_ctx._get_current_object())
        return {"context": context, "session": db.session().info.get("context")}

    @app.get("/holder")
    def holder():
        db.session.execute(select(1))
        return {"endpoint": db.snapshot().pools[0].holders[0].endpoint}

    return app


def test_the_pushed_context_has_a_session(app):
    """A test can use ``db.session`` and ``url_for`` without a context of its own."""
    assert db.session() is db.session()
    assert url_for("add", name="ed") == "/users/ed"


def test_what_a_request_wrote(app, client):
    client.post(url_for("add", name="ed"))
    assert db.session.scalars(select(User.name)).all() == ["ed"]


def test_one_session_per_context(app, client):
    """A request shares the test's session if and only if it shares its context."""
    mine = db.session()
    mine.info["context"] = id(app_ctx._get_current_object())
    answer = client.get("/whose").json
    assert answer["session"] in (None, answer["context"])
    shares_context = answer["context"] == mine.info["context"]
    assert (answer["session"] is not None) == shares_context


def test_nothing_of_another_test(app):
    """The previous test left neither a session nor an object."""
    assert not db.session.registry.has()
    assert db.snapshot().sessions == ()


def test_each_request_is_its_own_owner(app, client):
    """In a shared context, two requests are told apart."""
    db.session.rollback()
    assert client.get("/holder").json == {"endpoint": "holder"}
    db.session.remove()
    client.post("/users/ed")
    db.session.remove()
    assert client.get("/holder").json == {"endpoint": "holder"}
