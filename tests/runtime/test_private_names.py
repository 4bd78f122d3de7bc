"""Private names of Flask's and SQLAlchemy's that make us faster, and life without."""

from __future__ import annotations

from contextvars import ContextVar

from flask import Flask
from inside import context as _context
from sqlalchemy.orm import scoped_session
from sqlalchemy.orm import Session


def test_flask_has_the_variable_of_the_current_context() -> None:
    assert isinstance(_context._app_variable, ContextVar)


def test_sqlalchemy_has_what_its_proxies_ask() -> None:
    assert isinstance(vars(scoped_session).get("_proxied"), property)


def test_sqlalchemy_tells_whether_a_session_is_clean() -> None:
    session = Session()
    assert session._is_clean() is True
    session.__dict__["_new"] = {1: object()}
    assert session._is_clean() is False


def test_sqlalchemy_flushes_by_itself_through_a_method_of_its_own() -> None:
    assert callable(vars(Session).get("_autoflush"))


def test_without_the_names_the_proxies_answer_the_same() -> None:
    app = Flask("names")
    assert _context._proxied_context() is _context.current_context() is None
    assert _context._proxied_request() is _context.request_or_none() is None
    with app.app_context():
        assert _context._proxied_context() is _context.current_context() is not None
        assert _context._proxied_request() is _context.request_or_none() is None
    with app.test_request_context():
        assert _context._proxied_context() is _context.current_context() is not None
        assert _context._proxied_request() is _context.request_or_none() is not None
