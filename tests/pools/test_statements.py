"""What statements and the ends of transactions leave in the account."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from flask_scopedsession import ScopedSession

MakeApp = Callable[..., Any]


@pytest.fixture
def db(make_app: MakeApp, sqlite_url: str) -> Any:
    db = ScopedSession()
    app = make_app(db, SQLALCHEMY_DATABASE_URI=sqlite_url)
    with app.app_context():
        yield db


@pytest.mark.parametrize("method", ["do_commit", "do_rollback"])
def test_a_driver_s_own_connection(db: Any, method: str) -> None:
    """It can be given to the dialect; psycopg's has an ``info`` of another kind."""

    class Connection(sqlite3.Connection):
        info = SimpleNamespace(transaction_status=0)

    connection = sqlite3.connect(":memory:", factory=Connection)
    connection.execute("CREATE TABLE item (id INTEGER)")
    connection.execute("INSERT INTO item VALUES (1)")
    getattr(db.engine.dialect, method)(connection)
    assert not connection.in_transaction
    connection.close()
