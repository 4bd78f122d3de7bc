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
import threading
import time
import typing as t
import weakref
from collections import Counter
from collections import deque
from time import perf_counter

from .._runtime.native import allocate_lock
from .._scopes.scope import current_owner
from .._scopes.scope import Owner
from .._scopes.scope import Responsible
from .meters import Meters
from .meters import UNFOLDED

if t.TYPE_CHECKING:
    from sqlalchemy.orm import Session
    from sqlalchemy.pool import ConnectionPoolEntry
    from sqlalchemy.pool import PoolProxiedConnection

    from .._runtime.stacks import RawStack
    from .._settings.config import BindSettings
    from ..snapshot import Holder
    from ..snapshot import SharedUse

#: Where a pool entry keeps its :class:`Slot`; the entry outlives reconnections.
SLOT = "flask_scopedsession"


class Slot:
    """What is known of one open connection, from one connect to its close."""

    __slots__ = ("backend_pid", "hold", "number", "opened", "returned")

    def __init__(self, number: int, backend_pid: int | None) -> None:
        self.number = number
        self.backend_pid = backend_pid
        self.opened = perf_counter()
        self.returned: float | None = None
        self.hold: Hold | None = None


def slot_of(proxied: PoolProxiedConnection) -> Slot | None:
    """Return what is known of a connection that was checked out."""
    info = proxied.record_info
    return None if info is None else info.get(SLOT)


class Hold(weakref.ref["PoolProxiedConnection"]):
    """One checkout: a weak reference to the proxied connection, and who has it."""

    # Set in a third of the time that a dict takes for as many values: 0.5 µs less.
    __slots__ = (
        "account",
        "execution_options",
        "generation",
        "idle_since",
        "in_transaction",
        "key",
        "owner",
        "running_since",
        "session",
        "since",
        "slot",
        "stack",
        "statement",
        "timed",
    )

    key: int
    since: float
    owner: Owner
    generation: int
    account: PoolAccount
    slot: Slot | None
    timed: bool
    in_transaction: bool
    running_since: float | None
    idle_since: float | None
    execution_options: t.Mapping[str, t.Any] | None
    statement: str | None
    session: SessionEntry | None
    stack: RawStack | None

    @property
    def out(self) -> bool:
        """Whether the connection still counts against its pool."""
        proxied = self()
        return proxied is not None and proxied.is_valid and not proxied.is_detached


class Waiting:
    """One call of ``Pool.connect()`` that has not come back yet."""

    __slots__ = ("connecting", "in_line", "owner", "since")

    def __init__(self, since: float, owner: Owner) -> None:
        self.since = since
        self.owner = owner
        self.connecting = False
        self.in_line = False
        """Whether it waits in line; only a fair pool knows."""


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
        self.nesting: set[str] = set()
        """Views that were seen to ask for one while they held another. Where they check
        connections out is recorded, for the day when they wait for themselves."""
        self.told_who_waits = False
        """By the pool, as a fair one does; else all who ask for a connection are noted,
        and who of them waits is worked out by whoever reads."""
        self.most = float("inf")
        """How many connections may be open at a time."""
        self.describe: t.Callable[[], tuple[Holder, ...]] = tuple
        """Says who holds what right now; the reader of this ledger sets it."""
        self.reset()

    def reset(self) -> None:
        """Begin anew, with locks of its own: at the start, and after a fork."""
        self.holds.clear()
        self.waiting.clear()
        self.open.clear()
        self.pinging.clear()
        self.meters = Meters(self.in_use)
        self.timeout_times: deque[float] = deque(maxlen=1000)
        self.recent_timeouts: deque[TimedOut] = deque(maxlen=5)
        self.last_return = perf_counter()
        self.suspect_since = 0.0
        self.log_again_at = 0.0
        self._numbers = itertools.count(1)

    # -- written on the hot path ----------------------------------------------

    def check_out(
        self,
        proxied: PoolProxiedConnection,
        slot: Slot | None,
        owner: Owner,
        now: float,
        waited: float,
    ) -> Hold:
        """Note that `owner` has got a connection, `now`, after `waited` seconds."""
        meters = self.meters
        if now >= meters.turn_at or len(meters.waits.fresh) > UNFOLDED:
            meters.turn(now)  # first, so that this falls into the new step
        meters.waits.add(waited)
        key = id(proxied)
        hold = self.holds.get(key)
        # An interrupted _end() leaves one behind that is dead, and its id is reused.
        if hold is not None and hold() is proxied:
            # SingletonThreadPool hands the same one out again within a thread.
            return hold
        hold = Hold(proxied, self._freed)
        hold.key = key
        hold.since = now
        hold.owner = owner
        hold.generation = self.generation
        hold.account = self
        hold.timed = hold.in_transaction = False
        hold.running_since = hold.idle_since = hold.execution_options = None
        hold.session = hold.statement = hold.stack = None
        hold.slot = slot
        owner.hold = hold
        if slot is not None:
            slot.hold = hold
        if self.stacks or (self.nesting and self._nests(owner)):
            from .._runtime.stacks import own_stack

            hold.stack = own_stack(3)
        self.holds[key] = hold
        if len(self.holds) > meters.used.now:
            meters.used.now = max(meters.used.now, self.in_use()[0])
        return hold

    def note_nesting(self, owner: Owner) -> None:
        """Note that somebody asks for a connection who has one."""
        if owner.rule is not None:
            self.nesting.add(owner.rule.endpoint)

    def _nests(self, owner: Owner) -> bool:
        return owner.rule is not None and owner.rule.endpoint in self.nesting

    def note_connecting(self) -> None:
        """Note that the calling thread connects, or tests a connection."""
        ident = threading.get_ident()
        waiting = self.waiting.get(ident)
        if waiting is None:
            waiting = self.waiting[ident] = Waiting(perf_counter(), current_owner())
        waiting.connecting = True

    def note_pending(self) -> None:
        """Note that more are asked for than there are."""
        pending = self.meters.pending
        pending.now = max(pending.now, self.in_use()[1])

    def in_use(self) -> tuple[int, int]:
        """Count what is in use, and who must wait for that."""
        out = [hold for hold in list(self.holds.values()) if hold.out]
        held = sum(hold.generation == self.generation for hold in out)
        # A slot is either held or asked for; whoever asks beyond the last one waits.
        beyond = held + len(self.waiting) - self.most
        return len(out), int(beyond) if beyond > 0 else 0

    def check_in(self, entry: ConnectionPoolEntry) -> None:
        """Note that a pool entry came back, or its connection was detached."""
        self.last_return = now = perf_counter()
        if now >= self.meters.turn_at:
            self.meters.turn(now)
        info = entry.record_info
        slot = None if info is None else info.get(SLOT)
        if slot is not None:
            slot.returned = now
            hold: t.Any = slot.hold
            slot.hold = None
            if hold is not None:
                self._end(hold, now)

    def _freed(self, hold: t.Any, clock: t.Callable[[], float] = perf_counter) -> None:
        # Called when the proxied connection is freed, maybe by the collector, or at
        # interpreter exit: the clock is a default, since there are no globals then.
        self._end(hold, clock())

    def _end(self, hold: t.Any, now: float) -> None:
        if not hold.timed:
            hold.timed = True
            # Another may have the same key by now. What is taken out here need not
            # hear of the proxied connection's end, unless somebody else refers to it.
            key = hold.key
            if self.holds.get(key) is hold:
                del self.holds[key]
            owner = hold.owner
            if owner.hold is hold:
                owner.hold = None  # or they would keep each other alive
            self.meters.held.add((now - hold.since, owner))

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
        self.meters.turn(slot.opened)
        self.meters.created.add(took)

    def closed(self, entry: ConnectionPoolEntry) -> None:
        """Note that a connection was closed, or left the pool for good."""
        self.open.pop(entry, None)

    def died(self, entry: ConnectionPoolEntry) -> None:
        """Note that a connection was found dead, or thrown away."""
        now, slot = perf_counter(), self.open.get(entry)
        self.meters.turn(now)
        self.meters.invalidated.add(0.0 if slot is None else now - slot.opened)

    def timed_out(self, since: float, owner: Owner) -> TimedOut:
        """Note a checkout that gave up, and who held what at that moment."""
        now = perf_counter()
        holders = self.describe()
        timeout = TimedOut(time.time(), now - since, owner, holders)
        self.meters.turn(now)
        self.meters.timeouts.add(timeout.waited)
        self.timeout_times.append(now)
        self.recent_timeouts.append(timeout)
        return timeout

    # -- read ------------------------------------------------------------------

    def connections(self) -> int:
        """Count the connections that are open."""
        return len(self._open())

    def backend_pids(self) -> tuple[int, ...]:
        """Return what the server calls the connections that are open."""
        slots = [self.open.get(entry) for entry in self._open()]
        pids = {slot.backend_pid for slot in slots if slot is not None}
        return tuple(sorted(pid for pid in pids if pid is not None))

    def _open(self) -> list[ConnectionPoolEntry]:
        # One that failed while it was made ready is closed without an event, and its
        # entry lives as long as the error does.
        entries = [reference() for reference in self.open.keyrefs()]
        return [e for e in entries if e is not None and e.dbapi_connection is not None]

    def live(self) -> list[Hold]:
        """Return what is out right now, longest first."""
        found = [hold for hold in list(self.holds.values()) if hold.out]
        return sorted(found, key=lambda hold: hold.since)


class SessionEntry(weakref.ref["Session"]):
    """One open session: a weak reference to it, and who opened it."""

    __slots__ = ("context", "key", "name", "number", "owner", "scope", "since")

    key: int
    number: int
    since: float
    name: str
    scope: str
    owner: Owner
    context: weakref.ref[t.Any] | None


class Lost:
    """What the scopes of one view lost, since the start."""

    __slots__ = ("last", "objects", "scopes")

    def __init__(self) -> None:
        self.scopes = 0
        self.objects: Counter[str] = Counter()
        self.last = 0.0


class Ledger:
    """Everything one application holds in this process."""

    def __init__(self) -> None:
        self.pools: dict[str, PoolAccount] = {}
        self.sessions: dict[int, SessionEntry] = {}
        self.lost: dict[Responsible, Lost] = {}
        self.shared: deque[SharedUse] = deque(maxlen=5)
        self.started = time.time()
        self._lock = allocate_lock()
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

    def lost_work(self, who: Responsible, objects: Counter[str]) -> None:
        """Note that a scope ended well, but with changes that nobody committed."""
        with self._lock:
            lost = self.lost.setdefault(who, Lost())
            lost.scopes += 1
            lost.objects.update(objects)
            lost.last = time.time()

    def _collected(self, entry: t.Any) -> None:
        self.sessions.pop(entry.key, None)

    def reset(self) -> None:
        """Begin anew after a fork: nothing of the parent's is ours."""
        self.sessions.clear()
        self.lost.clear()
        self.shared.clear()
        self._lock = allocate_lock()
        self.started = time.time()
        for account in self.pools.values():
            account.reset()
