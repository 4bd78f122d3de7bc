"""A subclass of any pool class that feeds the ledger, and tests rested connections.

``connect()`` is public and the only place where waiting and timeouts can be
seen. ``_do_return_conn()`` is the one private name: a listener on ``checkin``
costs twice as much. Where a pool has no such method, the listener is used.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import typing as t
from functools import cache
from time import perf_counter

from sqlalchemy import event
from sqlalchemy import exc as sa_exc
from sqlalchemy.pool import NullPool
from sqlalchemy.pool import Pool
from sqlalchemy.pool import QueuePool
from sqlalchemy.pool import SingletonThreadPool

from .._scopes.scope import current_owner
from .account import PoolAccount
from .account import SLOT
from .account import Slot
from .account import slot_of
from .account import TimedOut
from .account import Waiting
from .fair_queue import FairPool

if t.TYPE_CHECKING:
    from sqlalchemy.pool import ConnectionPoolEntry
    from sqlalchemy.pool import PoolProxiedConnection

log = logging.getLogger("flask_scopedsession")

#: Seconds between two log records about timeouts of the same pool.
_LOG_EVERY = 10.0

#: Pools of so many connections have all checkouts recorded.
_SMALL = 2


class TrackedPool(Pool):
    """What :func:`tracked` adds to a pool class."""

    account: PoolAccount | None = None
    base_class: type[Pool]
    after_fork: t.Callable[[], Pool] | None = None
    """Called in a fork that nobody announced; returns the child's own pool."""
    pid = 0
    """The process that made this pool, the only one that may use it."""
    _disposed = False

    def connect(self) -> PoolProxiedConnection:
        account = self.account
        if account is None:
            return super().connect()
        if self.pid != os.getpid() and self.after_fork is not None:
            # uWSGI forks without running Python's hooks. This pool is the parent's.
            return self.after_fork().connect()
        owner = current_owner()
        since = perf_counter()
        try:
            if not account.told_who_waits:
                account.waiting[owner.ident] = Waiting(since, owner)
                if len(account.waiting) + len(account.holds) > account.most:
                    account.note_pending()
            before = owner.hold
            if before is not None and before.account is account and before.out:
                account.note_nesting(owner)
            proxied = super().connect()
            now = perf_counter()
            info = proxied.record_info
            slot: Slot | None = None if info is None else info.get(SLOT)
            rested_at = None if slot is None else slot.returned  # None: it is fresh
            idle_after = account.settings.ping_idle_after
            if (
                rested_at is not None
                and idle_after is not None
                and rested_at < max(now - idle_after, account.suspect_since)
            ):
                proxied = self._usable(proxied, account)
                slot = slot_of(proxied)
        except sa_exc.TimeoutError as error:
            explain(error, account, account.timed_out(since, owner))
            raise
        finally:
            if account.waiting:
                account.waiting.pop(owner.ident, None)
        account.check_out(proxied, slot, owner, now, now - since)
        return proxied

    def _usable(
        self, proxied: PoolProxiedConnection, account: PoolAccount
    ) -> PoolProxiedConnection:
        """Return this connection that has rested, or another if it is dead."""
        # Ends: each dead one leaves the pool, and a fresh one is not tested.
        while True:
            account.note_connecting()
            if self._answers(proxied):
                return proxied
            # Its neighbours likely died with it: test them however short they rested.
            account.suspect_since = now = perf_counter()
            proxied.invalidate()
            proxied = super().connect()
            slot = slot_of(proxied)
            if slot is None or slot.returned is None or slot.returned >= now:
                return proxied

    def _answers(self, proxied: PoolProxiedConnection) -> bool:
        dialect = t.cast(t.Any, self)._dialect
        connection = proxied.dbapi_connection
        try:
            return dialect.do_ping(connection) is True
        except BaseException as error:
            if isinstance(error, dialect.loaded_dbapi.Error) and dialect.is_disconnect(
                error, connection, None
            ):
                return False
            proxied.invalidate()
            raise

    def in_line(self, waits: bool) -> None:
        """Note that the calling thread waits in line, or no longer does."""
        account = self.account
        if account is None:
            return
        if not waits:
            account.waiting.pop(threading.get_ident(), None)
            return
        owner = current_owner()
        waiting = account.waiting[owner.ident] = Waiting(perf_counter(), owner)
        waiting.in_line = True
        account.note_pending()

    def recreate(self) -> Pool:
        pool = t.cast(TrackedPool, super().recreate())
        pool.account = self.account
        pool.after_fork = self.after_fork
        pool.pid = os.getpid()
        if self.account is not None:
            self.account.generation += 1
        return pool

    def spare(self) -> Pool:
        """Return a new pool like this one that no ledger knows of."""
        return super().recreate()

    def dispose(self) -> None:
        self._disposed = True
        super().dispose()

    def _do_return_conn(self, record: ConnectionPoolEntry) -> None:
        # What interrupts us must not cost the pool a slot: nobody else has the record.
        try:
            account = self.account
            if account is not None:
                account.check_in(record)
                if self._disposed:
                    # Else it would stay open in a pool that nobody asks any more.
                    record.close()
        finally:
            super()._do_return_conn(record)


@cache
def tracked(base: type[Pool]) -> type[TrackedPool]:
    """Return the subclass of `base` that keeps an account.

    It bears the name of `base`, which SQLAlchemy's loggers are named after.
    """
    body: dict[str, t.Any] = {
        "__module__": base.__module__,
        "__qualname__": base.__qualname__,
        "__doc__": base.__doc__,
        "base_class": base,
    }
    return t.cast("type[TrackedPool]", type(base.__name__, (TrackedPool, base), body))


def attach(pool: Pool, account: PoolAccount, after_fork: t.Callable[[], Pool]) -> None:
    """Let a new pool of a tracked class feed `account`."""
    if isinstance(pool, TrackedPool):
        most = limits(pool).max
        account.most = float("inf") if most is None else most
        account.told_who_waits = isinstance(pool, FairPool) and pool.queue is not None
        # In a pool this small, two that ask for a second one wait for each other.
        account.stacks = account.stacks or account.most <= _SMALL
        pool.account = account
        pool.after_fork = after_fork
        pool.pid = os.getpid()
        if not returns_are_seen(pool.base_class):

            def checked_in(_: object, entry: ConnectionPoolEntry) -> None:
                account.check_in(entry)

            event.listen(pool, "checkin", checked_in)
    else:
        account.listens_only = True


def returns_are_seen(base: type[Pool]) -> bool:
    """Whether a pool class still returns connections through the private method."""
    return hasattr(base, "_do_return_conn")


def base_class(pool: Pool) -> type[Pool]:
    """Return the class that the user or the dialect chose."""
    return pool.base_class if isinstance(pool, TrackedPool) else type(pool)


class Limits(t.NamedTuple):
    """What a pool may open, as far as its class knows."""

    size: int | None
    max: int | None
    unlimited: bool | None
    pool_timeout: float | None


def limits(pool: Pool) -> Limits:
    """Return a pool's limits; ``None`` where its class has no such notion."""
    if isinstance(pool, QueuePool):
        size = pool.size()
        # Private: SQLAlchemy offers the current overflow, but not its bound.
        overflow = getattr(pool, "_max_overflow", None)
        if overflow == -1 or size == 0:
            return Limits(size, None, True, pool.timeout())
        most = None if overflow is None else size + overflow
        return Limits(size, most, False, pool.timeout())
    if isinstance(pool, SingletonThreadPool):
        return Limits(t.cast(t.Any, pool).size, None, None, None)
    return Limits(None, None, True if isinstance(pool, NullPool) else None, None)


# -- a timeout that helps ------------------------------------------------------


def explain(
    error: sa_exc.TimeoutError, account: PoolAccount, timeout: TimedOut
) -> None:
    """Add to a timeout who held the connections; its message stays SQLAlchemy's."""
    error.holders = timeout.holders  # type: ignore[attr-defined]
    name, held = account.settings.name, len(timeout.holders)
    lines = [
        f"Bind {name!r}: waited {timeout.waited:.1f} s; held are {held}, longest by:"
    ]
    for holder in timeout.holders[:5]:
        who = holder.endpoint or holder.command or holder.thread or "unknown"
        where = f" at {holder.at}" if holder.at else ""
        idle = ", idle in transaction" if holder.idle_in_transaction_s else ""
        lines.append(f"  {who}{where}, held {holder.held_s:.1f} s{idle}")
    text = "\n".join(lines)
    if sys.version_info >= (3, 11):
        error.add_note(text)
    now = perf_counter()
    if now >= account.log_again_at:
        account.log_again_at = now + _LOG_EVERY
        log.error("connection pool timeout\n%s", text)
