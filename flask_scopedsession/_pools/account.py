"""The account of one bind's pool: connections, waiters, timeouts, and how long it took.

Pools keep no such account: they fire no event for a wait or a timeout, unbalanced
ones on ``detach()`` and ``invalidate()``, and forget what is out on ``dispose()``.

The garbage collector can return a connection inside any code of the same thread. So the
paths that write here take no lock, do no I/O and log nothing: each write sets an
attribute or changes one item of a set, dict or deque. Readers aggregate.
"""

from __future__ import annotations

import itertools
import logging
import time
import typing as t
import weakref
from collections import Counter
from collections import deque
from threading import get_ident
from time import perf_counter

from .._runtime.stacks import own_stack
from .._scopes.ledger import Ledger
from .._scopes.scope import Scope
from .drivers import is_transaction_open
from .meters import Meters
from .meters import PENDING

if t.TYPE_CHECKING:
    from sqlalchemy.pool import ConnectionPoolEntry

    from .._runtime.stacks import RawStack
    from .._settings.config import BindSettings
    from ..snapshot import Holder

log = logging.getLogger("flask_scopedsession")

#: Where a pool entry's ``info`` keeps the :class:`Slot`.
SLOT = "flask_scopedsession"


class Slot:
    """What is known of one DBAPI connection, from its connect to its close.

    Times are as :func:`time.perf_counter` has them.
    """

    __slots__ = (
        "abandoned",
        "account",
        "backend_pid",
        "changes_before",
        "counts_changes",
        "driver",
        "execution_options",
        "generation",
        "has_begun",
        "marks",
        "moved",
        "number",
        "opened",
        "returned",
        "runner",
        "scope",
        "since",
        "stack",
        "statement",
        "statements",
        "tells",
        "temporary",
        "unsettled",
        "writes",
    )

    def __init__(
        self, account: PoolAccount, number: int, driver: t.Any, backend_pid: int | None
    ) -> None:
        self.account = account
        self.number = number
        self.driver = driver
        """The driver's connection; ``None`` once it is closed or detached."""
        self.backend_pid = backend_pid
        self.generation = account.generation
        """How many times the pool had been replaced as this was opened."""
        self.tells = is_transaction_open(driver) is not None
        """The driver says whether it is in a transaction."""
        self.counts_changes = hasattr(driver, "total_changes")
        """It is SQLite's."""
        self.opened = perf_counter()
        self.returned = self.since = self.moved = self.opened
        """When it was last returned; checked out; began or ended a statement."""
        self.scope: Scope | None = None
        """Who has it; ``None`` while it is in the pool."""
        self.runner: int | None = None
        """The thread whose statement runs on it now."""
        self.statements = 0
        """Sent since it was checked out."""
        self.statement: str | None = None
        """The text of the last one, if it may be shown."""
        self.execution_options: t.Mapping[str, t.Any] | None = None
        self.has_begun = False
        """It is in a transaction; known only of a driver that does not tell."""
        self.stack: RawStack | None = None
        """Where it was checked out, if that is recorded."""
        self.abandoned: t.Any = None
        """The driver's connection, if its scope ended during another thread's
        statement, which closes it."""
        self.writes: Counter[str] | None = None
        """Rows changed and not committed so far, by table."""
        self.marks: dict[str, Counter[str]] | None = None
        """What ``writes`` was at each savepoint."""
        self.temporary: set[str] | None = None
        """Temporary tables that were created on it."""
        self.unsettled: str | None = None
        """A table that a RETURNING on SQLite may have changed."""
        self.changes_before = 0
        """SQLite's ``total_changes`` before the last statement that had an effect."""

    def forget_writes(self) -> None:
        """Note that what was written is committed, or rolled back."""
        self.writes = self.marks = self.unsettled = None
        self.account.ledger.uncommitted.discard(self)


class Held(t.NamedTuple):
    """One checkout, as it was read."""

    slot: Slot
    scope: Scope
    since: float

    @property
    def is_out(self) -> bool:
        """Whether it still is, and by the same scope."""
        return self.slot.scope is self.scope and self.slot.since == self.since


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
    """A checkout that gave up."""

    at: float
    """When, as :func:`time.time` has it."""
    waited: float
    """Seconds."""
    scope: Scope
    holders: tuple[Holder, ...]
    """Who held a connection at that moment, longest first."""


class PoolAccount:
    """The account of one bind's pool, over all its generations.

    ``dispose()`` replaces the pool; what is out of the old one is still out.
    """

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
        self.nesting: set[str] = set()
        """Views that have asked for a connection while they held one. The line where
        they check one out is recorded, in case that they wait for themselves."""
        self.is_fair = False
        """The pool says who waits; else that is worked out by the reader."""
        self.most = float("inf")
        """How many connections may be open at a time."""
        self.describe: t.Callable[[], tuple[Holder, ...]] = tuple
        """Says who holds what right now; set by the reader of this account."""
        self.reset()

    def reset(self) -> None:
        """Begin anew, with locks of its own: at the start, and after a fork."""
        self.used.clear()
        self.waiting.clear()
        self.open.clear()
        self.pinging.clear()
        self.meters = Meters(self.in_use)
        self.note_wait = self.meters.waits.add
        self.note_hold = self.meters.held.add
        self.timeout_times: deque[float] = deque(maxlen=1000)
        self.recent_timeouts: deque[TimedOut] = deque(maxlen=5)
        self.last_return = perf_counter()
        self.suspect_since = 0.0
        """Connections that were returned before are tested, however briefly idle."""
        self.log_again_at = 0.0
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
        self.note_wait(waited)
        if slot.scope is not None:
            return  # SingletonThreadPool hands the same one out again within a thread
        slot.scope = scope
        slot.since = slot.moved = now
        scope.last = slot
        used = self.used
        used.add(slot)
        if len(used) > meters.used.now:
            meters.used.now = len(used)
        if (self.stacks or self.nesting) and self.keeps_stack(scope):
            slot.stack = own_stack(3)

    def check_in(self, slot: Slot) -> None:
        """Note that a connection was returned, detached or invalidated."""
        scope = slot.scope
        if scope is None:
            return
        slot.scope = None
        slot.returned = self.last_return = now = perf_counter()
        meters = self.meters
        if now >= meters.rotate_at or len(meters.held.samples) >= PENDING:
            # Now, so that it was in use in the intervals that are over, and its time
            # counts in the new one.
            meters.aggregate(now)
        self.used.discard(slot)
        rule = scope.rule or scope.url_rule
        self.note_hold((now - slot.since, rule, scope.method, scope.command))
        owner = scope.parent or scope
        owner.statements += slot.statements
        slot.statements = 0
        slot.statement = slot.execution_options = slot.stack = None
        if slot in self.ledger.uncommitted:
            slot.forget_writes()

    def note_nesting(self, scope: Scope) -> None:
        """Note that a view asks for a connection while it holds one."""
        if scope.rule is not None:
            self.nesting.add(scope.rule.endpoint)

    def keeps_stack(self, scope: Scope) -> bool:
        """Whether the place of a checkout is to be recorded."""
        rule = scope.rule
        return self.stacks or (rule is not None and rule.endpoint in self.nesting)

    def note_connecting(self) -> None:
        """Note that the calling thread opens or tests a connection."""
        ident = get_ident()
        waiting = self.waiting.get(ident)
        if waiting is None:
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
        """Count what is checked out, and who must wait because of that."""
        used = self.used.copy()
        held = sum(slot.generation == self.generation for slot in used)
        # Beyond the pool's remaining slots, pending checkouts are waiting.
        beyond = held + len(self.waiting) - self.most
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
        slot = Slot(self, next(self._numbers), driver, backend_pid)
        entry.info[SLOT] = slot
        self.open[entry] = slot
        return slot

    def closed(self, entry: ConnectionPoolEntry, driver: t.Any) -> None:
        """Note that a connection was closed, or left the pool for good."""
        slot = self.open.get(entry)
        if slot is None or slot.driver is not driver:
            return  # detached, and another thread has opened a new one in its entry
        self.check_in(slot)
        self.open.pop(entry, None)
        slot.driver = None
        self.used.discard(slot)
        self.ledger.uncommitted.discard(slot)

    def died(self, entry: ConnectionPoolEntry) -> None:
        """Note that a connection was invalidated."""
        now, slot = perf_counter(), self.open.get(entry)
        self.meters.aggregate(now)
        self.meters.invalidated.add(0.0 if slot is None else now - slot.opened)

    def timed_out(self, since: float, scope: Scope) -> TimedOut:
        """Note a checkout that gave up, and who held what at that moment."""
        now = perf_counter()
        try:
            holders = self.describe()
        except Exception:
            # The application must get its timeout, even if we cannot explain it.
            holders = ()
            log.exception("bind %r: cannot read the holders", self.settings.name)
        timeout = TimedOut(time.time(), now - since, scope, holders)
        self.meters.aggregate(now)
        self.meters.timeouts.add(timeout.waited)
        self.timeout_times.append(now)
        self.recent_timeouts.append(timeout)
        return timeout

    # -- read ------------------------------------------------------------------

    def connections(self) -> int:
        """Count the connections that are open."""
        return len(self._open())

    def backend_pids(self) -> tuple[int, ...]:
        """Return the server's process IDs of the open connections."""
        slots = [self.open.get(entry) for entry in self._open()]
        pids = {slot.backend_pid for slot in slots if slot is not None}
        return tuple(sorted(pid for pid in pids if pid is not None))

    def inherited(self) -> list[object]:
        """Return what a fork must keep for ever, so that nothing of it is closed.

        That is each pool entry, and the proxied connection that is checked out of it:
        freed, it would roll back on the parent's socket.
        """
        entries = [reference() for reference in self.open.keyrefs()]
        proxied = [getattr(entry, "fairy_ref", None) for entry in entries]
        return [*entries, *(each() for each in proxied if each is not None)]

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
            if (scope := slot.scope) is not None
        ]
        return sorted(found, key=lambda held: held.since)
