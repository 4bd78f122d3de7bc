"""SQLite in memory: one database for all threads, a transaction for each session."""

from __future__ import annotations

import gc
import sqlite3
import sys
import threading
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from models import Base
from models import User
from sqlalchemy import event
from sqlalchemy import exc as sa_exc
from sqlalchemy import func
from sqlalchemy import insert
from sqlalchemy import inspect
from sqlalchemy import make_url
from sqlalchemy import select
from sqlalchemy import text
from sqlalchemy.dialects import registry
from sqlalchemy.dialects.sqlite.pysqlite import SQLiteDialect_pysqlite
from sqlalchemy.exc import OperationalError
from sqlalchemy.pool import NullPool
from sqlalchemy.pool import QueuePool
from sqlalchemy.pool import SingletonThreadPool
from sqlalchemy.pool import StaticPool
from threads import in_thread
from threads import Working

from flask_scopedsession import ScopedSession

MakeApp = Callable[..., Flask]

NAMED = "sqlite:///file:x?mode=memory&cache=shared&uri=true"
URLS = [
    "sqlite://",
    "sqlite:///:memory:",
    "sqlite:///file::memory:?uri=true",
    "sqlite:///file::memory:?cache=shared&uri=true",
    "sqlite:///file:x?mode=memory&uri=true",
    "sqlite:///file:/x?vfs=memdb&uri=true",
    NAMED,
]
every_url = pytest.mark.parametrize("url", URLS)
COUNT = select(func.count()).select_from(User)


def old_sqlite() -> types.ModuleType:
    """Return a driver like that of SQLite before 3.36."""

    def connect(database: str, *args: Any, **kwargs: Any) -> sqlite3.Connection:
        if "vfs=memdb" in database:
            raise sqlite3.OperationalError("no such vfs: memdb")
        return sqlite3.connect(database, *args, **kwargs)

    module = types.ModuleType("old_sqlite")
    module.__dict__.update({**vars(sqlite3), "connect": connect})
    return module


@pytest.fixture
def db() -> ScopedSession:
    return ScopedSession(model_class=Base)


@pytest.fixture
def make(make_app: MakeApp, db: ScopedSession) -> MakeApp:
    """Create an app with tables and two views, whose busy timeout is short."""

    def make(url: str = "sqlite://", *, timeout: float = 0.05, **config: Any) -> Flask:
        options = config.setdefault("SQLALCHEMY_ENGINE_OPTIONS", {})
        options.setdefault("connect_args", {"timeout": timeout})
        places = {"root_path": str(Path(__file__).parent)}
        app = make_app(db, flask_options=places, SQLALCHEMY_DATABASE_URI=url, **config)

        @app.post("/users/<name>")
        def add(name: str) -> str:
            db.session.add(User(name=name))
            db.session.commit()
            return str(db.session.scalar(COUNT))

        @app.get("/users")
        def count() -> str:
            return str(db.session.scalar(COUNT))

        with app.app_context():
            db.create_all()
        return app

    return make


def users(app: Flask, db: ScopedSession) -> int:
    """Count the users in a context of its own, on the calling thread."""
    with app.app_context():
        return db.session.scalar(COUNT) or 0


def has_tables(app: Flask, db: ScopedSession) -> bool:
    with app.app_context():
        return bool(inspect(db.engine).get_table_names())


# Threads


@pytest.mark.parametrize(
    ("url", "options"),
    [(url, dict) for url in URLS]
    + [(url, lambda: {"module": old_sqlite()}) for url in URLS if "memdb" not in url],
)
def test_threads_in_requests_of_their_own(
    make: MakeApp, db: ScopedSession, url: str, options: Callable[[], dict[str, Any]]
) -> None:
    """No crash, no error, and every row that was committed is there."""
    app = make(url, timeout=30, SQLALCHEMY_ENGINE_OPTIONS=options())

    def visit(number: int) -> list[int]:
        client = app.test_client()
        return [client.post(f"/users/{number}-{n}").status_code for n in range(20)]

    threads = [Working(lambda n=n: visit(n), f"visitor-{n}") for n in range(6)]
    answers = [code for thread in threads for code in thread.result(120)]
    assert answers == [200] * 120
    assert users(app, db) == 120


@every_url
def test_one_database_for_all_threads(
    make: MakeApp, db: ScopedSession, url: str, short_tmp: Any
) -> None:
    """A table that one thread creates is there for all; no file is made."""
    app = make(url)
    assert in_thread(lambda: app.test_client().post("/users/ed").text) == "1"
    assert app.test_client().get("/users").text == "1"
    assert list(short_tmp.iterdir()) == []


@every_url
def test_each_session_has_its_own_transaction(
    make: MakeApp, db: ScopedSession, url: str
) -> None:
    """A rollback takes back what its own session wrote, and nothing else."""
    app = make(url)
    with app.app_context():
        db.session.scalar(COUNT)
        assert in_thread(lambda: app.test_client().post("/users/ed").text) == "1"
        db.session.add(User(name="never"))
        db.session.flush()
        db.session.rollback()
        assert db.session.scalar(COUNT) == 1


def test_a_reader_waits_for_a_commit(make: MakeApp, db: ScopedSession) -> None:
    """It gets the other session's changes as soon as they are committed."""
    app = make(timeout=30)
    reads = threading.Event()

    def reader() -> int:
        with app.app_context():
            event.listen(db.session(), "do_orm_execute", lambda _: reads.set())
            return db.session.scalar(COUNT) or 0

    with app.app_context():
        db.session.add(User(name="ed"))
        db.session.flush()
        working = Working(reader, "reader")
        assert reads.wait(10)
        db.session.commit()
        assert working.result() == 1


def test_uncommitted_changes_of_another_session(
    make: MakeApp, db: ScopedSession
) -> None:
    """After the busy timeout, the error says who holds what, and the remedy."""
    app = make()

    @app.get("/nested")
    def nested() -> str:
        db.session.add(User(name="ed"))
        db.session.flush()
        with app.app_context():
            for work in (lambda: db.session.scalar(COUNT), commit_one):
                with pytest.raises(OperationalError) as info:
                    work()
                db.session.rollback()
                said.append(str(info.value))
        db.session.commit()
        return ""

    def commit_one() -> None:
        db.session.add(User(name="al"))
        db.session.commit()

    said: list[str] = []
    assert app.test_client().get("/nested").status_code == 200
    for message in said:
        assert "(sqlite3.OperationalError) database is locked\n" in message
        assert "Bind 'default': another session's transaction" in message
        assert "busy timeout ('timeout' in connect_args, 5 s by default)" in message
        assert "Commit or roll back there first; if contexts are nested" in message
        assert "test_memory.py:" in message
        assert "\n  nested at " in message
        assert "idle in transaction" in message
    assert len(said) == 2
    assert users(app, db) == 1


def test_a_reader_that_keeps_others_from_a_commit(
    make: MakeApp, db: ScopedSession
) -> None:
    """It is named, although it is in no transaction."""
    app = make()
    with app.app_context():
        db.session.add_all([User(name=f"{n}") for n in range(20)])
        db.session.commit()

        def write() -> None:
            with app.app_context():
                db.session.add(User(name="al"))
                db.session.commit()

        with db.engine.connect() as connection:
            rows = connection.execution_options(yield_per=1).execute(select(User))
            rows.fetchone()
            with pytest.raises(OperationalError, match=r"\n  MainThread at .*, held "):
                in_thread(write)
            rows.close()


def test_a_locked_file_is_explained(
    make: MakeApp, db: ScopedSession, sqlite_url: str
) -> None:
    """As well; whoever has it may be outside, or hold it through another bind."""
    app = make(sqlite_url, SQLALCHEMY_BINDS={"audit": sqlite_url})
    other = sqlite3.connect(sqlite_url.removeprefix("sqlite:///"))
    other.execute("INSERT INTO user (name) VALUES ('ed')")
    with app.app_context():
        db.session.add(User(name="al"))
        with pytest.raises(OperationalError, match="\n  none that is known in t"):
            db.session.commit()
        other.close()
        db.session.rollback()
        audit = db.get_session("audit")
        audit.execute(insert(User).values(name="ed"))
        db.session.add(User(name="al"))
        with pytest.raises(OperationalError, match="  MainThread at .*, idle in tra"):
            db.session.commit()
        audit.rollback()
        db.session.rollback()


@pytest.mark.parametrize("journal", ["DELETE", "WAL"])
def test_a_reader_that_writes_late(
    make: MakeApp, db: ScopedSession, sqlite_url: str, journal: str
) -> None:
    """SQLite does not wait for it, and the error does not say that it has waited."""
    app = make(
        sqlite_url,
        timeout=60.0,
        SCOPEDSESSION_SQLITE_BEGIN="DEFERRED",
        SCOPEDSESSION_SQLITE_PRAGMAS={"journal_mode": journal},
    )
    with app.app_context(), db.sessionmaker() as other:
        db.session.scalar(COUNT)
        other.scalar(COUNT)
        other.add(User(name="ed"))
        other.flush()
        if journal == "WAL":
            other.commit()  # no connection is in the way any more
        with pytest.raises(OperationalError) as info:
            db.session.execute(insert(User).values(name="al"))
        db.session.rollback()
    message = str(info.value)
    assert "SCOPEDSESSION_SQLITE_BEGIN='IMMEDIATE'" in message
    if journal == "DELETE":
        assert "but not if this transaction had read before it wrote" in message
        assert "\n  MainThread at test_memory.py:" in message
    elif sys.version_info >= (3, 11):  # there, the driver says which error it is
        assert "another session has committed since this transaction read" in message
        assert "busy timeout" not in message
        assert "MainThread" not in message


def test_only_holders_of_the_same_database_are_named(
    make: MakeApp, db: ScopedSession
) -> None:
    """Those in transaction. Two databases in memory may have the same URL."""
    app = make(SQLALCHEMY_BINDS={"audit": "sqlite://"})
    with (
        app.app_context(),
        db.engines["audit"].begin() as audit,
        db.engine.connect() as idle,
    ):
        idle.execute(COUNT)
        Base.metadata.create_all(audit)
        audit.execute(insert(User).values(name="ed"))
        db.session.add(User(name="al"))
        db.session.flush()
        with db.sessionmaker() as other, pytest.raises(OperationalError) as info:
            other.execute(insert(User).values(name="jo"))
        db.session.rollback()
    assert str(info.value).count("\n  MainThread at ") == 1


def test_without_tracking(make: MakeApp, db: ScopedSession) -> None:
    """The same database, for all threads."""
    app = make(SCOPEDSESSION_TRACKING=False, SCOPEDSESSION_FAIR_POOL=False)
    assert in_thread(lambda: app.test_client().post("/users/ed").text) == "1"
    assert users(app, db) == 1
    db.dispose(app)
    assert not has_tables(app, db)


# Its life


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"poolclass": NullPool},
        {"poolclass": SingletonThreadPool},
        {"poolclass": QueuePool, "pool_size": 1, "max_overflow": 0},
        {"pool_recycle": 0, "pool_pre_ping": True},
    ],
    ids=str,
)
def test_it_lives_as_long_as_the_engine(
    make: MakeApp, db: ScopedSession, options: dict[str, Any]
) -> None:
    """Whatever the pool does with connections, and whoever closes one."""
    app = make(SQLALCHEMY_ENGINE_OPTIONS=dict(options))
    app.test_client().post("/users/ed")
    with app.app_context():
        db.session.connection().invalidate()
        db.session.rollback()
    assert users(app, db) == 1
    assert in_thread(lambda: users(app, db)) == 1


@every_url
def test_dispose_ends_it(make: MakeApp, db: ScopedSession, url: str) -> None:
    """The next connection finds an empty database, and can be used as before."""
    app = make(url)
    db.dispose(app)
    assert not has_tables(app, db)
    with app.app_context():
        db.create_all()
    assert app.test_client().post("/users/ed").text == "1"


def test_dispose_while_a_connection_is_out(make: MakeApp, db: ScopedSession) -> None:
    """That one keeps the old database until it is returned; nobody else sees it."""
    app = make()
    with app.app_context():
        db.session.add(User(name="ed"))
        db.session.flush()
        db.dispose(app)
        assert in_thread(lambda: has_tables(app, db)) is False
        assert db.session.scalar(COUNT) == 1
        db.session.commit()
    assert not has_tables(app, db)


@pytest.mark.parametrize("how", ["dispose", "drop"])
def test_its_memory_is_freed(db: ScopedSession, how: str) -> None:
    """With the pool, also that of an application that is dropped."""
    app = Flask("short", root_path="/")
    app.config.update(SQLALCHEMY_DATABASE_URI="sqlite://", TESTING=True)
    db.init_app(app)
    with app.app_context():
        db.create_all()
        name = db.session.scalar(text("SELECT file FROM pragma_database_list"))

    def tables() -> int:
        other = sqlite3.connect(f"file:{name}?vfs=memdb", uri=True)
        (found,) = other.execute("SELECT count(*) FROM sqlite_master").fetchone()
        other.close()
        return int(found)

    assert tables() == 1
    if how == "dispose":
        db.dispose(app)
    else:
        del app
        gc.collect()
    assert tables() == 0


@every_url
def test_two_apps_have_two_databases(
    make: MakeApp, db: ScopedSession, url: str
) -> None:
    first, second = make(url), make(url)
    first.test_client().post("/users/ed")
    assert (users(first, db), users(second, db)) == (1, 0)


def test_binds_share_a_database_by_its_name(
    make_app: MakeApp, db: ScopedSession
) -> None:
    """As with SQLite itself; those without a name have one each."""
    binds = {"replica": NAMED, "one": "sqlite://", "two": "sqlite://"}
    app = make_app(db, SQLALCHEMY_DATABASE_URI=NAMED, SQLALCHEMY_BINDS=binds)
    with app.app_context():
        Base.metadata.create_all(db.engine)
        Base.metadata.create_all(db.engines["one"])
        found = [bool(inspect(each).get_table_names()) for each in db.engines.values()]
        assert found == [True, True, True, False]
        db.engine.dispose()
        assert inspect(db.engine).get_table_names() == ["user"]
        db.dispose(app)
        assert inspect(db.engine).get_table_names() == []


@pytest.mark.subprocess
def test_a_fork_has_a_copy(run_script: Callable[..., Any]) -> None:
    """As it was at the fork; from then on, each process has its own."""
    result = run_script(FORK + "print(child(look), look(), child(add), look())")
    assert result.stdout == "1 1 2 1\n"


@pytest.mark.subprocess
def test_a_fork_during_a_transaction(run_script: Callable[..., Any]) -> None:
    """Nobody could ever unlock the copy, so the child has an empty database."""
    result = run_script(
        FORK + "with app.app_context():\n"
        "    db.session.add(User(name='al')); db.session.flush()\n"
        "    print(child(tables))\n"
        "    db.session.commit()\n"
        "print(look())"
    )
    assert result.stdout == "[]\n2\n"


FORK = """
import os
from flask import Flask
from sqlalchemy import func, inspect, select
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from flask_scopedsession import ScopedSession

class Base(DeclarativeBase):
    pass

class User(Base):
    __tablename__ = "user"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]

db = ScopedSession(model_class=Base)
app = Flask("forks")
app.config["SQLALCHEMY_DATABASE_URI"] = "sqlite://"
db.init_app(app)

def look():
    with app.app_context():
        return db.session.scalar(select(func.count()).select_from(User))

def add():
    with app.app_context():
        db.session.add(User(name="ed")); db.session.commit()
    return look()

def tables():
    with app.app_context():
        return inspect(db.engine).get_table_names()

def child(work):
    read, write = os.pipe()
    if os.fork() == 0:
        os.write(write, str(work()).encode())
        os._exit(0)
    os.wait()
    os.close(write)
    with open(read) as answer:
        return answer.read()

with app.app_context():
    db.create_all()
add()
"""


@pytest.mark.subprocess
def test_greenlets_in_requests_of_their_own(run_script: Callable[..., Any]) -> None:
    """Under gevent, they have a session and a transaction each, too."""
    pytest.importorskip("gevent")
    source = (
        "from gevent import monkey; monkey.patch_all()\n"
        f"{FORK}\n"
        "import gevent, time\n"
        "def work():\n"
        "    for _ in range(20):\n"
        "        add()\n"
        "        time.sleep(0.001)\n"
        "gevent.joinall([gevent.spawn(work) for _ in range(6)], raise_error=True)\n"
        "print(look())"
    )
    assert run_script(source).stdout == "121\n"


# The pool


def test_the_pool_is_a_queue(make: MakeApp, db: ScopedSession) -> None:
    """With options as any has; the engine's URL is the configured one."""
    app = make("sqlite:///:memory:", SQLALCHEMY_ENGINE_OPTIONS={"pool_size": "3"})
    with app.app_context():
        db.session.execute(text("SELECT 1"))
        (pool,) = db.snapshot().pools
        assert db.engine.url == make_url("sqlite:///:memory:")
        assert db.ping() > 0
    assert (pool.pool_class, pool.size, pool.max) == ("QueuePool", 3, 13)
    assert (pool.open, pool.used, pool.idle) == (1, 1, 0)
    assert str(pool.url) == "sqlite:///:memory:"


def test_an_old_sqlite_has_one_connection(make: MakeApp, db: ScopedSession) -> None:
    """Lent to one session at a time: nested contexts wait, and are told for whom."""
    app = make(
        SQLALCHEMY_ENGINE_OPTIONS={
            "module": old_sqlite(),
            "pool_size": 9,
            "pool_timeout": 0.05,
            "pool_recycle": 0,
        }
    )
    with app.app_context():
        (pool,) = db.snapshot().pools
        assert (pool.pool_class, pool.size, pool.max) == ("QueuePool", 1, 1)
        db.session.add(User(name="ed"))
        db.session.flush()
        with app.app_context(), pytest.raises(sa_exc.TimeoutError) as info:
            db.session.scalar(COUNT)
        error: Any = info.value
        assert "test_memory.py" in error.holders[0].at
        db.session.commit()
    assert users(app, db) == 1


@pytest.mark.parametrize("pool_class", [SingletonThreadPool, NullPool, StaticPool])
def test_own_pool_class(make: MakeApp, db: ScopedSession, pool_class: Any) -> None:
    """What the user chooses is taken, with its consequences."""
    app = make(SQLALCHEMY_ENGINE_OPTIONS={"poolclass": pool_class})
    with app.app_context():
        assert isinstance(db.engine.pool, pool_class)
    assert app.test_client().post("/users/ed").text == "1"


def test_own_pool_and_creator(make_app: MakeApp, db: ScopedSession) -> None:
    """They connect as they always do."""

    def connect() -> sqlite3.Connection:
        return sqlite3.connect(":memory:", check_same_thread=False)

    pool = QueuePool(connect, pool_size=1)
    for options in ({"pool": pool}, {"creator": connect, "poolclass": NullPool}):
        app = make_app(db, SQLALCHEMY_ENGINE_OPTIONS=options)
        with app.app_context():
            file = text("SELECT file FROM pragma_database_list")
            assert db.session.scalar(file) == ""


def test_a_listener_that_connects_elsewhere(
    make_app: MakeApp, db: ScopedSession, short_tmp: Any
) -> None:
    """It decides."""
    app = make_app(db)
    with app.app_context():

        @event.listens_for(db.engine, "do_connect")
        def connecting(_: Any, __: Any, cargs: list[Any], ___: Any) -> None:
            cargs[0] = str(short_tmp / "elsewhere.db")

        db.create_all()
    assert (short_tmp / "elsewhere.db").is_file()


def test_connect_args_are_kept(make_app: MakeApp, db: ScopedSession) -> None:
    """The user's arguments for the driver win over ours."""
    options = {"connect_args": {"check_same_thread": True, "timeout": 2.5}}
    app = make_app(db, SQLALCHEMY_ENGINE_OPTIONS=options)
    seen: dict[str, Any] = {}
    with app.app_context():

        @event.listens_for(db.engine, "do_connect")
        def connecting(_: Any, __: Any, ___: Any, kwargs: dict[str, Any]) -> None:
            seen.update(kwargs)

        db.session.execute(text("SELECT 1"))
    assert (seen["check_same_thread"], seen["timeout"]) == (True, 2.5)
    assert options == {"connect_args": {"check_same_thread": True, "timeout": 2.5}}


def test_pragmas(make: MakeApp, db: ScopedSession) -> None:
    """They are in force on every connection."""
    app = make(SCOPEDSESSION_SQLITE_PRAGMAS={"foreign_keys": True})
    pragma = text("PRAGMA foreign_keys")
    with app.app_context():
        assert db.session.scalar(pragma) == 1
        with app.app_context():
            assert db.session.scalar(pragma) == 1


class Elsewhere(SQLiteDialect_pysqlite):
    """A dialect of SQLite's family, as one that talks to a server."""

    driver = "elsewhere"
    supports_statement_cache = True


def test_another_driver_is_left_alone(
    make_app: MakeApp, db: ScopedSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it makes of an empty path is its own affair."""
    monkeypatch.setitem(sys.modules, "elsewhere", types.ModuleType("elsewhere"))
    monkeypatch.setattr(sys.modules["elsewhere"], "D", Elsewhere, raising=False)
    registry.register("sqlite.elsewhere", "elsewhere", "D")
    app = make_app(db, SQLALCHEMY_DATABASE_URI="sqlite+elsewhere://")
    with app.app_context():
        assert isinstance(db.engine.pool, SingletonThreadPool)
        file = text("SELECT file FROM pragma_database_list")
        assert db.session.scalar(file) == ""
