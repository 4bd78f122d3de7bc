"""What this process holds: connections, waiters, sessions, and how long it took.

Pools keep no such account: they fire no event for a wait or a timeout, unbalanced
ones on ``detach()`` and ``invalidate()``, and forget what is out on ``dispose()``.

A connection can be returned by the garbage collector, inside any code of the
same thread. So the paths that write here take no lock, do no I/O and log
nothing: they set an attribute, or touch one item of a dict or deque, each of
which the interpreter does in one step. Whoever reads, folds and counts.
"""

from __future__ import annotations

import itertools
import time
import typing as t
import weakref
from bisect import bisect_left
from collections import deque
from time import perf_counter

from ._native import allocate_lock
from ._owner import Owner
from .snapshot import BUCKET_BOUNDS
from .snapshot import Histogram
from .snapshot import Holder

if t.TYPE_CHECKING:
    from sqlalchemy.orm import Session
    from sqlalchemy.pool import ConnectionPoolEntry
    from sqlalchemy.pool import PoolProxiedConnection

    from ._config import BindSettings
    from ._frames import RawFrame

#: Where a pool entry keeps its :class:`Slot`; the entry outlives reconnections.
SLOT = "flask_scopedsession"

#: Samples that may wait to be folded into a histogram.
_UNFOLDED = 2048


class Meter:
    """Durations, recorded without a lock and folded into a histogram when read."""

    __slots__ = ("_counts", "_highest", "_lock", "_sum", "add", "fresh")

    def __init__(self) -> None:
        self.fresh: deque[float] = deque()
        self.add = self.fresh.append
        self._lock = allocate_lock()
        self._counts = [0] * (len(BUCKET_BOUNDS) + 1)
        self._sum = 0.0
        self._highest = 0.0

    def trim(self) -> None:
        """Fold what has gathered, unless somebody is already at it."""
        if self._lock.acquire(False):
            try:
                self._fold()
            finally:
                self._lock.release()

    def read(self) -> Histogram:
        """Return everything recorded so far."""
        with self._lock:
            self._fold()
            return Histogram.of(tuple(self._counts), self._sum, self._highest)

    def _fold(self) -> None:
        # Only as many as are there now, so that busy threads cannot keep us here.
        for _ in range(len(self.fresh)):
            seconds = max(0.0, self.fresh.popleft())
            self._counts[bisect_left(BUCKET_BOUNDS, seconds)] += 1
            self._sum += seconds
            self._highest = max(self._highest, seconds)


class Slot:
    """What is known of one open connection, from one connect to its close."""

    __slots__ = ("backend_pid", "hold", "number", "opened", "returned")

    def __init__(self, number: int, backend_pid: int | None) -> None:
        self.number = number
        self.backend_pid = backend_pid
        self.opened = perf_counter()
        self.returned: float | None = None
        self.hold: Hold | None = None


class Hold(weakref.ref["PoolProxiedConnection"]):
    """One checkout: a weak reference to the proxied connection, and who has it.

    Optional values are class attributes, so that a checkout need not set them.
    """

    key: int
    since: float
    owner: Owner
    generation: int
    slot: Slot | None = None
    timed = False
    in_transaction = False
    running_since: float | None = None
    idle_since: float | None = None
    execution_options: t.Mapping[str, t.Any] | None = None
    statement: str | None = None
    session: SessionEntry | None = None
    stack: tuple[RawFrame, ...] | None = None

    @property
    def out(self) -> bool:
        """Whether the connection still counts against its pool."""
        proxied = self()
        return proxied is not None and proxied.is_valid and not proxied.is_detached


class Waiting:
    """One call of ``Pool.connect()`` that has not come back yet."""

    __slots__ = ("connecting", "owner", "since")

    def __init__(self, since: float, owner: Owner) -> None:
        self.since = since
        self.owner = owner
        self.connecting = False


class TimedOut(t.NamedTuple):
    """A checkout that gave up."""

    at: float
    waited: float
    owner: Owner
    holders: tuple[Holder, ...]
    """Who held a connection at that moment, longest first."""


class PoolAccount:
    """The account of one bind's pool, over all its generations.

    ``dispose()`` replaces the pool; what is out of the old one is still out.
    """

    def __init__(self, settings: BindSettings, *, stacks: bool, show_sql: bool) -> None:
        self.settings = settings
        self.stacks = stacks
        self.show_sql = show_sql
        self.holds: dict[int, Hold] = {}
        self.waiting: dict[int, Waiting] = {}
        self.open: weakref.WeakKeyDictionary[ConnectionPoolEntry, Slot] = (
            weakref.WeakKeyDictionary()
        )
        self.pinging: set[int] = set()
        self.generation = 0
        self.listens_only = False
        """A ready-made pool of the user's: its waits and timeouts are unknown."""
        self.describe: t.Callable[[], tuple[Holder, ...]] = tuple
        """Says who holds what right now; the reader of this ledger sets it."""
        self.reset()

    def reset(self) -> None:
        """Begin anew, with locks of its own: at the start, and after a fork."""
        self.holds.clear()
        self.waiting.clear()
        self.open.clear()
        self.pinging.clear()
        self.waits = Meter()
        self.held = Meter()
        self.created = Meter()
        self.invalidated = Meter()
        self.timeouts = Meter()
        self.timeout_times: deque[float] = deque(maxlen=1000)
        self.recent_timeouts: deque[TimedOut] = deque(maxlen=5)
        self.last_return = perf_counter()
        self.suspect_since = 0.0
        self.log_again_at = 0.0
        self._numbers = itertools.count(1)

    # -- written on the hot path ----------------------------------------------

    def check_out(
        self, proxied: PoolProxiedConnection, owner: Owner, now: float, waited: float
    ) -> Hold:
        """Note that `owner` has got a connection, `now`, after `waited` seconds."""
        self.waits.add(waited)
        key = id(proxied)
        hold = self.holds.get(key)
        if hold is not None:
            # SingletonThreadPool hands the same one out again within a thread.
            return hold
        hold = Hold(proxied, self._forget)
        hold.key = key
        hold.since = now
        hold.owner = owner
        hold.generation = self.generation
        entry = proxied.record_info
        if entry is not None:
            slot = hold.slot = entry.get(SLOT)
            if slot is not None:
                slot.hold = hold
        if self.stacks:
            from ._frames import raw_stack

            hold.stack = raw_stack(3)
        self.holds[key] = hold
        if len(self.waits.fresh) > _UNFOLDED:
            self.waits.trim()
            self.held.trim()
        return hold

    def check_in(self, entry: ConnectionPoolEntry) -> None:
        """Note that a pool entry came back, or its connection was detached."""
        self.last_return = now = perf_counter()
        info = entry.record_info
        slot = None if info is None else info.get(SLOT)
        if slot is not None:
            slot.returned = now
            hold, slot.hold = slot.hold, None
            if hold is not None:
                self._time(hold)

    def _forget(self, hold: t.Any) -> None:
        # Called when the proxied connection is freed, maybe by the collector.
        self.holds.pop(hold.key, None)
        self._time(hold)

    def _time(self, hold: Hold, clock: t.Callable[[], float] = perf_counter) -> None:
        # The clock is a default, since there are no globals at interpreter exit.
        if not hold.timed:
            hold.timed = True
            self.held.add(clock() - hold.since)

    # -- written when connections come and go ----------------------------------

    def connected(
        self, entry: ConnectionPoolEntry, backend_pid: int | None, took: float
    ) -> None:
        """Note a new connection to the database."""
        slot = Slot(next(self._numbers), backend_pid)
        info = entry.record_info
        if info is not None:
            info[SLOT] = slot
        self.open[entry] = slot
        self.created.add(took)

    def closed(self, entry: ConnectionPoolEntry) -> None:
        """Note that a connection was closed, or left the pool for good."""
        self.open.pop(entry, None)

    def timed_out(self, waiting: Waiting) -> TimedOut:
        """Note a checkout that gave up, and who held what at that moment."""
        now = perf_counter()
        holders = self.describe()
        timeout = TimedOut(time.time(), now - waiting.since, waiting.owner, holders)
        self.timeouts.add(timeout.waited)
        self.timeout_times.append(now)
        self.recent_timeouts.append(timeout)
        return timeout

    # -- read ------------------------------------------------------------------

    def connections(self) -> int:
        """Count the connections that are open.

        One that failed while it was made ready is closed without an event, and its
        entry lives as long as the error does.
        """
        entries = [reference() for reference in self.open.keyrefs()]
        return sum(e is not None and e.dbapi_connection is not None for e in entries)

    def live(self) -> list[Hold]:
        """Return what is out right now, longest first."""
        found = [hold for hold in list(self.holds.values()) if hold.out]
        return sorted(found, key=lambda hold: hold.since)


class SessionEntry(weakref.ref["Session"]):
    """One open session: a weak reference to it, and who opened it."""

    key: int
    number: int
    since: float
    name: str
    scope: str
    owner: Owner
    context: weakref.ref[t.Any] | None


class Ledger:
    """Everything one application holds in this process."""

    def __init__(self) -> None:
        self.pools: dict[str, PoolAccount] = {}
        self.sessions: dict[int, SessionEntry] = {}
        self.started = time.time()
        self._numbers = itertools.count(1)

    def opened(
        self,
        session: Session,
        name: str,
        scope: str,
        owner: Owner,
        context: object | None = None,
    ) -> SessionEntry:
        """Note a new session."""
        entry = SessionEntry(session, self._collected)
        entry.key = id(session)
        entry.number = next(self._numbers)
        entry.since = perf_counter()
        entry.name = name
        entry.scope = scope
        entry.owner = owner
        entry.context = None if context is None else weakref.ref(context)
        self.sessions[entry.key] = entry
        return entry

    def removed(self, session: Session) -> None:
        """Note that a session is gone."""
        self.sessions.pop(id(session), None)

    def hold_of(self, proxied: PoolProxiedConnection) -> Hold | None:
        """Return the hold on a proxied connection, when it is one of ours."""
        key = id(proxied)
        for account in self.pools.values():
            hold = account.holds.get(key)
            if hold is not None:
                return hold
        return None

    def _collected(self, entry: t.Any) -> None:
        self.sessions.pop(entry.key, None)

    def reset(self) -> None:
        """Begin anew after a fork: nothing of the parent's is ours."""
        self.sessions.clear()
        self.started = time.time()
        for account in self.pools.values():
            account.reset()
