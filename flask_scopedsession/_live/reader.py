"""Ledger to snapshot. It looks, and touches nothing.

No query, no lazy attribute, no lock of a pool, and no reference that outlives the
reading. What is iterated over is copied first, in one step of the interpreter.
"""

from __future__ import annotations

import os
import typing as t
import weakref
from collections.abc import Iterable
from collections.abc import Mapping
from time import perf_counter

from sqlalchemy.pool import QueuePool

from .._pools.account import Hold
from .._pools.account import Ledger
from .._pools.account import PoolAccount
from .._pools.account import SessionEntry
from .._pools.account import TimedOut
from .._pools.account import Waiting
from .._pools.fair_queue import FairPool
from .._pools.tracked_pool import base_class
from .._pools.tracked_pool import limits
from .._runtime.places import Places
from .._runtime.stacks import RawStack
from .._scopes.scope import Owner
from .._scopes.scope import responsible
from .._scopes.scope import stack_of
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
from ..snapshot._readings import SessionState
from .usage import measured
from .usage import MOST_VIEWS
from .usage import views

if t.TYPE_CHECKING:
    from flask import Flask
    from sqlalchemy import Engine
    from sqlalchemy.orm import Session

#: By the id of an owner: where its thread is.
Stacks = Mapping[int, RawStack]

#: A worker is wedged when a wait has lasted this long and nothing came back.
WEDGED_AFTER = 2.0

#: Most holders per pool and sessions per worker in a snapshot. Encoding that many as
#: JSON takes less than the interpreter's switch interval, so other threads can run.
MOST = 250


class Reader:
    """Reads one application's ledger."""

    def __init__(
        self,
        app: weakref.ref[Flask],
        root_path: str,
        ledger: Ledger,
        engines: Mapping[str, Engine],
        held_long_after: float,
    ) -> None:
        self._app = app
        self._places = Places(root_path)
        self._ledger = ledger
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
        return tuple(self._pool(account) for account in self._ledger.pools.values())

    def in_trouble(self) -> bool:
        """Whether somebody waits or holds for long, or a checkout timed out lately."""
        now = perf_counter()
        for account in self._ledger.pools.values():
            if self._blocked(account, account.live()):
                return True
            if any(now - at < 60 for at in list(account.timeout_times)):
                return True
            if any(now - h.since > self._held_long_after for h in account.live()):
                return True
        return False

    # -- pools -----------------------------------------------------------------

    def _pool(self, account: PoolAccount) -> PoolSnapshot:
        engine = self._engines[account.settings.name]
        pool = engine.pool
        bounds = limits(pool)
        live = account.live()
        waiting = self._blocked(account, live)
        stacks = self._stacks([*live, *waiting])
        now = perf_counter()
        found = [(hold, self._holder(account, hold, stacks, now)) for hold in live]
        # Who has returned it meanwhile may have shown us another request's line.
        found = [(hold, holder) for hold, holder in found if hold.out]
        holders = tuple(holder for _, holder in found)
        holding = {id(h.owner.thread): h for h, _ in found if not h.owner.over}
        waiters = tuple(
            self._waiter(waiter, stacks, now, holding) for waiter in waiting
        )
        used = len(holders)
        opened = account.connections()
        in_pool = len({hold.slot for hold, _ in found if hold.slot is not None})
        longest = max((w.waited_s for w in waiters), default=0.0)
        blind = account.listens_only
        queue = isinstance(pool, QueuePool)
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
            overflow=max(0, opened - (bounds.size or 0)) if queue else None,
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
                self._timeout(timeout) for timeout in list(account.recent_timeouts)
            ),
            **measured(account, bounds, used, len(waiters)),
            views=views(account.meters, live, now),
            backend_pids=account.backend_pids()[:MOST],
        )

    def _blocked(self, account: PoolAccount, live: list[Hold]) -> list[Waiting]:
        """Return who waits for somebody else's connection, longest first.

        Most calls of ``connect()`` that we catch are just passing. A slot is
        either held or asked for; whoever asks beyond the last one has to wait.
        """
        asking = list(account.waiting.values())
        asking.sort(key=lambda waiting: (waiting.connecting, waiting.since))
        pool = self._engines[account.settings.name].pool
        if isinstance(pool, FairPool) and pool.queue is not None:
            return [waiting for waiting in asking if waiting.in_line]
        bounds = limits(pool)
        if bounds.max is not None:
            held = sum(hold.generation == account.generation for hold in live)
            return asking[: max(0, held + len(asking) - bounds.max)]
        if bounds.unlimited:
            return []
        # A pool class of the user's: who is not connecting, and not just passing.
        now = perf_counter()
        return [w for w in asking if not w.connecting and now - w.since > 0.005]

    def describe(self, account: PoolAccount) -> tuple[Holder, ...]:
        """Return who holds a pool's connections, longest first."""
        live = account.live()
        stacks, now = self._stacks(live), perf_counter()
        return tuple(self._holder(account, hold, stacks, now) for hold in live)

    def _stacks(self, asked: Iterable[Hold | Waiting]) -> Stacks:
        """Return where the threads of holders and waiters are."""
        found: dict[int, RawStack] = {}
        read: dict[tuple[int, object], RawStack] = {}
        for owner in (one.owner for one in asked):
            # Many may be of one thread: it is read once.
            key = owner.native_id, owner.greenlet
            if key not in read:
                read[key] = stack_of(owner)
            found[id(owner)] = read[key]
        return found

    def _holder(
        self, account: PoolAccount, hold: Hold, stacks: Stacks, now: float
    ) -> Holder:
        owner = hold.owner
        in_transaction = self._in_transaction(account, hold)
        running, idle = hold.running_since, None
        if in_transaction and running is None and hold.idle_since:
            idle = max(0.0, now - hold.idle_since)
        return Holder(
            connection=None if hold.slot is None else hold.slot.number,
            backend_pid=None if hold.slot is None else hold.slot.backend_pid,
            held_s=max(0.0, now - hold.since),
            thread=owner.thread.name,
            thread_alive=owner.thread_alive,
            request_over=owner.over,
            in_transaction=in_transaction,
            idle_in_transaction_s=idle,
            running_s=None if running is None else max(0.0, now - running),
            at=self._at(owner, stacks, hold),
            stack=None if hold.stack is None else self._places.stack(hold.stack),
            session=None if hold.session is None else hold.session.number,
            sql=hold.statement,
            **responsible(owner)._asdict(),
        )

    @staticmethod
    def _in_transaction(account: PoolAccount, hold: Hold) -> bool | None:
        options = hold.execution_options
        if options is None:
            return None  # no statement was seen; a raw connection's never are
        level = options.get(
            "isolation_level", account.settings.options.get("isolation_level")
        )
        return hold.in_transaction and level != "AUTOCOMMIT"

    def _at(self, owner: Owner, stacks: Stacks, hold: Hold | None = None) -> str | None:
        """Return the line where the owner is, or where its view is defined."""
        if not owner.over and owner.thread_alive:
            return self._places.innermost(stacks.get(id(owner), ()))
        if hold is not None and hold.stack is not None:
            places = self._places.stack(hold.stack)
            return places[0] if places else None
        rule, app = owner.url_rule, self._app()
        if rule is None or app is None:
            return None
        return self._places.definition(app.view_functions.get(rule.endpoint))

    def _waiter(
        self, waiting: Waiting, stacks: Stacks, now: float, holding: dict[int, Hold]
    ) -> Waiter:
        owner = waiting.owner
        own = holding.get(id(owner.thread))
        recorded = () if own is None else self._places.stack(own.stack or ())
        return Waiter(
            waited_s=max(0.0, now - waiting.since),
            thread=owner.thread.name,
            at=self._at(owner, stacks),
            self_deadlock=own is not None,
            holds_from=recorded[0] if recorded else None,
            **responsible(owner)._asdict(),
        )

    @staticmethod
    def _timeout(timeout: TimedOut) -> PoolTimeout:
        return PoolTimeout(
            at_time=timestamp(timeout.at),
            waited_s=timeout.waited,
            endpoint=responsible(timeout.owner).endpoint,
            holders=timeout.holders[:MOST],
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

    def recent_shared(self) -> tuple[SharedUse, ...]:
        """Read which sessions two threads used at the same time, the latest last."""
        return tuple(self._ledger.shared)

    def sessions(self) -> tuple[SessionSnapshot, ...]:
        """Read every open session, oldest first."""
        if not self._ledger.pools:
            return ()  # tracking is off
        holds: dict[int, list[tuple[PoolAccount, Hold]]] = {}
        for account in self._ledger.pools.values():
            for hold in account.live():
                if hold.session is not None:
                    holds.setdefault(id(hold.session), []).append((account, hold))
        waiting = {
            id(waiting.owner)
            for account in self._ledger.pools.values()
            for waiting in list(account.waiting.values())
        }
        now = perf_counter()
        entries = sorted(self._ledger.sessions.copy().values(), key=lambda e: e.since)
        found: list[SessionSnapshot] = []
        for entry in entries[:MOST]:
            session = self._session(entry, holds.get(id(entry), []), waiting, now)
            if session is not None:
                found.append(session)
        return tuple(found)

    def _session(
        self,
        entry: SessionEntry,
        holds: list[tuple[PoolAccount, Hold]],
        waiting: set[int],
        now: float,
    ) -> SessionSnapshot | None:
        session = entry()
        if session is None or (entry.scope == "none" and not session.in_transaction()):
            return None  # gone, or closed while somebody still refers to it
        idle = [
            now - hold.idle_since
            for account, hold in holds
            if hold.running_since is None
            and hold.idle_since is not None
            and self._in_transaction(account, hold)
        ]
        return SessionSnapshot(
            session=entry.number,
            name=entry.name,
            scope=entry.scope,
            thread=entry.owner.thread.name,
            thread_alive=entry.owner.thread_alive,
            age_s=max(0.0, now - entry.since),
            state=_session_state(
                session, bool(holds), bool(idle), id(entry.owner) in waiting
            ),
            connections=tuple(
                hold.slot.number for _, hold in holds if hold.slot is not None
            ),
            new=_count(lambda: session.new),
            deleted=_count(lambda: session.deleted),
            identity=_count(lambda: session.identity_map),
            idle_in_transaction_s=max(idle, default=None),
            **responsible(entry.owner)._asdict(),
        )


def _session_state(
    session: Session, holds: bool, idle: bool, waits: bool
) -> SessionState:
    # SQLAlchemy calls a session inactive, too, while it waits for a connection.
    if not session.is_active:
        return "begun" if waits else "needs rollback"
    if idle:
        return "idle in transaction"
    if holds:
        return "holding"
    return "begun" if session.in_transaction() else "idle"


def _count(collection: t.Callable[[], t.Sized]) -> int | None:
    """Count what its own thread may be changing meanwhile."""
    for _ in range(3):
        try:
            return len(collection())
        except RuntimeError:
            continue
    return None


def parent_pid() -> int:
    """Return the parent's process id, 0 where there is no such thing."""
    return os.getppid() if hasattr(os, "getppid") else 0
