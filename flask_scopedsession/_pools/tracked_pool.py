"""A subclass of any pool class that keeps the account, and tests idle connections.

``connect()`` is public and the only place where waiting and timeouts can be seen.
``_do_return_conn()`` is private: a listener on ``checkin`` costs twice as much. Where a
pool has no such method, the listener is used.
"""

from __future__ import annotations

import typing as t
from functools import cache
from os import getpid
from threading import get_ident
from time import perf_counter

from sqlalchemy import event
from sqlalchemy import exc as sa_exc
from sqlalchemy.pool import NullPool
from sqlalchemy.pool import Pool
from sqlalchemy.pool import QueuePool
from sqlalchemy.pool import SingletonThreadPool
from sqlalchemy.pool import StaticPool

from .._scopes.context import current_context
from .._scopes.context import current_request_context
from .._scopes.scope import SCOPE
from .._scopes.scope import Scope
from .account import PoolAccount
from .account import Waiting
from .explanations import explain_timeout
from .fair_queue import fair_parts
from .fair_queue import FairPool
from .slot import SLOT
from .slot import Slot
from .watch import look_at_holders

if t.TYPE_CHECKING:
    from sqlalchemy.pool import ConnectionPoolEntry
    from sqlalchemy.pool import PoolProxiedConnection

#: Pools of at most so many connections have all checkouts recorded.
_SMALL = 2


class TrackedPool(Pool):
    """What :func:`pool_class` adds to a pool class."""

    account: PoolAccount | None
    after_fork: t.Callable[[], Pool] | None
    """Called in a fork that nobody announced; returns the child's own pool."""
    pid: int
    """The process that made this pool, the only one that may use it."""
    tests_idle: bool
    """Whether connections that were idle are tested before they are used."""
    _disposed: bool
    base_class: type[Pool]
    # What the base class does; super() would cost more.
    _connect_untracked: t.Callable[[], PoolProxiedConnection]
    _return_untracked: t.Callable[[ConnectionPoolEntry], None]

    def __init__(self, *args: t.Any, **kwargs: t.Any) -> None:
        self.account = self.after_fork = None
        self.pid = 0
        self.tests_idle = True
        self._disposed = False
        super().__init__(*args, **kwargs)

    def connect(self) -> PoolProxiedConnection:
        account = self.account
        if account is None:
            return super().connect()
        if self.pid != getpid() and self.after_fork is not None:
            # uWSGI forks without running Python's hooks. This pool is the parent's.
            return self.after_fork().connect()
        context = current_context(None)
        scope: Scope | None = getattr(context, SCOPE, None)
        if (
            scope is None
            or scope.ident != get_ident()
            or (None if scope.request is None else scope.request() or scope)
            is not current_request_context(None)
        ):
            scope = account.ledger.user()
        before = scope.last
        if before is not None and before.scope is scope and before.account is account:
            account.record_checkouts(scope)
        waiting: Waiting | None = None
        since = now = perf_counter()
        if now >= account.look_at:
            look_at_holders(account, now)
            since = now = perf_counter()  # handlers of the log may have taken long
        try:
            if not account.is_fair:
                account.waiting[scope.ident] = Waiting(since, scope)
                if len(account.waiting) + len(account.used) > account.most:
                    account.note_pending()
            proxied: t.Any = self._connect_untracked()
            slot: Slot | None = proxied.info.get(SLOT)
            if slot is not None and slot.scope is None:  # else several may share it
                returned = slot.returned
                if (
                    returned < since - account.idle_after
                    or returned < account.suspect_since
                ):
                    proxied = self._usable(proxied, account)
                    slot = proxied.info.get(SLOT)
        except sa_exc.TimeoutError as error:
            explain_timeout(error, account, account.timed_out(since, scope))
            raise
        finally:
            if account.waiting:
                waiting = account.waiting.pop(scope.ident, None)
        if waiting is not None:
            now = perf_counter()
        if slot is not None:
            account.check_out(slot, scope, now, now - since)
        return proxied  # type: ignore[no-any-return]

    def _usable(
        self, proxied: PoolProxiedConnection, account: PoolAccount
    ) -> PoolProxiedConnection:
        """Return this idle connection, or another if it is dead."""
        # Ends: each dead one leaves the pool, and a fresh one is not tested.
        while self.tests_idle:
            account.note_connecting()
            if _answers(proxied, account.dialect):
                return proxied
            # The others were likely cut off with it: test them, however briefly idle.
            account.suspect_since = now = perf_counter()
            proxied.invalidate()
            proxied = super().connect()
            slot: Slot | None = proxied.info.get(SLOT)
            if slot is None or slot.returned >= now:
                break
        return proxied

    def serve(self, connect: t.Callable[[], PoolProxiedConnection] | None) -> None:
        """Let `connect` serve all checkouts, also of the pools that replace this one.

        :param connect: ``None``: the pool itself serves them again.
        """
        if connect is None:
            self.__dict__.pop("connect", None)
        else:
            self.__dict__["connect"] = connect

    @property
    def server(self) -> t.Callable[[], PoolProxiedConnection] | None:
        """What serves the checkouts instead of the pool itself."""
        return self.__dict__.get("connect")

    def in_line(self, waits: bool) -> None:
        """Note that the calling thread waits in the queue, or no longer does."""
        account = self.account
        if account is not None:
            if waits:
                account.note_waiting()
            elif (waiting := account.waiting.get(get_ident())) is not None:
                waiting.in_line = False

    def recreate(self) -> Pool:
        pool = t.cast(TrackedPool, super().recreate())
        pool.account = self.account
        pool.after_fork = self.after_fork
        pool.pid = getpid()
        pool.serve(self.server)
        if self.account is not None:
            self.account.generation += 1
        return pool

    def spare(self) -> Pool:
        """Return a new pool like this one, without an account."""
        return super().recreate()

    def dispose(self) -> None:
        self._disposed = True
        super().dispose()

    def _do_return_conn(self, record: ConnectionPoolEntry) -> None:
        # Whatever interrupts us must not cost the pool a slot: nobody else has the
        # record.
        try:
            account = self.account
            if account is not None:
                slot: Slot | None = record.info.get(SLOT)
                if slot is not None:
                    account.check_in(slot)
                if self._disposed:
                    # Else it would stay open in a pool that nobody asks any more.
                    record.close()
        finally:
            self._return_untracked(record)


def _answers(proxied: PoolProxiedConnection, dialect: t.Any) -> bool:
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


@cache
def pool_class(base: type[Pool], *, fair: bool, tracked: bool) -> type[Pool]:
    """Return the subclass of a pool class that is fair, and keeps an account.

    It has the name of `base`, because SQLAlchemy's loggers are named after it.

    :param fair: Serve the thread that has waited longest, if `base` is a queue.
    :param tracked: Keep an account, once :func:`attach` gives it one.
    """
    parts, body = fair_parts(base) if fair else ((), {})
    if tracked:
        parts = (TrackedPool, *parts)
        # Python reads these faster than the dict of an object that has listeners. Here,
        # and not in TrackedPool, because the user's class may have slots, too.
        body["__slots__"] = ("account", "after_fork", "pid", "tests_idle", "_disposed")
    if not parts:
        return base
    body = {
        **body,
        "__module__": base.__module__,
        "__qualname__": base.__qualname__,
        "__doc__": base.__doc__,
        "base_class": base,
        "_connect_untracked": base.connect,
        "_return_untracked": getattr(base, "_do_return_conn", None),
    }
    return t.cast("type[Pool]", type(base.__name__, (*parts, base), body))


def attach(
    pool: Pool, dialect: t.Any, account: PoolAccount, after_fork: t.Callable[[], Pool]
) -> None:
    """Let a new pool of :func:`pool_class` feed `account`."""
    account.dialect = dialect
    account.hands_out_again = isinstance(pool, (SingletonThreadPool, StaticPool))
    if not isinstance(pool, TrackedPool):
        account.listens_only = True
        return
    most = limits(pool).max
    account.most = float("inf") if most is None else most
    account.is_fair = isinstance(pool, FairPool) and pool.queue is not None
    # In a pool this small, two views that ask for a second connection wait for each
    # other.
    account.stacks = account.stacks or account.most <= _SMALL
    pool.account = account
    pool.after_fork = after_fork
    pool.pid = getpid()
    if not returns_are_seen(pool.base_class):

        def checked_in(_: object, entry: ConnectionPoolEntry) -> None:
            slot = entry.info.get(SLOT)
            if slot is not None:
                account.check_in(slot)

        event.listen(pool, "checkin", checked_in)


def returns_are_seen(base: type[Pool]) -> bool:
    """Whether a pool class still returns connections through the private method."""
    return hasattr(base, "_do_return_conn")


def base_class(pool: Pool) -> type[Pool]:
    """Return the class that the user or the dialect chose."""
    return t.cast("type[Pool]", getattr(pool, "base_class", type(pool)))


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
