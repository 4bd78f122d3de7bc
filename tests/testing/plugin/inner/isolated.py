"""Isolated tests, in any order: each finds what the fixtures made, and no more."""

from __future__ import annotations

import threading
import unittest

import pytest
from shop import db
from shop import Item
from sqlalchemy import insert
from sqlalchemy import select

#: Committed by the session's fixture, and by that of each test.
MADE = ["seed", "made"]


def names(app):
    return [name for name in app.test_client().get("/items").json if name != "real"]


def write(app):
    """Write in all ways that there are."""
    app.test_client().post("/items", data={"name": "by a request"})
    with app.app_context():
        db.session.add(Item(name="by a session"))
        db.session.commit()
        db.session.add(Item(name="never"))
        db.session.flush()
        db.session.rollback()
        with db.engine.begin() as connection:
            connection.execute(insert(Item).values(name="by a connection"))
    post = app.test_client().post
    arguments = {"data": {"name": "by a thread"}}
    thread = threading.Thread(target=post, args=("/items",), kwargs=arguments)
    thread.start()
    thread.join()


WRITTEN = [*MADE, "by a request", "by a session", "by a connection", "by a thread"]


@pytest.mark.parametrize("time", range(3))
def test_fine_writes(app, time):
    assert names(app) == MADE
    write(app)
    assert names(app) == WRITTEN


def test_fine_fixture(item, app):
    assert names(app) == [*MADE, "item"]


@pytest.fixture
def item(app):
    with app.app_context():
        db.session.add(Item(name="item"))
        db.session.commit()


def test_fine_variables_of_an_error_that_was_logged(app, monkeypatch):
    monkeypatch.setitem(app.config, "PROPAGATE_EXCEPTIONS", False)
    assert app.test_client().get("/raises").status_code == 500


def test_failed_after_writing(app):
    write(app)
    assert names(app) == MADE


class TestInClass:
    @pytest.fixture(autouse=True)
    def _setup(self, app):
        write(app)

    def test_fine_setup(self, app):
        assert names(app) == WRITTEN


@pytest.mark.usefixtures("app")
class TestOfUnittest(unittest.TestCase):
    def test_fine_unittest(self):
        from conftest import apps

        assert names(apps[-1]) == MADE
        write(apps[-1])


def test_leak_of_a_view(app):
    write(app)
    app.test_client().get("/connection")


def test_fine_counts(app, count_statements):
    with count_statements(at_most=1) as sent:
        app.test_client().get("/items")
    assert len(sent) == 1


@pytest.mark.real_commits
def test_fine_commits_for_real(app):
    with app.app_context():
        if db.session.scalar(select(Item).filter_by(name="real")) is None:
            db.session.add(Item(name="real"))
            db.session.commit()
