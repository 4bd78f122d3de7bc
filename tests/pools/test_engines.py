"""Engines: plain SQLAlchemy, SQLite's options, and the ping outside the pool."""

from __future__ import annotations

import socket
import sqlite3
import sys
import threading
from collections.abc import Callable
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from sqlalchemy import create_engine
from sqlalchemy import Engine
from sqlalchemy import event
from sqlalchemy import text
from sqlalchemy.dialects import registry
from sqlalchemy.dialects.sqlite.pysqlite import SQLiteDialect_pysqlite
from sqlalchemy.exc import OperationalError
from sqlalchemy.pool import NullPool
from sqlalchemy.pool import QueuePool
from sqlalchemy.pool import SingletonThreadPool
from sqlalchemy.pool import StaticPool
from waiting import wait_until

from flask_scopedsession import ScopedSession
from flask_scopedsession.errors import ConfigError
from flask_scopedsession.errors import PingError

MakeApp = Callable[..., Flask]


@pytest.fixture
def db() -> ScopedSession:
    return ScopedSession()


@contextmanager
def engine_of(app: Flask, db: ScopedSession, name: str = "default") -> Iterator[Engine]:
    with app.app_context():
        yield db.engines[name]


def rows(engine: Engine, statement: str) -> list[Any]:
    with engine.connect() as connection:
        return list(connection.execute(text(statement)).scalars())


def in_thread(function: Callable[[], Any]) -> Any:
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(function).result(10)


# Plain engines


def test_two_apps_have_their_own_engines(make_app: MakeApp, db: ScopedSession) -> None:
    """One extension object, one configuration dict, two databases of each."""
    config = {"SQLALCHEMY_BINDS": {"audit": {"url": "sqlite://"}}}
    first, second = make_app(db, **config), make_app(db, **config)
    with first.app_context():
        engine = db.engines["audit"]
    with second.app_context():
        assert db.engines["audit"] is not engine
    assert config == {"SQLALCHEMY_BINDS": {"audit": {"url": "sqlite://"}}}


def test_options_reach_the_engine(make_app: MakeApp, db: ScopedSession) -> None:
    """Those of the constructor, the configuration and the bind."""
    db = ScopedSession(engine_options={"pool_timeout": 7})
    app = make_app(
        db,
        SQLALCHEMY_DATABASE_URI="sqlite:///a.db",
        SQLALCHEMY_ENGINE_OPTIONS={"pool_size": "3", "max_overflow": 1},
        SQLALCHEMY_BINDS={"b": {"url": "sqlite:///b.db", "pool_size": 2}},
    )
    with app.app_context():
        pools: list[Any] = [engine.pool for engine in db.engines.values()]
    assert [pool.size() for pool in pools] == [3, 2]
    assert [pool.timeout() for pool in pools] == [7.0, 7.0]
    assert all(isinstance(pool, QueuePool) for pool in pools)


@pytest.fixture
def databases(short_tmp: Path) -> None:
    """Make SQLite's files, which a ping does not."""
    for name in ("a.db", "app.db", "audit.db"):
        (short_tmp / name).touch()


@pytest.mark.usefixtures("databases")
def test_all_off_leaves_the_pool_class(make_app: MakeApp, db: ScopedSession) -> None:
    """Then the pool is the very class that SQLAlchemy chooses."""
    app = make_app(
        db,
        SQLALCHEMY_DATABASE_URI="sqlite:///a.db",
        SCOPEDSESSION_TRACKING=False,
        SCOPEDSESSION_FAIR_POOL=False,
    )
    with engine_of(app, db) as engine:
        assert type(engine.pool) is QueuePool
        assert db.ping() > 0


def test_ready_made_pool(make_app: MakeApp, db: ScopedSession) -> None:
    """A pool instance is used as it is."""
    pool = QueuePool(lambda: sqlite3.connect(":memory:"), pool_size=1)
    app = make_app(db, SQLALCHEMY_ENGINE_OPTIONS={"pool": pool})
    with engine_of(app, db) as engine:
        assert engine.pool is pool
        assert rows(engine, "SELECT 1") == [1]


def test_pool_class_by_name(make_app: MakeApp, db: ScopedSession) -> None:
    """As from the environment."""
    app = make_app(
        db,
        SQLALCHEMY_DATABASE_URI="sqlite:///a.db",
        SQLALCHEMY_ENGINE_OPTIONS={"poolclass": "NullPool"},
    )
    with engine_of(app, db) as engine:
        assert isinstance(engine.pool, NullPool)


def test_own_pool_class(make_app: MakeApp, db: ScopedSession) -> None:
    """A class of the user's keeps its behaviour, and its name in the log."""

    class Narrow(QueuePool):
        pass

    options = {"poolclass": Narrow, "pool_size": 1}
    app = make_app(
        db, SQLALCHEMY_DATABASE_URI="sqlite:///a.db", SQLALCHEMY_ENGINE_OPTIONS=options
    )
    with engine_of(app, db) as engine:
        assert isinstance(engine.pool, Narrow)
        assert type(engine.pool).__name__ == "Narrow"
    assert options == {"poolclass": Narrow, "pool_size": 1}


# Where SQLite files are


def test_relative_path(make_app: MakeApp, db: ScopedSession, short_tmp: Path) -> None:
    """In the instance folder, with its subfolder, both created."""
    instance = short_tmp / "not" / "yet"
    app = make_app(
        db,
        flask_options={"instance_path": str(instance)},
        SQLALCHEMY_DATABASE_URI="sqlite:///data/app.db",
    )
    with engine_of(app, db) as engine:
        assert rows(engine, "SELECT 1") == [1]
    assert (instance / "data" / "app.db").is_file()


@pytest.mark.parametrize("name", ["app.db", "sub/app.db"])
def test_relative_uri(
    make_app: MakeApp, db: ScopedSession, short_tmp: Path, name: str
) -> None:
    """One of SQLite's own URIs, whose path may hold what a URL may not."""
    instance = short_tmp / "50% new?"
    app = make_app(
        db,
        flask_options={"instance_path": str(instance)},
        SQLALCHEMY_DATABASE_URI=f"sqlite:///file:{name}?mode=rwc&uri=true",
    )
    with engine_of(app, db) as engine:
        assert rows(engine, "SELECT 1") == [1]
    assert (instance / name).is_file()


def test_absolute_paths(make_app: MakeApp, db: ScopedSession, short_tmp: Path) -> None:
    """They are the user's: used as they are, and no folder is created."""
    there = short_tmp / "there.db"
    app = make_app(
        db,
        SQLALCHEMY_DATABASE_URI=f"sqlite:///{short_tmp}/no/folder/app.db",
        SQLALCHEMY_BINDS={
            "plain": f"sqlite:///{there}",
            "uri": f"sqlite:///file:{there}?mode=ro&uri=true",
        },
    )
    with app.app_context():
        assert rows(db.engines["plain"], "SELECT 1") == [1]
        assert there.is_file()
        assert rows(db.engines["uri"], "SELECT 1") == [1]
        with pytest.raises(OperationalError, match="readonly"):
            rows(db.engines["uri"], "CREATE TABLE t (a)")
        with pytest.raises(OperationalError):
            rows(db.engine, "SELECT 1")
    assert not (short_tmp / "no").exists()


def test_file_without_uri_is_a_name(
    make_app: MakeApp, db: ScopedSession, short_tmp: Path
) -> None:
    """Without ``uri=true``, ``file:`` begins a file's name."""
    app = make_app(db, SQLALCHEMY_DATABASE_URI="sqlite:///file:app.db")
    with engine_of(app, db) as engine:
        rows(engine, "SELECT 1")
    assert (short_tmp / "file:app.db").is_file()


def test_folder_that_cannot_be_created(
    make_app: MakeApp, db: ScopedSession, short_tmp: Path
) -> None:
    """The error names the key, the folder and the remedy."""
    (short_tmp / "file").touch()
    with pytest.raises(ConfigError) as info:
        make_app(db, SQLALCHEMY_DATABASE_URI="sqlite:///file/app.db")
    message = str(info.value)
    assert message.startswith("SQLALCHEMY_DATABASE_URI: the folder of the SQLite file")
    assert str(short_tmp / "file") in message
    assert "cannot be created" in message


class ServedDialect(SQLiteDialect_pysqlite):
    """As libSQL's: SQLite's SQL, sent to a server."""

    driver = "served"
    supports_statement_cache = True

    def create_connect_args(self, url: Any) -> Any:
        return ([":memory:"], {})


def test_sqlite_dialect_of_a_server(
    make_app: MakeApp, db: ScopedSession, short_tmp: Path
) -> None:
    """It is left alone: no path is changed, and no pool chosen."""
    registry.register("sqlite.served", __name__, "ServedDialect")
    host, path = "sqlite+served://db.example:8080/?secure=true", "sqlite+served:///a.db"
    app = make_app(
        db,
        SQLALCHEMY_DATABASE_URI=host,
        SQLALCHEMY_BINDS={"path": path, "memory": "sqlite+served://"},
        SCOPEDSESSION_SQLITE_BEGIN="IMMEDIATE",
    )
    with app.app_context():
        assert str(db.engine.url) == host
        assert str(db.engines["path"].url) == path
        assert isinstance(db.engines["memory"].pool, SingletonThreadPool)
        assert rows(db.engine, "SELECT 1") == [1]
        assert db.snapshot().pools[0].url.host == "db.example"
        db.dispose()


def test_creator(make_app: MakeApp, db: ScopedSession, short_tmp: Path) -> None:
    """With a ``creator``, neither the URL's path nor its folder is touched."""
    path = short_tmp / "own.db"
    made: list[sqlite3.Connection] = []

    def creator() -> sqlite3.Connection:
        made.append(sqlite3.connect(path, check_same_thread=False))
        return made[-1]

    app = make_app(
        db,
        SQLALCHEMY_DATABASE_URI="sqlite:///folder/unused.db",
        SQLALCHEMY_ENGINE_OPTIONS={"creator": creator},
    )
    with engine_of(app, db) as engine:
        assert rows(engine, "SELECT 1") == [1]
        assert len(made) == 1
        assert db.ping() > 0
        assert len(made) == 2
    assert path.is_file()
    assert not (short_tmp / "folder").exists()


# SQLite's transactions and pragmas


def sqlite_app(make_app: MakeApp, db: ScopedSession, **config: Any) -> Flask:
    return make_app(db, SQLALCHEMY_DATABASE_URI="sqlite:///app.db", **config)


def test_nothing_by_default(make_app: MakeApp, db: ScopedSession) -> None:
    """Without our keys, every setting is that of a bare engine."""
    app = sqlite_app(make_app, db)
    with engine_of(app, db) as engine:
        bare = create_engine(engine.url)
        for pragma in ("foreign_keys", "journal_mode", "busy_timeout", "synchronous"):
            assert rows(engine, f"PRAGMA {pragma}") == rows(bare, f"PRAGMA {pragma}")
        with engine.connect() as connection:
            driver: Any = connection.connection.dbapi_connection
            connection.execute(text("SELECT 1"))
            assert not driver.in_transaction  # it begins before it writes, no sooner
            assert driver.isolation_level == ""
        bare.dispose()


@pytest.mark.parametrize("begin", [None, "IMMEDIATE"])
@pytest.mark.parametrize(
    "autocommit", [None, False] if sys.version_info >= (3, 12) else [None]
)
def test_pragmas(
    make_app: MakeApp, db: ScopedSession, begin: str | None, autocommit: bool | None
) -> None:
    """They are in force on every connection, also with Python 3.12's autocommit."""
    options: dict[str, Any] = {}
    if autocommit is not None:
        options = {"connect_args": {"autocommit": autocommit}}
    app = sqlite_app(
        make_app,
        db,
        SQLALCHEMY_ENGINE_OPTIONS=options,
        SCOPEDSESSION_SQLITE_BEGIN=begin,
        SCOPEDSESSION_SQLITE_PRAGMAS={
            "foreign_keys": True,
            "journal_mode": "WAL",
            "busy_timeout": 1234,
        },
    )
    with engine_of(app, db) as engine, engine.connect(), engine.connect():
        for pragma, value in (
            ("foreign_keys", 1),
            ("journal_mode", "wal"),
            ("busy_timeout", 1234),
        ):
            assert rows(engine, f"PRAGMA {pragma}") == [value]
        with engine.begin() as connection:
            connection.execute(text("CREATE TABLE p (id INTEGER PRIMARY KEY)"))
            connection.execute(text("CREATE TABLE c (p REFERENCES p)"))
        with pytest.raises(Exception, match="FOREIGN KEY"), engine.begin() as writer:
            writer.execute(text("INSERT INTO c VALUES (1)"))


def locked(path: str) -> bool:
    """Whether no other connection can begin to write."""
    other = sqlite3.connect(path, timeout=0)
    try:
        other.execute("BEGIN IMMEDIATE")
        other.rollback()
    except sqlite3.OperationalError:
        return True
    finally:
        other.close()
    return False


@pytest.mark.parametrize(
    ("begin", "begun", "locks"),
    [(None, False, False), ("DEFERRED", True, False), ("IMMEDIATE", True, True)],
)
def test_begin(
    make_app: MakeApp,
    db: ScopedSession,
    begin: str | None,
    begun: bool,
    locks: bool,
) -> None:
    """A transaction begins with the first statement; IMMEDIATE locks at once."""
    app = sqlite_app(make_app, db, SCOPEDSESSION_SQLITE_BEGIN=begin)
    with engine_of(app, db) as engine:
        path = str(engine.url.database)
        with engine.connect() as connection:
            driver: Any = connection.connection.dbapi_connection
            connection.execute(text("SELECT 1"))
            assert driver.in_transaction is begun
            assert locked(path) is locks
            connection.commit()
            assert not driver.in_transaction
            assert not locked(path)
        # And again, on the pooled connection.
        with engine.connect() as connection:
            connection.execute(text("SELECT 1"))
            assert locked(path) is locks


def test_begin_leaves_raw_connections_alone(
    make_app: MakeApp, db: ScopedSession
) -> None:
    """Without SQLAlchemy's transactions, the driver's own are there as ever."""
    app = sqlite_app(make_app, db, SCOPEDSESSION_SQLITE_BEGIN="IMMEDIATE")
    with engine_of(app, db) as engine:
        with engine.begin() as connection:
            connection.execute(text("CREATE TABLE t (a)"))
        raw = engine.raw_connection()
        raw.cursor().execute("INSERT INTO t VALUES (1)")
        raw.rollback()
        raw.close()
        assert rows(engine, "SELECT a FROM t") == []


def test_begin_makes_reads_repeatable(make_app: MakeApp, db: ScopedSession) -> None:
    """Two reads in one transaction see the same state."""
    app = sqlite_app(
        make_app,
        db,
        SCOPEDSESSION_SQLITE_BEGIN="DEFERRED",
        SCOPEDSESSION_SQLITE_PRAGMAS={"journal_mode": "WAL"},
    )
    with engine_of(app, db) as engine:
        with engine.begin() as connection:
            connection.execute(text("CREATE TABLE t (a)"))
        with engine.connect() as reader, engine.connect() as writer:
            assert reader.scalar(text("SELECT count(*) FROM t")) == 0
            writer.execute(text("INSERT INTO t VALUES (1)"))
            writer.commit()
            assert reader.scalar(text("SELECT count(*) FROM t")) == 0
            reader.rollback()
            assert reader.scalar(text("SELECT count(*) FROM t")) == 1


@pytest.mark.parametrize("begin", ["DEFERRED", "IMMEDIATE"])
def test_savepoints(make_app: MakeApp, db: ScopedSession, begin: str) -> None:
    """Only what was written after the savepoint is rolled back, DDL included."""
    app = sqlite_app(make_app, db, SCOPEDSESSION_SQLITE_BEGIN=begin)
    with app.app_context():
        db.session.execute(text("CREATE TABLE t (a)"))
        db.session.execute(text("INSERT INTO t VALUES (1)"))
        with db.session.begin_nested() as savepoint:
            db.session.execute(text("INSERT INTO t VALUES (2)"))
            savepoint.rollback()
        db.session.commit()
        assert rows(db.engine, "SELECT a FROM t") == [1]
        db.session.execute(text("CREATE TABLE u (a)"))
        db.session.rollback()
        tables = "SELECT name FROM sqlite_master WHERE type = 'table'"
        assert rows(db.engine, tables) == ["t"]


def test_autocommit_does_not_begin(make_app: MakeApp, db: ScopedSession) -> None:
    """By a connection, an engine of options, or the bind; and it is undone after."""
    app = sqlite_app(
        make_app,
        db,
        SCOPEDSESSION_SQLITE_BEGIN="IMMEDIATE",
        SQLALCHEMY_BINDS={
            "auto": {"url": "sqlite:///auto.db", "isolation_level": "AUTOCOMMIT"}
        },
    )

    def begins(engine: Engine, **options: Any) -> bool:
        with engine.connect().execution_options(**options) as connection:
            connection.execute(text("SELECT 1"))
            return bool(connection.connection.dbapi_connection.in_transaction)  # type: ignore[union-attr]

    with app.app_context():
        auto = {"isolation_level": "AUTOCOMMIT"}
        real = {"isolation_level": "SERIALIZABLE"}
        assert not begins(db.engine, **auto)
        assert begins(db.engine)
        assert not begins(db.engine.execution_options(**auto))
        assert begins(db.engine)
        assert not begins(db.engines["auto"])
        assert begins(db.engines["auto"], **real)
        # VACUUM refuses to run in a transaction.
        with db.engine.connect().execution_options(**auto) as connection:
            connection.execute(text("VACUUM"))


# Ping


def counts(db: ScopedSession, name: str = "default") -> tuple[Any, ...]:
    pool = next(pool for pool in db.snapshot().pools if pool.bind == name)
    return (
        *(pool.open, pool.used, pool.idle, pool.connects_total, pool.checkouts_total),
        *(pool.invalidated_total, pool.hold_s.count, pool.create_s.count),
    )


OPTIONS: list[Callable[[], dict[str, Any]]] = [
    dict,
    lambda: {"poolclass": NullPool},
    lambda: {"poolclass": StaticPool},
    lambda: {"poolclass": SingletonThreadPool},
    lambda: {
        "pool": QueuePool(
            lambda: sqlite3.connect(":memory:", check_same_thread=False), pool_size=1
        )
    },
]


@pytest.mark.usefixtures("databases")
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("used", [False, True])
def test_ping_is_outside_pool_and_ledger(
    make_app: MakeApp,
    db: ScopedSession,
    options: Callable[[], dict[str, Any]],
    used: bool,
) -> None:
    """Whatever the pool, also while its connections are out: nothing is counted."""
    app = make_app(
        db,
        SQLALCHEMY_DATABASE_URI="sqlite:///app.db",
        SQLALCHEMY_ENGINE_OPTIONS=options(),
    )
    with app.app_context():
        if used:
            db.session.execute(text("SELECT 1"))
        before = counts(db)
        assert 0 < db.ping() < 5
        assert counts(db) == before


@pytest.mark.usefixtures("databases")
def test_ping_when_the_pool_is_exhausted(make_app: MakeApp, db: ScopedSession) -> None:
    """It does not wait for the pool."""
    app = make_app(
        db,
        SQLALCHEMY_DATABASE_URI="sqlite:///app.db",
        SQLALCHEMY_ENGINE_OPTIONS={"pool_size": 1, "max_overflow": 0},
    )
    with app.app_context():
        db.session.execute(text("SELECT 1"))
        assert db.ping(timeout=2) < 2


@pytest.mark.usefixtures("databases")
def test_ping_connects_as_the_engine_does(make_app: MakeApp, db: ScopedSession) -> None:
    """With its arguments, and through listeners that rotate credentials."""
    app = make_app(
        db,
        SQLALCHEMY_DATABASE_URI="sqlite:///app.db",
        SQLALCHEMY_ENGINE_OPTIONS={"connect_args": {"timeout": 3.5}},
    )
    seen: list[Any] = []
    opened: list[Any] = []
    with engine_of(app, db) as engine:

        @event.listens_for(engine, "do_connect")
        def connecting(_: Any, __: Any, args: Any, kwargs: dict[str, Any]) -> None:
            seen.append(kwargs["timeout"])

        @event.listens_for(engine, "connect")
        def connected(connection: Any, _: Any) -> None:
            opened.append(connection)

        db.ping()
        assert seen == [3.5]
        (connection,) = opened
        with pytest.raises(sqlite3.ProgrammingError, match="closed"):
            connection.execute("SELECT 1")


@pytest.mark.usefixtures("databases")
def test_ping_of_a_bind(make_app: MakeApp, db: ScopedSession) -> None:
    """By its name; an unknown one is an error that lists the known."""
    app = make_app(db, SQLALCHEMY_BINDS={"audit": "sqlite:///audit.db"})
    with app.app_context():
        assert db.ping("audit") > 0
        with pytest.raises(LookupError, match=r"no bind 'nil'.*\['audit'\]"):
            db.ping("nil")


def test_ping_fails(make_app: MakeApp, db: ScopedSession, short_tmp: Path) -> None:
    """By class and known words; what a driver says beside that may hold the URL."""
    app = make_app(db, SQLALCHEMY_DATABASE_URI=f"sqlite:///{short_tmp}/no/swordfish")
    with app.app_context(), pytest.raises(PingError) as info:
        db.ping()
    assert str(info.value) == (
        "bind 'default': OperationalError (unable to open database file)"
    )
    assert info.value.__cause__ is None
    assert info.value.__context__ is None


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("sqlite:///app.db", "app.db"),
        ("sqlite:///{}/a b.db", "a b.db"),
        ("sqlite:///file:app.db?uri=true", "app.db"),
        ("sqlite:///file:{}/a%20b.db?mode=rwc&uri=true", "a b.db"),
        ("sqlite:///file://localhost{}/app.db?uri=true", "app.db"),
    ],
)
@pytest.mark.parametrize("link", [False, True])
@pytest.mark.parametrize("tracking", [False, True])
def test_ping_creates_no_file(
    make_app: MakeApp,
    db: ScopedSession,
    short_tmp: Path,
    url: str,
    name: str,
    link: bool,
    tracking: bool,
) -> None:
    """A file that is missing is an error, a link to nothing as well."""
    file = short_tmp / name
    if link:
        file.symlink_to(short_tmp / "elsewhere.db")
    app = make_app(
        db,
        SQLALCHEMY_DATABASE_URI=url.format(short_tmp),
        SCOPEDSESSION_TRACKING=tracking,
    )
    before = set(short_tmp.iterdir())
    with app.app_context():
        with pytest.raises(PingError, match="bind 'default': there is no SQLite file "):
            db.ping()
        assert set(short_tmp.iterdir()) == before
        file.resolve().touch()
        assert db.ping() > 0


@pytest.mark.parametrize("tracking", [False, True])
@pytest.mark.parametrize(
    ("url", "options"),
    [
        ("sqlite://", {}),
        ("sqlite:///file:x?mode=memory&cache=shared&uri=true", {}),
        ("sqlite:///file::memory:?uri=true", {}),
        pytest.param(
            "sqlite:///file:/x?vfs=memdb&uri=true",
            {},
            marks=pytest.mark.skipif(
                sqlite3.sqlite_version_info < (3, 36), reason="needs SQLite 3.36"
            ),
        ),
        ("sqlite:///app.db", {"creator": lambda: sqlite3.connect(":memory:")}),
        ("sqlite:///app.db", {"pool": QueuePool(lambda: sqlite3.connect(":memory:"))}),
    ],
)
def test_ping_of_what_needs_no_file(
    make_app: MakeApp,
    db: ScopedSession,
    short_tmp: Path,
    url: str,
    options: dict[str, Any],
    tracking: bool,
) -> None:
    """The URL's path is not what is opened."""
    app = make_app(
        db,
        SQLALCHEMY_DATABASE_URI=url,
        SQLALCHEMY_ENGINE_OPTIONS=options,
        SCOPEDSESSION_TRACKING=tracking,
    )
    with app.app_context():
        assert db.ping() > 0
    assert list(short_tmp.glob("*.db")) == []


@pytest.mark.usefixtures("databases")
def test_ping_timeout(make_app: MakeApp, db: ScopedSession) -> None:
    """Whether or not the driver can time out."""
    app = make_app(db, SQLALCHEMY_DATABASE_URI="sqlite:///app.db")
    gate = threading.Event()
    with engine_of(app, db) as engine:

        @event.listens_for(engine, "do_connect")
        def connecting(*_: Any) -> None:
            gate.wait(10)

        before = counts(db)
        with pytest.raises(PingError, match=r"bind 'default': no answer within 0.05 s"):
            db.ping(timeout=0.05)
        gate.set()
        assert counts(db) == before


# PostgreSQL


def test_ping_postgresql(make_app: MakeApp, db: ScopedSession, pg_url: str) -> None:
    """A real server answers, and has one connection less than it had."""
    app = make_app(db, SQLALCHEMY_DATABASE_URI=pg_url)
    with app.app_context():
        before = counts(db)
        assert 0 < db.ping() < 5
        assert counts(db) == before
        mine = (
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
        )
        # The server needs a moment to end the process of a connection that was closed.
        wait_until(lambda: rows(db.engine, mine) == [1])


def test_ping_postgresql_with_sqlstate(
    make_app: MakeApp, db: ScopedSession, pg_url: str
) -> None:
    """The error has the server's SQLSTATE, and never the URL."""
    app = make_app(
        db,
        SQLALCHEMY_DATABASE_URI=pg_url,
        SQLALCHEMY_ENGINE_OPTIONS={"connect_args": {"options": "-c swordfish=1"}},
    )
    with app.app_context(), pytest.raises(PingError) as info:
        db.ping()
    assert "swordfish" not in str(info.value)
    assert "OperationalError" in str(info.value)


def test_ping_refused(make_app: MakeApp, db: ScopedSession) -> None:
    """A server that is not there."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    url = f"postgresql+psycopg://app:swordfish@127.0.0.1:{port}/app"
    app = make_app(db, SQLALCHEMY_DATABASE_URI=url)
    with app.app_context(), pytest.raises(PingError) as info:
        db.ping()
    assert str(info.value) == "bind 'default': OperationalError (connection refused)"


def test_idle_ping_only_where_networked(
    make_app: MakeApp, db: ScopedSession, pg_url: str
) -> None:
    """An idle connection is tested on PostgreSQL, and replaced when it is dead."""
    app = make_app(
        db, SQLALCHEMY_DATABASE_URI=pg_url, SCOPEDSESSION_PING_IDLE_AFTER=0.0
    )
    with engine_of(app, db) as engine:
        (pid,) = rows(engine, "SELECT pg_backend_pid()")
        other = create_engine(pg_url)
        rows(other, f"SELECT pg_terminate_backend({pid})")
        other.dispose()
        assert rows(engine, "SELECT 1") == [1]


def test_no_environment_needed(make_app: MakeApp, db: ScopedSession) -> None:
    """The working directory plays no part."""
    app = make_app(db, SQLALCHEMY_DATABASE_URI="sqlite:///app.db")
    with engine_of(app, db) as engine:
        assert Path(str(engine.url.database)).is_absolute()
