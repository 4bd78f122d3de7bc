"""The servers' own view of our connections, joined with what the workers report.

Each database is asked over one connection outside the pool, after the workers were.
"""

from __future__ import annotations

import typing as t
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Mapping
from dataclasses import replace
from time import perf_counter

from .._format import ASYNC
from .._pools.account import PoolAccount
from .._pools.naming import family_of
from .._settings.urls import is_sqlite
from .._settings.urls import safe_url
from ..errors import PingError
from ..snapshot import DatabaseURL
from ..snapshot import Holder
from ..snapshot import PoolSnapshot
from ..snapshot import Survey
from ..snapshot._servers import ConnectionLimit
from ..snapshot._servers import LockWait
from ..snapshot._servers import Scope
from ..snapshot._servers import ServerConnection
from ..snapshot._servers import ServerView
from ..snapshot._servers import Unclaimed
from . import mysql
from . import postgresql
from .facts import Activity
from .facts import Facts
from .ping import server_version
from .ping import visit

if t.TYPE_CHECKING:
    from sqlalchemy import Engine
    from sqlalchemy.engine.interfaces import DBAPIConnection

_ASK = {"postgresql": postgresql.ask, "mysql": mysql.ask, "mariadb": mysql.ask}

_POOLED = "behind a pooler: connections are not joined with the workers'"
_DRIVER = "the driver does not report process IDs: connections are not joined"


class _Claim(t.NamedTuple):
    """A live worker reports that it has a connection open."""

    pid: int
    bind: str
    holder: Holder | None


class _Database(t.NamedTuple):
    """One database of the app, and the answer of its server."""

    binds: tuple[str, ...]
    engine: Engine
    facts: Facts | None
    error: str | None


def view_servers(
    engines: Mapping[str, Engine],
    accounts: Mapping[str, PoolAccount],
    survey: Survey,
    *,
    timeout: float,
    since: float,
) -> tuple[ServerView, ...]:
    """Ask the server of each database, all at the same time.

    :param survey: The answers of all live workers.
    :param timeout: Seconds to wait for each server.
    :param since: The :func:`time.perf_counter` before the workers were asked. Their
        answers include every connection that was opened earlier and still is open.
    """
    databases = _ask(engines, accounts, timeout)
    elapsed = perf_counter() - since
    return tuple(_view(each, databases, survey, elapsed) for each in databases)


def _ask(
    engines: Mapping[str, Engine],
    accounts: Mapping[str, PoolAccount],
    timeout: float,
) -> list[_Database]:
    binds: dict[t.Any, list[str]] = {}
    for name, engine in engines.items():
        binds.setdefault(engine.url, []).append(name)
    answers: list[tuple[list[str], Callable[[], Facts]]] = []
    for names in binds.values():
        engine = engines[names[0]]
        answers.append((names, _begin(engine, accounts.get(names[0]), timeout)))
    found = []
    for names, answer in answers:
        facts = error = None
        try:
            facts = answer()
        except PingError as problem:
            error = str(problem)
        found.append(_Database(tuple(names), engines[names[0]], facts, error))
    return found


def _begin(
    engine: Engine, account: PoolAccount | None, timeout: float
) -> Callable[[], Facts]:
    """Begin to ask one server; the returned function waits for the answer."""
    name = engine.dialect.name
    ask = _ASK.get(name)
    if ask is None:

        def refuse() -> Facts:
            raise PingError(
                "no server: SQLite has none"
                if is_sqlite(engine.url)
                else f"not asked: {name} is neither PostgreSQL nor MySQL nor MariaDB"
            )

        return refuse

    def work(connection: DBAPIConnection, _: float) -> Facts:
        return ask(engine, connection, timeout)

    return visit(engine, account, work, timeout)


# -- joined --------------------------------------------------------------------


def _view(
    database: _Database, databases: list[_Database], survey: Survey, elapsed: float
) -> ServerView:
    url, facts = safe_url(database.engine.url), database.facts
    if facts is None:
        return ServerView(database.binds, url, error=database.error)
    same = [d for d in databases if d.facts and d.facts.identity == facts.identity]
    claims = _claims(survey, same) if facts.joined else {}
    present = [e for e in facts.activity if e.pid in claims or not _asks(e, facts)]
    found = {each.pid: _joined(each, claims) for each in present}
    ours = {e.pid for e in present if e.pid in claims or _has_our_name(e, facts)}
    notes = () if facts.joined else (_why_not(database, facts),)
    missing = [
        each.connection
        for each in present
        if each.here and each.pid in ours and each.pid not in claims
        # A worker may have opened a younger one after it answered.
        if each.connected_s is None or each.connected_s > elapsed
    ]
    return ServerView(
        binds=database.binds,
        url=url,
        version=server_version(database.engine),
        joined=facts.joined,
        notes=(*notes, *facts.notes),
        waits=_waits(found, ours),
        connections=tuple(
            found[each.pid] for each in present if each.here and each.pid in claims
        ),
        unclaimed=_unclaimed(missing) if facts.joined else (),
        limits=_limits(database, facts, same, survey, present, claims),
    )


def _why_not(database: _Database, facts: Facts) -> str:
    """Return why the connections are not joined with the workers'."""
    knows = database.engine.dialect.driver in ("psycopg", "psycopg2")
    return _POOLED if facts.driver_pid is not None or knows else _DRIVER


def _claims(survey: Survey, same: Iterable[_Database]) -> dict[int, _Claim]:
    """Return the connections that live workers have open, by ID at the server."""
    claims: dict[int, _Claim] = {}
    for worker in survey.live:
        for pool in worker.pools:
            if any(_is_of(pool, database) for database in same):
                for pid in pool.backend_pids:
                    claims[pid] = _Claim(worker.pid, pool.bind, None)
                for holder in pool.holders:
                    if holder.backend_pid is not None:
                        claim = _Claim(worker.pid, pool.bind, holder)
                        claims[holder.backend_pid] = claim
    return claims


def _is_of(pool: PoolSnapshot, database: _Database) -> bool:
    url = safe_url(database.engine.url)
    if pool.bind.startswith(ASYNC):
        # Another driver, and maybe another database, of the same server.
        return _server(pool.url) == _server(url)
    return pool.bind in database.binds and pool.url == url


def _server(url: DatabaseURL) -> tuple[str, str | None, int | None]:
    return url.drivername.partition("+")[0], url.host, url.port


def _asks(each: Activity, facts: Facts) -> bool:
    """Whether it is this process, asking about another database of the same server."""
    own = facts.own_name or ""
    return family_of(own) is not None and each.connection.application_name == own


def _has_our_name(each: Activity, facts: Facts) -> bool:
    """Whether it belongs to this app, judged by its name."""
    own, name = facts.own_name or "", each.connection.application_name or ""
    beginning = family_of(own)
    if beginning is not None:
        return name.startswith(beginning)
    # If our connections have no name, only the role is left to judge by.
    return name == own and (bool(own) or each.ours) and each.connection.kind is None


def _joined(each: Activity, claims: Mapping[int, _Claim]) -> ServerConnection:
    claim = claims.get(each.pid)
    if claim is None:
        return each.connection
    return replace(each.connection, **claim._asdict())


def _waits(
    found: Mapping[int, ServerConnection], ours: set[int]
) -> tuple[LockWait, ...]:
    """Return the lock waits in which a connection of ours takes part, longest first."""
    waits = [
        LockWait(
            each,
            tuple(found.get(pid) or ServerConnection(pid) for pid in each.blocked_by),
        )
        for each in found.values()
        if each.blocked_by and not ours.isdisjoint((each.backend_pid, *each.blocked_by))
    ]
    return tuple(sorted(waits, key=lambda wait: -(wait.waiting.query_s or 0.0)))


def _unclaimed(missing: Iterable[ServerConnection]) -> tuple[Unclaimed, ...]:
    groups: dict[tuple[str, str], list[ServerConnection]] = {}
    for each in missing:
        key = each.application_name or "", each.client or ""
        groups.setdefault(key, []).append(each)
    found = []
    for (name, client), members in sorted(groups.items()):
        oldest = max(members, key=lambda each: each.state_s or 0.0)
        found.append(
            Unclaimed(
                name or None,
                client or None,
                len(members),
                oldest.state_s,
                oldest.state,
            )
        )
    return tuple(found)


# -- limits --------------------------------------------------------------------


def _limits(
    database: _Database,
    facts: Facts,
    same: list[_Database],
    survey: Survey,
    present: list[Activity],
    claims: Mapping[int, _Claim],
) -> tuple[ConnectionLimit, ...]:
    """Compare what the workers may open with each limit that applies to them."""
    url = database.engine.url
    clients = [each for each in present if each.connection.kind is None]
    here = [each for each in clients if each.here]
    ours = [each for each in clients if each.ours]
    siblings = [d for d in same if d.engine.url.database == url.database]
    roles = [d for d in same if d.engine.url.username == url.username]
    limits: list[tuple[Scope, int | None, list[Activity], list[_Database]]] = [
        ("server", facts.max_connections, clients, same),
        ("database", facts.database_limit, here, siblings),
        ("role", facts.role_limit, ours, roles),
    ]
    found = []
    for scope, limit, inside, sharing in limits:
        if limit is None:
            continue
        in_use, reserved = len(inside), 0
        if scope == "server":
            # The server also counts connections that it does not show to our role.
            in_use = facts.in_use - (len(facts.activity) - len(present))
            reserved = facts.reserved
        others = left = None
        if facts.joined:
            others = in_use - sum(each.pid in claims for each in inside)
            left = max(0, limit - reserved - others)
        asking = _asking(survey, sharing)
        found.append(
            ConnectionLimit(scope, limit, reserved, in_use, others, left, *asking)
        )
    return tuple(found)


def _asking(survey: Survey, databases: list[_Database]) -> tuple[int, int | None, bool]:
    """Return how many workers connect, what they may open, and if that is unlimited."""
    pools = {
        worker.id: [p for p in worker.pools if any(_is_of(p, d) for d in databases)]
        for worker in survey.live
    }
    used = [pool for found in pools.values() for pool in found]
    limits = [pool.max for pool in used if pool.max is not None]
    may_open = sum(limits) if len(limits) == len(used) else None
    unlimited = any(bool(pool.unlimited) for pool in used)
    return sum(map(bool, pools.values())), may_open, unlimited
