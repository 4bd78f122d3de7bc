"""What cannot be isolated is an error that names it, and never becomes real."""

from __future__ import annotations

import os
import sqlite3
import threading

import pytest
import sqlalchemy as sa
from items import by_begin
from items import by_session
from items import INSERT
from items import Item
from items import names
from sqlalchemy.dialects.sqlite.pysqlite import SQLiteDialect_pysqlite
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import IntegrityError

from flask_scopedsession import ScopedSession
from flask_scopedsession.errors import IsolationError
from flask_scopedsession.errors import UnsavedWork
from flask_scopedsession.testing import isolate

SQLITE = pytest.mark.databases("sqlite", "memory")
POSTGRESQL = pytest.mark.databases("postgresql", "psycopg2")
SERVERS = pytest.mark.databases("postgresql", "psycopg2", "mariadb")


# -- settings of a connection ------------------------------------------------------


def test_autocommit(flask_app, db):
    level = {"isolation_level": "AUTOCOMMIT"}
    with isolate(flask_app), flask_app.app_context():
        by_session(db, "new")
        engine = db.engine.execution_options(**level)
        with pytest.raises(IsolationError, match="'default'.*AUTOCOMMIT"):
            engine.connect()
        connection = db.engine.connect()
        with pytest.raises(IsolationError, match="AUTOCOMMIT"):
            connection.execution_options(**level)
        connection.close()
        with pytest.raises(IsolationError, match="AUTOCOMMIT"):
            db.session.connection(execution_options=level)
        db.session.rollback()
        assert names(db) == ["kept", "new"]


def test_autocommit_of_an_engine(make_app, flask_app):
    db = ScopedSession()
    app = make_app(
        db,
        SQLALCHEMY_DATABASE_URI=flask_app.config["SQLALCHEMY_DATABASE_URI"],
        SQLALCHEMY_ENGINE_OPTIONS={"isolation_level": "AUTOCOMMIT"},
    )
    with (
        isolate(app),
        app.app_context(),
        pytest.raises(IsolationError, match="AUTOCOMMIT"),
    ):
        db.engine.connect()


def test_other_isolation_levels_hold(flask_app, db):
    """Transactions one after the other are serializable."""
    level = {"isolation_level": "SERIALIZABLE"}
    with isolate(flask_app), flask_app.app_context():
        with db.engine.connect().execution_options(**level) as connection:
            connection.execute(sa.text(INSERT.format("new")))
            connection.commit()
        db.session.connection(execution_options=level)
        by_session(db, "second")
        assert names(db) == ["kept", "new", "second"]


@POSTGRESQL
def test_read_only_transactions(flask_app, db):
    level = {"postgresql_readonly": True}
    with isolate(flask_app), flask_app.app_context():
        with db.engine.connect().execution_options(**level) as connection:
            assert connection.scalar(sa.select(Item.name)) == "kept"
            with pytest.raises(DBAPIError, match="read-only"):
                connection.execute(sa.text(INSERT.format("new")))
        by_session(db, "second")
        assert names(db) == ["kept", "second"]


@SQLITE
def test_pragmas(flask_app, db):
    with isolate(flask_app), flask_app.app_context():
        by_session(db, "new")
        with db.engine.begin() as connection:
            for pragma in ("foreign_keys = ON", "foreign_keys(1)", "journal_mode=WAL"):
                with pytest.raises(IsolationError, match="PRAGMA.*transaction"):
                    connection.execute(sa.text(f"PRAGMA {pragma}"))
            assert connection.execute(sa.text("PRAGMA table_info('item')")).all()
            connection.execute(sa.text("PRAGMA recursive_triggers = ON"))
            connection.execute(sa.text("PRAGMA user_version = 7"))
        assert names(db) == ["kept", "new"]
    with flask_app.app_context(), db.engine.connect() as connection:
        assert connection.scalar(sa.text("PRAGMA recursive_triggers")) == 0
        assert connection.scalar(sa.text("PRAGMA user_version")) == 0


@pytest.mark.databases("mariadb")
def test_settings_of_a_session_of_mariadb(flask_app, db):
    query = sa.text("SELECT @@SESSION.sql_safe_updates")
    with isolate(flask_app), flask_app.app_context():  # noqa: SIM117
        with db.engine.begin() as connection:
            connection.execute(sa.text("SET SESSION sql_safe_updates = 1"))
            assert connection.scalar(query) == 1
    with flask_app.app_context(), db.engine.connect() as connection:
        assert connection.scalar(query) == 0


@pytest.mark.databases("mariadb")
def test_tables_without_transactions(flask_app, db):
    """Refused; what a trigger writes there is seen at the end."""
    with flask_app.app_context():
        with db.engine.begin() as connection:
            trigger = "CREATE TRIGGER plain AFTER UPDATE ON item FOR EACH ROW"
            insert = "INSERT INTO plain VALUES (1)"
            create = "CREATE TABLE plain (id INTEGER) ENGINE=MyISAM"
            for text in (create, f"{trigger} {insert}"):
                connection.execute(sa.text(text))
        with isolate(flask_app):
            with (
                db.engine.begin() as connection,
                pytest.raises(IsolationError, match="knows no transactions"),
            ):
                connection.execute(sa.text(insert))
            by_begin(db, "it\\'s; COMMIT")
            with db.engine.begin() as connection:
                connection.exec_driver_sql(INSERT.format("it\\'s; COMMIT; x"))
                connection.execute(sa.text("CREATE TEMPORARY TABLE extra (a INTEGER)"))
        with (
            pytest.raises(IsolationError, match="changed plain, for real"),
            isolate(flask_app),
            db.engine.begin() as connection,
        ):
            connection.execute(sa.update(Item).values(name="changed"))
        with db.engine.begin() as connection:
            connection.execute(sa.text("DROP TRIGGER plain"))
            connection.execute(sa.text("DROP TABLE plain"))


# -- statements --------------------------------------------------------------------


@SERVERS
def test_two_phase(flask_app, db):
    def prepare():
        with db.engine.connect() as connection:
            transaction = connection.begin_twophase()
            connection.execute(sa.insert(Item).values(name="new"))
            transaction.prepare()

    with isolate(flask_app), flask_app.app_context():
        with pytest.raises(IsolationError, match="two-phase"):
            prepare()
        raw = db.engine.raw_connection()
        with pytest.raises(IsolationError, match="tpc_begin"):
            raw.driver_connection.tpc_begin("x")
        raw.close()
        assert names(db) == ["kept"]


@POSTGRESQL
@pytest.mark.parametrize("statement", ["LISTEN x", "unlisten *", "-- c\nLISTEN x"])
def test_listen(flask_app, db, statement):
    with (
        isolate(flask_app),
        flask_app.app_context(),
        db.engine.connect() as connection,
        pytest.raises(IsolationError, match="notifications"),
    ):
        connection.exec_driver_sql(statement)


@POSTGRESQL
def test_what_needs_no_transaction(flask_app, db):
    """PostgreSQL itself refuses it."""
    with isolate(flask_app), flask_app.app_context():
        by_session(db, "new")
        for statement in ("VACUUM", "CREATE DATABASE never"):
            with db.engine.connect() as connection, pytest.raises(DBAPIError):
                connection.execute(sa.text(statement))
        assert names(db) == ["kept", "new"]


@POSTGRESQL
def test_control_among_several_statements(flask_app, db):
    with isolate(flask_app), flask_app.app_context():
        with db.engine.connect() as connection:
            for text in (f"{INSERT.format('x')}; COMMIT", "/* a */ commit;select 1"):
                with pytest.raises(IsolationError, match="several statements"):
                    connection.exec_driver_sql(text)
            connection.exec_driver_sql(f"{INSERT.format('; COMMIT')}; SELECT 1")
            connection.commit()
        assert names(db) == ["kept", "; COMMIT"]


@SQLITE
def test_statement_that_ends_every_transaction(flask_app, db):
    """SQLite rolls everything back by ON CONFLICT ROLLBACK."""
    with isolate(flask_app), flask_app.app_context():
        by_session(db, "new")
        text = INSERT.format("new").replace("INSERT", "INSERT OR ROLLBACK")
        with db.engine.connect() as connection:
            with pytest.raises(IsolationError, match="has ended the transaction"):
                connection.execute(sa.text(text))
            with pytest.raises(IsolationError, match="has ended the transaction"):
                connection.execute(sa.text(INSERT.format("later")))
        with pytest.raises(IsolationError, match="has ended the transaction"):
            by_session(db, "later")


# -- raw connections -----------------------------------------------------------------


@pytest.mark.databases("postgresql")
def test_psycopg(flask_app, db):
    from psycopg import sql

    with isolate(flask_app), flask_app.app_context():
        raw = db.engine.raw_connection()
        driver = raw.driver_connection
        with driver.transaction():
            driver.execute(INSERT.format("kept by transaction()"))
            with driver.transaction(force_rollback=True):
                driver.execute(INSERT.format("inner"))
        driver.rollback()
        with driver.cursor() as cursor:
            insert = sql.SQL("INSERT INTO item (name) VALUES ({})")
            cursor.execute(insert.format(sql.Literal("composed")))
            cursor.execute(sql.SQL("COMMIT"))
            cursor.connection.rollback()
            with cursor.copy("COPY item (name) FROM STDIN") as copy:
                copy.write_row(["copied"])
            cursor.execute(b"ROLLBACK")
            with cursor.copy("COPY item (name) FROM STDIN") as copy:
                copy.write_row(["copied"])
        with driver:
            pass
        raw.close()
        expected = ["kept", "kept by transaction()", "composed", "copied"]
        assert names(db) == expected


@pytest.mark.databases("psycopg2")
def test_psycopg2(flask_app, db):
    import io

    from psycopg2 import extras

    with isolate(flask_app), flask_app.app_context():
        raw = db.engine.raw_connection()
        driver = raw.driver_connection
        with driver, driver.cursor() as cursor:
            cursor.execute(INSERT.format("by with"))
        with driver.cursor() as cursor:
            cursor.copy_expert("COPY item (name) FROM STDIN", io.StringIO("copied\n"))
            insert = "INSERT INTO item (name) VALUES %s"
            extras.execute_values(cursor, insert, [("several",), ("values",)])
            extras.execute_batch(cursor, insert.replace("%s", "(%s)"), [["batch"]])
            cursor.connection.commit()
            cursor.execute(INSERT.format("rolled back"))
        with pytest.raises(IsolationError, match="AUTOCOMMIT"):
            driver.autocommit = True
        with pytest.raises(IsolationError, match="AUTOCOMMIT"):
            driver.set_isolation_level(0)
        with pytest.raises(IsolationError, match="reset"):
            driver.reset()
        raw.close()
        expected = ["kept", "by with", "copied", "several", "values", "batch"]
        assert names(db) == expected


@SQLITE
def test_sqlite3(flask_app, db):
    with isolate(flask_app), flask_app.app_context():
        raw = db.engine.raw_connection()
        driver = raw.driver_connection
        with driver:
            driver.execute(INSERT.format("by with"))
        driver.executemany("INSERT INTO item (name) VALUES (?)", [["many"]])
        assert driver.in_transaction
        driver.executescript(
            "CREATE TABLE x (a); CREATE TRIGGER t AFTER INSERT ON x BEGIN"
            " INSERT INTO item (name) VALUES ('by ; trigger'); END;"
            " INSERT INTO x VALUES (1); BEGIN; DELETE FROM x; COMMIT"
        )
        assert not driver.in_transaction
        driver.execute(INSERT.format("rolled back"))
        assert [row[0] for row in driver.execute("SELECT a FROM x")] == []
        with pytest.raises(IsolationError, match="AUTOCOMMIT"):
            driver.isolation_level = None
        raw.close()
        raw = db.engine.raw_connection()
        with pytest.raises(sqlite3.IntegrityError):
            raw.driver_connection.executescript(
                f"{INSERT.format('first')}; {INSERT.format('first')}; SELECT 1"
            )
        with pytest.raises(sqlite3.IntegrityError):
            raw.driver_connection.executescript(
                f"BEGIN; {INSERT.format('second')}; {INSERT.format('second')}; COMMIT"
            )
        raw.close()
        assert names(db)[1:] == ["by with", "many", "by ; trigger", "first"]


# -- constraints that are checked at a commit ----------------------------------------


@pytest.mark.databases("sqlite", "memory", "postgresql", "psycopg2")
def test_deferred_constraints(flask_app, db):
    """They fail at the commit that breaks them, and are deferred as long as before."""

    with flask_app.app_context():
        engine = db.engine
    is_sqlite = engine.dialect.name == "sqlite"
    if is_sqlite:

        @sa.event.listens_for(engine, "connect")
        def connected(connection, _):
            connection.execute("PRAGMA foreign_keys = ON")

        with engine.connect() as connection:
            connection.connection.driver_connection.execute("PRAGMA foreign_keys = ON")
    create = (
        "CREATE TABLE part (id INTEGER PRIMARY KEY, whole INTEGER REFERENCES part (id)"
        " DEFERRABLE INITIALLY DEFERRED)"
    )
    with isolate(flask_app), flask_app.app_context():
        with engine.begin() as connection:
            connection.execute(sa.text(create))
        for _ in range(2):
            connection = engine.connect()
            connection.execute(sa.text("INSERT INTO part VALUES (1, 2)"))
            with pytest.raises(IntegrityError):
                connection.commit()
            connection.close()
            with engine.begin() as connection:
                assert connection.scalar(sa.text("SELECT count(*) FROM part")) == 0
                connection.execute(sa.text("INSERT INTO part VALUES (3, 4)"))
                connection.execute(sa.text("INSERT INTO part VALUES (4, 3)"))
            with engine.begin() as connection:
                connection.execute(sa.text("DELETE FROM part"))


# -- before, after, and other processes ----------------------------------------------


def test_connection_that_is_out_at_the_beginning(flask_app, db):
    with flask_app.app_context():
        connection = db.engine.connect()
        with (
            pytest.raises(IsolationError, match=r"'default'.*test_refused\.py"),
            isolate(flask_app),
        ):
            pass
        connection.close()
        with isolate(flask_app):
            by_begin(db, "new")


def test_session_with_changes_at_the_beginning(flask_app, db):
    with flask_app.app_context():
        db.session.add(Item(name="pending"))
        with (
            pytest.raises(UnsavedWork, match=r"isolate\(\).*1 Item"),
            isolate(flask_app),
        ):
            pass
        db.session.rollback()
        with isolate(flask_app):
            by_session(db, "new")
            db.session.add(Item(name="pending"))
            with pytest.raises(UnsavedWork), isolate(flask_app):
                pass
            db.session.rollback()
            with db.engine.connect() as connection:
                connection.execute(sa.text(INSERT.format("pending")))
                with (
                    pytest.raises(IsolationError, match="uncommitted"),
                    isolate(flask_app),
                ):
                    pass
            assert names(db) == ["kept", "new"]


def test_own_session_with_changes_at_the_beginning(flask_app, db):
    with flask_app.app_context():
        session = db.sessionmaker()
        session.add(Item(name="pending"))
        with (
            pytest.raises(UnsavedWork, match=r"of a session of db\.sessionmaker\(\),"),
            isolate(flask_app),
        ):
            pass
        session.close()


def test_layer_ends_what_was_checked_out_before(flask_app, db):
    """A connection of the outer block that has written in the inner one."""
    with isolate(flask_app), flask_app.app_context():
        outer, reader = db.engine.connect(), db.engine.connect()
        with isolate(flask_app):
            outer.execute(sa.text(INSERT.format("lost")))
        with pytest.raises(IsolationError, match="has ended"):
            outer.commit()
        outer.close()
        assert reader.scalar(sa.select(sa.func.count(Item.id))) == 1
        reader.close()
        by_session(db, "new")


@pytest.mark.databases("sqlite", "postgresql")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_forked_process(flask_app, db):
    """As pytest-flask's live_server: it would commit for real."""
    with isolate(flask_app), flask_app.app_context():
        by_session(db, "new")
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                with flask_app.app_context():
                    by_begin(db, "child")
            except IsolationError as error:
                code = 0 if "forked" in str(error) else 2
            finally:
                os._exit(code)
        assert os.waitpid(pid, 0)[1] == 0
        by_session(db, "second")
        assert names(db) == ["kept", "new", "second"]


@SERVERS
def test_lost_connection(flask_app, db, backends):
    with isolate(flask_app), flask_app.app_context():
        by_session(db, "new")
        backends.kill_all()
        with pytest.raises(IsolationError, match="failed"):
            by_begin(db, "second")
        with pytest.raises(IsolationError, match="failed"):
            by_begin(db, "second")


@SERVERS
def test_idle_connection_that_died_before(flask_app, db, backends):
    with flask_app.app_context():
        by_begin(db, "x")
    backends.kill_all()
    with isolate(flask_app), flask_app.app_context():
        by_begin(db, "new")
        with db.engine.begin() as connection:
            connection.execute(sa.delete(Item).where(Item.name == "x"))
    with flask_app.app_context(), db.engine.begin() as connection:
        connection.execute(sa.delete(Item).where(Item.name == "x"))


class Unknown(SQLiteDialect_pysqlite):
    name = "unknown"
    supports_statement_cache = True


def test_unknown_dialect_is_refused_when_it_is_used(make_app, sqlite_url):
    sa.dialects.registry.impls["unknown.driver"] = lambda: Unknown
    db = ScopedSession()
    binds = {"other": "unknown+driver://"}
    app = make_app(db, SQLALCHEMY_DATABASE_URI=sqlite_url, SQLALCHEMY_BINDS=binds)
    with isolate(app), app.app_context():
        assert db.session.scalar(sa.text("SELECT 1")) == 1
        with pytest.raises(IsolationError, match=r"'other'.*dialect unknown"):
            db.get_engine("other").connect()


def test_pool_of_the_application(make_app, sqlite_url):
    engine = sa.create_engine(sqlite_url)
    for config, message in (
        (
            {"SQLALCHEMY_ENGINE_OPTIONS": {"pool": engine.pool}},
            "'default'.*'poolclass'",
        ),
        ({"SCOPEDSESSION_TRACKING": False}, "SCOPEDSESSION_TRACKING"),
    ):
        app = make_app(ScopedSession(), SQLALCHEMY_DATABASE_URI=sqlite_url, **config)
        with pytest.raises(IsolationError, match=message), isolate(app):
            pass
    engine.dispose()


def test_errors_are_not_sqlalchemys():
    """An application that handles those would hide them from the test."""
    assert not issubclass(IsolationError, sa.exc.SQLAlchemyError)


def test_threads_are_no_exception(flask_app, db):
    with isolate(flask_app):
        errors = []

        def work():
            with flask_app.app_context():
                try:
                    db.engine.connect().execution_options(isolation_level="AUTOCOMMIT")
                except IsolationError as error:
                    errors.append(error)

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        assert len(errors) == 1
