"""Flask-SQLAlchemy-Lite's own tests of its isolation pass on ours.

``lite/isolation.py`` is ``tests/test_isolation.py`` of its version 0.2.1, unchanged.
The archive of that in the package index has no tests.
"""

from __future__ import annotations

import sys
from contextlib import contextmanager
from contextlib import ExitStack
from pathlib import Path
from types import ModuleType
from typing import Any

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


#: What is replaced in them: the import, and what SQLAlchemy 2.0.0 does not know.
ADAPTED = {
    "from flask_sqlalchemy_lite import SQLAlchemy": "from sqlalchemy.orm import Mapped",
    "orm.Mapped[": "Mapped[",
    ".get_one(": ".get(",
}


def adapted() -> dict[str, Any]:
    """Run the module of the tests, with our class instead of Lite's."""
    source = (Path(__file__).parent / "lite" / "isolation.py").read_text("utf-8")
    for old, new in ADAPTED.items():
        assert old in source
        source = source.replace(old, new)
    module = ModuleType("lite_isolation")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, module.__name__, module)
        exec(compile(source, "lite/isolation.py", "exec"), vars(module))
    return vars(module)


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
TESTS = [LITE[name] for name in LITE if name.startswith("test_")]


@pytest.mark.parametrize("test", TESTS)
def test_lite(test, db):
    (app,) = db._apps
    test(app, db)


def test_all_are_there():
    assert len(TESTS) == 2
