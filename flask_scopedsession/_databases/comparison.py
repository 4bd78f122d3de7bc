"""The servers' own view of our connections, joined with what the workers say.

Each database is asked over one connection outside the pool, after the workers were.
"""

from __future__ import annotations

import typing as t
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Mapping
from functools import partial
from time import perf_counter

from .._pools.account import PoolAccount
from .._pools.engine import server_version
from .._pools.engine import visit
from .._pools.naming import family_of
from .._settings.urls import safe_url
from ..errors import PingError
from ..snapshot import Holder
from ..snapshot import PoolSnapshot
from ..snapshot import Survey
from ..snapshot._servers import ConnectionLimit
from ..snapshot._servers import LockWait
from ..snapshot._servers import Scope
from ..snapshot._servers import ServerConnection
from ..snapshot._servers import ServerView
from ..snapshot._servers import Unclaimed
from .queries import Activity
from .queries import asks
from .queries import Facts

if t.TYPE_CHECKING:
    from sqlalchemy import Engine
    from sqlalchemy.engine.interfaces import DBAPIConnection

_POOLED = "behind a pooler: connections are not joined with the workers'"
_DRIVER = "the driver does not tell backend pids: connections are not joined"


class _Claim(t.NamedTuple):
    """A live worker's word that it has a connection open."""

    pid: int
    bind: str
    holder: Holder | None


class _Database(t.NamedTuple):
    """One database of the app, and what its server said."""

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
    """Ask the server of each database, all at once.

    :param survey: What all live workers said.
    :param timeout: Seconds to wait for each answer.
    :param since: When asking them began, by :func:`time.perf_counter`. What was open
        before, and still is, they must have told.
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
    ask = asks(engine)
    if ask is not None:
        query = partial(ask, engine)

        def work(connection: DBAPIConnection, _: float) -> Facts:
            return query(connection, timeout)

        return visit(engine, account, work, timeout)
    name = engine.dialect.name

    def nobody() -> Facts:
        raise PingError(
            "no server: SQLite is none"
            if name == "sqlite"
            else f"not asked: {name} is neither PostgreSQL nor MySQL nor MariaDB"
        )

    return nobody


# -- joined --------------------------------------------------------------------


def _view(
    database: _Database, databases: list[_Database], survey: Survey, elapsed: float
) -> ServerView:
    url, facts = safe_url(database.engine.url), database.facts
    if facts is None:
        return ServerView(database.binds, url, error=database.error)
    joined = facts.driver_pid == facts.own_pid
    same = [d for d in databases if d.facts and d.facts.identity == facts.identity]
    claims = _claims(survey, same) if joined else {}
    present = [e for e in facts.activity if e.pid in claims or not _looks(e, facts)]
    found = {each.pid: _connection(each, claims) for each in present}
    ours = {e.pid for e in present if e.pid in claims or _is_named_as_we(e, facts)}
    missing = [
        each
        for each in present
        if each.here and each.pid in ours and each.pid not in claims
        # What is younger, a worker may have opened since it told.
        if each.connected_s is None or each.connected_s > elapsed
    ]
    return ServerView(
        binds=database.binds,
        url=url,
        version=server_version(database.engine),
        joined=joined,
        notes=facts.notes if joined else (_why_not(database, facts), *facts.notes),
        waits=_waits(found, ours),
        connections=tuple(
            found[each.pid] for each in present if each.here and each.pid in claims
        ),
        unclaimed=_unclaimed(missing) if joined else (),
        limits=_limits(database, facts, same, survey, present, claims),
    )


def _why_not(database: _Database, facts: Facts) -> str:
    tells = database.engine.dialect.driver in ("psycopg", "psycopg2")
    return _POOLED if facts.driver_pid is not None or tells else _DRIVER


def _claims(survey: Survey, same: Iterable[_Database]) -> dict[int, _Claim]:
    """Return what the live workers have open, by the server's process ids."""
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
    return pool.bind in database.binds and pool.url == safe_url(database.engine.url)


def _looks(each: Activity, facts: Facts) -> bool:
    """Whether it is this process, looking at another database of the same server."""
    return family_of(facts.own_name or "") is not None and each.name == facts.own_name


def _is_named_as_we(each: Activity, facts: Facts) -> bool:
    own, name = facts.own_name or "", each.name or ""
    beginning = family_of(own)
    if beginning is not None:
        return name.startswith(beginning)
    # Without a name there is only the role to go by.
    return name == own and (bool(own) or each.ours) and each.kind is None


def _connection(each: Activity, claims: Mapping[int, _Claim]) -> ServerConnection:
    claim = claims.get(each.pid)
    return ServerConnection(
        backend_pid=each.pid,
        pid=claim and claim.pid,
        bind=claim and claim.bind,
        holder=claim and claim.holder,
        application_name=each.name,
        client=each.client,
        kind=each.kind,
        state=each.state,
        wait_event=each.wait_event,
        blocked_by=each.blocked_by,
        transaction_s=each.transaction_s,
        query_s=each.query_s,
        state_s=each.state_s,
    )


def _waits(
    found: Mapping[int, ServerConnection], ours: set[int]
) -> tuple[LockWait, ...]:
    """Return who waits for whom, longest first, where one of them is ours."""
    waits = [
        LockWait(
            each,
            tuple(found.get(pid) or ServerConnection(pid) for pid in each.blocked_by),
        )
        for each in found.values()
        if each.blocked_by and not ours.isdisjoint((each.backend_pid, *each.blocked_by))
    ]
    return tuple(sorted(waits, key=lambda wait: -(wait.waiting.query_s or 0.0)))


def _unclaimed(missing: Iterable[Activity]) -> tuple[Unclaimed, ...]:
    groups: dict[tuple[str, str], list[Activity]] = {}
    for each in missing:
        groups.setdefault((each.name or "", each.client or ""), []).append(each)
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
    """Compare what the workers may open with each limit that is in their way."""
    url = database.engine.url
    clients = [each for each in present if each.kind is None]
    looking = len(facts.activity) - len(present)
    here = [each for each in clients if each.here]
    ours = [each for each in clients if each.ours]
    siblings = [d for d in same if d.engine.url.database == url.database]
    roles = [d for d in same if d.engine.url.username == url.username]
    found: list[ConnectionLimit] = []

    def add(
        scope: Scope,
        limit: int | None,
        inside: list[Activity],
        sharing: list[_Database],
    ) -> None:
        if limit is None:
            return
        server = scope == "server"
        # Of a server, we may not be shown all.
        in_use = facts.in_use - looking if server else len(inside)
        reserved = facts.reserved if server else 0
        others = left = None
        if facts.driver_pid == facts.own_pid:
            others = in_use - sum(each.pid in claims for each in inside)
            left = max(0, limit - reserved - others)
        asking = _asking(survey, sharing)
        found.append(
            ConnectionLimit(scope, limit, reserved, in_use, others, left, *asking)
        )

    add("server", facts.max_connections, clients, same)
    add("database", facts.database_limit, here, siblings)
    add("role", facts.role_limit, ours, roles)
    return tuple(found)


def _asking(
    survey: Survey, sharing: Iterable[_Database]
) -> tuple[int, int | None, bool]:
    """Return how many workers use a server, and what they may open at most."""
    databases = list(sharing)
    pools = {
        worker.id: [p for p in worker.pools if any(_is_of(p, d) for d in databases)]
        for worker in survey.live
    }
    used = [pool for found in pools.values() for pool in found]
    limits = [pool.max for pool in used if pool.max is not None]
    may_open = sum(limits) if len(limits) == len(used) else None
    unlimited = any(bool(pool.unlimited) for pool in used)
    return sum(map(bool, pools.values())), may_open, unlimited
