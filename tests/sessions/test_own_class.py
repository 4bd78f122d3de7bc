"""What the user's session class adds or overrides, through the proxy."""

from __future__ import annotations

import threading
from unittest import mock

import pytest
from models import Base
from models import User
from sqlalchemy import event
from sqlalchemy import select
from sqlalchemy import text
from sqlalchemy.orm import scoped_session
from sqlalchemy.orm import Session

from flask_scopedsession import ScopedSession
from flask_scopedsession.errors import OutsideContext


class Mixin:
    def names(self):
        return self.scalars(select(User.name)).all()


class Own(Mixin, Session):
    color = "green"

    def commit(self, *, note=None):
        """An override with a parameter of its own."""
        self.info["note"] = note
        super().commit()

    @property
    def note(self):
        return self.info.get("note")

    @note.setter
    def note(self, value):
        self.info["note"] = value

    @property
    def broken(self):
        return self.no_such_thing

    @classmethod
    def close_all(cls):
        """An override of a class method, which scoped_session has as well."""
        return cls

    @staticmethod
    def double(number):
        return number * 2

    def remove(self):
        raise AssertionError("scoped_session's own is meant")

    def _private(self):
        """No part of the proxy."""


@pytest.fixture
def db():
    return ScopedSession(model_class=Base, session_options={"class_": Own})


@pytest.fixture
def shop(db, make_app, sqlite_url):
    """An application, with its context pushed."""
    shop = make_app(db, SQLALCHEMY_DATABASE_URI=sqlite_url)
    with shop.app_context():
        db.create_all()
        yield shop


def in_another_context(app, function):
    """Return what `function` returns in a context of another thread."""
    found = []

    def run():
        with app.app_context():
            found.append(function())

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(10)
    return found[0]


def test_methods(db, shop):
    db.session.add(User(name="ed"))
    db.session.commit(note="first")
    assert db.session.info["note"] == "first"
    assert db.session.names() == ["ed"]
    assert db.session.names.__self__ is db.session()
    assert not hasattr(db.session, "_private")
    assert {"names", "note", "color"} <= set(dir(db.session))


def test_attributes_are_those_of_the_session(db, shop):
    """What is set in one scope is not seen in another."""
    db.session.note, db.session.color = "mine", "red"
    assert (db.session().note, db.session().color) == ("mine", "red")
    assert in_another_context(shop, lambda: (db.session.note, db.session.color)) == (
        None,
        "green",
    )
    del db.session.color
    assert db.session.color == "green"


def test_an_attribute_that_raises(db, shop):
    """The error is that of the user's code."""
    with pytest.raises(AttributeError, match="no_such_thing"):
        _ = db.session.broken


def test_the_proxy_keeps_its_own(db, shop):
    assert isinstance(db.session, scoped_session)
    first = db.session()
    db.session.remove()
    assert db.session() is not first
    heard = []
    event.listen(db.session, "after_begin", lambda *_: heard.append(1))
    db.session.execute(text("SELECT 1"))
    assert heard == [1]


def test_a_mock(db, shop):
    """Methods can be replaced in a test, as those of any ``scoped_session``."""
    for name in ("names", "commit", "color"):
        with mock.patch.object(db.session, name, "replaced"):
            assert getattr(db.session, name) == "replaced"
        assert getattr(db.session, name) == getattr(db.session(), name)
    assert mock.create_autospec(db.session).names is not None


def test_outside_a_context(db):
    with pytest.raises(OutsideContext, match="app_context"):
        db.session.names()
    with pytest.raises(OutsideContext):
        db.session.color = "red"
    assert not hasattr(db.session, "nothing_of_the_sort")


def test_class_methods_need_no_context(db):
    assert issubclass(db.session.close_all(), Own)
    assert db.session.double(2) == 4


def test_a_plain_session(make_app):
    """There, the proxy is what it is in SQLAlchemy."""
    db = ScopedSession()
    plain = {name for name in dir(scoped_session) if not name.startswith("_")}
    found = {name for name in dir(db.session) if not name.startswith("_")}
    assert found - plain == {"registry", "session_factory"}
