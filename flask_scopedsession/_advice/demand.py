"""From what a worker has counted to the load of one of its pools."""

from __future__ import annotations

import math
import typing as t

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


class _Window(t.NamedTuple):
    """What was counted in `span_s` seconds; `at` is the time when they ended."""

    at: str | None
    span_s: float
    checkouts: int
    held_s: float
    waited_s: float
    timeouts: int

    @property
    def hold_s(self) -> float:
        return self.held_s / self.checkouts if self.checkouts else 0.0


def measure(worker: WorkerSnapshot, pool: PoolSnapshot) -> Measured:
    """Return the load of a pool: in its busiest minute, or since the start."""
    window = _window(worker, pool)
    used = max(pool.used_max, pool.used, min(1, window.checkouts))
    together = used + (pool.pending_max or 0)
    full = pool.max is not None and used >= pool.max
    load, most = _loads(window, pool, used, together, full)
    varies = erlang.variability(pool.hold_s.buckets, pool.hold_s.max or 0.0)
    return Measured(
        pid=worker.pid,
        role=worker.role,
        at=window.at,
        span_s=window.span_s,
        checkouts=window.checkouts,
        timeouts=window.timeouts,
        rate=(window.checkouts + window.timeouts) / window.span_s,
        hold_s=window.hold_s,
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


def _window(worker: WorkerSnapshot, pool: PoolSnapshot) -> _Window:
    minute = pool.busiest
    if minute is not None and minute.checkouts:
        return _Window(
            minute.at,
            max(minute.span_s, _INSTANT),
            minute.checkouts,
            minute.held_s,
            minute.waited_s,
            minute.timeouts,
        )
    return _Window(
        None,
        max(worker.age_s, _INSTANT),
        pool.checkouts_total,
        pool.hold_s.sum,
        0.0 if pool.wait_s is None else pool.wait_s.sum,
        pool.timeouts_total or 0,
    )


def _loads(
    window: _Window, pool: PoolSnapshot, used: int, together: int, full: bool
) -> tuple[float, float]:
    """Return the load as measured, and the most that it can have been.

    By Little's law, it is the time that connections were held over the time that
    passed, whatever the arrivals and the holds are like.
    """
    load = (window.held_s + window.timeouts * window.hold_s) / window.span_s
    if not full:
        # A long hold counts in the minute in which it ended, but began before.
        load = min(load, used)
        return load, load
    # A waiting thread sends no further requests. With a connection for each, every
    # wait would at most have been a hold.
    given_up = window.timeouts * (pool.pool_timeout or 0.0)
    most = (window.held_s + window.waited_s + given_up) / window.span_s
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
