"""Account and ledger to snapshot. It changes nothing of them but what is recorded next.

It sends no query, loads no attribute, takes no lock of a pool, and keeps no reference
that outlives the reading. What it iterates over is copied first, in one operation of
the interpreter. A thread, greenlet or context may end at any moment of the reading.
"""

from __future__ import annotations

import typing as t
from collections.abc import Mapping
from time import perf_counter

from sqlalchemy.pool import QueuePool

from .._pools.account import Held
from .._pools.account import PoolAccount
from .._pools.account import TimedOut
from .._pools.account import Waiting
from .._pools.drivers import is_transaction_open
from .._pools.fair_queue import FairPool
from .._pools.slot import Slot
from .._pools.tracked_pool import base_class
from .._pools.tracked_pool import limits
from .._scopes.kinds import OfContext
from .._scopes.ledger import Ledger
from .._scopes.scope import responsible
from .._scopes.scope import Scope
from .._scopes.streams import requests_served
from .._settings.urls import safe_url
from ..snapshot import ConfiguredPool
from ..snapshot import Holder
from ..snapshot import LostWorkCount
from ..snapshot import PoolSnapshot
from ..snapshot import PoolTimeout
from ..snapshot import SessionSnapshot
from ..snapshot import SharedUse
from ..snapshot import Waiter
from ..snapshot._json import timestamp
from .lines import Lines
from .lines import read_stacks
from .lines import Stacks
from .sessions import count_items
from .sessions import number_of
from .sessions import session_state
from .sessions import slots_of
from .usage import measured
from .usage import MOST_VIEWS
from .usage import views

if t.TYPE_CHECKING:
    from sqlalchemy import Engine
    from sqlalchemy.orm import Session

    from ..snapshot import Histogram

#: A worker is wedged when a wait has lasted this long, in seconds, and nothing was
#: returned meanwhile.
WEDGED_AFTER = 2.0

#: Most holders per pool, and sessions per worker, in a snapshot. One that is full is
#: encoded as JSON within the interpreter's switch interval, so that it delays no
#: request for longer.
MOST = 250


class Reader:
    """Reads what one application holds."""

    def __init__(
        self,
        ledger: Ledger,
        accounts: Mapping[str, PoolAccount],
        engines: Mapping[str, Engine],
        held_long_after: float,
    ) -> None:
        self._lines = Lines(ledger)
        self._ledger = ledger
        self._accounts = accounts
        self._engines = engines
        self._held_long_after = held_long_after

    def configured(self) -> tuple[ConfiguredPool, ...]:
        """Return the pools as configured, without a word on their use."""
        return tuple(
            ConfiguredPool(
                name,
                base_class(engine.pool).__name__,
                safe_url(engine.url),
                *limits(engine.pool),
            )
            for name, engine in self._engines.items()
        )

    def pools(self) -> tuple[PoolSnapshot, ...]:
        """Read every pool."""
        numbers = self._holding_sessions()
        return tuple(self._pool(each, numbers) for each in self._accounts.values())

    def in_trouble(self) -> bool:
        """Whether a thread waits or holds for long, or a checkout timed out lately."""
        now = perf_counter()
        for account in self._accounts.values():
            out = account.out()
            if self._blocked(account, out):
                return True
            if any(now - at < 60 for at in list(account.timeout_times)):
                return True
            if any(now - held.since > self._held_long_after for held in out):
                return True
        return False

    # -- pools -----------------------------------------------------------------

    def _pool(self, account: PoolAccount, numbers: Mapping[int, int]) -> PoolSnapshot:
        engine = self._engines[account.settings.name]
        pool = engine.pool
        bounds = limits(pool)
        out = account.out()
        waiting = self._blocked(account, out)
        stacks = read_stacks([*(h.scope for h in out), *(w.scope for w in waiting)])
        now = perf_counter()
        found = [(each, self._holder(each, stacks, now, numbers)) for each in out]
        # The thread of one returned meanwhile may already be serving another request.
        found = [(each, holder) for each, holder in found if each.is_out]
        holders = tuple(holder for _, holder in found)
        own = {id(h.scope.thread): h for h, _ in found if not h.scope.over}
        waiters = tuple(self._waiter(each, stacks, now, own) for each in waiting)
        used, opened = len(holders), account.connections()
        in_pool = sum(each.slot.driver is not None for each, _ in found)
        longest = max((waiter.waited_s for waiter in waiters), default=0.0)
        blind = account.listens_only
        minute_ago = now - 60
        return PoolSnapshot(
            bind=account.settings.name,
            pool_class=base_class(pool).__name__,
            url=safe_url(engine.url),
            size=bounds.size,
            max=bounds.max,
            unlimited=bounds.unlimited,
            pool_timeout=bounds.pool_timeout,
            open=opened,
            used=used,
            idle=max(0, opened - in_pool),
            overflow=max(0, opened - (bounds.size or 0))
            if isinstance(pool, QueuePool)
            else None,
            pending=None if blind else len(waiters),
            used_pct=100.0 * used / bounds.max if bounds.max else None,
            max_wait_s=None if blind else longest,
            held_long=sum(h.held_s > self._held_long_after for h in holders),
            timeouts_60s=None
            if blind
            else sum(at > minute_ago for at in list(account.timeout_times)),
            wedged=longest >= WEDGED_AFTER and now - account.last_return >= longest,
            holders=holders[:MOST],
            waiters=waiters[:MOST],
            recent_timeouts=tuple(
                _timeout(timeout) for timeout in list(account.recent_timeouts)
            ),
            **measured(account, bounds, used, len(waiters)),
            views=views(account.meters, out, now),
            backend_pids=account.backend_pids()[:MOST],
            leaked=sum(h.is_leaked for h in holders),
        )

    def _blocked(self, account: PoolAccount, out: list[Held]) -> list[Waiting]:
        """Return the checkouts that wait for another's connection, longest first.

        A call of ``connect()`` usually does not wait. Only pending checkouts beyond the
        pool's remaining slots have to.
        """
        asking = list(account.waiting.values())
        asking.sort(key=lambda waiting: (waiting.connecting, waiting.since))
        pool = self._engines[account.settings.name].pool
        if isinstance(pool, FairPool) and pool.queue is not None:
            return [waiting for waiting in asking if waiting.in_line]
        bounds = limits(pool)
        if bounds.max is not None:
            held = sum(each.slot.generation == account.generation for each in out)
            return asking[: max(0, held + len(asking) - bounds.max)]
        if bounds.unlimited:
            return []
        # A pool class of the user's: a call that lasts, and is not connecting.
        now = perf_counter()
        return [w for w in asking if not w.connecting and now - w.since > 0.005]

    def describe(self, account: PoolAccount) -> tuple[Holder, ...]:
        """Return the holders of a pool's connections, longest first."""
        out = account.out()
        stacks = read_stacks(held.scope for held in out)
        now, numbers = perf_counter(), self._holding_sessions()
        return tuple(self._holder(held, stacks, now, numbers) for held in out)

    def _holder(
        self, held: Held, stacks: Stacks, now: float, numbers: Mapping[int, int]
    ) -> Holder:
        slot, scope, since = held
        runs, moved = slot.runner is not None, slot.moved
        in_transaction = _is_open(slot)
        over, alive = scope.over, scope.thread_alive
        at, at_is = self._lines.locate(scope, stacks, alive and not over, slot.stack)
        if at_is == "view":
            slot.account.record_checkouts(scope)
        return Holder(
            connection=slot.number,
            backend_pid=slot.backend_pid,
            held_s=max(0.0, now - since),
            thread=_thread_name(scope),
            thread_alive=alive,
            request_over=over,
            in_transaction=in_transaction,
            idle_in_transaction_s=_idle(slot, now) if in_transaction else None,
            running_s=max(0.0, now - moved) if runs else None,
            at=at,
            at_is=at_is,
            stack=None if slot.stack is None else self._ledger.places.stack(slot.stack),
            session=numbers.get(id(slot)),
            sql=slot.statement,
            **responsible(scope)._asdict(),
        )

    def _waiter(
        self, waiting: Waiting, stacks: Stacks, now: float, own: Mapping[int, Held]
    ) -> Waiter:
        scope = waiting.scope
        held = own.get(id(scope.thread))
        places = self._ledger.places
        recorded = () if held is None else places.stack(held.slot.stack or ())
        goes_on = scope.thread_alive and not scope.over
        return Waiter(
            waited_s=max(0.0, now - waiting.since),
            thread=_thread_name(scope),
            at=self._lines.locate(scope, stacks, goes_on)[0],
            self_deadlock=held is not None,
            holds_from=recorded[0] if recorded else None,
            **responsible(scope)._asdict(),
        )

    # -- sessions --------------------------------------------------------------

    def lost_work(self) -> tuple[LostWorkCount, ...]:
        """Read what was never committed, the latest first."""
        lost = sorted(self._ledger.lost.copy().items(), key=lambda each: -each[1].last)
        return tuple(
            LostWorkCount(
                **who._asdict(),
                scopes_total=each.scopes,
                objects=dict(each.objects),
                last_at=timestamp(each.last),
            )
            for who, each in lost[:MOST_VIEWS]
        )

    def lost_work_total(self) -> int | None:
        """Count the scopes that lost work, in all views; ``None`` if it is ignored."""
        if self._ledger.lost_work == "ignore":
            return None
        return sum(each.scopes for each in self._ledger.lost.copy().values())

    def ended_scopes(self) -> tuple[Histogram, Histogram] | None:
        """Read how long scopes lasted, and how many statements each sent.

        ``None`` if tracking is off.
        """
        if not self._accounts:
            return None
        durations, statements = self._ledger.ended.read()
        return durations.histogram(), statements.histogram()

    def recent_shared(self) -> tuple[SharedUse, ...]:
        """Read which connections two threads used at the same time, the latest last."""
        return tuple(self._ledger.shared)

    def open_sessions(self) -> list[tuple[Scope, str, Session]]:
        """Return every open session with its scope, oldest scope first."""
        self._ledger.forget_freed()
        scopes = sorted(self._ledger.live.copy(), key=lambda scope: scope.since)
        found = [
            (scope, name, session)
            for scope in scopes
            for name, session in scope.sessions.copy().items()
        ]
        for reference in self._ledger.unscoped.keyrefs():
            session = reference()
            # One that was closed may still be referred to.
            if session is not None and session.in_transaction():
                found.append((self._ledger.unscoped[session], "", session))
        return found

    def sessions_open(self) -> int | None:
        """Count the open sessions; ``None`` if tracking is off."""
        return len(self.open_sessions()) if self._accounts else None

    def _holding_sessions(self) -> dict[int, int]:
        """Return the number of the session that uses a connection, by its slot's id."""
        return {
            id(slot): number_of(session)
            for _, _, session in self.open_sessions()
            for slot in slots_of(session)
        }

    def sessions(self) -> tuple[SessionSnapshot, ...]:
        """Read every open session, oldest first; one more than :data:`MOST` at most."""
        if not self._accounts:
            return ()  # tracking is off
        waiting = [
            waiting.scope
            for account in self._accounts.values()
            for waiting in list(account.waiting.values())
        ]
        scopes = {id(scope.parent or scope) for scope in waiting}
        threads = {scope.ident for scope in waiting}
        by_context = self._ledger.kind == OfContext.name
        now = perf_counter()
        found = []
        for scope, name, session in self.open_sessions()[: MOST + 1]:
            # A connection is checked out for a context: of a session that belongs to
            # none, only the thread is known.
            known = by_context and name != ""
            waits = id(scope) in scopes if known else scope.ident in threads
            counted = (scope.parent or scope).statements if known else None
            found.append(self._session(scope, name, session, now, waits, counted))
        return tuple(found)

    def _session(
        self,
        scope: Scope,
        name: str,
        session: Session,
        now: float,
        waits: bool,
        statements: int | None,
    ) -> SessionSnapshot:
        slots = slots_of(session)
        idle = [
            seconds
            for slot in slots
            if _is_open(slot) and (seconds := _idle(slot, now)) is not None
        ]
        return SessionSnapshot(
            session=number_of(session),
            name=name,
            scope=self._ledger.kind if name else "none",
            thread=_thread_name(scope),
            thread_alive=scope.thread_alive,
            age_s=max(0.0, now - scope.since),
            state=session_state(session, bool(slots), bool(idle), waits),
            statements=statements,
            connections=tuple(slot.number for slot in slots),
            new=count_items(lambda: session.new),
            deleted=count_items(lambda: session.deleted),
            identity=count_items(lambda: session.identity_map),
            idle_in_transaction_s=max(idle, default=None),
            requests=requests_served(scope()),
            **responsible(scope)._asdict(),
        )


def _timeout(timeout: TimedOut) -> PoolTimeout:
    return PoolTimeout(
        at_time=timestamp(timeout.at),
        waited_s=timeout.waited,
        endpoint=responsible(timeout.scope).endpoint,
        holders=timeout.holders[:MOST],
    )


def _thread_name(scope: Scope) -> str | None:
    """Return the name of a scope's thread; a class of the user's may compute it."""
    try:
        return str(scope.thread.name)
    except Exception:  # noqa: BLE001
        return None


def _is_open(slot: Slot) -> bool | None:
    """Whether a connection is in a transaction: as the driver says, if it does."""
    try:
        if slot.tells:
            return is_transaction_open(slot.driver)
    except Exception:  # noqa: BLE001 - its own thread may be closing it
        return None
    options = slot.execution_options
    if options is None:
        return None  # no statement was seen; those of a raw connection never are
    level = options.get(
        "isolation_level", slot.account.settings.options.get("isolation_level")
    )
    return slot.has_begun and level != "AUTOCOMMIT"


def _idle(slot: Slot, now: float) -> float | None:
    """Return for how long no statement has run; unknown where none was seen."""
    if slot.runner is not None or slot.moved == slot.since:
        return None
    return max(0.0, now - slot.moved)
