"""What MySQL and MariaDB are asked.

Read-only, and never for the text of statements, because some drivers write parameters
into it.
"""

from __future__ import annotations

import typing as t

from .._pools.statements import backend_pid
from ..snapshot._servers import ServerConnection
from .facts import Activity
from .facts import age
from .facts import Facts
from .facts import Row
from .facts import rows

if t.TYPE_CHECKING:
    from sqlalchemy import Engine
    from sqlalchemy.engine.interfaces import DBAPIConnection

_FACTS = """\
SELECT CONCAT(@@hostname, ' ', @@port, ' ', @@datadir), CONNECTION_ID(),
  @@max_connections, @@max_user_connections
"""
_ACTIVITY = """\
SELECT id, db = DATABASE(), user = SUBSTRING_INDEX(USER(), '@', 1), host, command, {}
FROM information_schema.processlist
WHERE id <> CONNECTION_ID() AND user NOT IN ('system user', 'event_scheduler')
"""
_TRANSACTIONS = """\
SELECT trx_mysql_thread_id, TIMESTAMPDIFF(MICROSECOND, trx_started, NOW(6)) / 1e6
FROM information_schema.innodb_trx
"""
_MARIADB_WAITS = """\
SELECT r.trx_mysql_thread_id, b.trx_mysql_thread_id
FROM information_schema.innodb_lock_waits w
JOIN information_schema.innodb_trx r ON r.trx_id = w.requesting_trx_id
JOIN information_schema.innodb_trx b ON b.trx_id = w.blocking_trx_id
"""
_MYSQL_WAITS = """\
SELECT r.trx_mysql_thread_id, b.trx_mysql_thread_id
FROM performance_schema.data_lock_waits w
JOIN information_schema.innodb_trx r
  ON r.trx_id = w.requesting_engine_transaction_id
JOIN information_schema.innodb_trx b
  ON b.trx_id = w.blocking_engine_transaction_id
"""
_NAMES = """\
SELECT processlist_id, attr_value
FROM performance_schema.session_account_connect_attrs
WHERE attr_name = 'program_name'
"""


def ask(engine: Engine, connection: DBAPIConnection, wait: float) -> Facts:
    """Return the server's facts.

    :param wait: Seconds after which the server should give up a statement.
    """
    # A listener of the application may have begun a transaction.
    engine.dialect.do_rollback(t.cast(t.Any, connection))
    cursor = connection.cursor()
    try:
        return _Question(engine, cursor, wait).facts(backend_pid(connection))
    finally:
        cursor.close()


class _Question:
    """Asks one server, and notes what it does not show to our role."""

    def __init__(self, engine: Engine, cursor: t.Any, wait: float) -> None:
        self._errors = t.cast(t.Any, engine.dialect.loaded_dbapi).DatabaseError
        self._mariadb = bool(getattr(engine.dialect, "is_mariadb", False))
        self._cursor = cursor
        self._wait = wait
        self._notes: list[str] = []

    def facts(self, driver_pid: int | None) -> Facts:
        ((identity, pid, most, user_limit),) = self._select(_FACTS)
        status = "SHOW GLOBAL STATUS LIKE 'Threads_connected'"
        ((_, in_use),) = rows(self._cursor, status)
        # There are no names without the performance schema.
        names: dict[int, str] = dict(self._readable(_NAMES, None))
        activity = self._activity(names)
        return Facts(
            identity=identity,
            own_pid=pid,
            driver_pid=driver_pid,
            own_name=names.get(pid),
            max_connections=most,
            reserved=0,
            in_use=max(len(activity), int(in_use) - 1),
            database_limit=None,
            role_limit=user_limit or None,
            activity=activity,
            notes=tuple(self._notes),
        )

    def _activity(self, names: t.Mapping[int, str]) -> tuple[Activity, ...]:
        seconds = "time_ms / 1000" if self._mariadb else "time"
        processes = self._select(_ACTIVITY.format(seconds))
        started: dict[int, t.Any] = dict(
            self._readable(_TRANSACTIONS, "transactions and lock waits")
        )
        waits = _MARIADB_WAITS if self._mariadb else _MYSQL_WAITS
        blockers: dict[int, set[int]] = {}
        what = None if self._notes else "lock waits"
        for waiting, blocking in self._readable(waits, what):
            blockers.setdefault(waiting, set()).add(blocking)
        return tuple(
            _activity(
                *row, names.get(row[0]), started.get(row[0]), blockers.get(row[0], ())
            )
            for row in processes
        )

    def _select(self, query: str) -> t.Sequence[Row]:
        # The limit is for one statement only, because a proxy may give the server's
        # session to another client next.
        if self._mariadb:
            limit = f"SET STATEMENT max_statement_time = {max(1, int(self._wait))} FOR "
            return rows(self._cursor, limit + query)
        hint = f"SELECT /*+ MAX_EXECUTION_TIME({max(1, int(self._wait * 1000))}) */"
        return rows(self._cursor, query.replace("SELECT", hint, 1))

    def _readable(self, query: str, what: str | None) -> t.Sequence[Row]:
        try:
            return self._select(query)
        except self._errors:
            if what is not None:
                self._notes.append(f"{what} cannot be read: that takes more rights")
            return ()


def _activity(pid: int, here: t.Any, ours: t.Any, *rest: t.Any) -> Activity:
    host, command, time, name, transaction, blockers = rest
    state_s = age(time)
    sleeps = command == "Sleep"
    idle = "idle" if transaction is None else "idle in transaction"
    # InnoDB's tables are up to 0.1 s old: a connection that sleeps does not wait now.
    blocked_by = () if sleeps else tuple(sorted(blockers))
    connection = ServerConnection(
        backend_pid=pid,
        application_name=name,
        client=(host or "").rpartition(":")[0] or host,
        state=idle if sleeps else "active",
        wait_event="Lock" if blocked_by else None,
        blocked_by=blocked_by,
        transaction_s=age(transaction),
        query_s=None if sleeps else state_s,
        state_s=state_s,
    )
    return Activity(connection, bool(here), bool(ours), connected_s=state_s)
