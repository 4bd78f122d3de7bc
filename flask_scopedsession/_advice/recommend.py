"""From what the live workers measured to the pool that they need. Pure: no I/O."""

from __future__ import annotations

import math
import typing as t
from collections.abc import Callable
from collections.abc import Sequence
from dataclasses import dataclass
from dataclasses import replace

from .._format import count
from .._format import duration
from ..snapshot import DatabaseURL
from ..snapshot import PoolSnapshot
from ..snapshot import SCHEMA
from ..snapshot import SearchedDirectory
from ..snapshot import Survey
from ..snapshot import WorkerSnapshot
from ..snapshot._json import Reading
from . import erlang
from .demand import LEAST
from .demand import measure
from .demand import Measured
from .reasons import reasons
from .warnings import AdviceWarning
from .warnings import GUNICORN_TIMEOUT
from .warnings import Sight
from .warnings import stuck_holders
from .warnings import warnings

#: The share of checkouts that is promised not to wait for long.
SHARE = 0.95

#: A wait longer than all but one in a million has another cause than the load.
_RARE = 1e-6

#: Seconds that a checkout should wait at least, and where no server's limit is known
#: at most, before it gives up.
_PATIENCE, _IMPATIENCE = 5.0, 10.0

#: Tells how many connections a database's server accepts; ``None``: unknown.
Limit = Callable[[DatabaseURL], "int | None"]


@dataclass(frozen=True, slots=True)
class Aims(Reading):
    """What the advice is to achieve."""

    wait_s: float = 0.01
    """95 % of the checkouts shall wait for less."""
    growth: float = 1.5
    """Times the load that was measured."""
    worker_timeout_s: float | None = None
    """After so many seconds, the server kills a worker; ``None``: not told."""


@dataclass(frozen=True, slots=True)
class Recommended(Reading):
    """What a pool should be, and why."""

    pool_size: int
    max_overflow: int
    pool_timeout: int
    late: float
    """The share of checkouts that would wait longer than aimed at, grown load."""
    longest_wait_s: float
    """All but one checkout in a million would wait less."""
    reasons: tuple[str, ...]
    """For each of the three, in this order."""

    @property
    def max(self) -> int:
        """As many connections as the pool may open."""
        return self.pool_size + self.max_overflow


@dataclass(frozen=True, slots=True)
class Advice(Reading):
    """One bind: its pool in all workers, what was measured, what should be."""

    bind: str
    url: DatabaseURL
    workers: int
    pool_class: str
    size: int | None
    max: int | None
    pool_timeout: float | None
    measured: Measured | None
    recommended: Recommended | None
    problem: str | None
    """Why nothing is recommended."""
    warnings: tuple[AdviceWarning, ...]


@dataclass(frozen=True, slots=True)
class ServerTotal(Reading):
    """One database server: the most that all workers may open there."""

    server: str
    binds: tuple[str, ...]
    workers: int
    now: int | None
    """``None``: any number."""
    advised: int | None
    limit: int | None
    warnings: tuple[AdviceWarning, ...]


@dataclass(frozen=True, slots=True)
class Report(Reading):
    """All advice, and what it is made from."""

    app: str
    host: str
    collected_at: str
    searched: tuple[SearchedDirectory, ...]
    workers: int
    silent: int
    aims: Aims
    advice: tuple[Advice, ...]
    servers: tuple[ServerTotal, ...]

    def to_dict(self) -> dict[str, t.Any]:
        """Return the JSON document of ``--json``."""
        return {"schema": SCHEMA, **Reading.to_dict(self)}


Pools = Sequence[tuple[WorkerSnapshot, PoolSnapshot]]


def advise(
    survey: Survey,
    aims: Aims,
    limit: Limit = lambda _: None,
    bind: str | None = None,
) -> Report:
    """Return what the pools of the live workers should be.

    :param limit: Tells how many connections the server of a database accepts.
    :param bind: Tell of no other; in what a server has to bear, others count still.
    """
    grouped: dict[tuple[str, DatabaseURL], list[tuple[WorkerSnapshot, PoolSnapshot]]]
    grouped = {}
    for worker in survey.live:
        for pool in worker.pools:
            grouped.setdefault((pool.bind, pool.url), []).append((worker, pool))
    advice = tuple(_advice(pools, aims) for pools in grouped.values())
    silent = len({each.id for each in survey.silent})
    servers = _servers(advice, silent, limit)
    return Report(
        app=survey.app,
        host=survey.host,
        collected_at=survey.collected_at,
        searched=survey.searched,
        workers=len(survey.live),
        silent=silent,
        aims=aims,
        advice=tuple(one for one in advice if bind in (None, one.bind)),
        servers=tuple(one for one in servers if bind is None or bind in one.binds),
    )


def _advice(pools: Pools, aims: Aims) -> Advice:
    """Return the advice for one bind."""
    timeout, assumed = _worker_timeout(aims, pools)
    measured = _busiest(pools)
    problem = _problem(pools, measured)
    recommended = None
    if measured is not None and problem is None:
        deadlocked = max(sum(w.self_deadlock for w in p.waiters) for _, p in pools)
        recommended = _recommend(measured, aims, timeout, deadlocked)
    youngest = min(worker.age_s for worker, _ in pools)
    sight = Sight([p for _, p in pools], youngest, measured, timeout, assumed)
    first = pools[0][1]
    return Advice(
        bind=first.bind,
        url=first.url,
        workers=len(pools),
        pool_class=first.pool_class,
        size=first.size,
        max=first.max,
        pool_timeout=first.pool_timeout,
        measured=measured,
        recommended=recommended,
        problem=problem,
        warnings=warnings(sight),
    )


def _busiest(pools: Pools) -> Measured | None:
    """Return the load of the worker that has most to do; that one sets the size.

    A worker's pool serves that worker's threads and no others.
    """
    measured = [measure(worker, pool) for worker, pool in pools]
    known = [
        m
        for m, (_, pool) in zip(measured, pools, strict=True)
        if pool.checkouts_total >= LEAST
    ]
    if not known:
        return None
    if stuck_holders([pool for _, pool in pools])[0]:
        # Who waits for a holder that is stuck would not have held for as long.
        known = [replace(m, load_most=m.load) for m in known]
    busiest = max(known, key=lambda m: (m.load_most, m.rate))
    return replace(busiest, load_least_worker=min(m.load for m in measured))


def _problem(pools: Pools, busiest: Measured | None) -> str | None:
    """Return why nothing can be recommended."""
    pool = pools[0][1]
    if pool.size is None and not pool.unlimited:
        return f"a {pool.pool_class} has no size to choose"
    if pool.pool_class == "SingletonThreadPool":
        return "a SingletonThreadPool has one connection for each thread"
    if busiest is None:
        most = max(pools, key=lambda each: each[1].checkouts_total)
        checkouts = count(most[1].checkouts_total, "checkout")
        return (
            f"too little was measured ({checkouts} in {duration(most[0].age_s)}, in"
            f" the worker that had most; {LEAST} are needed)"
        )
    return None


def _worker_timeout(aims: Aims, pools: Pools) -> tuple[float | None, bool]:
    """Return after which time the server kills a worker, and if that is a guess."""
    if aims.worker_timeout_s is not None:
        return aims.worker_timeout_s, False
    if any((worker.server or "").startswith("gunicorn/") for worker, _ in pools):
        return GUNICORN_TIMEOUT, True
    return None, False


def _recommend(
    measured: Measured, aims: Aims, worker_timeout: float | None, deadlocked: int
) -> Recommended:
    """Return the pool that serves the measured load, times its growth, in time."""
    hold, spread = measured.hold_s, erlang.spread(measured.hold_variability)
    load = measured.load_most * aims.growth
    needed = _needed(measured, aims, deadlocked)
    # An arrival finds a Poisson number in use, and with itself that is one more.
    size = min(needed, erlang.quantile(measured.load, SHARE) + 1)
    # One is to spare in any case, for a view that takes a second connection.
    overflow = max(1, needed - size)
    most = size + overflow
    late = longest = 0.0
    if not measured.bounded or most < measured.together_max:
        late = erlang.late(load, most, hold, aims.wait_s, spread)
        longest = erlang.longest(load, most, hold, _RARE, spread)
    found = Recommended(
        pool_size=size,
        max_overflow=overflow,
        pool_timeout=_pool_timeout(longest, worker_timeout),
        late=late,
        longest_wait_s=longest,
        reasons=(),
    )
    return replace(found, reasons=reasons(measured, found, aims, worker_timeout))


def _needed(measured: Measured, aims: Aims, deadlocked: int) -> int:
    """Return how many connections are needed: by the formula, and by what was seen."""
    hold, spread = measured.hold_s, erlang.spread(measured.hold_variability)
    load = measured.load_most * aims.growth
    needed = erlang.needed(load, hold, aims.wait_s, 1.0 - SHARE, spread)
    if measured.bursts:
        needed = max(needed, measured.used_max)
    if measured.bounded:
        needed = min(needed, measured.together_max)
    if deadlocked:
        # With T threads that take 2 each, T + 1 are the least that cannot lock up.
        # A thread that waits for itself was counted twice.
        needed = max(needed, measured.together_max - deadlocked + 1)
    return needed


def _pool_timeout(longest: float, worker_timeout: float | None) -> int:
    """Return a time above any plausible wait, and well below the server's patience."""
    most = _IMPATIENCE if worker_timeout is None else worker_timeout / 3
    wanted = max(_PATIENCE, 2 * min(longest, most))
    return max(1, math.floor(min(most, math.ceil(wanted))))


# -- the server's limit --------------------------------------------------------


def _servers(
    advice: Sequence[Advice], silent: int, limit: Limit
) -> tuple[ServerTotal, ...]:
    """Return the worst case of each server: databases of one share its limit."""
    grouped: dict[str, list[Advice]] = {}
    for one in advice:
        if not one.url.drivername.startswith("sqlite"):  # a file
            grouped.setdefault(_server(one.url), []).append(one)
    return tuple(
        _server_total(server, members, silent, limit)
        for server, members in grouped.items()
    )


def _server(url: DatabaseURL) -> str:
    port = "" if url.port is None else f":{url.port}"
    return f"{url.drivername.partition('+')[0]}://{url.host or ''}{port}"


def _server_total(
    server: str, members: Sequence[Advice], silent: int, limit: Limit
) -> ServerTotal:
    now = advised = 0
    known = advisable = True
    for one in members:
        workers = one.workers + silent
        known = known and one.max is not None
        now += workers * (one.max or 0)
        after = one.recommended.max if one.recommended else one.max
        advisable = advisable and after is not None
        advised += workers * (after or 0)
    most = limit(members[0].url)
    total = ServerTotal(
        server=server,
        binds=tuple(dict.fromkeys(one.bind for one in members)),
        workers=max(one.workers for one in members) + silent,
        now=now if known else None,
        advised=advised if advisable else None,
        limit=most,
        warnings=(),
    )
    return replace(total, warnings=tuple(_over_limit(total)))


def _over_limit(total: ServerTotal) -> t.Iterator[AdviceWarning]:
    most = total.limit
    if most is None:
        return
    if total.now is None or total.now > most:
        opens = "any number of" if total.now is None else f"{total.now}"
        yield AdviceWarning(
            "over_limit",
            f"{count(total.workers, 'worker')} may open {opens} connections, and the"
            f" server accepts {most}: beyond, it refuses to connect.",
        )
    if total.advised is not None and total.advised > most:
        each = most // total.workers
        yield AdviceWarning(
            "advice_over_limit",
            f"What is advised may open {total.advised}, more than the server accepts"
            f" as well. {each} for each worker, of all binds, would fit: run fewer"
            " workers, hold connections for less long, or put a pooler such as"
            " PgBouncer in between.",
        )
