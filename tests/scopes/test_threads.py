"""One context in two threads: statements that overlap are reported."""

from __future__ import annotations

import contextvars
import gc
import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path

import pytest
from flask import copy_current_request_context
from inside import SLOT
from sqlalchemy import event
from sqlalchemy import exc as sa_exc
from sqlalchemy import text
from sqlalchemy.pool import StaticPool
from threads import in_thread
from threads import Working
from waiting import wait_until

from flask_scopedsession import ScopedSession
from flask_scopedsession.errors import OutsideContext
from flask_scopedsession.errors import SessionRemoved
from flask_scopedsession.errors import SharedSession

SELECT = text("SELECT 1")


@pytest.fixture(
    params=[None, "thread", lambda: "key"], ids=["context", "thread", "own"]
)
def db(request):
    return ScopedSession(scopefunc=request.param)


@pytest.fixture
def of_context():
    return ScopedSession()


@pytest.fixture
def make(make_app, sqlite_url):
    """Make an application whose own code is this very file."""

    def make(db, **config):
        return make_app(
            db,
            flask_options={"root_path": str(Path(__file__).parent)},
            **{"SQLALCHEMY_DATABASE_URI": sqlite_url, **config},
        )

    return make


@pytest.fixture
def gate():
    """An SQL function that waits in the database until ``gate.go_on`` is set."""

    class Gate:
        arrived = threading.Event()
        go_on = threading.Event()

        def wait(self):
            self.arrived.set()
            return int(self.go_on.wait(10))

        def install(self, engine):
            @event.listens_for(engine, "connect")
            def install(connection, entry):
                connection.create_function("gate", 0, self.wait)

    gate = Gate()
    yield gate
    gate.go_on.set()


SLOW = text("SELECT gate()")


def used(db, app):
    def look():
        with app.app_context():
            snapshot = db.snapshot()
        return snapshot.pools[0].used, len(snapshot.sessions)

    return in_thread(look)


def test_a_plain_thread_has_no_context(db, make):
    """A clear error, which says where the app comes from; never another's session."""
    app = make(db)
    with app.app_context():
        db.session()
        for use in (
            db.session,
            lambda: db.session.execute(SELECT),
            db.get_session,
            lambda: db.engine,
        ):
            with pytest.raises(
                OutsideContext, match=r"with app\.app_context\(\)"
            ) as info:
                in_thread(use)
            assert "current_app._get_current_object()" in str(info.value)


def test_a_plain_pool_has_no_context(db, make):
    with make(db).app_context(), ThreadPoolExecutor(1) as pool:
        db.session()
        with pytest.raises(OutsideContext):
            pool.submit(db.session).result(10)


def test_a_copied_request_context_in_a_thread(of_context, make):
    """A plain thread gets an application context of its own, and so a session."""
    db = of_context
    app = make(db)
    found = []

    @app.get("/")
    def view():
        mine = db.session()
        mine.execute(SELECT)

        @copy_current_request_context
        def work():
            db.session.execute(SELECT)
            return db.session()

        other = in_thread(work)
        with pytest.raises(SessionRemoved):
            other.execute(SELECT)
        found.append((mine, other))
        return str(mine.scalar(SELECT))

    assert app.test_client().get("/").text == "1"
    ((mine, other),) = found
    assert mine is not other
    assert used(db, app) == (0, 0)


# Helpers for two threads in one context


def in_another_thread(work, name="other"):
    """Start a thread that runs ``work`` in a copy of this thread's context."""
    context = contextvars.copy_context()
    return Working(lambda: context.run(work), name)


# Statements at the same time


@pytest.mark.parametrize(
    "use",
    [
        lambda session: session.execute(SELECT),
        lambda session: session.scalars(SELECT),
        lambda session: session.connection().execute(SELECT),
        lambda session: session.commit(),
    ],
    ids=["execute", "scalars", "connection", "commit"],
)
def test_a_statement_during_another_threads_in_debug_mode(of_context, make, gate, use):
    """The second thread gets an error that names both threads and their lines."""
    db = of_context
    app = make(db)
    app.config["DEBUG"] = "true"  # as text, from the environment
    with app.app_context():
        gate.install(db.engine)
        other = in_another_thread(lambda: db.session.scalar(SLOW))
        assert gate.arrived.wait(10)
        with pytest.raises(SharedSession) as caught:
            use(db.session)
        message = str(caught.value)
        assert "'other' at test_threads.py:" in message
        assert f"'{threading.current_thread().name}' at test_threads.py:" in message
        assert "with app.app_context()" in message
        assert isinstance(caught.value, sa_exc.InvalidRequestError)
        gate.go_on.set()
        assert other.result() == 1
        (shared,) = db.snapshot().recent_shared
        assert shared.refused
        assert {each.thread for each in shared.threads} == {
            "other",
            threading.current_thread().name,
        }


def test_statements_at_the_same_time_are_logged_once_per_view(
    of_context, make, gate, caplog
):
    """Outside debug mode both statements run, and the log names both threads."""
    db = of_context
    app = make(db)

    @app.get("/shared")
    def shared():
        other = in_another_thread(lambda: db.session.scalar(SLOW))
        assert gate.arrived.wait(10)
        found = db.session.scalar(SELECT)  # SQLite itself makes this one wait
        return f"{found} {other.result()}"

    with app.app_context():
        gate.install(db.engine)

        def noted():
            return len(db.snapshot().recent_shared)

        for number in (1, 2):
            gate.arrived.clear()
            gate.go_on.clear()
            answer = Working(lambda: app.test_client().get("/shared").text, "request")
            wait_until(lambda number=number: noted() == number)
            gate.go_on.set()
            assert answer.result() == "1 1"
        shares = db.snapshot().recent_shared
    (record,) = caplog.records
    message = record.getMessage()
    assert message.startswith("GET /shared -> shared: two threads use one connection")
    assert "'other' at test_threads.py:" in message
    assert "'request' at test_threads.py:" in message
    assert "with app.app_context()" in message
    assert [(each.endpoint, each.refused) for each in shares] == [("shared", False)] * 2
    assert used(db, app) == (0, 0)


class Paused(sqlite3.Connection):
    """A connection that stops a write just before it begins."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.asked, self.go_on = threading.Event(), threading.Event()
        self.go_on.set()

    @property
    def total_changes(self):
        if not self.go_on.is_set():
            self.asked.set()
            self.go_on.wait(10)
        return super().total_changes


def test_a_statement_that_begins_while_another_is_prepared(of_context, make, gate):
    db = of_context
    app = make(db, SQLALCHEMY_ENGINE_OPTIONS={"connect_args": {"factory": Paused}})
    with app.app_context():
        gate.install(db.engine)
        with db.engine.begin() as connection:
            connection.execute(text("CREATE TABLE note (id INTEGER)"))
        session = db.session()
        driver = session.connection().connection.driver_connection
        driver.go_on.clear()
        insert = text("INSERT INTO note VALUES (1)")
        writer = in_another_thread(lambda: session.execute(insert), "writer")
        assert driver.asked.wait(10)
        reader = in_another_thread(lambda: session.scalar(SLOW), "reader")
        assert gate.arrived.wait(10)
        driver.go_on.set()
        wait_until(lambda: db.snapshot().recent_shared)
        gate.go_on.set()
        assert reader.result() == 1
        writer.result()
        (shared,) = db.snapshot().recent_shared
        assert {each.thread for each in shared.threads} == {"reader", "writer"}
        session.rollback()


def test_workers_that_share_a_context(of_context, make, gate):
    """``executor.map(copy_context().run, ...)`` is reported in debug mode."""
    db = of_context
    app = make(db)
    app.debug = True
    with app.app_context(), ThreadPoolExecutor(2) as pool:
        gate.install(db.engine)
        db.session()
        first, second = contextvars.copy_context(), contextvars.copy_context()
        one = pool.submit(first.run, db.session.scalar, SLOW)
        assert gate.arrived.wait(10)
        with pytest.raises(SharedSession):
            pool.submit(second.run, db.session.scalar, SELECT).result(10)
        gate.go_on.set()
        assert one.result(10) == 1


@pytest.mark.parametrize("debug", [False, True], ids=["", "debug"])
@pytest.mark.parametrize("how", ["rollback", "close", "remove", "the scope ends"])
def test_an_end_during_another_threads_statement(
    of_context, make, gate, caplog, how, debug
):
    """The busy connection leaves the pool, and no other session can get it.

    The thread with the statement closes it, and learns that its session has ended.
    """
    db = of_context
    app = make(db, SQLALCHEMY_ENGINE_OPTIONS={"pool_size": 1, "max_overflow": 0})
    app.debug = debug
    with app.app_context():
        gate.install(db.engine)
        session = db.session()
        other = in_another_thread(lambda: db.session.scalar(SLOW))
        assert gate.arrived.wait(10)
        driver = session.connection().connection.dbapi_connection
        if how != "the scope ends":
            end = db.session if how == "remove" else session
            with pytest.raises(SharedSession, match="'other' at test_threads.py:"):
                getattr(end, how)()
    assert used(db, app) == (0, 0)
    with app.app_context():
        # The pool has room for one connection only: this is a new one.
        mine = db.session.connection().connection.dbapi_connection
        assert mine is not driver
        assert other.thread.is_alive()  # nobody has waited for its statement
        gate.go_on.set()
        with pytest.raises(SessionRemoved):
            other.result()
        with pytest.raises(Exception, match="closed"):
            driver.execute("SELECT 1")
        assert db.session.scalar(SELECT) == 1
    assert used(db, app) == (0, 0)
    assert "two threads use one connection at the same time" in caplog.text
    with app.app_context():
        assert db.engine.pool.checkedout() == 0


#: A statement that lasts a second, by dialect.
SLEEP = {
    "postgresql": text("SELECT pg_sleep(1)"),
    "mysql": text("SELECT sleep(1)"),
    "mariadb": text("SELECT sleep(1)"),
}


@pytest.mark.databases("postgresql", "psycopg2", "mariadb")
def test_an_end_during_a_statement_at_a_server(of_context, make_app, db_url):
    """The first thread waits for nothing; the other one closes the connection."""
    db = of_context
    app = make_app(
        db,
        SQLALCHEMY_DATABASE_URI=db_url,
        SQLALCHEMY_ENGINE_OPTIONS={"pool_size": 1, "max_overflow": 0},
    )
    with app.app_context():
        session = db.session()
        other = in_another_thread(
            lambda: db.session.scalar(SLEEP[db.engine.dialect.name])
        )
        wait_until(lambda: any(h.running_s for h in db.snapshot().pools[0].holders))
        driver = session.connection().connection.dbapi_connection
        with pytest.raises(SharedSession):
            session.rollback()
        assert other.thread.is_alive()
    with app.app_context():
        assert db.session.scalar(SELECT) == 1
        with pytest.raises(SessionRemoved):
            other.result()
    with pytest.raises(Exception, match=r"closed|Already closed"):
        driver.close() if "mysql" in db_url else driver.cursor()
    assert used(db, app) == (0, 0)


def test_a_shared_connection_by_configuration(of_context, make, gate, caplog):
    """All threads share the connection of a StaticPool: that is its purpose."""
    db = of_context
    app = make(
        db,
        SQLALCHEMY_ENGINE_OPTIONS={
            "poolclass": StaticPool,
            "connect_args": {"check_same_thread": False},
        },
    )
    app.debug = True
    begun = threading.Event()
    with app.app_context():
        gate.install(db.engine)

        @event.listens_for(db.engine, "before_cursor_execute")
        def begin(conn, cursor, statement, *args):
            if "gate" not in statement:
                begun.set()

        other = in_another_thread(lambda: db.session.scalar(SLOW))
        assert gate.arrived.wait(10)
        third = in_another_thread(lambda: db.session.scalar(SELECT))
        assert begun.wait(10)
        gate.go_on.set()
        assert (other.result(), third.result()) == (1, 1)
        assert db.snapshot().recent_shared == ()
    assert caplog.records == []


def test_two_sessions_at_the_same_time(of_context, make, gate, caplog):
    """The remedy: each thread has a context, and so a session, of its own."""
    db = of_context
    app = make(db)
    app.debug = True

    def work():
        with app.app_context():
            return db.session.scalar(SLOW)

    with app.app_context():
        gate.install(db.engine)
        other = in_another_thread(work)
        assert gate.arrived.wait(10)
        assert db.session.scalar(SELECT) == 1
        gate.go_on.set()
        assert other.result() == 1
        assert db.snapshot().recent_shared == ()
    assert caplog.records == []


def test_a_statement_within_a_statement(of_context, make, caplog):
    """Listeners may use the session, and SQL functions the connection."""
    db = of_context
    app = make(db)
    app.debug = True
    numbers = count()

    @event.listens_for(db.session, "do_orm_execute")
    def within(state):
        if next(numbers) == 0:
            assert state.session.scalar(SELECT) == 1

    with app.app_context():

        @event.listens_for(db.engine, "connect")
        def install(connection, entry):
            connection.create_function(
                "nested", 0, lambda: db.session.connection().scalar(text("SELECT 7"))
            )

        assert db.session.scalar(SELECT) == 1
        assert db.session.scalar(text("SELECT nested()")) == 7
        assert db.snapshot().recent_shared == ()
    assert caplog.records == []


def test_a_statement_that_failed_is_over(of_context, make, caplog):
    """The next thread may go on."""
    db = of_context
    app = make(db)
    app.debug = True
    with app.app_context():
        for use in (db.session.execute, db.session.scalars, db.session.scalar):
            with pytest.raises(sa_exc.OperationalError):
                use(text("SELECT nothing"))
            db.session.rollback()
        assert in_another_thread(lambda: db.session.scalar(SELECT)).result() == 1
        # Also while the connection is still checked out.
        with pytest.raises(sa_exc.OperationalError):
            db.session.connection().exec_driver_sql("SELECT nothing")
        assert in_another_thread(lambda: db.session.scalar(SELECT)).result() == 1
    assert caplog.records == []


def test_a_mark_that_an_interrupt_left_behind(of_context, make, caplog):
    """The next user of the connection is not taken for a second thread."""
    db = of_context
    app = make(db, SQLALCHEMY_ENGINE_OPTIONS={"pool_size": 1, "max_overflow": 0})
    app.debug = True
    with app.app_context():
        # As Ctrl-C does between the mark and the "try:".
        db.session.connection().connection.info[SLOT].runner = threading.get_ident()

    def work():
        with app.app_context():
            db.session.execute(SELECT)
            db.session.rollback()
            return db.session.scalar(SELECT)

    assert in_thread(work) == 1
    assert caplog.records == []


# One session that moves between threads


@pytest.mark.parametrize("how", ["thread", "executor", "event"])
def test_a_session_that_moves_between_threads(of_context, make, caplog, how):
    """A thread may go on with another's transaction while that one waits for it."""
    db = of_context
    app = make(db)
    app.debug = True
    done = threading.Event()

    def use():
        db.session.execute(SELECT)
        done.set()

    with app.app_context(), ThreadPoolExecutor(1) as pool:
        context = contextvars.copy_context()
        for _ in range(3):
            done.clear()
            db.session.execute(SELECT)
            if how == "thread":
                in_thread(lambda: context.run(use))
            else:
                future = pool.submit(context.run, use)
                if how == "event":
                    assert done.wait(10)
                future.result(10)
            assert db.session.scalar(SELECT) == 1
    assert caplog.records == []


def test_the_garbage_collector_in_another_thread(of_context, make, caplog):
    """A scope that is closed in the thread that frees it is no sharing."""
    db = of_context
    app = make(db)
    kept = []

    def leave_behind():
        context = app.app_context()
        context.push()
        db.session.execute(SELECT)
        kept.append([context])
        kept[0].append(kept[0])

    in_thread(leave_behind)
    kept.clear()
    gc.collect()
    assert used(db, app) == (0, 0)
    assert caplog.records == []


# A thread without a context


@pytest.mark.subprocess
def test_a_connection_that_outlives_its_thread(run_script, short_tmp):
    """It is returned after its thread was freed. (This crashed Python 3.11.)"""
    source = """
        from concurrent.futures import ThreadPoolExecutor
        from flask import Flask
        from flask_scopedsession import ScopedSession

        db = ScopedSession()
        app = Flask(__name__)
        app.config["SQLALCHEMY_DATABASE_URI"] = "sqlite:///app.db"
        db.init_app(app)
        with app.app_context():
            engine = db.engine
        kept = []

        def check_out():
            with ThreadPoolExecutor(1) as thread:
                thread.submit(lambda: kept.append(engine.connect())).result()

        for _ in range(3):
            check_out()
            kept.pop().close()
        print(engine.pool.checkedout())
    """
    assert run_script(source, cwd=short_tmp).check().stdout == "0\n"
