"""Lets an engine's connections and statements feed the ledger.

When a connection is made or ends, events tell. When a statement runs and a
transaction ends, the dialect's public methods do, replaced on the instance:
events on an engine slow every execution down, whatever they listen to.
"""

from __future__ import annotations

import threading
import time
import typing as t
from time import perf_counter

from sqlalchemy import event

from .._scopes.scope import current_owner
from .account import PoolAccount
from .account import slot_of

if t.TYPE_CHECKING:
    from sqlalchemy import Engine
    from sqlalchemy.engine.interfaces import DBAPIConnection
    from sqlalchemy.pool import ConnectionPoolEntry
    from sqlalchemy.pool import PoolProxiedConnection


#: The highest process id there is, Linux's. PgBouncer tells its clients a random
#: number, which is nobody's: 999 of 1000 are out of this range.
_HIGHEST_PID = 1 << 22


def watch_engine(engine: Engine, account: PoolAccount) -> None:
    """Let an engine's pool and dialect feed `account`.

    The listeners fire only when a connection is made or ends.
    """

    def connected(connection: DBAPIConnection, entry: ConnectionPoolEntry) -> None:
        if threading.get_ident() in account.pinging:
            return
        began = getattr(entry, "last_connect_time", None)
        took = 0.0 if began is None else time.time() - began
        account.connected(entry, backend_pid(connection), took)

    def closed(_: DBAPIConnection, entry: ConnectionPoolEntry) -> None:
        account.closed(entry)

    def invalidated(
        _: DBAPIConnection, entry: ConnectionPoolEntry, __: BaseException | None
    ) -> None:
        account.died(entry)

    def connecting(*_: t.Any) -> None:
        if threading.get_ident() not in account.pinging:
            account.note_connecting()

    event.listen(engine, "connect", connected, insert=True)
    event.listen(engine, "close", closed)
    event.listen(engine, "detach", closed)
    event.listen(engine, "invalidate", invalidated)
    event.listen(engine, "do_connect", connecting)
    if account.listens_only:
        _listen_to_pool(engine, account)
    _watch_statements(engine, account)


def _listen_to_pool(engine: Engine, account: PoolAccount) -> None:
    def checked_out(
        _: DBAPIConnection, __: ConnectionPoolEntry, proxied: PoolProxiedConnection
    ) -> None:
        if threading.get_ident() not in account.pinging:
            slot = slot_of(proxied)
            account.check_out(proxied, slot, current_owner(), perf_counter(), 0.0)

    def checked_in(_: DBAPIConnection | None, entry: ConnectionPoolEntry) -> None:
        if threading.get_ident() not in account.pinging:
            account.check_in(entry)

    event.listen(engine, "checkout", checked_out)
    event.listen(engine, "checkin", checked_in)
    event.listen(engine, "detach", checked_in)


def _watch_statements(engine: Engine, account: PoolAccount) -> None:
    dialect = engine.dialect
    holds = account.holds

    def watch_execute(name: str) -> None:
        original = getattr(dialect, name)

        def execute(
            cursor: t.Any, statement: str, parameters: t.Any, context: t.Any = None
        ) -> None:
            hold = None
            if context is not None:
                hold = holds.get(id(context.root_connection.connection))
                if hold is not None:
                    hold.in_transaction = True
                    hold.execution_options = context.execution_options
                    hold.running_since = perf_counter()
                    if account.show_sql:
                        hold.statement = statement
            try:
                if bare:
                    original(cursor, statement, context)
                else:
                    original(cursor, statement, parameters, context)
            finally:
                if hold is not None:
                    hold.running_since, hold.idle_since = None, perf_counter()

        def execute_no_params(
            cursor: t.Any, statement: str, context: t.Any = None
        ) -> None:
            execute(cursor, statement, None, context)

        bare = name == "do_execute_no_params"
        setattr(dialect, name, execute_no_params if bare else execute)

    def watch_end(name: str) -> None:
        original = getattr(dialect, name)

        def end(connection: PoolProxiedConnection) -> None:
            hold = holds.get(id(connection))
            if hold is not None:
                hold.in_transaction = False
            original(connection)

        setattr(dialect, name, end)

    for name in ("do_execute", "do_executemany", "do_execute_no_params"):
        watch_execute(name)
    for name in ("do_commit", "do_rollback"):
        watch_end(name)


def backend_pid(connection: t.Any) -> int | None:
    """Return the server's process id of a connection, if the driver knows it.

    No query is sent: psycopg has it in ``info``, psycopg2 and pg8000 in methods,
    the MySQL drivers as a thread id.
    """
    info = getattr(connection, "info", None)
    for source, name, highest in (
        (info, "backend_pid", _HIGHEST_PID),
        (connection, "get_backend_pid", _HIGHEST_PID),
        (connection, "thread_id", None),
    ):
        value = getattr(source, name, None)
        try:
            found = value() if callable(value) else value
        except Exception:  # noqa: BLE001, S112
            continue
        if isinstance(found, int):
            return found if highest is None or 0 < found <= highest else None
    return None
