"""From what a worker has counted to the load of one of its pools."""

from __future__ import annotations

import math

from ..snapshot import BusyMinute
from ..snapshot import PoolSnapshot
from ..snapshot import WorkerSnapshot
from . import erlang
from .report import Measured

#: Fewer checkouts are too few for advice.
LEAST = 100

#: Significance level for rejecting random (Poisson) arrivals.
_DOUBT = 0.001

#: The shortest time in seconds, so that nothing is divided by 0.
_INSTANT = 1e-3


def measure(worker: WorkerSnapshot, pool: PoolSnapshot) -> Measured:
    """Return the load of a pool: in its busiest minute, or since the start."""
    window = _window(worker, pool)
    span = max(window.span_s, _INSTANT)
    hold = window.held_s / window.checkouts if window.checkouts else 0.0
    used = max(pool.used_max, pool.used, min(1, window.checkouts))
    together = used + (pool.pending_max or 0)
    full = pool.max is not None and used >= pool.max
    load, most = _loads(window, span, hold, pool, used, together)
    varies = erlang.variability(pool.hold_s.buckets, pool.hold_s.max or 0.0)
    return Measured(
        pid=worker.pid,
        role=worker.role,
        at=window.at or None,
        span_s=span,
        checkouts=window.checkouts,
        timeouts=window.timeouts,
        rate=(window.checkouts + window.timeouts) / span,
        hold_s=hold,
        hold_variability=varies,
        load=load,
        load_most=most,
        load_error=math.sqrt((1.0 + varies) / max(1, window.checkouts)),
        load_least_worker=load,
        wait_p95_s=None if pool.wait_s is None else pool.wait_s.p95,
        used_max=used,
        pending_max=pool.pending_max,
        full=full,
        together_max=together,
        bounded=_bounded(most, together, window.checkouts),
        bursts=not full and _bursts(load, used, pool.checkouts_total),
    )


def _window(worker: WorkerSnapshot, pool: PoolSnapshot) -> BusyMinute:
    """Return the busiest minute, or all since the start, which has no `at`."""
    if pool.busiest is not None and pool.busiest.checkouts:
        return pool.busiest
    return BusyMinute(
        at="",
        span_s=worker.age_s,
        checkouts=pool.checkouts_total,
        held_s=pool.hold_s.sum,
        waited_s=0.0 if pool.wait_s is None else pool.wait_s.sum,
        timeouts=pool.timeouts_total or 0,
    )


def _loads(
    window: BusyMinute,
    span: float,
    hold: float,
    pool: PoolSnapshot,
    used: int,
    together: int,
) -> tuple[float, float]:
    """Return the load as measured, and the most that it can have been.

    By Little's law, it is the time that connections were held over the time that
    passed, whatever the arrivals and the holds are like.
    """
    load = (window.held_s + window.timeouts * hold) / span
    if pool.max is None or used < pool.max:
        # A long hold counts in the minute in which it ended, but began before.
        load = min(load, used)
        return load, load
    # A waiting thread sends no further requests. With a connection for each, every
    # wait would at most have been a hold.
    given_up = window.timeouts * (pool.pool_timeout or 0.0)
    most = (window.held_s + window.waited_s + given_up) / span
    return min(load, together), min(max(load, most), together)


def _bounded(load: float, together: int, checkouts: int) -> bool:
    """Whether random arrivals would have used more connections at a time.

    Then the worker has only so many threads, or its requests come one by one. A random
    arrival finds a Poisson number of others, and two arrivals that are a hold apart are
    nearly independent.
    """
    independent = checkouts / max(1.0, load)
    no_more = erlang.at_most(load, together - 1)
    return no_more <= 0.0 or independent * math.log(no_more) < math.log(_DOUBT)


def _bursts(load: float, used: int, checkouts: int) -> bool:
    """Whether random arrivals would have used fewer connections at a time."""
    return checkouts * (1.0 - erlang.at_most(load, used - 2)) < _DOUBT
