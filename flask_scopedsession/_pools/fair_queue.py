"""A queue for SQLAlchemy's QueuePool that serves whoever has waited longest.

With SQLAlchemy's own, the thread that returns a connection may take it again before
the one that was notified has woken up; and who waits does not learn of a slot that
came free without a connection, as after a failed connect. Here both are given to the
first in line, and what was given is nobody else's. As long as somebody waits, nothing
lies ready; so whoever comes cannot overtake.

Private names of SQLAlchemy are used: ``_queue_class``, ``_pool``, ``_overflow``,
``_max_overflow``, ``_overflow_lock``, ``_do_get()``, ``_dec_overflow()``,
``_do_return_conn()`` and ``_create_connection()``. Where they are not what they were,
:func:`fair_parts` is empty.
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
    """One who waits: asleep until something is given."""

    __slots__ = ("given", "wake")

    def __init__(self) -> None:
        self.given: ConnectionPoolEntry | None = None
        # Not made by what we imported: gevent may have patched it since.
        self.wake = threading.Lock()
        self.wake.acquire()

    def sleep(self, timeout: float | None) -> None:
        """Wait for at most `timeout` seconds."""
        if timeout is None:
            self.wake.acquire()
        else:
            self.wake.acquire(True, min(max(0.0, timeout), threading.TIMEOUT_MAX))


class FairQueue(Queue["ConnectionPoolEntry"]):
    """What lies ready, and who waits; one of the two is empty.

    The mutex is reentrant: the collector may return a connection inside any code of
    the thread that has it. An interrupt may arrive there, too. Both come only with a
    call, a loop's next round or, in older Pythons, an allocation. So what is taken
    from one place is noted in another without any of these in between.
    """

    pool: weakref.ref[FairPool]

    def __init__(self, maxsize: int = 0, use_lifo: bool = False) -> None:
        super().__init__(maxsize, use_lifo)
        self.line: deque[Turn] = deque()
        self._end = -1 if use_lifo else 0

    def qsize(self) -> int:
        """Count the connections that lie ready."""
        return len(self.queue)

    def put(
        self,
        item: ConnectionPoolEntry,
        block: bool = True,  # noqa: ARG002
        timeout: float | None = None,  # noqa: ARG002
    ) -> None:
        """Give a connection to the first in line, or keep it; never waits.

        :raises Full: Nobody waits, and there are enough.
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
        """Take a connection, or wait in line for one.

        :param timeout: Seconds, or ``None`` to wait for ever.
        :raises Empty: There is none, or none was given in time.
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
                # First of all, so that nothing returned from here on is missed.
                self.line.append(turn)
                # SQLAlchemy looked at the slots before, without the mutex.
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
        """Leave the line; return what was given, if only in the last moment."""
        with self.mutex:
            if turn.given is None and turn in self.line:
                self.line.remove(turn)
            return turn.given

    def serve(self, pool: FairPool) -> None:
        """Give out what came free while nobody was told. The mutex is held."""
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
        if isinstance(self._pool, FairQueue):
            self.queue = self._pool
            self.queue.pool = weakref.ref(self)
            self._made_in = os.getpid()
            # One lock for slots and line, so that no slot comes free unseen between a
            # look at the slots and a place in the line.
            self._overflow_lock = t.cast(t.Any, self.queue.mutex)

    def _do_get(self) -> ConnectionPoolEntry:
        queue = self.queue
        if queue is not None and queue.queue:
            return queue.take() or super()._do_get()
        return super()._do_get()

    def in_line(self, waits: bool) -> None:
        """Hear that the calling thread waits in line, or no longer does."""

    def pass_on(self, given: ConnectionPoolEntry) -> None:
        """Give back what an interrupted thread was given, and has not used."""
        if given is SLOT:
            self._dec_overflow()
            return
        try:
            if self._disposed:
                given.close()
        finally:
            # Not by way of the tracked pool: it was not used, so it goes on resting.
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
        # It has set all slots free. Who waits here need not wait for those who hold.
        if self.queue is not None:
            with self.queue.mutex:
                self.queue.serve(self)

    def recreate(self) -> QueuePool:
        if self.queue is not None and self._made_in != os.getpid():
            # A fork: a thread that is not here may hold the lock, and others wait.
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
    return ((FairPool,), {"_queue_class": FairQueue}) if suits else ((), {})


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
    drilled: t.Any = type("Drilled", (FairPool, QueuePool), {"_queue_class": FairQueue})
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
