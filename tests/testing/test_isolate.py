"""Whatever an application commits inside isolate() is gone at the end."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import sqlalchemy as sa
from items import by_begin
from items import by_session
from items import INSERT
from items import Item
from items import names
from items import WAYS
from sqlalchemy.exc import IntegrityError

from flask_scopedsession.errors import IsolationError
from flask_scopedsession.testing import isolate

TRANSACTIONAL_DDL = pytest.mark.databases("sqlite", "memory", "postgresql", "psycopg2")
POSTGRESQL = pytest.mark.databases("postgresql", "psycopg2")


@pytest.mark.parametrize("write", WAYS)
def test_every_way(flask_app, db, write):
    for _ in range(2):
        with isolate(flask_app), flask_app.app_context():
            write(db, "new")
            assert names(db) == ["kept", "new"]
        with flask_app.app_context(), isolate(flask_app):
            write(db, "new")
            assert names(db) == ["kept", "new"]


@pytest.mark.parametrize("write", WAYS)
def test_layers(flask_app, db, write):
    with isolate(flask_app), flask_app.app_context():
        write(db, "module")
        for _ in range(2):
            with isolate(flask_app):
                write(db, "test")
                assert names(db) == ["kept", "module", "test"]
            assert names(db) == ["kept", "module"]


def test_rollback_undoes_its_own_work_only(flask_app, db):
    with isolate(flask_app), flask_app.app_context():
        by_session(db, "committed")
        db.session.add(Item(name="flushed"))
        db.session.flush()
        db.session.rollback()
        with db.engine.connect() as connection:
            connection.execute(sa.text(INSERT.format("never committed")))
        raw = db.engine.raw_connection()
        raw.cursor().execute(INSERT.format("never committed"))
        raw.close()
        assert names(db) == ["kept", "committed"]


def test_savepoints(flask_app, db):
    with isolate(flask_app), flask_app.app_context():
        db.session.add(Item(name="outer"))
        inner = db.session.begin_nested()
        db.session.add(Item(name="inner"))
        db.session.flush()
        inner.rollback()
        with db.session.begin_nested():
            db.session.add(Item(name="second"))
        db.session.commit()
        db.session.rollback()
        assert names(db) == ["kept", "outer", "second"]


def test_error_inside(flask_app, db):
    """PostgreSQL refuses everything after an error, until a rollback."""
    with isolate(flask_app), flask_app.app_context():
        by_session(db, "first")
        with pytest.raises(IntegrityError):
            by_session(db, "first")
        db.session.rollback()
        with pytest.raises(IntegrityError), db.session.begin_nested():
            db.session.execute(sa.text(INSERT.format("first")))
        by_session(db, "second")
        with pytest.raises(sa.exc.DBAPIError):
            db.session.execute(sa.text("SELECT * FROM missing"))
        db.session.commit()
        with db.engine.connect() as connection, pytest.raises(sa.exc.DBAPIError):
            connection.execute(sa.text("SELECT * FROM missing"))
        assert names(db) == ["kept", "first", "second"]


def test_error_that_leaves_the_block(flask_app, db):
    def fail():
        with isolate(flask_app), flask_app.app_context():
            by_session(db, "new")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()


@POSTGRESQL
def test_failed_transaction_stays_failed(flask_app, db):
    with isolate(flask_app), flask_app.app_context():
        by_session(db, "first")
        with pytest.raises(sa.exc.ProgrammingError):
            db.session.execute(sa.text("SELECT * FROM missing"))
        with pytest.raises(sa.exc.InternalError, match="aborted"):
            db.session.execute(sa.select(Item))
        db.session.rollback()
        assert names(db) == ["kept", "first"]


def test_captured_before(flask_app, db):
    with flask_app.app_context():
        engine, session = db.engine, db.session
        options = engine.execution_options(logging_token="x")
    with isolate(flask_app), flask_app.app_context():
        with engine.begin() as connection:
            connection.execute(sa.text(INSERT.format("engine")))
        with options.begin() as connection:
            connection.execute(sa.text(INSERT.format("options")))
        session.add(Item(name="session"))
        session.commit()
        assert len(names(db)) == 4


def test_open_session_before_and_after(flask_app, db):
    """A session that goes on has what it had, and none of what came in between."""
    with flask_app.app_context():
        kept = db.session.scalars(sa.select(Item)).one()
        with isolate(flask_app):
            new = Item(name="new")
            db.session.add(new)
            kept.name = "changed"
            db.session.commit()
            assert names(db) == ["changed", "new"]
            assert new.id
            db.session.add(Item(name="never committed"))
            db.session.flush()
        assert kept.name == "kept"
        assert new.name == "new"
        assert db.session.scalars(sa.select(Item.name)).all() == ["kept"]
        assert db.session.get(Item, new.id) is None


def test_reader_does_not_hinder_a_writer(flask_app, db):
    """A test's session that has read, and the session of a request that commits."""

    @flask_app.post("/items/<name>")
    def add(name):
        by_session(db, name)
        return "done"

    with isolate(flask_app), flask_app.app_context():
        by_session(db, "test")
        assert len(db.session.scalars(sa.select(Item)).all()) == 2
        with db.engine.connect() as connection:
            assert connection.scalar(sa.select(sa.func.count(Item.id))) == 2
            by_begin(db, "other")
            assert connection.scalar(sa.select(sa.func.count(Item.id))) == 3
        db.session.rollback()
        db.session.close()
        assert names(db) == ["kept", "test", "other"]
        assert flask_app.test_client().post("/items/request").text == "done"
        db.session.rollback()
        assert names(db) == ["kept", "test", "other", "request"]


def test_rows_that_are_fetched_late(flask_app, db):
    """They are those of the time when the statement was executed."""
    query = sa.select(Item.name).order_by(Item.id)
    for options in ({}, {"yield_per": 1}):
        with isolate(flask_app), flask_app.app_context():
            for name in "abc":
                by_begin(db, name)
            with db.engine.connect() as connection:
                rows = connection.execute(query, execution_options=options).scalars()
                assert next(rows) == "kept"
                by_begin(db, "late")
                assert rows.all() == ["a", "b", "c"]


def test_parallel_threads(flask_app, db):
    """Each transaction is whole, sees no other's, and none is lost."""
    start = threading.Barrier(4)

    def work(number):
        start.wait(10)
        for step in range(6):
            with flask_app.app_context():
                seen = db.session.scalars(sa.select(Item)).all()
                assert len(seen) % 2 == 1
                db.session.add(Item(name=f"{number} {step} a"))
                db.session.flush()
                db.session.add(Item(name=f"{number} {step} b"))
                if step % 2:
                    db.session.rollback()
                else:
                    db.session.commit()
                assert len(names(db)) % 2 == 1

    with isolate(flask_app):
        with ThreadPoolExecutor(4) as threads:
            list(threads.map(work, range(4)))
        with flask_app.app_context():
            assert len(names(db)) == 1 + 4 * 3 * 2


def test_second_transaction_of_a_thread(flask_app, db):
    """It would see what is not committed, or a rollback would undo both."""
    with isolate(flask_app), flask_app.app_context():
        db.session.add(Item(name="flushed"))
        db.session.flush()
        with pytest.raises(IsolationError, match=r"bind 'default'.*test_isolate\.py"):
            by_begin(db, "second")
        db.session.commit()
        by_begin(db, "second")
        assert names(db) == ["kept", "flushed", "second"]


@TRANSACTIONAL_DDL
def test_ddl(flask_app, db):
    with isolate(flask_app), flask_app.app_context():
        with db.engine.begin() as connection:
            connection.execute(sa.text("CREATE TABLE extra (id INTEGER)"))
            connection.execute(sa.text("INSERT INTO extra VALUES (1)"))
        db.drop_all()
        assert sa.inspect(db.engine).get_table_names() == ["extra"]
        db.create_all()
        by_session(db, "new")
        assert names(db) == ["new"]
    with flask_app.app_context():
        assert sa.inspect(db.engine).get_table_names() == ["item"]


@pytest.mark.databases("mariadb")
def test_ddl_of_mariadb_is_refused(flask_app, db):
    with isolate(flask_app), flask_app.app_context():
        by_session(db, "new")
        for statement in (
            "CREATE TABLE extra (id INTEGER)",
            "TRUNCATE TABLE item",
            "/* c */ ALTER TABLE item ADD extra INTEGER",
            "LOCK TABLES item WRITE",
            "SET autocommit = 1",
            "XA BEGIN 'x'",
        ):
            with (
                pytest.raises(IsolationError, match="'default'"),
                db.engine.begin() as connection,
            ):
                connection.execute(sa.text(statement))
        with db.engine.begin() as connection:
            connection.execute(sa.text("CREATE TEMPORARY TABLE extra (id INTEGER)"))
        assert names(db) == ["kept", "new"]
