"""A fair pool with threads, with greenlets, and after a fork."""

from __future__ import annotations

import signal
import sqlite3
import textwrap
import threading
from collections.abc import Callable
from collections.abc import Iterator
from typing import Any

import pytest
from flask import Flask
from inside import pool_class
from sqlalchemy import create_engine
from sqlalchemy import exc as sa_exc
from sqlalchemy.pool import QueuePool
from threads import Working
from waiting import wait_until

from flask_scopedsession import ScopedSession

Run = Callable[..., Any]

PoolClass: Any = pool_class(QueuePool, fair=True, tracked=True)


class Connection:
    """A DBAPI connection that does nothing."""

    def rollback(self) -> None: ...
    def close(self) -> None: ...


class Pool:
    """A pool and the threads that wait for it, for at least a minute."""

    def __init__(self, connect: Callable[[], Any] = Connection, **options: Any) -> None:
        given = {"pool_size": 1, "max_overflow": 0, "timeout": 60, **options}
        self.pool = PoolClass(connect, **given)
        self.served: list[str] = []

    def connect(self) -> Any:
        return self.pool.connect()

    def in_line(self) -> int:
        return len(self.pool.queue.line)

    def queue_up(self, name: str) -> Working:
        """Start a thread that waits for a connection, and then returns it."""
        before = self.in_line()

        def visit() -> None:
            proxied = self.pool.connect()
            self.served.append(name)
            proxied.close()

        working = Working(visit, name)
        wait_until(lambda: self.in_line() == before + 1, what=f"{name} in line")
        return working


def test_in_turn() -> None:
    """The thread that has waited longest is served first."""
    pool = Pool()
    held = pool.connect()
    waiting = [pool.queue_up(name) for name in "abcdef"]
    held.close()
    for each in waiting:
        each.result()
    assert pool.served == list("abcdef")


def test_a_repeated_checkout_waits_behind_others() -> None:
    """A thread that returns a connection does not get it again before waiters."""
    pool = Pool()
    held = pool.connect()
    waiting = [pool.queue_up(name) for name in "abc"]
    held.close()
    again = pool.connect()
    assert pool.served == list("abc")
    again.close()
    for each in waiting:
        each.result()


def test_a_connect_that_fails_lets_the_next_one_connect() -> None:
    """It does not sleep until its timeout, as it does with SQLAlchemy's queue."""
    connecting, fail = threading.Event(), threading.Event()

    def connect() -> Connection:
        if not connecting.is_set():
            connecting.set()
            fail.wait(20)
            raise OSError("refused")
        return Connection()

    pool = Pool(connect)
    first = Working(pool.connect, "first")
    assert connecting.wait(10)
    second = pool.queue_up("second")
    fail.set()
    with pytest.raises(OSError, match="refused"):
        first.result()
    second.result()
    assert pool.served == ["second"]
    assert (pool.pool.checkedin(), pool.pool.checkedout()) == (1, 0)


def test_an_overflow_connection_that_is_closed_lets_the_next_one_connect() -> None:
    """Its slot is free only then, and SQLAlchemy's queue wakes no thread."""
    closing, go_on = threading.Event(), threading.Event()

    class Slow(Connection):
        def close(self) -> None:
            closing.set()
            go_on.wait(20)

    pool = Pool(Slow, max_overflow=1)
    one, two = pool.connect(), pool.connect()
    one.close()
    closer = Working(two.close, "closer")
    assert closing.wait(10)
    again = pool.connect()
    waits = pool.queue_up("waits")
    go_on.set()
    closer.result()
    waits.result()
    again.close()
    assert pool.served == ["waits"]


def test_an_interrupted_connect_of_a_waiter_that_got_a_slot() -> None:
    """The next waiting thread connects instead."""
    tries = iter([OSError("first"), KeyboardInterrupt("second")])
    connecting, fail = threading.Event(), threading.Event()

    def connect() -> Connection:
        connecting.set()
        fail.wait(20)
        for error in tries:
            raise error
        return Connection()

    pool = Pool(connect)
    first = Working(pool.connect, "first")
    assert connecting.wait(10)
    second, third = pool.queue_up("second"), pool.queue_up("third")
    fail.set()
    with pytest.raises(OSError, match="first"):
        first.result()
    with pytest.raises(KeyboardInterrupt):
        second.result()
    third.result()
    assert pool.served == ["third"]


@pytest.fixture
def interrupts() -> Iterator[None]:
    """Let Ctrl-C raise KeyboardInterrupt, also within pytest."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_control_c_in_the_main_thread(interrupts: None) -> None:
    """It ends the wait, and the threads that wait behind it are served."""
    pool = Pool()
    held = pool.connect()
    main = threading.main_thread().ident
    assert main == threading.get_ident()
    behind: list[Working] = []

    def interrupt() -> None:
        wait_until(lambda: pool.in_line() == 1, what="the main thread in line")
        behind.append(pool.queue_up("behind"))
        signal.pthread_kill(main, signal.SIGINT)

    helper = Working(interrupt, "interrupt")
    with pytest.raises(KeyboardInterrupt):
        pool.connect()
    helper.result()
    assert pool.in_line() == 1
    held.close()
    behind[0].result()
    assert pool.served == ["behind"]


def test_dispose_while_others_wait() -> None:
    """They connect at once, although a held connection is never returned."""
    engine = create_engine("sqlite://", poolclass=PoolClass, pool_timeout=60)
    engine.dispose()
    pool = Pool()
    old, engine.pool = engine.pool, pool.pool
    old.dispose()
    held = pool.connect()
    waiting = [pool.queue_up(name) for name in "abc"]
    engine.dispose()
    for each in waiting:
        each.result()
    assert pool.served == list("abc")
    assert engine.pool is not pool.pool
    held.close()
    engine.dispose()


def test_the_timeout_is_sqlalchemys() -> None:
    """Its class, message and code."""
    errors = []
    for each in (PoolClass, QueuePool):
        pool = each(Connection, pool_size=1, max_overflow=1, timeout=0.01)
        held = pool.connect(), pool.connect()
        with pytest.raises(sa_exc.TimeoutError) as info:
            pool.connect()
        errors.append((type(info.value), str(info.value), info.value.code))
        assert pool.checkedout() == len(held)
    assert errors[0] == errors[1]


def test_many_threads() -> None:
    """All threads are served, and no connection is lost or used twice."""
    used: set[int] = set()
    pool = Pool(pool_size=2, max_overflow=1)

    def work() -> None:
        for _ in range(200):
            proxied = pool.connect()
            key = id(proxied.dbapi_connection)
            assert key not in used
            used.add(key)
            used.discard(key)
            if key % 7 == 0:
                proxied.invalidate()
            proxied.close()

    for each in [Working(work, f"work {number}") for number in range(12)]:
        each.result(60)
    assert pool.pool.checkedout() == 0
    assert pool.in_line() == 0


# -- waiters in a snapshot ---------------------------------------------------------


class OneConnection:
    """An application with a pool of one connection, and the threads waiting for it."""

    def __init__(
        self, make_app: Callable[..., Flask], url: str, **options: Any
    ) -> None:
        given = {"pool_size": 1, "max_overflow": 0, "pool_timeout": 60, **options}
        self.db = ScopedSession()
        self.app = make_app(
            self.db,
            SQLALCHEMY_DATABASE_URI=url,
            SQLALCHEMY_ENGINE_OPTIONS={"poolclass": QueuePool, **given},
        )
        with self.app.app_context():
            self.pool: Any = self.db.engine.pool

    def visit(self) -> None:
        with self.app.app_context(), self.db.engine.connect():
            pass

    def waiters(self) -> list[str]:
        """Return the names of the waiting threads, as a snapshot shows them."""
        with self.app.app_context():
            (pool,) = self.db.snapshot().pools
            return [waiter.thread for waiter in pool.waiters]


def test_the_waiters_of_a_snapshot(
    make_app: Callable[..., Flask], sqlite_url: str
) -> None:
    """Exactly the waiting threads, longest first; none after they are served."""
    one = OneConnection(make_app, sqlite_url)
    with one.app.app_context(), one.db.engine.connect():
        waiting = []
        for name in ("first", "second"):
            waiting.append(Working(one.visit, name))
            wait_until(lambda: len(one.pool.queue.line) == len(waiting))
        wait_until(lambda: one.waiters() == ["first", "second"], what="both are shown")
    for each in waiting:
        each.result()
    assert one.waiters() == []


def test_a_connecting_thread_does_not_count_as_waiting(
    make_app: Callable[..., Flask], sqlite_url: str
) -> None:
    """Nor is a thread that got a slot and waits for the database."""
    connecting, go_on = threading.Event(), threading.Event()
    connecting_again, go_on_again = threading.Event(), threading.Event()

    def connect() -> Any:
        if not connecting.is_set():
            connecting.set()
            go_on.wait(20)
            raise OSError("refused")
        connecting_again.set()
        go_on_again.wait(20)
        return sqlite3.connect(":memory:", check_same_thread=False)

    one = OneConnection(make_app, sqlite_url, creator=connect)
    first = Working(one.visit, "first")
    assert connecting.wait(10)
    assert one.waiters() == []
    second = Working(one.visit, "second")
    wait_until(lambda: one.waiters() == ["second"], what="the second in line")
    go_on.set()
    assert connecting_again.wait(10)
    assert one.waiters() == []
    go_on_again.set()
    with pytest.raises(OSError, match="refused"):
        first.result()
    second.result()
    assert one.pool.checkedout() == 0


# -- greenlets -----------------------------------------------------------------------

GREEN = """
import gevent.monkey
gevent.monkey.patch_all()
import gevent
from sqlalchemy.pool import QueuePool
from flask_scopedsession._pools.tracked_pool import pool_class

class Connection:
    def rollback(self): pass
    def close(self): pass

PoolClass = pool_class(QueuePool, fair=True, tracked=True)
pool = PoolClass(Connection, pool_size=1, max_overflow=0, timeout=60)
served = []

def visit(name):
    proxied = pool.connect()
    try:
        served.append(name)
        gevent.sleep(0)
    finally:
        proxied.close()

def queue_up(*names):
    found = []
    for name in names:
        found.append(gevent.spawn(visit, name))
        gevent.sleep(0)
    assert len(pool.queue.line) == len(names), pool.queue.line
    return found

def end(*expected):
    assert served == list(expected), served
    assert pool.checkedout() == 0, pool.status()
    assert not pool.queue.line
    print("content")

held = pool.connect()
"""


@pytest.fixture
def green(run_script: Run) -> Callable[[str], None]:
    """Run a script in a new interpreter that gevent has patched."""
    pytest.importorskip("gevent")

    def run(source: str) -> None:
        result = run_script(GREEN + textwrap.dedent(source)).check()
        assert "Traceback" not in result.stderr
        assert result.stdout == "content\n"

    return run


@pytest.mark.subprocess
def test_greenlets_in_turn(green: Callable[[str], None]) -> None:
    """A waiting greenlet lets others run, and they are served in order."""
    green("""
        waiting = queue_up("a", "b", "c")
        held.close()
        again = pool.connect()
        again.close()
        gevent.joinall(waiting, timeout=10, raise_error=True)
        end("a", "b", "c")
    """)


@pytest.mark.subprocess
def test_a_greenlet_that_is_killed_with_a_connection_given(
    green: Callable[[str], None],
) -> None:
    """It got a connection but has not run since: the next greenlet gets it."""
    green("""
        waiting = queue_up("a", "b")
        waiting[0].kill(block=False)  # as soon as the hub runs
        held.close()
        assert len(pool.queue.line) == 1
        gevent.joinall(waiting, timeout=10)
        end("b")
    """)


@pytest.mark.subprocess
def test_a_greenlet_that_is_killed_in_line(green: Callable[[str], None]) -> None:
    """It no longer counts as waiting."""
    green("""
        waiting = queue_up("a", "b")
        waiting[0].kill()
        held.close()
        gevent.joinall(waiting, timeout=10)
        end("b")
    """)


@pytest.mark.subprocess
def test_gevents_timeout(green: Callable[[str], None]) -> None:
    """It ends the wait, also if a connection was already assigned."""
    green("""
        waiting = queue_up("a")
        for given in (False, True):
            try:
                with gevent.Timeout(0.05):
                    if given:
                        # The hub runs only when it is late already.
                        gevent.spawn(held.close)
                        gevent.monkey.get_original("time", "sleep")(0.1)
                    pool.connect()
                served.append("main")
            except gevent.Timeout:
                pass
            if not given:
                assert len(pool.queue.line) == 1
        gevent.joinall(waiting, timeout=10, raise_error=True)
        assert served[0] == "a"
        import gc; gc.collect()
        del served[1:]
        end("a")
    """)


# -- forks ---------------------------------------------------------------------------


@pytest.mark.subprocess
def test_a_fork_while_threads_wait(run_script: Run, sqlite_url: str) -> None:
    """A thread held the lock and another waited: the child starts afresh."""
    source = textwrap.dedent("""
        import os, sys, threading, warnings
        from flask import Flask
        from sqlalchemy.pool import QueuePool
        from flask_scopedsession import ScopedSession

        # The threads are this test's, not ours.
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        db = ScopedSession()
        app = Flask("forks")
        app.config["SQLALCHEMY_DATABASE_URI"] = sys.argv[1]
        app.config["SQLALCHEMY_ENGINE_OPTIONS"] = {
            "poolclass": QueuePool, "pool_size": 1, "max_overflow": 0
        }
        db.init_app(app)
        with app.app_context():
            engine = db.engine
        old = engine.pool
        held = engine.raw_connection()
        waiter = threading.Thread(target=lambda: engine.raw_connection().close())
        waiter.start()
        while not old.queue.line:
            pass
        inside, leave = threading.Event(), threading.Event()
        def hold_the_lock():
            with old.queue.mutex:
                inside.set()
                leave.wait(20)
        thread = threading.Thread(target=hold_the_lock)
        thread.start()
        assert inside.wait(10)
        pid = os.fork()
        if pid == 0:
            engine.raw_connection().close()
            assert engine.pool is not old
            assert not old.queue.line
            held.close()  # back to the parent's pool
            assert old.checkedin() == 1
            os._exit(7)
        leave.set()
        thread.join()
        _, status = os.waitpid(pid, 0)
        assert os.waitstatus_to_exitcode(status) == 7
        assert len(old.queue.line) == 1
        held.close()
        waiter.join(10)
        assert not waiter.is_alive()
        print("content")
        db.dispose(app)
    """)
    result = run_script(source, sqlite_url, timeout=30).check()
    assert result.stdout == "content\n"
