"""What PostgreSQL is asked.

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
from .facts import rows

if t.TYPE_CHECKING:
    from sqlalchemy import Engine
    from sqlalchemy.engine.interfaces import DBAPIConnection

_FACTS = """\
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
# Other roles' connections may show neither state nor type, but clients have a role.
_ACTIVITY = """\
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
_NOT_SHOWN = "other roles' connections show neither state nor address to ours"


def ask(engine: Engine, connection: DBAPIConnection, wait: float) -> Facts:
    """Return the server's facts.

    :param wait: Seconds after which the server should give up a statement.
    """
    # A listener of the application may have begun a transaction.
    engine.dialect.do_rollback(t.cast(t.Any, connection))
    engine.dialect.set_isolation_level(connection, "AUTOCOMMIT")
    cursor = connection.cursor()
    try:
        cursor.execute("BEGIN READ ONLY")
        cursor.execute(f"SET LOCAL statement_timeout = {max(1, int(wait * 1000))}")
        (facts,) = rows(cursor, _FACTS)
        activity = tuple(_activity(*row) for row in rows(cursor, _ACTIVITY))
        cursor.execute("ROLLBACK")
    finally:
        cursor.close()
    identity, pid, name, most, reserved, database, role, superuser, all_shown = facts
    return Facts(
        identity=identity,
        own_pid=pid,
        driver_pid=backend_pid(connection),
        own_name=name,
        max_connections=most,
        reserved=reserved,
        in_use=sum(each.connection.kind is None for each in activity),
        # -1 means no limit, and a superuser has none.
        database_limit=None if superuser or database < 0 else database,
        role_limit=None if superuser or role < 0 else role,
        activity=activity,
        notes=() if all_shown else (_NOT_SHOWN,),
    )


def _activity(pid: int, here: bool | None, ours: bool | None, *rest: t.Any) -> Activity:
    name, client, kind, state, wait_event, blockers, *ages = rest
    transaction_s, query_s, state_s, connected_s = map(age, ages)
    connection = ServerConnection(
        backend_pid=pid,
        application_name=name,
        # Without an age it is not shown to our role, and so is no local socket either.
        client=None if connected_s is None else client,
        kind=kind,
        state=state,
        wait_event=wait_event,
        blocked_by=tuple(sorted({int(p) for p in (blockers or "").split(",") if p})),
        transaction_s=transaction_s,
        query_s=query_s,
        state_s=state_s,
    )
    return Activity(connection, bool(here), bool(ours), connected_s)
