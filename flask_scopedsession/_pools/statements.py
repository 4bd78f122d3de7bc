"""Lets an engine's connections and statements feed the account.

Events report that a connection is opened or closed. The dialect's public methods, which
are replaced on the instance, report statements and the ends of transactions: events on
an engine slow every execution down, whatever they listen to.
"""

from __future__ import annotations

import time
import typing as t
import weakref
from threading import get_ident
from time import perf_counter

from sqlalchemy import event
from sqlalchemy.engine.default import DefaultDialect
from sqlalchemy.pool import PoolProxiedConnection
from sqlalchemy.pool import StaticPool

from .._scopes.teardown import refusal
from .account import PoolAccount
from .drivers import backend_pid
from .explanations import explain_lock
from .sharing import abandon
from .sharing import note_sharing
from .slot import SLOT
from .slot import Slot
from .watch import look_at_holders
from .writes import after_effect
from .writes import before_statement
from .writes import COUNTED
from .writes import Effect
from .writes import effect_of
from .writes import losing

if t.TYPE_CHECKING:
    from sqlalchemy import Connection
    from sqlalchemy import Engine
    from sqlalchemy.engine.interfaces import DBAPIConnection
    from sqlalchemy.pool import ConnectionPoolEntry

#: Statements whose effect is remembered, per engine, and their most characters. Texts
#: of INSERT for many rows are long, and differ by the number of rows.
_MOST_KNOWN, _LONGEST_KNOWN = 1000, 5000

#: Stands for the effect of a statement that is new.
_NEW = t.cast("Effect", object())


def watch_engine(engine: Engine, account: PoolAccount) -> None:
    """Let an engine's pool and dialect feed `account`.

    Most of it begins with the first connection: many applications are made, by tests
    and by commands, that never connect.
    """
    reference = weakref.ref(engine)

    def closed(driver: DBAPIConnection, entry: ConnectionPoolEntry) -> None:
        account.closed(entry, driver)

    def detached(driver: DBAPIConnection, entry: ConnectionPoolEntry) -> None:
        account.detached(entry, driver)

    def invalidated(
        _: DBAPIConnection, entry: ConnectionPoolEntry, __: BaseException | None
    ) -> None:
        account.died(entry)

    def begin() -> None:
        watched = reference()
        if watched is not None:
            event.listen(watched, "close", closed)
            event.listen(watched, "detach", detached)
            event.listen(watched, "invalidate", invalidated)
            _watch_statements(watched, account)
            _watch_ends(watched)

    # One thread takes it out, with the first connection.
    pending = {"begin": begin}

    def connected(driver: DBAPIConnection, entry: ConnectionPoolEntry) -> None:
        if pending and (first := pending.pop("begin", None)):
            first()
        if get_ident() in account.pinging:
            return
        began = getattr(entry, "last_connect_time", None)
        took = 0.0 if began is None else time.time() - began
        account.connected(entry, driver, backend_pid(driver), took)

    dialect: t.Any = engine.dialect
    connect = dialect.connect

    def connecting(*cargs: t.Any, **cparams: t.Any) -> DBAPIConnection:
        if get_ident() not in account.pinging:
            account.note_connecting()
        return t.cast("DBAPIConnection", connect(*cargs, **cparams))

    # Not an event on "do_connect": any event of a dialect slows each execution down.
    dialect.connect = connecting
    event.listen(engine, "connect", connected, insert=True)
    if account.listens_only:
        pending.pop("begin")()
        _listen_to_pool(engine, account)


def watch_writes(engine: Engine, account: PoolAccount) -> None:
    """Note what is written and not committed, and nothing else."""
    if account.ledger.lost_work == "ignore":
        return
    reference = weakref.ref(engine)

    def closed(driver: DBAPIConnection, entry: ConnectionPoolEntry) -> None:
        slot: Slot | None = entry.info.get(SLOT)
        if slot is not None and slot.driver is driver:
            slot.forget_writes()

    def begin() -> None:
        watched = reference()
        if watched is not None:
            event.listen(watched, "close", closed)
            _watch_effects(watched, account)
            _watch_ends(watched)

    # One thread takes it out, with the first connection.
    pending = {"begin": begin}

    def connected(driver: DBAPIConnection, entry: ConnectionPoolEntry) -> None:
        if pending and (first := pending.pop("begin", None)):
            first()
        entry.info[SLOT] = Slot(account, entry, driver)

    event.listen(engine, "connect", connected, insert=True)


def _watch_effects(engine: Engine, account: PoolAccount) -> None:
    effects = _Effects()
    uncommitted = account.ledger.uncommitted
    dialect: t.Any = engine.dialect

    def watch(name: str) -> None:
        original = getattr(dialect, name)
        takes = 0 if name == "do_execute_no_params" else 1

        def execute(
            cursor: t.Any, statement: str, *rest: t.Any, context: t.Any = None
        ) -> None:
            parameters, given = rest[:takes], rest[takes:]
            context = given[0] if given else context
            effect = None if context is None else effects.of(context, statement)
            slot = None
            if context is not None and (effect is not None or uncommitted):
                slot = _slot(context.root_connection.connection)
            if slot is not None:
                before_statement(slot)
            original(cursor, statement, *parameters, context)
            if slot is not None and effect is not None:
                after_effect(slot, effect, cursor)

        setattr(dialect, name, execute)

    for name in ("do_execute", "do_executemany", "do_execute_no_params"):
        watch(name)


class _Effects:
    """What an engine's statements do, remembered by their text."""

    def __init__(self) -> None:
        self.known: dict[str, Effect | None] = {}

    def of(self, context: t.Any, statement: str) -> Effect | None:
        """Return a statement's effect, from its context if it is new."""
        found = self.known.get(statement, _NEW)
        return self.learn(context, statement) if found is _NEW else found

    def learn(self, context: t.Any, statement: str) -> Effect | None:
        """Find a statement's effect, and remember it unless its text is long."""
        found = effect_of(context, statement)
        if len(statement) <= _LONGEST_KNOWN:
            if len(self.known) >= _MOST_KNOWN:
                self.known.clear()
            self.known[statement] = found
        return found


def _listen_to_pool(engine: Engine, account: PoolAccount) -> None:
    def checked_out(
        driver: DBAPIConnection, entry: ConnectionPoolEntry, _: PoolProxiedConnection
    ) -> None:
        slot: Slot | None = entry.info.get(SLOT)
        if slot is None:
            if get_ident() in account.pinging:
                return
            # It was opened before the pool was given to the extension.
            slot = account.found(entry, driver, backend_pid(driver))
        now = perf_counter()
        if now >= account.look_at:
            look_at_holders(account, now)
            now = perf_counter()  # handlers of the log may have taken long
        account.check_out(slot, account.ledger.user(), now, 0.0)

    def checked_in(_: DBAPIConnection | None, entry: ConnectionPoolEntry) -> None:
        slot: Slot | None = entry.info.get(SLOT)
        if slot is not None:
            account.check_in(slot)

    event.listen(engine, "checkout", checked_out)
    event.listen(engine, "checkin", checked_in)


def _slot(connection: t.Any) -> Slot | None:
    """Return what is known of a proxied connection, also if it was detached."""
    try:
        return connection.info.get(SLOT)  # type: ignore[no-any-return]
    except (AttributeError, NotImplementedError):
        # The driver's own, where psycopg's "info" is something else, or SQLAlchemy's
        # stand-in for one, as an engine first connects.
        return None


def _watch_statements(engine: Engine, account: PoolAccount) -> None:
    dialect: t.Any = engine.dialect
    effects = _Effects()
    for name in ("do_execute", "do_executemany"):
        watched = _watched(getattr(dialect, name), engine, account, effects)
        setattr(dialect, name, watched)
    without = dialect.do_execute_no_params

    def ignoring(cursor: t.Any, statement: str, _: None, context: t.Any) -> None:
        without(cursor, statement, context)

    watched = _watched(ignoring, engine, account, effects)

    def do_execute_no_params(
        cursor: t.Any, statement: str, context: t.Any = None
    ) -> None:
        if context is None:
            without(cursor, statement)
        else:
            watched(cursor, statement, None, context)

    dialect.do_execute_no_params = do_execute_no_params


def _is_default(method: t.Any, name: str) -> bool:
    """Whether a method of a dialect does no more than call the driver's."""
    return getattr(method, "__func__", None) is getattr(DefaultDialect, name)


def _watched(  # noqa: C901 - each call that it would be split into costs
    original: t.Any, engine: Engine, account: PoolAccount, effects: _Effects
) -> t.Callable[..., None]:
    """Return a method of the dialect that also keeps the account of a statement."""
    # The default only calls the cursor: here, that is done without a call in between.
    is_plain = _is_default(original, "do_execute")
    # One connection for all threads, which are meant to share it.
    is_shared = isinstance(engine.pool, StaticPool)
    show_sql, known = account.show_sql, effects.known
    many = account.ledger.many_statements
    note = None if many is None else many.note

    def execute(
        cursor: t.Any, statement: str, parameters: t.Any, context: t.Any = None
    ) -> None:
        slot: Slot | None = None
        if context is not None:
            try:  # not info_of(), which costs each statement a call
                slot = context.root_connection.connection.info.get(SLOT)
            except NotImplementedError:
                slot = None
        if slot is None:
            original(cursor, statement, parameters, context)
            return
        ident = get_ident()
        # No call is between this check and the mark, so no other thread runs.
        if slot.runner is not None and not is_shared:
            note_sharing(slot)
        slot.runner = ident
        try:
            effect = known.get(statement, _NEW)
            if effect is _NEW:
                effect = effects.learn(context, statement)
            if effect is not None or slot.writes is not None:
                before_statement(slot)
            if show_sql or not slot.tells:
                slot.keeps_more = True
                slot.statement = statement if show_sql else None
                slot.execution_options = context.execution_options
                slot.has_begun = True
            if effect is None or effect.action in COUNTED:
                slot.sender.statements += 1
                slot.sent += 1
                if note is not None:
                    note(slot.sender, statement)
            slot.moved = perf_counter()
            if is_plain:
                cursor.execute(statement, parameters)
            else:
                original(cursor, statement, parameters, context)
        except Exception as error:
            explain_lock(error, slot)
            raise
        finally:
            slot.moved = perf_counter()
            slot.runner = None
            if slot.abandoned is not None:
                slot.abandoned.close()
        if slot.abandoned is not None:
            raise refusal()
        if effect is not None:
            after_effect(slot, effect, cursor)

    return execute


def _watch_ends(engine: Engine) -> None:
    """Learn of the end of each transaction, and of what it committed or lost."""
    dialect: t.Any = engine.dialect
    # One connection for all threads, which are meant to share it.
    is_shared = isinstance(engine.pool, StaticPool)
    commit, rollback = dialect.do_commit, dialect.do_rollback
    # The defaults only call the driver's: here, that is done without calls in between.
    plain_commit = _is_default(commit, "do_commit")
    plain_rollback = _is_default(rollback, "do_rollback")

    def do_commit(connection: t.Any) -> None:
        slot = _slot(connection)
        if slot is not None and slot.runner is not None and not is_shared:
            note_sharing(slot)
        try:
            if slot is not None and plain_commit:
                connection.dbapi_connection.commit()
            else:
                commit(connection)
        except Exception as error:
            if slot is not None:
                explain_lock(error, slot)
            raise
        if slot is not None:
            _ended(slot)

    def do_rollback(connection: t.Any) -> None:
        slot: Slot | None
        try:  # not _slot(), since each request comes here twice
            slot = connection.info.get(SLOT)
        except (AttributeError, NotImplementedError):
            slot = None
        if slot is None:
            rollback(connection)
            return
        if slot.runner is not None and not is_shared:
            abandon(slot, connection)
        if slot.writes is not None:
            _note_loss(slot)
        if plain_rollback:
            connection.dbapi_connection.rollback()
        else:
            rollback(connection)
        if slot.has_begun or slot.writes is not None:
            _ended(slot)

    dialect.do_commit, dialect.do_rollback = do_commit, do_rollback
    _watch_twophase(dialect)


def _watch_twophase(dialect: t.Any) -> None:
    """Learn of the end of each two-phase transaction, which has methods of its own."""
    commit, rollback = dialect.do_commit_twophase, dialect.do_rollback_twophase

    def do_commit_twophase(
        connection: Connection, xid: t.Any, is_prepared: bool = True, **kw: t.Any
    ) -> None:
        slot = None if kw.get("recover") else _slot(connection.connection)
        commit(connection, xid, is_prepared, **kw)
        if slot is not None:
            _ended(slot)

    def do_rollback_twophase(
        connection: Connection, xid: t.Any, is_prepared: bool = True, **kw: t.Any
    ) -> None:
        slot = None if kw.get("recover") else _slot(connection.connection)
        if slot is not None:
            _note_loss(slot, is_prepared=is_prepared)
            # Before the rollback: older versions call do_rollback() for it, which would
            # count the loss again.
            _ended(slot)
        rollback(connection, xid, is_prepared, **kw)

    dialect.do_commit_twophase = do_commit_twophase
    dialect.do_rollback_twophase = do_rollback_twophase


def _ended(slot: Slot) -> None:
    """Note that a connection's transaction is committed or rolled back."""
    slot.has_begun = False
    if slot.writes is not None:
        slot.forget_writes()


def _note_loss(slot: Slot, *, is_prepared: bool = False) -> None:
    """Add what a rollback is about to lose to the scope that ends on this thread.

    Called before the rollback, while the driver still knows of the transaction. If it
    is prepared, the driver knows nothing of it, and it can only be lost now.
    """
    lost = slot.account.ledger.ending.get(get_ident())
    found = None if lost is None else losing(slot, is_prepared=is_prepared)
    if lost is not None and found is not None:
        lost.update(found)
