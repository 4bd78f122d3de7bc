"""One context in two threads: never silently one transaction in both."""

from __future__ import annotations

import contextvars
import gc
import queue
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from flask import copy_current_request_context
from sqlalchemy import event
from sqlalchemy import exc as sa_exc
from sqlalchemy import text
from threads import in_thread
from threads import Working

from flask_scopedsession import ScopedSession
from flask_scopedsession._scopes import sharing as _sharing
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
def slow():
    """Let a statement with ``slow`` in it wait in the driver until it is let go."""

    class Slow:
        arrived = threading.Event()
        go_on = threading.Event()

        def listen(self, engine):
            @event.listens_for(engine, "before_cursor_execute")
            def wait(conn, cursor, statement, *args):
                if "slow" in statement:
                    self.arrived.set()
                    assert self.go_on.wait(10)

    slow = Slow()
    yield slow
    slow.go_on.set()


def used(db, app):
    def look():
        with app.app_context():
            snapshot = db.snapshot()
        return snapshot.pools[0].used, len(snapshot.sessions)

    return in_thread(look)


def test_a_plain_thread_has_no_context(db, make):
    """A clear error, never somebody else's session."""
    app = make(db)
    with app.app_context():
        db.session()
        for use in (db.session, lambda: db.session.execute(SELECT), db.get_session):
            with pytest.raises(OutsideContext, match=r"with app\.app_context\(\)"):
                in_thread(use)


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


# Calls at the same time


def test_a_call_in_the_midst_of_another_threads(of_context, make, slow):
    """It raises, names both threads and their lines, and does no harm."""
    db = of_context
    app = make(db)

    def work():
        return db.session.scalar(text("SELECT 'slow'"))

    with app.app_context():
        slow.listen(db.engine)
        db.session.execute(SELECT)
        context = contextvars.copy_context()
        other = Working(lambda: context.run(work), "other")
        assert slow.arrived.wait(10)
        uses = [
            lambda: db.session.execute(SELECT),
            lambda: db.session.scalars(SELECT),
            lambda: db.session.scalar(SELECT),
            db.session.connection,
            db.session.flush,
            db.session.commit,
            db.session.rollback,
            db.session.close,
        ]
        for use in uses:
            with pytest.raises(SharedSession) as caught:
                use()
        message = str(caught.value)
        assert "'other' at test_threads.py:" in message
        assert f"'{threading.current_thread().name}' at test_threads.py:" in message
        assert "with app.app_context()" in message
        assert isinstance(caught.value, sa_exc.InvalidRequestError)
        slow.go_on.set()
        assert other.result() == "slow"
        assert db.session.scalar(SELECT) == 1
    assert used(db, app) == (0, 0)


def test_workers_that_share_a_context(of_context, make, slow):
    """``executor.map(copy_context().run, ...)`` does not share in silence."""
    db = of_context
    app = make(db)
    with app.app_context(), ThreadPoolExecutor(2) as pool:
        slow.listen(db.engine)
        db.session()
        first, second = contextvars.copy_context(), contextvars.copy_context()
        one = pool.submit(first.run, db.session.scalar, text("SELECT 'slow'"))
        assert slow.arrived.wait(10)
        with pytest.raises(SharedSession):
            pool.submit(second.run, db.session.scalar, SELECT).result(10)
        slow.go_on.set()
        assert one.result(10) == "slow"


def test_a_scope_that_ends_in_the_midst_of_another_threads_call(of_context, make, slow):
    """Who is in the midst of a call closes the session as it ends; nothing crosses.

    Its connection is not in the pool, for somebody else to get, while it is in use.
    """
    db = of_context
    app = make(db, SQLALCHEMY_ENGINE_OPTIONS={"pool_size": 1, "max_overflow": 0})
    with app.app_context():
        slow.listen(db.engine)
        session = db.session()
        context = contextvars.copy_context()
        other = Working(
            lambda: context.run(db.session.scalar, text("SELECT 'slow'")), "other"
        )
        assert slow.arrived.wait(10)
    assert used(db, app) == (1, 1)
    slow.go_on.set()
    assert other.result() == "slow"
    assert used(db, app) == (0, 0)
    with pytest.raises(SessionRemoved):
        session.execute(SELECT)
    with app.app_context():
        assert db.session.scalar(SELECT) == 1


def test_a_call_within_a_call(of_context, make):
    """Listeners may use the session that they are called for."""
    db = of_context
    app = make(db)
    heard = []

    @event.listens_for(db.session, "do_orm_execute")
    def within(state):
        if not heard:
            heard.append(True)
            heard.append(state.session.scalar(SELECT))

    with app.app_context():
        assert db.session.scalar(SELECT) == 1
        assert heard == [True, 1]


def test_a_call_that_failed_leaves_no_mark(of_context, make):
    """The next thread may go on."""
    db = of_context
    with make(db).app_context():
        for use in (db.session.execute, db.session.scalars, db.session.scalar):
            with pytest.raises(sa_exc.OperationalError):
                use(text("SELECT nothing"))
            db.session.rollback()
        context = contextvars.copy_context()
        assert in_thread(lambda: context.run(db.session.scalar, SELECT)) == 1


def test_a_mark_that_an_exception_left_behind(of_context, make):
    """It is told from a call that goes on: nobody is locked out for good."""
    db = of_context
    with make(db).app_context():
        db.session.execute(SELECT)
        # Ctrl-C, before the "try:".
        db.session().__dict__[_sharing._USER] = (threading.get_ident(),)
        context = contextvars.copy_context()
        assert in_thread(lambda: context.run(db.session.scalar, SELECT)) == 1
        assert db.session.scalar(SELECT) == 1


# One transaction in two threads


class Elsewhere:
    """A thread that does, one by one, what it is given, and is at work in between."""

    def __init__(self, context):
        self._todo = queue.SimpleQueue()
        self._done = queue.SimpleQueue()
        self._busy = threading.Event()
        self._working = Working(lambda: context.run(self._run), "elsewhere")

    def _run(self):
        while True:
            try:
                # It looks again and again, as if it computed something.
                work = self._todo.get_nowait()
            except queue.Empty:
                continue
            if work is None:
                return
            self._done.put(work())

    def do(self, work):
        self._todo.put(work)
        return self._done.get(timeout=10)

    def end(self):
        self._todo.put(None)
        self._working.result()


def test_a_transaction_in_two_threads(of_context, make, caplog):
    """Reported once for each view, with both threads and their lines."""
    db = of_context
    app = make(db)

    @app.get("/shared")
    def shared():
        other = Elsewhere(contextvars.copy_context())
        for _ in range(3):
            db.session.execute(SELECT)
            other.do(lambda: db.session.execute(SELECT) and None)
        db.session.execute(SELECT)
        other.end()
        return ""

    for _ in range(2):
        assert app.test_client().get("/shared").status_code == 200
    (record,) = caplog.records
    message = record.getMessage()
    assert message.startswith("GET /shared -> shared: two threads use one session in")
    assert "'elsewhere' at test_threads.py:" in message
    assert f"'{threading.current_thread().name}' at test_threads.py:" in message
    assert "with app.app_context()" in message
    assert used(db, app) == (0, 0)


def test_two_threads_one_after_the_other(of_context, make, caplog):
    """No transaction goes across: nothing is shared, nothing is said."""
    db = of_context
    with make(db).app_context():
        other = Elsewhere(contextvars.copy_context())
        for _ in range(2):
            db.session.execute(SELECT)
            db.session.commit()
            other.do(lambda: (db.session.execute(SELECT), db.session.commit()))
        other.end()
    assert caplog.records == []


@pytest.mark.parametrize("how", ["thread", "executor", "event"])
def test_handing_over_and_waiting(of_context, make, caplog, how):
    """A thread may go on with another's transaction while that one waits for it."""
    db = of_context
    app = make(db)
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
    """A scope that is closed wherever it is freed is no sharing."""
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
