"""What statements and the ends of transactions leave in the account."""

from __future__ import annotations

import gc
import sqlite3
import tracemalloc
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from flask import current_app
from sqlalchemy import Column
from sqlalchemy import event
from sqlalchemy import insert
from sqlalchemy import Integer
from sqlalchemy import MetaData
from sqlalchemy import select
from sqlalchemy import Table
from threads import in_thread

from flask_scopedsession import ScopedSession

MakeApp = Callable[..., Any]

metadata = MetaData()
items = Table("item", metadata, Column("id", Integer, primary_key=True))


@pytest.fixture
def db(make_app: MakeApp, sqlite_url: str) -> Any:
    db = ScopedSession()
    engine_options: dict[str, Any] = {
        "pool_size": 1,
        "max_overflow": 0,
        "pool_timeout": 5,
        "connect_args": {"cached_statements": 1},
    }
    app = make_app(
        db,
        SQLALCHEMY_DATABASE_URI=sqlite_url,
        SQLALCHEMY_ENGINE_OPTIONS=engine_options,
    )
    with app.app_context():
        metadata.create_all(db.engine)
        db.engine.dispose()
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


def write(connection: Any, number: int) -> None:
    connection.execute(insert(items).values(id=number))


def test_a_detached_connection_still_writes(db: Any) -> None:
    """It belongs to its user alone, and nothing of it counts."""
    with db.engine.connect() as connection:
        write(connection, 1)
        connection.detach()
        write(connection, 2)
        (pool,) = db.snapshot().pools
        assert (pool.used, pool.open, pool.holders) == (0, 0, ())
        connection.commit()
        write(connection, 3)
    with db.engine.connect() as connection:
        assert connection.scalars(select(items.c.id)).all() == [1, 2]


def test_a_session_whose_connection_was_detached(
    db: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """It is reported when what it writes afterwards is lost."""
    with current_app.app_context():
        write(db.session.connection(), 1)
        db.session.connection().detach()
        write(db.session, 2)
    (lost,) = db.snapshot().lost_work
    assert dict(lost.objects) == {"item": 1}
    assert "unsaved changes were rolled back (1 item)" in caplog.text
    with db.engine.connect() as connection:
        assert connection.scalars(select(items.c.id)).all() == []


def test_a_pool_s_entry_that_is_reused_while_it_is_detached(db: Any) -> None:
    """The connection that another thread opens in it counts as open and used."""
    engine = db.engine
    before = db.snapshot().pools[0].hold_s.count
    others: list[Any] = []

    def open_another(*_: object) -> None:
        others.append(in_thread(engine.connect))

    with engine.connect() as connection:
        event.listen(engine, "detach", open_another, insert=True)
        connection.detach()
    event.remove(engine, "detach", open_another)
    (pool,) = db.snapshot().pools
    assert (pool.used, pool.open, pool.hold_s.count) == (1, 1, before + 1)
    write(others[0], 1)
    others[0].close()
    (pool,) = db.snapshot().pools
    assert (pool.used, pool.idle, pool.open) == (0, 1, 1)
    assert pool.hold_s.count == before + 2


def test_texts_of_large_statements_are_not_kept(db: Any) -> None:
    """INSERT for many rows has another text for each number of rows."""
    with db.engine.connect() as connection:
        gc.collect()
        tracemalloc.start()
        try:
            for number in range(40):
                rows = ", ".join(f"({each})" for each in range(9000 + number))
                connection.exec_driver_sql(f"INSERT INTO item VALUES {rows}")
                connection.rollback()
            kept, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert kept < 1_000_000


@pytest.mark.parametrize("tracking", [True, False])
@pytest.mark.parametrize("context", [(), (None,), {"context": None}])
def test_a_dialect_s_methods_without_a_context(
    make_app: MakeApp, sqlite_url: str, tracking: bool, context: Any
) -> None:
    """They are public, and the context of an execution is optional."""
    db: Any = ScopedSession()
    app = make_app(
        db, SQLALCHEMY_DATABASE_URI=sqlite_url, SCOPEDSESSION_TRACKING=tracking
    )
    given, named = ((), context) if isinstance(context, dict) else (context, {})
    with app.app_context():
        metadata.create_all(db.engine)
        dialect, raw = db.engine.dialect, db.engine.raw_connection()
        cursor = raw.cursor()
        dialect.do_execute(cursor, "INSERT INTO item VALUES (?)", (1,), *given, **named)
        dialect.do_executemany(
            cursor, "INSERT INTO item VALUES (?)", [(2,), (3,)], *given, **named
        )
        dialect.do_execute_no_params(cursor, "SELECT id FROM item", *given, **named)
        assert cursor.fetchall() == [(1,), (2,), (3,)]
        raw.close()


@pytest.mark.parametrize("tracking", [True, False])
def test_a_statement_as_an_engine_first_connects(
    make_app: MakeApp,
    sqlite_url: str,
    tracking: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Most dialects ask the server for its version, outside the pool."""
    db: Any = ScopedSession()
    app = make_app(
        db, SQLALCHEMY_DATABASE_URI=sqlite_url, SCOPEDSESSION_TRACKING=tracking
    )
    asked: list[Any] = []

    def initialize(connection: Any) -> None:
        connection.exec_driver_sql("SAVEPOINT a")
        asked.append(connection.exec_driver_sql("SELECT 1").scalar())

    with app.app_context():
        monkeypatch.setattr(db.engine.dialect, "initialize", initialize)
        with db.engine.connect() as connection:
            assert connection.exec_driver_sql("SELECT 2").scalar() == 2
    assert asked == [1]
