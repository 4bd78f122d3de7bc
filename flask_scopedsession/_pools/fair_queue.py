"""A queue for SQLAlchemy's QueuePool that serves the thread that has waited longest.

With SQLAlchemy's own queue, the thread that returns a connection may take it again
before the thread that was notified has woken up. And a waiting thread does not learn of
a slot that became free without a connection, as after a failed connect. Here, both are
handed to the first thread in the queue, and no other thread can take them. While a
thread waits, no connection is idle, so a new thread cannot overtake it.

SQLAlchemy's private names ``_queue_class``, ``_overflow``, ``_max_overflow``,
``_overflow_lock``, ``_dec_overflow()``, ``_do_return_conn()`` and
``_create_connection()`` are used. If they do not behave as expected,
:func:`fair_parts` returns nothing.
"""

from __future__ import annotations

import os
import threading
import typing as t
import weakref
from collections import deque
from functools import cache

from sqlalchemy import exc as sa_exc
from sqlalchemy.pool import Pool
from sqlalchemy.pool import QueuePool

if t.TYPE_CHECKING:
    from sqlalchemy.pool import ConnectionPoolEntry
    from sqlalchemy.util.queue import Empty
    from sqlalchemy.util.queue import Full
    from sqlalchemy.util.queue import Queue
else:
    try:
        from sqlalchemy.util.queue import Empty
        from sqlalchemy.util.queue import Full
        from sqlalchemy.util.queue import Queue
    except ImportError:
        # Stand-ins: no pool class uses this one, so fair() changes none.
        from queue import Empty
        from queue import Full
        from queue import Queue

#: Given instead of a connection: the right to open one.
SLOT = t.cast("ConnectionPoolEntry", object())


class Turn:
    """A waiting thread, which sleeps until a connection or a slot is handed to it."""

    __slots__ = ("given", "wake")

    def __init__(self) -> None:
        self.given: ConnectionPoolEntry | None = None
        # Looked up now, since gevent may have patched it after this was imported.
        self.wake = threading.Lock()
        self.wake.acquire()

    def sleep(self, timeout: float | None) -> None:
        """Wait for at most `timeout` seconds."""
        if timeout is None:
            self.wake.acquire()
        else:
            self.wake.acquire(True, min(max(0.0, timeout), threading.TIMEOUT_MAX))


class FairQueue(Queue["ConnectionPoolEntry"]):
    """Idle connections and waiting threads; at most one of the two is not empty.

    The mutex is reentrant, because garbage collection may return a connection while its
    thread holds the mutex. Signals and collection run only at calls, loop iterations
    and, in older Pythons, allocations. So each hand-over avoids all three between taking
    an item and storing it.
    """

    pool: weakref.ref[FairPool]

    def __init__(self, maxsize: int = 0, use_lifo: bool = False) -> None:
        super().__init__(maxsize, use_lifo)
        self.line: deque[Turn] = deque()
        self._end = -1 if use_lifo else 0

    def qsize(self) -> int:
        """Count the idle connections."""
        return len(self.queue)

    def put(
        self,
        item: ConnectionPoolEntry,
        block: bool = True,  # noqa: ARG002
        timeout: float | None = None,  # noqa: ARG002
    ) -> None:
        """Hand a connection to the first waiting thread, or keep it; never waits.

        :raises Full: No thread waits, and the queue is full.
        """
        with self.mutex:
            if self.line:
                turn = self.line[0]
                del self.line[0]
                turn.given = item
                turn.wake.release()
            elif 0 < self.maxsize <= len(self.queue):
                raise Full
            else:
                self.queue.append(item)

    def get(
        self, block: bool = True, timeout: float | None = None
    ) -> ConnectionPoolEntry:
        """Take a connection, or wait in the queue for one.

        :param timeout: Seconds, or ``None`` to wait for ever.
        :raises Empty: There is none, or none was handed over in time.
        """
        taken = self.take()
        if taken is not None:
            return taken
        if block:
            return self._wait(timeout)
        raise Empty

    def take(self) -> ConnectionPoolEntry | None:
        """Take an idle connection, if there is one; never waits."""
        taken = None
        try:
            with self.mutex:
                if self.queue:
                    taken = self.queue[self._end]; del self.queue[self._end]  # noqa: E702  # fmt: skip
            return taken
        except BaseException:
            self._pass_on(taken)
            raise

    def _wait(self, timeout: float | None) -> ConnectionPoolEntry:
        pool = t.cast(FairPool, self.pool())
        turn = Turn()
        try:
            with self.mutex:
                # First, so that nothing that is returned from here on is missed.
                self.line.append(turn)
                # SQLAlchemy read the slots before, without the mutex.
                self.serve(pool)
            if turn.given is None:
                pool.in_line(True)
                turn.sleep(timeout)
                pool.in_line(False)
            given = self._leave(turn)
            if given is SLOT:
                given = pool._create_connection()
        except BaseException:
            self._pass_on(self._leave(turn))
            raise
        if given is None:
            raise Empty
        return given

    def _leave(self, turn: Turn) -> ConnectionPoolEntry | None:
        """Leave the queue; return what was handed over, even at the last moment."""
        with self.mutex:
            if turn.given is None and turn in self.line:
                self.line.remove(turn)
            return turn.given

    def serve(self, pool: FairPool) -> None:
        """Hand over what became free unnoticed. The mutex is held."""
        while self.line:
            if self.queue:
                given = self.queue[self._end]
                del self.queue[self._end]
            elif pool._overflow < pool._max_overflow:
                given = SLOT
                pool._overflow += 1
            else:
                return
            turn = self.line[0]
            del self.line[0]
            turn.given = given
            turn.wake.release()

    def _pass_on(self, given: ConnectionPoolEntry | None) -> None:
        pool = self.pool()
        if given is not None and pool is not None:
            pool.pass_on(given)


class FairPool(QueuePool):
    """What :func:`.tracked_pool.pool_class` adds for a fair queue."""

    queue: FairQueue | None = None
    """``None`` where a subclass has put in a queue of its own."""
    _disposed = False

    def __init__(self, *args: t.Any, **kwargs: t.Any) -> None:
        super().__init__(*args, **kwargs)
        if self.queue is not None:
            self._made_in = os.getpid()
            # One lock for slots and queue: otherwise a slot could become free unnoticed
            # between the reading of the slots and the entry into the queue.
            self._overflow_lock = t.cast(t.Any, self.queue.mutex)

    def _make_queue(self, maxsize: int, use_lifo: bool = False) -> FairQueue:
        self.queue = FairQueue(maxsize, use_lifo)
        self.queue.pool = weakref.ref(self)
        return self.queue

    def in_line(self, waits: bool) -> None:
        """Note that the calling thread waits in the queue, or no longer does."""

    def pass_on(self, given: ConnectionPoolEntry) -> None:
        """Pass on what was handed to an interrupted thread, which has not used it."""
        if given is SLOT:
            self._dec_overflow()
            return
        try:
            if self._disposed:
                given.close()
        finally:
            # Not through the tracked pool: it was not used, so it was idle all along.
            super()._do_return_conn(given)

    def _dec_overflow(self) -> t.Literal[True]:
        if self.queue is None:
            return super()._dec_overflow()
        with self.queue.mutex:
            super()._dec_overflow()
            self.queue.serve(self)
        return True

    def dispose(self) -> None:
        super().dispose()
        # dispose() frees every slot, so waiting threads can connect at once instead of
        # waiting for a checkin.
        if self.queue is not None:
            with self.queue.mutex:
                self.queue.serve(self)

    def recreate(self) -> QueuePool:
        if self.queue is not None and self._made_in != os.getpid():
            # A fork: a thread of the parent may hold the lock, and others wait.
            self._made_in = os.getpid()
            self.queue.mutex = self._overflow_lock = t.cast(t.Any, threading.RLock())
            self.queue.line.clear()
        return super().recreate()


def fair_parts(
    base: type[Pool],
) -> tuple[tuple[type[Pool], ...], dict[str, t.Any]]:
    """Return what a subclass of `base` that serves in turn inherits and has.

    Both are empty where `base` is no queue, or not one that can.
    """
    suits = (
        issubclass(base, QueuePool)
        and getattr(base, "_queue_class", None) is Queue  # not asyncio's, nor a user's
        and understood()
    )
    return ((FairPool,), {"_queue_class": FairPool._make_queue}) if suits else ((), {})


@cache
def understood() -> bool:
    """Whether SQLAlchemy still uses the private names as it did, by trying them."""
    try:
        return _drill()
    except Exception:  # noqa: BLE001  # whatever it is, it is not as it was
        return False


def _drill() -> bool:
    plain: t.Any = QueuePool
    if not hasattr(plain(object), "_overflow_lock"):
        return False
    body = {"_queue_class": FairPool._make_queue}
    drilled: t.Any = type("Drilled", (FairPool, QueuePool), body)
    pool = drilled(object, pool_size=1, max_overflow=0, timeout=0)
    record = pool._do_get()
    try:
        pool._do_get()
    except sa_exc.TimeoutError:
        counts = [(pool._overflow, pool._max_overflow, pool.checkedout())]
    else:
        return False
    pool._do_return_conn(record)
    counts.append((pool._overflow, pool.checkedin(), pool.checkedout()))
    again = pool._do_get() is record
    pool._dec_overflow()
    counts.append((pool._overflow, pool.checkedin(), pool.checkedout()))
    pool._create_connection()
    expected = [(0, 0, 1), (0, 1, 0), (-1, 0, 0)]
    return pool.queue is not None and again and counts == expected
