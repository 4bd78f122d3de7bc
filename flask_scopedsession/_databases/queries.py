"""What the database servers themselves are asked.

Read-only, and never for the text of statements: some drivers write the parameters
into it.
"""

from __future__ import annotations

import typing as t
from collections.abc import Callable
from dataclasses import dataclass
from dataclasses import field
from dataclasses import replace

from .._pools.statements import backend_pid

if t.TYPE_CHECKING:
    from sqlalchemy import Engine
    from sqlalchemy.engine.interfaces import DBAPIConnection

Row = tuple[t.Any, ...]


@dataclass(frozen=True, slots=True)
class Activity:
    """One connection, in the server's own words."""

    pid: int
    here: bool
    """It is to the database that was asked about."""
    ours: bool
    """It has our role."""
    name: str | None = None
    client: str | None = None
    kind: str | None = None
    """``None`` is a client."""
    state: str | None = None
    wait_event: str | None = None
    blocked_by: tuple[int, ...] = ()
    transaction_s: float | None = None
    query_s: float | None = None
    state_s: float | None = None
    connected_s: float | None = None
    """At least so long ago it was opened."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What one server said."""

    identity: str
    """The same for two databases of one server."""
    own_pid: int
    driver_pid: int | None
    """What our driver takes for `own_pid`."""
    own_name: str | None
    max_connections: int
    reserved: int
    in_use: int
    database_limit: int | None
    role_limit: int | None
    activity: tuple[Activity, ...] = field(repr=False)
    notes: tuple[str, ...] = ()


def asks(engine: Engine) -> Callable[[Engine, DBAPIConnection, float], Facts] | None:
    """Return what asks a server of this kind; ``None``: nobody here knows how."""
    return {
        "postgresql": _postgresql,
        "mysql": _mysql,
        "mariadb": _mysql,
    }.get(engine.dialect.name)


def _rows(cursor: t.Any, query: str) -> t.Sequence[Row]:
    cursor.execute(query)
    found: t.Sequence[Row] = cursor.fetchall()
    return found


# -- PostgreSQL ----------------------------------------------------------------

_PG_FACTS = """\
SELECT pg_postmaster_start_time()::text || ' ' || current_setting('port'),
  pg_backend_pid(), current_setting('application_name'),
  current_setting('max_connections')::int,
  current_setting('superuser_reserved_connections')::int
    + coalesce(current_setting('reserved_connections', true)::int, 0),
  (SELECT datconnlimit FROM pg_database WHERE datname = current_database()),
  rolconnlimit, rolsuper,
  rolsuper OR pg_has_role(session_user, 'pg_read_all_stats', 'USAGE')
FROM pg_roles WHERE rolname = session_user
"""
# Of other roles' connections, less may be shown; those of clients have a role.
_PG_ACTIVITY = """\
SELECT pid, datname = current_database(), usename = session_user,
  application_name, coalesce(host(client_addr), 'local socket'),
  CASE WHEN backend_type <> 'client backend' THEN backend_type END, state,
  wait_event_type || ':' || wait_event,
  CASE WHEN wait_event_type = 'Lock'
    THEN array_to_string(pg_blocking_pids(pid), ',') END,
  extract(epoch FROM clock_timestamp() - xact_start)::float8,
  CASE WHEN state = 'active'
    THEN extract(epoch FROM clock_timestamp() - query_start)::float8 END,
  extract(epoch FROM clock_timestamp() - state_change)::float8,
  extract(epoch FROM clock_timestamp() - backend_start)::float8
FROM pg_stat_activity
WHERE datid IS NOT NULL AND pid <> pg_backend_pid()
  AND (usesysid IS NOT NULL OR backend_type IS NOT NULL)
"""


def _postgresql(engine: Engine, connection: DBAPIConnection, wait: float) -> Facts:
    # A listener of the user's may have begun one.
    engine.dialect.do_rollback(t.cast(t.Any, connection))
    engine.dialect.set_isolation_level(connection, "AUTOCOMMIT")
    cursor = connection.cursor()
    try:
        cursor.execute("BEGIN READ ONLY")
        cursor.execute(f"SET LOCAL statement_timeout = {max(1, int(wait * 1000))}")
        (facts,) = _rows(cursor, _PG_FACTS)
        activity = tuple(_pg_activity(*row) for row in _rows(cursor, _PG_ACTIVITY))
        cursor.execute("ROLLBACK")
    finally:
        cursor.close()
    identity, pid, name, most, reserved, database, role, superuser, all_shown = facts
    note = "other roles' connections show neither state nor address to ours"
    return Facts(
        identity=identity,
        own_pid=pid,
        driver_pid=backend_pid(connection),
        own_name=name,
        max_connections=most,
        reserved=reserved,
        in_use=sum(each.kind is None for each in activity),
        # -1 is no limit, and a superuser has none.
        database_limit=None if superuser or database < 0 else database,
        role_limit=None if superuser or role < 0 else role,
        activity=activity,
        notes=() if all_shown else (note,),
    )


def _pg_activity(
    pid: int, here: bool | None, ours: bool | None, *rest: t.Any
) -> Activity:
    name, client, kind, state, wait_event, blockers, *ages = rest
    transaction_s, query_s, state_s, connected_s = map(_age, ages)
    return Activity(
        pid,
        bool(here),
        bool(ours),
        name,
        # Another role's is not shown, and then is no local one either.
        None if connected_s is None else client,
        kind,
        state,
        wait_event,
        tuple(sorted({int(each) for each in (blockers or "").split(",") if each})),
        transaction_s,
        query_s,
        state_s,
        connected_s,
    )


def _age(value: t.Any) -> float | None:
    return None if value is None else max(0.0, float(value))


# -- MySQL and MariaDB ---------------------------------------------------------

_MY_FACTS = """\
SELECT CONCAT(@@hostname, ' ', @@port, ' ', @@datadir), CONNECTION_ID(),
  @@max_connections, @@max_user_connections
"""
_MY_ACTIVITY = """\
SELECT id, db = DATABASE(), user = SUBSTRING_INDEX(USER(), '@', 1), host, command, {}
FROM information_schema.processlist
WHERE id <> CONNECTION_ID() AND user NOT IN ('system user', 'event_scheduler')
"""
_MY_TRANSACTIONS = """\
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
_MY_NAMES = """\
SELECT processlist_id, attr_value
FROM performance_schema.session_account_connect_attrs
WHERE attr_name = 'program_name'
"""


def _mysql(engine: Engine, connection: DBAPIConnection, wait: float) -> Facts:
    engine.dialect.do_rollback(t.cast(t.Any, connection))
    cursor = connection.cursor()
    try:
        return _MySQL(engine, cursor, wait).facts(backend_pid(connection))
    finally:
        cursor.close()


class _MySQL:
    """Asks one MySQL or MariaDB."""

    def __init__(self, engine: Engine, cursor: t.Any, wait: float) -> None:
        self._errors = t.cast(t.Any, engine.dialect.loaded_dbapi).DatabaseError
        self._mariadb = bool(getattr(engine.dialect, "is_mariadb", False))
        self._cursor = cursor
        self._wait = wait
        self._notes: list[str] = []

    def facts(self, driver_pid: int | None) -> Facts:
        ((identity, pid, most, user_limit),) = self._select(_MY_FACTS)
        status = "SHOW GLOBAL STATUS LIKE 'Threads_connected'"
        ((_, in_use),) = _rows(self._cursor, status)
        # Without the performance schema there are none.
        names: dict[int, str] = dict(self._readable(_MY_NAMES, None))
        activity = tuple(
            replace(each, name=names.get(each.pid)) for each in self._activity()
        )
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

    def _activity(self) -> list[Activity]:
        age = "time_ms / 1000" if self._mariadb else "time"
        processes = self._select(_MY_ACTIVITY.format(age))
        started: dict[int, t.Any] = dict(
            self._readable(_MY_TRANSACTIONS, "transactions and lock waits")
        )
        waits = _MARIADB_WAITS if self._mariadb else _MYSQL_WAITS
        blockers: dict[int, set[int]] = {}
        what = None if self._notes else "lock waits"
        for waiting, blocking in self._readable(waits, what):
            blockers.setdefault(waiting, set()).add(blocking)
        return [
            _my_activity(*row, started.get(row[0]), blockers.get(row[0], set()))
            for row in processes
        ]

    def _select(self, query: str) -> t.Sequence[Row]:
        # Limits one statement only: a proxy may hand the server's side on to others.
        if self._mariadb:
            limit = f"SET STATEMENT max_statement_time = {max(1, int(self._wait))} FOR "
            return _rows(self._cursor, limit + query)
        hint = f"SELECT /*+ MAX_EXECUTION_TIME({max(1, int(self._wait * 1000))}) */"
        return _rows(self._cursor, query.replace("SELECT", hint, 1))

    def _readable(self, query: str, what: str | None) -> t.Sequence[Row]:
        try:
            return self._select(query)
        except self._errors:
            if what is not None:
                self._notes.append(f"{what} cannot be read: that takes more rights")
            return ()


def _my_activity(pid: int, here: t.Any, ours: t.Any, *rest: t.Any) -> Activity:
    host, command, age, transaction, blockers = rest
    state_s = _age(age)
    rests = command == "Sleep"
    idle = "idle" if transaction is None else "idle in transaction"
    # InnoDB shows what it knew a tenth of a second ago; who rests now does not wait.
    blocked_by = () if rests else tuple(sorted(blockers))
    return Activity(
        pid=pid,
        here=bool(here),
        ours=bool(ours),
        client=(host or "").rpartition(":")[0] or host,
        state=idle if rests else "active",
        wait_event="Lock" if blocked_by else None,
        blocked_by=blocked_by,
        transaction_s=_age(transaction),
        query_s=None if rests else state_s,
        state_s=state_s,
        connected_s=state_s,
    )
