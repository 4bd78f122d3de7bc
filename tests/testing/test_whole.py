"""Threads, eager tasks, greenlets, other binds and pools, inside isolate()."""

from __future__ import annotations

import gc
import sqlite3
import threading
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
import sqlalchemy as sa
from celery import Celery
from items import Base
from items import by_begin
from items import INSERT
from items import Item
from items import names
from sqlalchemy.pool import AssertionPool
from sqlalchemy.pool import NullPool
from sqlalchemy.pool import SingletonThreadPool
from sqlalchemy.pool import StaticPool
from werkzeug.serving import make_server

from flask_scopedsession import ScopedSession
from flask_scopedsession.errors import IsolationError
from flask_scopedsession.errors import ScopedSessionError
from flask_scopedsession.flask_sqlalchemy import SQLAlchemy
from flask_scopedsession.testing import isolate


@pytest.fixture
def make(make_app, sqlite_url):
    def make(db=None, *, url=None, options=(), **config):
        db = db or ScopedSession(model_class=Base)
        app = make_app(
            db,
            flask_options={"root_path": str(Path(__file__).parent)},
            SQLALCHEMY_DATABASE_URI=url or sqlite_url,
            SQLALCHEMY_ENGINE_OPTIONS=dict(options),
            **config,
        )
        with app.app_context():
            Base.metadata.create_all(db.engine)
            by_begin(db, "kept")
        return db, app

    return make


def content(url):
    return Path(sa.make_url(url).database).read_bytes()


# -- threads ----------------------------------------------------------------------


def test_waits_for_another_threads_transaction(make):
    db, app = make()
    written, done = threading.Event(), threading.Event()

    def work():
        with app.app_context():
            db.session.add(Item(name="first"))
            db.session.flush()
            written.set()
            done.wait(0.1)  # so that the other is likely to wait
            db.session.commit()

    with isolate(app), app.app_context():
        thread = threading.Thread(target=work)
        thread.start()
        assert written.wait(10)
        assert names(db) == ["kept", "first"]
        thread.join()


def test_deadlock_is_an_error(make):
    """A test that waits for a server that waits for the test."""
    db, app = make(options={"pool_timeout": 0.1})
    errors = []

    def work():
        with app.app_context():
            try:
                by_begin(db, "second")
            except IsolationError as error:
                errors.append(str(error))

    with isolate(app), app.app_context():
        db.session.add(Item(name="first"))
        db.session.flush()
        thread = threading.Thread(target=work)
        thread.start()
        thread.join(10)
        assert not thread.is_alive()
        (message,) = errors
        assert "for 0.1 s" in message
        assert "test_whole.py:" in message
        db.session.commit()
        assert names(db) == ["kept", "first"]


def test_thread_that_waits_at_the_end(make):
    db, app = make()
    waits = threading.Event()
    errors = []

    def work():
        with app.app_context(), db.engine.connect() as connection:
            waits.set()
            try:
                connection.execute(sa.text(INSERT.format("late")))
            except IsolationError as error:
                errors.append(str(error))

    thread = threading.Thread(target=work)
    with isolate(app), app.app_context():
        raw = db.engine.raw_connection()
        raw.cursor().execute(INSERT.format("never committed"))
        thread.start()
        assert waits.wait(10)
    thread.join(10)
    assert not thread.is_alive()
    assert "has ended" in errors[0]
    with app.app_context():
        assert names(db) == ["kept"]


def test_thread_that_outlives_the_block(make):
    """What it does afterwards is an error, and not real."""
    db, app = make()
    written, over = threading.Event(), threading.Event()
    errors = []

    def work():
        with app.app_context():
            connection = db.engine.connect()
            connection.execute(sa.text(INSERT.format("late")))
            raw = connection.connection.dbapi_connection
            written.set()
            over.wait(10)
            for use in (
                lambda: connection.execute(sa.text("SELECT 1")),
                lambda: connection.execute(
                    sa.insert(Item), [{"name": n} for n in "ab"]
                ),
                connection.commit,
                raw.commit,
                lambda: raw.cursor().execute("SELECT 1"),
            ):
                try:
                    use()
                except IsolationError as error:
                    errors.append(error)
            connection.close()

    thread = threading.Thread(target=work)
    with isolate(app):
        thread.start()
        assert written.wait(10)
    over.set()
    thread.join(10)
    assert len(errors) == 5
    with app.app_context():
        assert names(db) == ["kept"]
        (pool,) = db.snapshot().pools
        assert pool.used == 0


def test_live_server(make):
    """One request after the other needs no care of the test's; the rest is in line."""
    db, app = make()

    @app.post("/items/<name>")
    def add(name):
        count = db.session.scalar(sa.select(sa.func.count(Item.id)))
        db.session.add(Item(name=name))
        db.session.commit()
        return str(count)

    with isolate(app), live(app) as url:
        with app.app_context():
            db.session.add(Item(name="test"))
            db.session.commit()
            assert len(db.session.scalars(sa.select(Item)).all()) == 2
            assert [post(f"{url}/items/{n}") for n in "abc"] == ["2", "3", "4"]
            assert len(db.session.scalars(sa.select(Item)).all()) == 5
        with ThreadPoolExecutor(4) as threads:
            list(threads.map(post, [f"{url}/items/{n}" for n in range(12)]))
        with app.app_context():
            assert len(names(db)) == 17
    with app.app_context():
        assert names(db) == ["kept"]


@contextmanager
def live(app):
    server = make_server("127.0.0.1", 0, app, threaded=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def post(url):
    request = urllib.request.Request(url, method="POST")
    with urllib.request.urlopen(request, timeout=10) as response:
        return response.read().decode()


def test_eager_celery(make):
    db, app = make()
    tasks = Celery("tests", set_as_current=False)
    tasks.conf.task_always_eager = True

    @tasks.task
    def store(name):
        with app.app_context():
            assert "view" in db.session.scalars(sa.select(Item.name)).all()
            db.session.add(Item(name=name))
            db.session.commit()

    @app.post("/")
    def view():
        db.session.add(Item(name="view"))
        db.session.commit()
        assert db.session.scalars(sa.select(Item.name)).all()
        store.delay("task").get()
        return ""

    with isolate(app):
        assert app.test_client().post("/").status_code == 200
        with app.app_context():
            assert names(db) == ["kept", "view", "task"]
    with app.app_context():
        assert names(db) == ["kept"]


GEVENT = """
import gevent.monkey
gevent.monkey.patch_all()
import gevent, sys
import sqlalchemy as sa
from flask import Flask
from flask_scopedsession import ScopedSession
from flask_scopedsession.testing import isolate

db = ScopedSession()
app = Flask("app")
app.config.update(TESTING=True, SQLALCHEMY_DATABASE_URI=sys.argv[1])
db.init_app(app)

def count():
    with db.engine.connect() as connection:
        return connection.scalar(sa.text("SELECT count(*) FROM item"))

def work(number):
    with app.app_context():
        for step in range(5):
            insert = sa.text("INSERT INTO item (name) VALUES (:name)")
            db.session.execute(insert, {"name": f"{number} {step} a"})
            gevent.sleep(0)
            db.session.execute(insert, {"name": f"{number} {step} b"})
            db.session.rollback() if step % 2 else db.session.commit()

with isolate(app):
    gevent.joinall([gevent.spawn(work, n) for n in range(4)], raise_error=True)
    with app.app_context():
        print(count())
with app.app_context():
    print(count())
db.dispose(app)
"""


@pytest.mark.subprocess
def test_gevent(make, run_script, sqlite_url):
    make()
    found = run_script(GEVENT, sqlite_url)
    assert (found.code, found.stdout) == (0, "25\n1\n"), found.stderr


# -- binds and pools ---------------------------------------------------------------


def test_two_binds_of_one_database(make, sqlite_url):
    """The connections to a replica see what was committed to the primary."""
    db, app = make(SQLALCHEMY_BINDS={"replica": sqlite_url})
    with isolate(app), app.app_context():
        by_begin(db, "new")
        with db.get_engine("replica").connect() as connection:
            assert connection.scalar(sa.select(sa.func.count(Item.id))) == 2
    with app.app_context():
        assert names(db) == ["kept"]


def test_databases_in_memory_are_their_own(make):
    db, app = make(url="sqlite://", SQLALCHEMY_BINDS={"other": "sqlite://"})
    with isolate(app), app.app_context():
        assert sa.inspect(db.get_engine("other")).get_table_names() == []
        Base.metadata.create_all(db.get_engine("other"))
        by_begin(db, "new")
        with db.get_session("other") as session:
            assert session.scalars(sa.select(Item)).all() == []
    with app.app_context():
        assert names(db) == ["kept"]
        assert sa.inspect(db.get_engine("other")).get_table_names() == []


@pytest.mark.parametrize("url", [None, "sqlite://"])
@pytest.mark.parametrize(
    "poolclass", [NullPool, StaticPool, SingletonThreadPool, AssertionPool]
)
def test_pool_classes(make, poolclass, url):
    db, app = make(url=url, options={"poolclass": poolclass})
    for _ in range(2):
        with isolate(app), app.app_context():
            by_begin(db, "new")
            db.session.add(Item(name="session"))
            db.session.commit()
            assert names(db) == ["kept", "new", "session"]
    with app.app_context():
        assert names(db) == ["kept"]
        by_begin(db, "real")
        assert names(db) == ["kept", "real"]


def test_drop_in_in_memory(make):
    """Its sessions share one connection, and so a transaction, as without isolate()."""
    db, app = make(SQLAlchemy(), url="sqlite://")
    for _ in range(2):
        with app.app_context(), isolate(app):
            assert isinstance(db.engine.pool, StaticPool)
            db.session.add(Item(name="flushed"))
            db.session.flush()
            with db.engine.connect() as connection:
                found = connection.scalars(sa.select(Item.name)).all()
                assert found == ["kept", "flushed"]
                db.session.commit()
            by_begin(db, "new")
            with isolate(app):
                db.session.add(Item(name="inner"))
                db.session.commit()
            assert names(db) == ["kept", "flushed", "new"]
    with app.app_context():
        assert names(db) == ["kept"]


def test_database_that_is_one_connection(make):
    """Settings are undone by closing the connection, but not this one."""
    creator = partial(sqlite3.connect, ":memory:", check_same_thread=False)
    options = {"creator": creator, "poolclass": StaticPool}
    for db, app in (
        make(SQLAlchemy(), url="sqlite://"),
        make(url="sqlite://", options=options),
    ):
        with isolate(app), app.app_context():
            with db.engine.begin() as connection:
                connection.execute(sa.text("PRAGMA recursive_triggers = ON"))
            by_begin(db, "new")
        with app.app_context():
            assert names(db) == ["kept"]


def test_garbage_at_the_beginning(make):
    """A connection that only the garbage collector can return is no reason."""
    db, app = make()
    gc.disable()
    try:
        with app.app_context():
            cycle = [db.engine.raw_connection()]
            cycle.append(cycle)
            del cycle
        with isolate(app), app.app_context():
            by_begin(db, "new")
    finally:
        gc.enable()


def test_before_first_use(make_app, sqlite_url):
    db = ScopedSession(model_class=Base)
    app = make_app(db, SQLALCHEMY_DATABASE_URI=sqlite_url)
    with isolate(app), app.app_context():
        db.create_all()
        db.session.add(Item(name="new"))
        db.session.commit()
        assert names(db) == ["new"]
    with app.app_context():
        assert sa.inspect(db.engine).get_table_names() == []


def test_dispose_inside(make):
    db, app = make()
    with isolate(app), app.app_context():
        by_begin(db, "first")
        db.engine.dispose()
        by_begin(db, "second")
        db.dispose(app)
        by_begin(db, "third")
        assert names(db) == ["kept", "first", "second", "third"]
    with app.app_context():
        assert names(db) == ["kept"]
        by_begin(db, "real")
        assert names(db) == ["kept", "real"]


def test_pool_is_as_before(make):
    """Nothing is out, the same connections are in, and commits are real."""
    db, app = make()
    with app.app_context():
        engine, pool = db.engine, db.engine.pool
        (reading,) = db.snapshot().pools
    before = pool.checkedin(), pool.checkedout()
    with isolate(app), app.app_context():
        left_out = [db.engine.connect(), db.engine.raw_connection()]
        left_out[0].execute(sa.text(INSERT.format("left out")))
        assert [each.used for each in db.snapshot().pools] == [2]
    assert engine.pool is pool
    assert (pool.checkedin(), pool.checkedout()) == before
    with app.app_context():
        (after,) = db.snapshot().pools
        assert (after.used, after.open) == (0, reading.open)
        by_begin(db, "real")
        assert names(db) == ["kept", "real"]
    left_out[0].close()
    left_out[1].close()
    assert (pool.checkedin(), pool.checkedout()) == before


# -- the account --------------------------------------------------------------------


def test_account_works_inside(make):
    db, app = make(SCOPEDSESSION_LOST_WORK="raise")

    @app.post("/forgets")
    def forgets():
        db.session.add(Item(name="forgotten"))
        db.session.flush()
        return ""

    @app.get("/holds")
    def holds():
        db.session.scalars(sa.select(Item)).all()
        (pool,) = db.snapshot().pools
        (holder,) = pool.holders
        return f"{holder.endpoint} {pool.used}"

    with isolate(app):
        with db.count_statements() as sent:
            assert app.test_client().get("/holds").text == "holds 1"
        assert len(sent) == 1
        with pytest.raises(ScopedSessionError, match="1 Item"):
            app.test_client().post("/forgets")
        with app.app_context():
            assert names(db) == ["kept"]


# -- how SQLite begins ----------------------------------------------------------------


def begins_itself(engine):
    """SQLAlchemy's recipe for real transactions of sqlite3."""

    @sa.event.listens_for(engine, "connect")
    def connected(connection, _):
        connection.isolation_level = None

    @sa.event.listens_for(engine, "begin")
    def begin(connection):
        connection.exec_driver_sql("BEGIN")


BEGINS = [None, "DEFERRED", "IMMEDIATE", "recipe"]
if hasattr(sqlite3, "LEGACY_TRANSACTION_CONTROL"):
    BEGINS.append("autocommit")


@pytest.mark.parametrize("begin", BEGINS)
def test_ways_to_begin(make, sqlite_url, begin):
    config, options = {}, {}
    if begin in ("DEFERRED", "IMMEDIATE"):
        config["SCOPEDSESSION_SQLITE_BEGIN"] = begin
    if begin == "autocommit":
        options["connect_args"] = {"autocommit": False}
    db, app = make(options=options, **config)
    with app.app_context():
        if begin == "recipe":
            begins_itself(db.engine)
        db.engine.dispose()
    before = content(sqlite_url)
    for _ in range(2):
        with isolate(app), app.app_context():
            by_begin(db, "new")
            db.session.add(Item(name="session"))
            db.session.commit()
            db.session.add(Item(name="rolled back"))
            db.session.flush()
            db.session.rollback()
            with db.session.begin_nested():
                db.session.add(Item(name="nested"))
            db.session.commit()
            raw = db.engine.raw_connection()
            raw.driver_connection.executescript(
                "CREATE TABLE x (a);" + INSERT.format("s")
            )
            raw.close()
            assert names(db) == ["kept", "new", "session", "nested", "s"]
    assert content(sqlite_url) == before
    with app.app_context():
        by_begin(db, "real")
        assert names(db) == ["kept", "real"]
