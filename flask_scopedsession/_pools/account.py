"""The account of one bind's pool: connections, waiters, timeouts, and how long it took.

Pools keep no such account: they fire no event for a wait or a timeout, unbalanced
ones on ``detach()`` and ``invalidate()``, and forget what is out on ``dispose()``.

The garbage collector can return a connection inside any code of the same thread. So the
paths that write here take no lock, do no I/O and log nothing: each write sets an
attribute or changes one item of a set, dict or deque. Readers aggregate.
"""

from __future__ import annotations

import itertools
import time
import typing as t
import weakref
from collections import deque
from threading import get_ident
from time import perf_counter

from .._runtime.logs import fields
from .._runtime.logs import log
from .._runtime.stacks import own_stack
from .._runtime.stacks import RawStack
from .._scopes.ledger import Ledger
from .._scopes.scope import responsible
from .._scopes.scope import Scope
from .meters import Meters
from .meters import PENDING
from .slot import NOBODY
from .slot import SLOT
from .slot import Slot

if t.TYPE_CHECKING:
    from sqlalchemy.pool import ConnectionPoolEntry

    from .._settings.config import BindSettings
    from ..snapshot import Holder


#: A hold: since when, the connection's number, and whether it was leaked by then.
Noticed = tuple[float, "int | None", bool]


def _view(scope: Scope) -> t.Hashable:
    return scope.work or (None if scope.rule is None else scope.rule.endpoint)


class Held(t.NamedTuple):
    """One checkout, as it was read."""

    slot: Slot
    scope: Scope
    since: float

    @property
    def is_out(self) -> bool:
        """Whether it still is, and by the same scope."""
        slot = self.slot
        return slot.scope is self.scope and slot.since == self.since and slot.is_out


class Waiting:
    """One call of ``Pool.connect()`` that has not returned yet."""

    __slots__ = ("connecting", "in_line", "scope", "since")

    def __init__(self, since: float, scope: Scope) -> None:
        self.since = since
        self.scope = scope
        self.connecting = False
        """It opens or tests a connection."""
        self.in_line = False
        """It waits in the queue; only a fair pool knows."""


class TimedOut(t.NamedTuple):
    """A checkout that timed out."""

    at: float
    """When, as :func:`time.time` has it."""
    waited: float
    """Seconds."""
    scope: Scope
    holders: tuple[Holder, ...]
    """The holders at that moment, longest first."""


class Returned(t.NamedTuple):
    """A connection that was held for long, at its return."""

    account: PoolAccount
    held: float
    """Seconds."""
    scope: Scope
    connection: int
    backend_pid: int | None
    stack: RawStack | None


class PoolAccount:
    """The account of one bind's pool, over all its generations.

    ``dispose()`` replaces the pool; what is out of the old one is still out.
    """

    __slots__ = (
        "_numbers",
        "describe",
        "dialect",
        "generation",
        "hands_out_again",
        "held_long_after",
        "holds",
        "idle_after",
        "is_fair",
        "last_return",
        "ledger",
        "listens_only",
        "log_again_at",
        "log_long_at",
        "look_at",
        "meters",
        "most",
        "noticed",
        "open",
        "pinging",
        "recent_timeouts",
        "recorded",
        "settings",
        "show_sql",
        "stacks",
        "suspect_since",
        "timeout_times",
        "used",
        "waiting",
        "waits",
    )

    def __init__(
        self, settings: BindSettings, ledger: Ledger, *, stacks: bool, show_sql: bool
    ) -> None:
        self.settings = settings
        self.ledger = ledger
        self.stacks = stacks
        self.show_sql = show_sql
        self.idle_after = (
            float("inf")
            if settings.ping_idle_after is None
            else settings.ping_idle_after
        )
        """Seconds after which an idle connection is tested before it is used."""
        self.used: set[Slot] = set()
        """Of connections that are checked out."""
        self.waiting: dict[int, Waiting] = {}
        """By thread: calls that wait; where a pool cannot tell, all calls."""
        self.open: weakref.WeakKeyDictionary[ConnectionPoolEntry, Slot] = (
            weakref.WeakKeyDictionary()
        )
        self.pinging: set[int] = set()
        """Threads that connect outside the pool."""
        self.generation = 0
        self.dialect: t.Any = None
        self.listens_only = False
        """A ready-made pool of the user's: its waits and timeouts are unknown."""
        self.recorded: set[t.Hashable] = set()
        """Views, commands and jobs whose checkouts are recorded: they have leaked a
        connection, or asked for one while they held another."""
        self.hands_out_again = False
        """Whether the pool hands out a connection that is checked out, as StaticPool
        does. It counts for the first scope."""
        self.is_fair = False
        """Whether the pool reports waiting threads; else the reader works them out."""
        self.most = float("inf")
        """How many connections may be open at a time."""
        self.describe: t.Callable[[], tuple[Holder, ...]] = tuple
        """Returns the present holders; set by the reader of this account."""
        self.held_long_after = float("inf")
        """Seconds after which a held connection is reported."""
        self.reset()

    def reset(self) -> None:
        """Begin anew, with locks of its own: at the start, and after a fork."""
        self.used.clear()
        self.waiting.clear()
        self.open.clear()
        self.pinging.clear()
        self.meters = Meters(self.in_use)
        self.waits = self.meters.waits.samples
        self.holds = self.meters.held.samples
        self.timeout_times: deque[float] = deque(maxlen=1000)
        self.recent_timeouts: deque[TimedOut] = deque(maxlen=5)
        self.last_return = perf_counter()
        self.suspect_since = 0.0
        """Connections that were returned before are tested, however briefly idle."""
        self.log_again_at = self.log_long_at = self.look_at = 0.0
        self.noticed: set[Noticed] = set()
        """Holds that were reported as long, or that the last look found leaked."""
        self._numbers = itertools.count(1)

    # -- written when a connection is checked out or returned --------------------

    def check_out(self, slot: Slot, scope: Scope, now: float, waited: float) -> None:
        """Note that `scope` has got a connection.

        :param now: When, as :func:`time.perf_counter` has it.
        :param waited: Seconds.
        """
        meters = self.meters
        if now >= meters.rotate_at:
            meters.aggregate(now)  # else the wait would count in an earlier interval
        self.waits.append(waited)
        if slot.scope is not None:
            if self.hands_out_again:
                return
            slot.forget_writes()  # its return was interrupted
        slot.sent = 0
        slot.scope = scope
        slot.sender = scope.parent or scope
        slot.since = slot.moved = now
        scope.last = slot
        used = self.used
        used.add(slot)
        if len(used) > meters.used.now:
            meters.used.now = len(used)
        if self.stacks or (self.recorded and _view(scope) in self.recorded):
            slot.stack = own_stack(3)
            slot.keeps_more = True

    def check_in(self, slot: Slot) -> None:
        """Note that a connection was returned, detached or invalidated."""
        scope = slot.scope
        if scope is None:
            return
        slot.scope, slot.sender = None, NOBODY
        slot.returned = self.last_return = now = perf_counter()
        meters = self.meters
        if now >= meters.rotate_at or len(self.holds) >= PENDING:
            # Now, so that it was in use in the intervals that are over, and its time
            # counts in the new one.
            meters.aggregate(now)
        self.used.discard(slot)
        rule = scope.rule
        if rule is None and scope.request is not None:
            rule = scope.url_rule
        work = None if scope.work is None else responsible(scope)
        held = now - slot.since
        self.holds.append((held, rule, scope.method, work, slot.sent))
        if held > self.held_long_after:
            late = self, held, scope, slot.number, slot.backend_pid, slot.stack
            self.ledger.returned_late.append(Returned(*late))
            self.look_at = 0.0
        if slot.keeps_more:
            slot.statement = slot.execution_options = slot.stack = None
            slot.keeps_more = False
        if slot.runner is not None:
            slot.runner = None  # Ctrl-C interrupted the account of a statement's end
        if slot.writes is not None:
            slot.forget_writes()

    def record_checkouts(self, scope: Scope) -> None:
        """Record from now on where a scope's view or work checks connections out."""
        view = _view(scope)
        if view is not None:
            self.recorded.add(view)

    def note_connecting(self) -> None:
        """Note that the calling thread opens or tests a connection."""
        ident = get_ident()
        waiting = self.waiting.get(ident)
        if waiting is None:
            if not self.is_fair:
                return  # the application connects without the pool
            waiting = Waiting(perf_counter(), self.ledger.user())
            self.waiting[ident] = waiting
        waiting.connecting = True

    def note_waiting(self) -> None:
        """Note that the calling thread waits in the pool's queue."""
        waiting = Waiting(perf_counter(), self.ledger.user())
        waiting.in_line = True
        self.waiting[get_ident()] = waiting
        self.note_pending()

    def note_pending(self) -> None:
        """Note that more connections are asked for than there are."""
        pending = self.meters.pending
        pending.now = max(pending.now, self.in_use()[1])

    def in_use(self) -> tuple[int, int]:
        """Count the connections in use, and the checkouts that must wait for one."""
        used, waiting = self.used.copy(), list(self.waiting.values())
        asking = sum(w.in_line for w in waiting) if self.is_fair else len(waiting)
        held = sum(slot.generation == self.generation for slot in used)
        # Pending checkouts beyond the pool's remaining slots are waiting. A thread that
        # was handed a connection and has not woken up yet is no longer waiting.
        beyond = held + asking - self.most
        return len(used), int(beyond) if beyond > 0 else 0

    # -- written when connections are opened and closed --------------------------

    def connected(
        self,
        entry: ConnectionPoolEntry,
        driver: t.Any,
        backend_pid: int | None,
        took: float,
    ) -> None:
        """Note a new connection to the database.

        :param took: Seconds to open it.
        """
        slot = self.found(entry, driver, backend_pid)
        self.meters.aggregate(slot.opened)
        self.meters.created.add(took)

    def found(
        self, entry: ConnectionPoolEntry, driver: t.Any, backend_pid: int | None
    ) -> Slot:
        """Note a connection that is open, and return its slot."""
        slot = Slot(self, entry, driver, next(self._numbers), backend_pid)
        entry.info[SLOT] = slot
        self.open[entry] = slot
        return slot

    def detached(self, entry: ConnectionPoolEntry, driver: t.Any) -> Slot | None:
        """Note that a connection left the pool. What it writes can still be lost."""
        slot = self.open.get(entry)
        if slot is None or slot.driver is not driver:
            return None  # another thread has opened a new one in its entry meanwhile
        self.check_in(slot)
        self.open.pop(entry, None)
        self.used.discard(slot)
        return slot

    def closed(self, entry: ConnectionPoolEntry, driver: t.Any) -> None:
        """Note that a connection was closed."""
        slot = self.detached(entry, driver)
        if slot is not None:
            slot.driver = None
            self.ledger.uncommitted.discard(slot)

    def died(self, entry: ConnectionPoolEntry) -> None:
        """Note that a connection was invalidated."""
        now, slot = perf_counter(), self.open.get(entry)
        self.meters.aggregate(now)
        self.meters.invalidated.add(0.0 if slot is None else now - slot.opened)

    def timed_out(self, since: float, scope: Scope) -> TimedOut:
        """Note a checkout that timed out, and the holders at that moment."""
        now = perf_counter()
        timeout = TimedOut(time.time(), now - since, scope, self.holders())
        self.meters.aggregate(now)
        self.meters.timeouts.add(timeout.waited)
        self.timeout_times.append(now)
        self.recent_timeouts.append(timeout)
        return timeout

    # -- read ------------------------------------------------------------------

    def holders(self) -> tuple[Holder, ...]:
        """Return the present holders, longest first, to explain an error."""
        try:
            return self.describe()
        except Exception:
            # The application must get its error, even if we cannot explain it.
            name = self.settings.name
            log.exception(
                "bind %r: cannot read the holders",
                name,
                extra=fields("holders_unknown", bind=name),
            )
            return ()

    def connections(self) -> int:
        """Count the connections that are open."""
        return len(self._open())

    def backend_pids(self) -> tuple[int, ...]:
        """Return the server's process IDs of the open connections."""
        slots = [self.open.get(entry) for entry in self._open()]
        pids = {slot.backend_pid for slot in slots if slot is not None}
        return tuple(sorted(pid for pid in pids if pid is not None))

    def held_here(self) -> list[t.Any]:
        """Return the proxied connections that the calling thread has checked out."""
        ident = get_ident()
        held = [each.slot for each in self.out() if each.scope.ident == ident]
        return [each for slot in held if (each := slot.proxied()) is not None]

    def inherited(self) -> list[object]:
        """Return what a fork must keep for ever, so that nothing of it is closed.

        That is each pool entry, and the proxied connection that is checked out of it:
        freed, it would roll back on the parent's socket.
        """
        entries = [reference() for reference in self.open.keyrefs()]
        return [*entries, *(slot.proxied() for slot in self.used)]

    def _open(self) -> list[ConnectionPoolEntry]:
        # One that failed while it was made ready is closed without an event, and its
        # entry lives as long as the error does.
        entries = [reference() for reference in self.open.keyrefs()]
        return [e for e in entries if e is not None and e.dbapi_connection is not None]

    def out(self) -> list[Held]:
        """Return what is checked out right now, longest first."""
        found = [
            Held(slot, scope, slot.since)
            for slot in self.used.copy()
            if (scope := slot.scope) is not None and slot.is_out
        ]
        return sorted(found, key=lambda held: held.since)
