"""Flask-SQLAlchemy-Lite's own tests of its isolation pass on ours.

``lite/isolation.py`` is ``tests/test_isolation.py`` of its version 0.2.1, unchanged.
The archive of that in the package index has no tests.
"""

from __future__ import annotations

import importlib.util
import sys
from contextlib import contextmanager
from contextlib import ExitStack
from pathlib import Path
from types import ModuleType

import pytest
import sqlalchemy as sa

from flask_scopedsession import ScopedSession
from flask_scopedsession.testing import isolate


class SQLAlchemy(ScopedSession):
    """What the tests use of Flask-SQLAlchemy-Lite's class."""

    @contextmanager
    def test_isolation(self):
        with ExitStack() as stack:
            for app in self._apps:
                stack.enter_context(isolate(app))
            yield


def adapted() -> ModuleType:
    """Import the tests, for which our class stands in for Lite's."""
    stand_in = ModuleType("flask_sqlalchemy_lite")
    stand_in.SQLAlchemy = SQLAlchemy  # type: ignore[attr-defined]
    path = Path(__file__).parent / "lite" / "isolation.py"
    spec = importlib.util.spec_from_file_location("lite_isolation", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "flask_sqlalchemy_lite", stand_in)
        patch.setitem(sys.modules, "lite_isolation", module)
        spec.loader.exec_module(module)
    return module


@pytest.fixture(params=["as it is", "begins", "recipe"])
def db(request, make_app):
    """The extension of an app; how it begins is ``SCOPEDSESSION_SQLITE_BEGIN``.

    Lite's tests need the recipe: its isolation does not hold without.
    """
    db = SQLAlchemy()
    begin = (
        {"SCOPEDSESSION_SQLITE_BEGIN": "DEFERRED"} if request.param == "begins" else {}
    )
    app = make_app(db, **begin)
    if request.param == "recipe":
        with app.app_context():
            engine = db.engine

        @sa.event.listens_for(engine, "connect")
        def connected(connection, _):
            connection.isolation_level = None

        @sa.event.listens_for(engine, "begin")
        def begin(connection):
            connection.exec_driver_sql("BEGIN")

    return db


LITE = adapted()
TESTS = [getattr(LITE, name) for name in vars(LITE) if name.startswith("test_")]


@pytest.mark.parametrize("test", TESTS)
def test_lite(test, db):
    (app,) = db._apps
    test(app, db)


def test_all_are_there():
    assert len(TESTS) == 2
