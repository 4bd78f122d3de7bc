"""The fair queue in one thread: what it counts, refuses, and survives.

``tests/whole/stateful/test_fair_pool.py`` switches threads at every lock, and
``tests/whole/concurrency/test_fair_pool.py`` uses real ones.
"""

from __future__ import annotations

import dis
import sys
import weakref
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
from sqlalchemy import exc as sa_exc
from sqlalchemy.pool import AssertionPool
from sqlalchemy.pool import AsyncAdaptedQueuePool
from sqlalchemy.pool import NullPool
from sqlalchemy.pool import QueuePool
from sqlalchemy.pool import SingletonThreadPool
from sqlalchemy.pool import StaticPool
from sqlalchemy.util.queue import Queue
from threads import in_thread

from flask_scopedsession import ScopedSession
from flask_scopedsession._pools import fair_queue as _fair
from flask_scopedsession._pools.fair_queue import FairPool
from flask_scopedsession._pools.fair_queue import FairQueue
from flask_scopedsession._pools.tracked_pool import pool_class


def fair(base: Any) -> Any:
    """Return the fair subclass of a pool class, without an account."""
    return pool_class(base, fair=True, tracked=False)


FairQueuePool: Any = fair(QueuePool)


class Refused(Exception):
    """The database takes no connection."""


class Connection:
    """A DBAPI connection that does nothing."""

    def rollback(self) -> None: ...
    def close(self) -> None: ...


def make(cls: Any = FairQueuePool, **options: Any) -> Any:
    return cls(
        Connection, **{"pool_size": 1, "max_overflow": 0, "timeout": 0, **options}
    )


# -- which pools ------------------------------------------------------------------


def test_sqlalchemy_still_works_as_we_know_it() -> None:
    """If this fails, SQLAlchemy has changed: compare it with ``_drill()``."""
    assert _fair._drill()
    assert issubclass(FairQueuePool, FairPool)
    assert QueuePool._queue_class is Queue


@pytest.mark.parametrize(
    "name", ["_dec_overflow", "_do_return_conn", "_do_get", "_create_connection"]
)
def test_a_private_name_that_is_gone(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then SQLAlchemy's own queue is used."""
    holder: Any = next(c for c in QueuePool.__mro__ if name in vars(c))
    monkeypatch.delattr(holder, name)
    if holder is QueuePool and hasattr(QueuePool, name):
        monkeypatch.setattr(QueuePool, name, None)
    assert not _fair.understood.__wrapped__()


def test_another_constructor(monkeypatch: pytest.MonkeyPatch) -> None:
    """If ``_queue_class`` no longer makes the queue, no class is changed."""
    original = QueuePool.__init__

    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        self._pool = Queue(self._pool.maxsize)

    monkeypatch.setattr(QueuePool, "__init__", init)
    assert not _fair.understood.__wrapped__()


def test_not_understood(monkeypatch: pytest.MonkeyPatch) -> None:
    """Then no class is changed."""
    monkeypatch.setattr(_fair, "understood", lambda: False)
    fresh = pool_class.__wrapped__
    assert fresh(QueuePool, fair=True, tracked=False) is QueuePool


class OwnQueue(QueuePool):
    class _queue_class(Queue[Any]):  # noqa: N801
        pass


@pytest.mark.parametrize(
    "base",
    [
        *(AsyncAdaptedQueuePool, NullPool, StaticPool, SingletonThreadPool),
        *(AssertionPool, OwnQueue),
    ],
)
def test_other_pools_are_left_alone(base: Any) -> None:
    assert fair(base) is base


def test_it_looks_like_its_base() -> None:
    """SQLAlchemy names loggers after a pool's class, and users read them."""
    assert fair(QueuePool) is FairQueuePool
    assert FairQueuePool.__module__ == QueuePool.__module__
    assert FairQueuePool.__name__ == "QueuePool"


def test_a_subclass_of_the_users() -> None:
    """Its own methods are called, also by the pool that replaces it."""
    called = []

    class Own(QueuePool):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            called.append("init")

        def _do_get(self) -> Any:
            called.append("get")
            return super()._do_get()

    pool = make(fair(Own)).recreate()
    assert isinstance(pool, Own)
    assert isinstance(pool.queue, FairQueue)
    pool.connect().close()
    assert called == ["init", "init", "get"]


def test_a_subclass_that_puts_in_a_queue_of_its_own() -> None:
    """It works as without the fair queue."""

    class Own(QueuePool):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self._pool = Queue(self._pool.maxsize)

    pool = make(fair(Own), max_overflow=1)
    assert pool.queue is None
    first, second = pool.connect(), pool.connect()
    first.close()
    second.close()
    assert (pool.checkedin(), pool.overflow()) == (1, 0)
    pool.dispose()
    assert pool.recreate().status() == pool.status()


@pytest.mark.parametrize("tracking", [True, False])
@pytest.mark.parametrize("switched", [True, False])
def test_the_engine(
    make_app: Callable[..., Any], sqlite_url: str, tracking: bool, switched: bool
) -> None:
    """``SCOPEDSESSION_FAIR_POOL`` decides, with tracking and without."""
    db = ScopedSession()
    app = make_app(
        db,
        SQLALCHEMY_DATABASE_URI=sqlite_url,
        SQLALCHEMY_ENGINE_OPTIONS={"poolclass": QueuePool},
        SCOPEDSESSION_TRACKING=tracking,
        SCOPEDSESSION_FAIR_POOL=switched,
    )
    with app.app_context():
        assert isinstance(db.engine.pool, FairPool) is switched
        db.engine.dispose()
        assert isinstance(db.engine.pool, FairPool) is switched


def test_a_pool_is_freed_without_the_collector() -> None:
    pool = make()
    gone = weakref.ref(pool)
    del pool
    assert gone() is None


# -- the same as SQLAlchemy's ----------------------------------------------------

STEPS = ["take", "return", "invalidate", "soft", "detach", "refuse", "dispose"]


def story(cls: Any, options: dict[str, Any], steps: list[tuple[str, int]]) -> list[Any]:
    """Do the steps, and return the pool's public counts after each."""
    refusals: list[bool] = []

    def connect() -> Connection:
        if refusals and refusals.pop():
            raise Refused
        return Connection()

    pool = cls(connect, timeout=0, **options)
    out: list[Any] = []
    seen: list[Any] = []
    for step, number in steps:
        try:
            if step == "take":
                out.append(pool.connect())
            elif step == "refuse":
                refusals[:] = [True]
            elif step == "dispose":
                pool.dispose()
            elif out:
                proxied = out.pop(number % len(out))
                if step == "detach":
                    proxied.detach()
                elif step != "return":
                    proxied.invalidate(soft=step == "soft")
                proxied.close()
        except (Refused, sa_exc.TimeoutError) as error:
            seen.append((type(error), str(error)))
        seen.append((pool.status(), pool.checkedin(), pool.checkedout()))
        seen.append((pool.overflow(), pool.size(), pool.timeout()))
    for proxied in out:
        proxied.close()
    seen.append(pool.recreate().status())
    return seen


@settings(deadline=None)
@given(
    st.fixed_dictionaries(
        {
            "pool_size": st.integers(0, 2),
            "max_overflow": st.integers(-1, 2),
            "use_lifo": st.booleans(),
        }
    ),
    st.lists(st.tuples(st.sampled_from(STEPS), st.integers(0, 5)), max_size=30),
)
def test_counts_and_errors(options: Any, steps: Any) -> None:
    """Without waiting threads it behaves as SQLAlchemy's, messages included."""
    assert story(FairQueuePool, options, steps) == story(QueuePool, options, steps)


@pytest.mark.parametrize("lifo", [False, True])
def test_lifo(lifo: bool) -> None:
    """The next connection is the one that was returned last, or first."""
    pool = make(pool_size=3, use_lifo=lifo)
    out = [pool.connect() for _ in range(3)]
    raw = [proxied.dbapi_connection for proxied in out]
    for proxied in out:
        proxied.close()
    again = [pool.connect() for _ in range(3)]
    found = [proxied.dbapi_connection for proxied in again]
    assert found == (raw[::-1] if lifo else raw)
    for proxied in again:
        proxied.close()


@pytest.mark.parametrize("timeout", [0, -1, 0.01, 1e300, float("inf"), None])
def test_timeouts(timeout: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Zero does not wait, no number is too large, and ``None`` waits for ever."""
    slept: list[tuple[Any, ...]] = []

    class Lock:
        def acquire(self, *args: Any) -> bool:
            slept.append(args)
            return False

    pool = make(timeout=timeout)
    held = pool.connect()
    with monkeypatch.context() as patched:
        patched.setattr(_fair.threading, "Lock", Lock)
        if timeout is None:
            patched.setattr(pool, "_timeout", None)
        # The message is SQLAlchemy's, which cannot print None.
        with pytest.raises(TypeError if timeout is None else sa_exc.TimeoutError):
            pool.connect()
    expected = {
        None: (),
        -1: (True, 0.0),
        1e300: (True, _fair.threading.TIMEOUT_MAX),
        float("inf"): (True, _fair.threading.TIMEOUT_MAX),
    }
    assert slept == [(), expected.get(timeout, (True, timeout))]
    _fair.Turn().wake.release()
    held.close()
    pool.connect().close()


def test_a_timeout_that_races_with_a_hand_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection that is given as the time is up is used, not lost."""
    pool = make()
    held = pool.connect()

    def sleep(turn: _fair.Turn, timeout: float | None) -> None:
        held.close()  # and yet the wait ends as if nothing had happened

    monkeypatch.setattr(_fair.Turn, "sleep", sleep)
    with_it = pool.connect()
    assert pool.checkedout() == 1
    with_it.close()
    assert (pool.checkedin(), pool.checkedout()) == (1, 0)


# -- interrupts, and the collector ----------------------------------------------------


class Killed(BaseException):
    """As greenlet's ``GreenletExit`` and gevent's ``Timeout``: not an Exception."""


class Between:
    """Does something at the N-th moment at which Python may interrupt a thread.

    Those are after a call, at the beginning of a function and of a loop's next round.
    Interrupts are raised there, and from 3.12 on, the collector runs there. Only
    moments count between the request for a connection and its return to SQLAlchemy.
    """

    def __init__(self, at: int, do: Callable[[], None]) -> None:
        self.at = at
        self.do = do
        self.count = 0
        self.where = ""
        self._done: dict[int, str] = {}
        self._inside = {
            function.__code__
            for function in (
                *(FairQueue.get, FairQueue.take, FairQueue._wait),
                *(FairQueue.serve, FairQueue._leave),
            )
        }

    def __enter__(self) -> Between:  # noqa: PYI034
        sys.settrace(self._call)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(None)

    def _call(self, frame: FrameType, event: str, argument: object) -> Any:
        if frame.f_code not in self._inside:
            return None
        frame.f_trace = self._opcode  # 3.13 wants it before the next line
        frame.f_trace_opcodes = True
        sys.settrace(self._call)  # 3.12 takes notice only now
        self._done[id(frame)] = "RESUME"
        return self._opcode

    def _opcode(self, frame: FrameType, event: str, argument: object) -> Any:
        if event == "opcode":
            before = self._done.get(id(frame), "")
            now = dis.opname[frame.f_code.co_code[frame.f_lasti]]
            self._done[id(frame)] = now
            looks = before.startswith(("RESUME", "CALL", "JUMP_BACKW", "JUMP_ABS"))
            if looks and now != "RETURN_VALUE":
                self._count(frame)
        return self._opcode

    def _count(self, frame: FrameType) -> None:
        self.count += 1
        if self.count == self.at:
            self.where = f"{frame.f_code.co_name}:{frame.f_lineno}"
            sys.settrace(None)
            self.do()


Before = Callable[[Any, pytest.MonkeyPatch], Callable[[], None]]


def once(do: Callable[[], object]) -> Callable[[], None]:
    """Return a function that calls `do`, but not again."""
    calls = [do]

    def call() -> None:
        if calls:
            calls.pop()()

    return call


def ready(pool: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """A connection lies ready."""
    pool.connect().close()
    return lambda: None


def handed(pool: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """It is returned while the thread sleeps, or else later."""
    back = once(pool.connect().close)
    monkeypatch.setattr(_fair.Turn, "sleep", lambda turn, timeout: back())
    return back


def given_a_slot(pool: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Another thread fails to connect while the thread sleeps, or else later."""
    assert pool._inc_overflow()
    back = once(pool._dec_overflow)
    monkeypatch.setattr(_fair.Turn, "sleep", lambda turn, timeout: back())
    return back


def slipped_in(pool: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """A slot came free after SQLAlchemy had looked."""
    get = pool.queue.get
    monkeypatch.setattr(pool.queue, "get", lambda _, timeout: get(True, timeout))
    return lambda: None


def whole(pool: Any) -> bool:
    """Whether nothing is out, no thread waits, and the one connection is available."""
    if pool.checkedout() or pool.queue.line or pool.overflow() > 0:
        return False
    pool.connect().close()
    return not pool.checkedout()


@pytest.mark.parametrize("before", [ready, handed, given_a_slot, slipped_in])
def test_an_interrupt_at_any_moment(
    before: Before, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A connection or slot that an interrupted thread was given is passed on."""

    def kill() -> None:
        raise Killed

    broken, at = [], 0
    while True:
        at += 1
        pool = make()
        with monkeypatch.context() as patched:
            back = before(pool, patched)
            with Between(at, kill) as moment, suppress(Killed):
                pool._do_return_conn(pool._do_get())
            back()
        if not moment.where:
            break
        if not whole(pool):
            broken.append((at, moment.where, pool.status()))
    assert at > (2 if before is ready else 10)
    assert not broken


def test_an_interrupt_as_the_connection_is_made(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The right to open one is passed on."""
    pool = make()
    given_a_slot(pool, monkeypatch)

    def connect(entry: object) -> Any:
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(pool, "_invoke_creator", connect)
        with pytest.raises(Killed):
            pool.connect()
    assert whole(pool)


def test_an_interrupt_in_a_pool_that_was_disposed_of(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A connection for which no thread waits is closed: the pool is not used again."""
    closed: list[Any] = []
    monkeypatch.setattr(Connection, "close", lambda self: closed.append(self))
    pool = make(pool_class(QueuePool, fair=True, tracked=True))
    held = pool.connect()
    raw = held.dbapi_connection

    def sleep(turn: _fair.Turn, timeout: float | None) -> None:
        held.close()
        pool.dispose()
        raise Killed

    monkeypatch.setattr(_fair.Turn, "sleep", sleep)
    with pytest.raises(Killed):
        pool.connect()
    assert closed == [raw]


@pytest.mark.parametrize("of", ["connection", "slot"])
def test_the_collector_at_any_moment(of: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread does not sleep when the collector has just returned a connection."""
    monkeypatch.setattr(_fair.Turn, "sleep", lambda turn, timeout: None)
    slept_over, at = [], 0
    while True:
        at += 1
        pool = make()
        held = pool.connect() if of == "connection" else None
        if held is None:
            assert pool._inc_overflow()
        with Between(at, held.close if held else pool._dec_overflow) as moment:
            try:
                found = pool.queue.get(True, 1)
            except _fair.Empty:
                found = None
        if not moment.where:
            break
        if found is not None:
            pool._do_return_conn(found)
            assert whole(pool)
        elif not moment.where.startswith("_leave"):
            slept_over.append((at, moment.where))
    assert at > 10
    # A thread that has slept, and is about to leave, is too late for it.
    assert {where.split(":")[0] for _, where in slept_over} <= {"_wait"}
    assert len(slept_over) <= 2


def test_the_collector_while_slots_are_counted() -> None:
    """It may close an overflow connection in the thread that counts."""
    pool = make(max_overflow=1)
    held = pool.connect(), pool.connect()
    held[0].close()

    def count() -> None:
        with pool._overflow_lock:
            held[1].close()

    in_thread(count)
    assert (pool.checkedin(), pool.overflow()) == (1, 0)
