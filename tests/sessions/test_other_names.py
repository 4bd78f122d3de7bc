"""A name that ``db`` has in Flask-SQLAlchemy or its Lite is an error that helps."""

from __future__ import annotations

import pytest
import sqlalchemy
from flask import Flask

from flask_scopedsession import ScopedSession
from flask_scopedsession.errors import ConfigError
from flask_scopedsession.errors import SetupError
from flask_scopedsession.flask_sqlalchemy import SQLAlchemy


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("Column", "Import it: from sqlalchemy import Column."),
        ("Integer", "Import it: from sqlalchemy import Integer."),
        ("relationship", "Import it: from sqlalchemy.orm import relationship."),
        ("Table", "info={'bind_key': name}"),
        ("Query", "Use db.session.query(Model), or select()"),
        ("Pagination", "from flask_scopedsession.views import Pagination"),
        ("get_or_abort", "Use db.get_or_404()"),
        ("one_or_abort", "Use db.one_or_404()"),
        ("test_isolation", "isolate(app)"),
        ("get_async_engine", "db.async_session"),
        ("async_get_or_abort", "db.async_session"),
    ],
)
def test_the_error_says_what_to_write(name: str, says: str) -> None:
    with pytest.raises(AttributeError) as info:
        getattr(ScopedSession(), name)
    assert f"'ScopedSession' object has no attribute {name!r}. " in str(info.value)
    assert says in str(info.value)


@pytest.mark.parametrize("name", ["nonsense", "_app_engines", "__wrapped__", "engin"])
def test_no_other_name_gets_a_hint(name: str) -> None:
    """Python's own suggestion still finds the object and the name."""
    db = ScopedSession()
    with pytest.raises(AttributeError) as info:
        getattr(db, name)
    assert str(info.value) == f"'ScopedSession' object has no attribute {name!r}"
    assert (info.value.name, info.value.obj) == (name, db)


def test_names_with_a_hint_are_no_attributes() -> None:
    db = ScopedSession()
    assert not hasattr(db, "Column")
    assert not hasattr(ScopedSession, "Column")
    assert "Column" not in dir(db)
    assert {"session", "engine"} <= {*dir(db)}
    assert "Column" in dir(SQLAlchemy())


def test_the_error_of_a_property_is_not_hidden() -> None:
    class Own(ScopedSession):
        @property
        def column(self) -> object:
            return self.session.registry.nonsense

        @property
        def text(self) -> object:  # SQLAlchemy has this name, too
            return self.session.registry.nonsense

    for name in ("column", "text"):
        with pytest.raises(AttributeError, match="no attribute 'nonsense'$"):
            getattr(Own(), name)


def test_the_drop_in_has_the_names() -> None:
    """And the hints for Lite's."""
    db = SQLAlchemy()
    assert db.Column is sqlalchemy.Column
    with pytest.raises(AttributeError, match=r"Use db.get_or_404\(\)"):
        _ = db.get_or_abort


@pytest.mark.parametrize("key", ["SQLALCHEMY_ENGINES", "SQLALCHEMY_ASYNC_ENGINES"])
def test_the_configuration_of_lite(key: str) -> None:
    """Without a database of ours, it is an error that names that key, too."""
    app = Flask("lite")
    app.config[key] = {"default": "sqlite://"}
    with pytest.raises(ConfigError) as info:
        ScopedSession(app)
    assert "SQLALCHEMY_DATABASE_URI is not set" in str(info.value)
    assert f"{key} belongs to Flask-SQLAlchemy-Lite" in str(info.value)


def test_the_core_beside_the_drop_in() -> None:
    """The drop-in is a ScopedSession already, and the error says so."""
    app = Flask("both")
    app.config["SQLALCHEMY_DATABASE_URI"] = "sqlite://"
    old = SQLAlchemy(app)
    with pytest.raises(SetupError, match="Use the other one, <SQLAlchemy both>"):
        ScopedSession(app, model_class=old.Model)
    old.dispose(app)
