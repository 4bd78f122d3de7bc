"""``isolate()``: whatever an application writes is rolled back at the end."""

from __future__ import annotations

import gc
import os
import typing as t
import weakref
from collections.abc import Generator
from collections.abc import Iterator
from contextlib import contextmanager
from contextlib import ExitStack
from functools import partial
from threading import get_ident

from sqlalchemy import event
from sqlalchemy import inspect
from sqlalchemy.pool import AssertionPool
from sqlalchemy.pool import NullPool
from sqlalchemy.pool import QueuePool
from sqlalchemy.pool import SingletonThreadPool
from sqlalchemy.pool import StaticPool

from .._application import of
from .._pools.fair_queue import FairPool
from .._pools.memory import can_share
from .._pools.slot import SLOT
from .._pools.tracked_pool import limits
from .._pools.tracked_pool import pool_class
from .._pools.tracked_pool import TrackedPool
from .._sessions.transactions import release
from .._sessions.transactions import SESSIONMAKER
from .._settings.urls import in_memory
from .._settings.urls import is_private
from ..errors import IsolationError
from ._connection import IsolatedConnection
from ._database import AUTOCOMMIT
from ._database import Database

if t.TYPE_CHECKING:
    from flask import Flask
    from sqlalchemy import Engine
    from sqlalchemy.orm import Session
    from sqlalchemy.pool import PoolProxiedConnection

    from .._application import Application
    from .._pools.account import PoolAccount

#: What users of a pool can listen to, besides "connect": the real connection did that.
_EVENTS = (
    *("checkout", "checkin", "reset", "detach", "close", "close_detached"),
    *("invalidate", "soft_invalidate"),
)

#: The pool classes of SQLAlchemy, with what they know of several users.
_FAMILIES: tuple[t.Any, ...] = (
    *(QueuePool, SingletonThreadPool, StaticPool, AssertionPool),
)

#: Seconds that a thread waits where the pool has no timeout of its own.
_WAIT = 30.0


@contextmanager
def isolate(app: Flask) -> Generator[None, None, None]:
    """Roll back everything that an application writes inside, whatever it commits.

    Inside, each bind has one real connection with a transaction that is rolled back at
    the end. Whatever checks a connection out of the bind's engine gets one of its own
    on top of that, whose commits and rollbacks behave as real ones do: sessions,
    ``db.engine.connect()``, raw connections, engines that were captured before, all
    threads. May be nested; the end of each block undoes what was done in it.

    At the beginning, the open sessions of this thread give their connections back. At
    the end they are rolled back, and objects that came into them inside are detached.
    What else is still checked out can no longer be used.

    :param app: The application, or one that is not used yet.
    :raises IsolationError: A connection is checked out that would still commit, or a
        bind cannot be isolated. Inside, statements and settings raise it that would
        escape the isolation or could not be told apart; see "Isolation" in the
        documentation.
    :raises UnsavedWork: A session of this thread has changes that are not committed.
    :raises TransactionError: It is in a block that owns its transaction.
    :raises SetupError: The app does not use this extension.
    """
    application = of(app)
    names = application.ledger.model_names()
    known: dict[Session, set[object]] = {}
    for sessions in _sessions_here(application):
        release(sessions, names, "isolate()")
        known.update((each, set(map(inspect, each))) for each in sessions.values())
    isolation = _isolations.get(application) or Isolation(app, application)
    pid = os.getpid()
    isolation.push()
    _isolations[application] = isolation
    try:
        yield
    finally:
        if os.getpid() == pid:
            try:
                for sessions in _sessions_here(application):
                    for session in sessions.values():
                        _forget(session, known.get(session, set()))
            finally:
                if isolation.layers == 1:
                    del _isolations[application]
                isolation.pop()


def _forget(session: Session, known: set[object]) -> None:
    """Let a session go on without anything that came into it inside a block."""
    for each in list(session):
        if each in session and inspect(each) not in known:  # not yet with another
            session.expunge(each)
    session.rollback()
    session.expire_all()


_isolations: weakref.WeakKeyDictionary[Application, Isolation]
_isolations = weakref.WeakKeyDictionary()


def _sessions_here(application: Application) -> Iterator[dict[str, Session]]:
    """Yield the sessions of each scope of this thread, by bind; then the others."""
    ledger, ident = application.ledger, get_ident()
    for scope in ledger.live.copy():
        if scope.ident == ident:
            yield dict(scope.sessions)
    for reference in ledger.unscoped.keyrefs():  # a list, as others make sessions
        session = reference()
        if session is not None and ledger.unscoped[session].ident == ident:
            yield {SESSIONMAKER: session}


class Isolation:
    """The databases of an application while they are isolated."""

    def __init__(self, app: Flask, application: Application) -> None:
        if not application.settings.tracking:
            raise IsolationError(
                "isolate() needs SCOPEDSESSION_TRACKING, which is off for the app"
                f" {app.name!r}."
            )
        self.layers = 0
        databases: dict[object, Database] = {}
        self._binds: list[Bind] = []
        for name, engine in application.engines.items():
            account = _account_of(str(name), engine)
            key = _shared_key(engine, account)
            if key not in databases:
                wait = limits(engine.pool).pool_timeout
                databases[key] = Database(
                    str(name),
                    engine.dialect,
                    _WAIT if wait is None else wait,
                    app.root_path,
                    is_connection=_is_connection(engine, account),
                )
            self._binds.append(Bind(engine, account, databases[key]))
        self._databases = list(databases.values())
        others = application.all_engines.items() - application.engines.items()
        self._refused = dict(others)
        """The engines of async binds, each of whose connections is used in one loop."""

    def push(self) -> None:
        """Begin a layer on each bind."""
        with ExitStack() as undo:
            for database in self._databases:
                database.push()
                undo.callback(database.pop)
            undo.pop_all()
        self.layers += 1
        if self.layers == 1:
            for bind in self._binds:
                bind.begin()
            for name, engine in self._refused.items():
                t.cast(TrackedPool, engine.pool).serve(partial(_refuse, name))
        for bind in self._binds:
            bind.layer = self.layers

    def pop(self) -> None:
        """Undo the last layer."""
        layer, self.layers = self.layers, self.layers - 1
        with ExitStack() as steps:
            if layer == 1:
                for bind in self._binds:
                    steps.callback(bind.end)
                for engine in self._refused.values():
                    steps.callback(t.cast(TrackedPool, engine.pool).serve, None)
            for database in self._databases:
                steps.callback(database.pop)
            for bind in self._binds:
                bind.layer = self.layers
                steps.callback(bind.take_back, layer)


def _refuse(name: str) -> t.NoReturn:
    raise IsolationError(
        f"isolate(), bind {name!r}: async sessions cannot be isolated, and what they"
        " commit would be real. Test them without isolate()."
    )


class Bind:
    """An engine while it is isolated."""

    def __init__(
        self, engine: Engine, account: PoolAccount, database: Database
    ) -> None:
        self.layer = 0
        self._engine = engine
        self._account = account
        self._database = database
        self._pool: TrackedPool | None = None
        self._out: weakref.WeakKeyDictionary[PoolProxiedConnection, int]
        self._out = weakref.WeakKeyDictionary()
        """What was checked out, and in which layer."""

    def begin(self) -> None:
        """Serve what the engine's own pool served."""
        self._outer.serve(self._connect)

    def end(self) -> None:
        """Let the engine's own pool serve again."""
        self._outer.serve(None)
        if self._pool is not None:
            self._pool.dispose()

    @property
    def _outer(self) -> TrackedPool:
        return t.cast(TrackedPool, self._engine.pool)

    def _connect(self) -> PoolProxiedConnection:
        if not self.layer:
            return self._outer.connect()  # by a pool that was replaced inside
        self._database.check()
        proxied = (self._pool or self._opened()).connect()
        self._out.setdefault(proxied, self.layer)
        return proxied

    def take_back(self, layer: int) -> None:
        """End what was checked out in a layer, or has written in it."""
        out = [each for ref in self._out.keyrefs() if (each := ref()) is not None]
        with self._database.lock:  # so that none goes on when another ends
            for proxied in out:
                connection: t.Any = proxied.dbapi_connection  # None: it was returned
                if connection is not None and (
                    self._out[proxied] >= layer or connection.has_written
                ):
                    connection.end()
        for proxied in out:
            connection = proxied.dbapi_connection
            if connection is not None and connection.is_over:
                proxied.detach()  # not invalidate(), of which a session does not learn

    def _opened(self) -> TrackedPool:
        with self._database.lock:
            pool = self._pool
            if pool is None:  # else another thread was faster
                pool = self._pool = self._new_pool()
            return pool

    def _new_pool(self) -> TrackedPool:
        """Return a pool like the engine's, whose connections share the real one."""
        outer, account, database = self._outer, self._account, self._database
        family = next((each for each in _FAMILIES if isinstance(outer, each)), NullPool)
        options: dict[str, t.Any] = {"dialect": self._engine.dialect}
        size, most, _, wait = limits(outer)
        if size is not None:
            options["pool_size"] = size
        if family is QueuePool:
            options["max_overflow"] = -1 if most is None else most - (size or 0)
            options["timeout"] = wait
        given = account.settings.options
        if "pool_reset_on_return" in given:
            options["reset_on_return"] = given["pool_reset_on_return"]

        def connect() -> t.Any:
            if given.get("isolation_level") == "AUTOCOMMIT":
                raise database.error(AUTOCOMMIT)
            database.start(self._outer._connect_untracked)
            return IsolatedConnection(database)

        made: t.Any = pool_class(family, fair=isinstance(outer, FairPool), tracked=True)
        pool: TrackedPool = made(connect, **options)
        pool.account, pool.pid = account, outer.pid
        pool.tests_idle = False

        def connected(driver: t.Any, entry: t.Any) -> None:
            info = t.cast("PoolProxiedConnection", database.proxied).info
            entry.info.update({key: info[key] for key in info if key != SLOT})
            account.found(entry, driver, getattr(info.get(SLOT), "backend_pid", None))

        event.listen(pool, "connect", connected)
        for name in _EVENTS:
            event.listen(pool, name, partial(self._forward, name))
        return pool

    def _forward(self, name: str, *args: t.Any) -> None:
        getattr(self._outer.dispatch, name)(*args)


def _account_of(name: str, engine: Engine) -> PoolAccount:
    pool = engine.pool
    account = pool.account if isinstance(pool, TrackedPool) else None
    why = None
    if account is None:
        why = (
            "its pool was made by the application. isolate() needs one that the"
            " extension makes: use the option 'poolclass' instead of 'pool'"
        )
    elif _is_out(account):
        holder = next(iter(account.holders()), None)
        by = "" if holder is None else f" by {holder.at or holder.thread}"
        why = (
            f"a connection is checked out{by}, and its commits would be real. Return it"
            " to the pool first"
        )
    if why is not None or account is None:
        raise IsolationError(f"isolate(), bind {name!r}: {why}.")
    return account


def _is_out(account: PoolAccount) -> bool:
    """Whether a connection is checked out that the collector does not return."""
    if account.out():
        gc.collect()
    return bool(account.out())


def _is_connection(engine: Engine, account: PoolAccount) -> bool:
    """Whether a database is gone with its one connection."""
    dialect: t.Any = engine.dialect
    is_shared = "creator" not in account.settings.options
    return in_memory(engine.url) and not (is_shared and can_share(dialect.loaded_dbapi))


def _shared_key(engine: Engine, account: PoolAccount) -> object:
    """Return what is equal for binds that are one database.

    Each would wait for the other, or not see what the other has committed.
    """
    is_own = is_private(engine.url) or "creator" in account.settings.options
    return id(engine) if is_own else engine.url
