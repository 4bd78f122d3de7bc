"""Whatever an application commits inside isolate() is gone at the end."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import DeclarativeBase
from sqlalchemy.orm import Mapped
from sqlalchemy.orm import mapped_column

from flask_scopedsession import ScopedSession
from flask_scopedsession.errors import IsolationError
from flask_scopedsession.testing import isolate


class Base(DeclarativeBase):
    pass


class Item(Base):
    __tablename__ = "item"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(sa.String(40), unique=True)


INSERT = "INSERT INTO item (name) VALUES ('{}')"
TRANSACTIONAL_DDL = pytest.mark.databases("sqlite", "memory", "postgresql", "psycopg2")
POSTGRESQL = pytest.mark.databases("postgresql", "psycopg2")


def names(db: Any) -> list[str]:
    with db.engine.connect() as connection:
        return list(connection.scalars(sa.select(Item.name).order_by(Item.id)))


# -- ways of writing ------------------------------------------------------------


def by_session(db: Any, name: str) -> None:
    db.session.add(Item(name=name))
    db.session.commit()


def by_second_session(db: Any, name: str) -> None:
    with db.sessionmaker() as session, session.begin():
        session.add(Item(name=name))


def by_savepoint(db: Any, name: str) -> None:
    with db.session.begin_nested():
        db.session.add(Item(name=name))
    db.session.commit()


def by_begin(db: Any, name: str) -> None:
    with db.engine.begin() as connection:
        connection.execute(sa.insert(Item).values(name=name))


def by_connect(db: Any, name: str) -> None:
    with db.engine.connect() as connection:
        connection.execute(sa.text(INSERT.format(name)))
        connection.commit()


def by_raw(db: Any, name: str) -> None:
    raw = db.engine.raw_connection()
    cursor = raw.cursor()
    cursor.execute(INSERT.format(name))
    cursor.close()
    raw.commit()
    raw.close()


def by_driver_sql(db: Any, name: str) -> None:
    """The driver's connection itself, and statements that control the transaction."""
    raw = db.engine.raw_connection()
    cursor = raw.driver_connection.cursor()
    cursor.execute("BEGIN")
    cursor.execute(INSERT.format(name))
    cursor.execute("COMMIT")
    raw.close()


def by_executemany(db: Any, name: str) -> None:
    with db.engine.begin() as connection:
        connection.execute(sa.insert(Item), [{"name": name}, {"name": f"{name} 2"}])
        connection.execute(sa.delete(Item).where(Item.name == f"{name} 2"))


def by_thread(db: Any, name: str) -> None:
    from flask import current_app

    app = current_app._get_current_object()  # type: ignore[attr-defined]

    def work() -> None:
        with app.app_context():
            by_session(db, name)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()


WAYS = [
    by_session,
    by_second_session,
    by_savepoint,
    by_begin,
    by_connect,
    by_raw,
    by_driver_sql,
    by_executemany,
    by_thread,
]


@pytest.fixture
def app(make_app, database):
    """An application with one row on the test's database, which it still has after."""
    db = ScopedSession(model_class=Base)
    app = make_app(
        db,
        flask_options={"root_path": str(Path(__file__).parent)},
        SQLALCHEMY_DATABASE_URI=database.url,
        SQLALCHEMY_ENGINE_OPTIONS=database.options,
    )
    app.extensions["db"] = db
    with app.app_context():
        db.create_all()
        by_session(db, "kept")
    yield app
    with app.app_context():
        assert names(db) == ["kept"]
        assert db.snapshot().pools[0].used == 0
        by_session(db, "real")
        assert names(db) == ["kept", "real"]


@pytest.fixture
def db(app):
    return app.extensions["db"]


@pytest.mark.parametrize("write", WAYS)
def test_every_way(app, db, write):
    for _ in range(2):
        with isolate(app), app.app_context():
            write(db, "new")
            assert names(db) == ["kept", "new"]
        with app.app_context(), isolate(app):
            write(db, "new")
            assert names(db) == ["kept", "new"]


@pytest.mark.parametrize("write", WAYS)
def test_layers(app, db, write):
    with isolate(app), app.app_context():
        write(db, "module")
        for _ in range(2):
            with isolate(app):
                write(db, "test")
                assert names(db) == ["kept", "module", "test"]
            assert names(db) == ["kept", "module"]


def test_rollback_undoes_its_own_work_only(app, db):
    with isolate(app), app.app_context():
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


def test_savepoints(app, db):
    with isolate(app), app.app_context():
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


def test_error_inside(app, db):
    """PostgreSQL refuses everything after an error, until a rollback."""
    with isolate(app), app.app_context():
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


def test_error_that_leaves_the_block(app, db):
    def fail():
        with isolate(app), app.app_context():
            by_session(db, "new")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()


@POSTGRESQL
def test_failed_transaction_stays_failed(app, db):
    with isolate(app), app.app_context():
        by_session(db, "first")
        with pytest.raises(sa.exc.ProgrammingError):
            db.session.execute(sa.text("SELECT * FROM missing"))
        with pytest.raises(sa.exc.InternalError, match="aborted"):
            db.session.execute(sa.select(Item))
        db.session.rollback()
        assert names(db) == ["kept", "first"]


def test_captured_before(app, db):
    with app.app_context():
        engine, session = db.engine, db.session
        options = engine.execution_options(logging_token="x")
    with isolate(app), app.app_context():
        with engine.begin() as connection:
            connection.execute(sa.text(INSERT.format("engine")))
        with options.begin() as connection:
            connection.execute(sa.text(INSERT.format("options")))
        session.add(Item(name="session"))
        session.commit()
        assert len(names(db)) == 4


def test_open_session_before_and_after(app, db):
    """A session that goes on has what it had, and none of what came in between."""
    with app.app_context():
        kept = db.session.scalars(sa.select(Item)).one()
        with isolate(app):
            by_session(db, "new")
            kept.name = "changed"
            db.session.commit()
            assert names(db) == ["changed", "new"]
            db.session.add(Item(name="never committed"))
            db.session.flush()
        assert kept.name == "kept"
        assert db.session.scalars(sa.select(Item.name)).all() == ["kept"]


def test_reader_does_not_hinder_a_writer(app, db):
    """A test's session that has read, and the session of a request that commits."""

    @app.post("/items/<name>")
    def add(name):
        by_session(db, name)
        return "done"

    with isolate(app), app.app_context():
        by_session(db, "test")
        assert len(db.session.scalars(sa.select(Item)).all()) == 2
        with db.engine.connect() as connection:
            assert connection.scalar(sa.select(sa.func.count(Item.id))) == 2
            by_begin(db, "other")
            assert connection.scalar(sa.select(sa.func.count(Item.id))) == 3
        db.session.rollback()
        db.session.close()
        assert names(db) == ["kept", "test", "other"]
        assert app.test_client().post("/items/request").text == "done"
        db.session.rollback()
        assert names(db) == ["kept", "test", "other", "request"]


def test_second_transaction_of_a_thread(app, db):
    """It would see what is not committed, or a rollback would undo both."""
    with isolate(app), app.app_context():
        db.session.add(Item(name="flushed"))
        db.session.flush()
        with pytest.raises(IsolationError, match=r"bind 'default'.*test_isolate\.py"):
            by_begin(db, "second")
        db.session.commit()
        by_begin(db, "second")
        assert names(db) == ["kept", "flushed", "second"]


@TRANSACTIONAL_DDL
def test_ddl(app, db):
    with isolate(app), app.app_context():
        with db.engine.begin() as connection:
            connection.execute(sa.text("CREATE TABLE extra (id INTEGER)"))
            connection.execute(sa.text("INSERT INTO extra VALUES (1)"))
        db.drop_all()
        assert sa.inspect(db.engine).get_table_names() == ["extra"]
        db.create_all()
        by_session(db, "new")
        assert names(db) == ["new"]
    with app.app_context():
        assert sa.inspect(db.engine).get_table_names() == ["item"]


@pytest.mark.databases("mariadb")
def test_ddl_of_mariadb_is_refused(app, db):
    with isolate(app), app.app_context():
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
