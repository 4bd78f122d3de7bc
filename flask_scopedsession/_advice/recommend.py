"""From what the live workers measured to the pools that they need. Pure: no I/O."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from .._format import ASYNC
from .._format import count
from .._format import duration
from ..snapshot import DatabaseURL
from ..snapshot import PoolSnapshot
from ..snapshot import Survey
from ..snapshot import WorkerSnapshot
from . import erlang
from .demand import LEAST
from .demand import measure
from .reasons import reasons
from .report import Advice
from .report import Aims
from .report import Measured
from .report import Recommended
from .report import Report
from .report import ServerTotal
from .warnings import BindView
from .warnings import GUNICORN_TIMEOUT
from .warnings import over_limit
from .warnings import stuck_holders
from .warnings import warnings

#: The share of checkouts that should not wait for long.
SHARE = 0.95

#: A wait that is longer than all but one in a million has another cause than the load.
_RARE = 1e-6

#: The least pool_timeout in seconds, and the most if no server's timeout is known.
_PATIENCE, _IMPATIENCE = 5.0, 10.0

#: The pools of one bind, each with its worker.
Pools = Sequence[tuple[WorkerSnapshot, PoolSnapshot]]


def advise(
    survey: Survey,
    aims: Aims,
    limit: int | None = None,
    bind: str | None = None,
) -> Report:
    """Return what the pools of the live workers should be.

    :param limit: How many connections each database server accepts, if known.
    :param bind: Report only this bind. The totals of its server include the others.
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
    view = BindView([p for _, p in pools], youngest, measured, timeout, assumed)
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
        warnings=warnings(view),
    )


def _busiest(pools: Pools) -> Measured | None:
    """Return the load of the busiest worker, which sets the size for all of them.

    Loads are not added up, because each worker's pool serves only its own threads.
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
        # Waits caused by a stuck holder say nothing about demand; do not count them.
        known = [replace(m, load_most=m.load) for m in known]
    busiest = max(known, key=lambda m: (m.load_most, m.rate))
    return replace(busiest, load_least_worker=min(m.load for m in measured))


def _problem(pools: Pools, busiest: Measured | None) -> str | None:
    """Return why nothing can be recommended."""
    pool = pools[0][1]
    if pool.size is None and not pool.unlimited:
        return f"a {pool.pool_class} has no size to choose"
    if pool.bind.startswith(ASYNC):
        return "async connections cannot be pooled: each belongs to one event loop"
    if pool.pool_class == "SingletonThreadPool":
        return "a SingletonThreadPool has one connection for each thread"
    if busiest is None:
        worker, pool = max(pools, key=lambda each: each[1].checkouts_total)
        checkouts = count(pool.checkouts_total, "checkout")
        return (
            f"too little was measured ({checkouts} in {duration(worker.age_s)}, in"
            f" the worker with the most; {LEAST} are needed)"
        )
    return None


def _worker_timeout(aims: Aims, pools: Pools) -> tuple[float | None, bool]:
    """Return the seconds after which the server kills a worker, and if guessed."""
    if aims.worker_timeout_s is not None:
        return aims.worker_timeout_s, False
    if any((worker.server or "").startswith("gunicorn/") for worker, _ in pools):
        return GUNICORN_TIMEOUT, True
    return None, False


def _recommend(
    measured: Measured, aims: Aims, worker_timeout: float | None, deadlocked: int
) -> Recommended:
    """Return the pool that keeps the waits short at the grown load."""
    hold, spread = measured.hold_s, erlang.spread(measured.hold_variability)
    load = measured.load_most * aims.growth
    needed = erlang.needed(load, hold, aims.wait_s, 1.0 - SHARE, spread)
    if measured.bursts:
        needed = max(needed, measured.used_max)
    if measured.bounded:
        needed = min(needed, measured.together_max)
    if deadlocked:
        # T threads that check out 2 each cannot block each other with T + 1. A thread
        # that waits for itself was counted twice, as a holder and as a waiter.
        needed = max(needed, measured.together_max - deadlocked + 1)
    # An arrival finds a Poisson number in use, and needs one more for itself.
    size = min(needed, erlang.quantile(measured.load, SHARE) + 1)
    # One is always spare, for a view that checks out a second connection.
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


def _pool_timeout(longest: float, worker_timeout: float | None) -> int:
    """Return seconds above any plausible wait, and well below the server's timeout."""
    most = _IMPATIENCE if worker_timeout is None else worker_timeout / 3
    wanted = max(_PATIENCE, 2 * min(longest, most))
    return max(1, math.floor(min(most, math.ceil(wanted))))


# -- the server's limit --------------------------------------------------------


def _servers(
    advice: Sequence[Advice], silent: int, limit: int | None
) -> tuple[ServerTotal, ...]:
    """Return the worst case of each server, whose limit all its databases share."""
    grouped: dict[str, list[Advice]] = {}
    for one in advice:
        if one.url.host or not one.url.drivername.startswith("sqlite"):  # has a server
            grouped.setdefault(_server(one.url), []).append(one)
    return tuple(
        _server_total(server, members, silent, limit)
        for server, members in grouped.items()
    )


def _server(url: DatabaseURL) -> str:
    port = "" if url.port is None else f":{url.port}"
    return f"{url.drivername.partition('+')[0]}://{url.host or ''}{port}"


def _server_total(
    server: str, members: Sequence[Advice], silent: int, limit: int | None
) -> ServerTotal:
    after = [one.recommended.max if one.recommended else one.max for one in members]
    total = ServerTotal(
        server=server,
        binds=tuple(dict.fromkeys(one.bind for one in members)),
        workers=max(one.workers for one in members) + silent,
        now=_worst_case(members, [one.max for one in members], silent),
        advised=_worst_case(members, after, silent),
        has_advice=any(one.recommended for one in members),
        limit=limit,
        warnings=(),
    )
    return replace(total, warnings=tuple(over_limit(total)))


def _worst_case(
    members: Sequence[Advice], limits: Sequence[int | None], silent: int
) -> int | None:
    """Return how many connections all workers may open; ``None``: any number."""
    total = 0
    for one, most in zip(members, limits, strict=True):
        if most is None:
            return None
        total += (one.workers + silent) * most
    return total
