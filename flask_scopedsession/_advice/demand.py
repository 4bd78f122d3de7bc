"""From what a worker has counted to the load of one of its pools."""

from __future__ import annotations

import math
import typing as t
from dataclasses import dataclass

from ..snapshot import PoolSnapshot
from ..snapshot import WorkerSnapshot
from ..snapshot._json import Reading
from . import erlang

#: Fewer checkouts tell too little.
LEAST = 100

#: So rarely do we say that the arrivals are not random although they are.
_DOUBT = 0.001

#: No time is shorter, in seconds: nothing is divided by 0.
_INSTANT = 1e-3


@dataclass(frozen=True, slots=True)
class Measured(Reading):
    """What the busiest worker of a bind asked of its pool."""

    pid: int
    role: str
    at: str | None
    """When the busiest minute ended; ``None``: all is since the worker's start."""
    span_s: float
    checkouts: int
    timeouts: int
    rate: float
    """Checkouts per second, with those that timed out."""
    hold_s: float
    hold_variability: float
    """The squared coefficient of variation of the holds, since the start."""
    load: float
    """Connections in use on average, in erlangs."""
    load_most: float
    """The same, if whoever waited had had a connection at once: at most."""
    load_error: float
    """The relative standard error of both."""
    load_least_worker: float
    """The load of the least busy worker."""
    wait_p95_s: float | None
    """95 % of the checkouts since the start waited no longer than this."""
    used_max: int
    pending_max: int | None
    full: bool
    """All that the pool may open was in use at some moment."""
    together_max: int
    """At most so many had or wanted a connection at the same time."""
    bounded: bool
    """It stayed below what random arrivals would have shown."""
    bursts: bool
    """It went beyond what random arrivals would have shown."""


class _Window(t.NamedTuple):
    """What was counted, in which time."""

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
    """Return the load that was seen, and what it may have been with room for all.

    Little's law gives it without any assumption: the time that connections were held,
    over the time that passed.
    """
    load = (window.held_s + window.timeouts * window.hold_s) / window.span_s
    if not full:
        # A long hold counts in the minute in which it ended, though it began before.
        load = min(load, used)
        return load, load
    # Threads that wait bring no further requests. With a connection for each, at
    # most the waits would have been holds.
    given_up = window.timeouts * (pool.pool_timeout or 0.0)
    most = (window.held_s + window.waited_s + given_up) / window.span_s
    return min(load, together), min(max(load, most), together)


def _bounded(load: float, together: int, checkouts: int) -> bool:
    """Whether random arrivals would have been more at once, sometime.

    Then they are not random: the worker has only so many threads, or its requests come
    one after another. Each arrival sees a Poisson number of others, and arrivals that
    are a hold apart see hardly the same ones.
    """
    sightings = checkouts / max(1.0, load)
    seen_no_more = erlang.at_most(load, together - 1)
    if seen_no_more <= 0.0:
        return True
    return sightings * math.log(seen_no_more) < math.log(_DOUBT)


def _bursts(load: float, used: int, checkouts: int) -> bool:
    """Whether so many at once are more than random arrivals would bring."""
    return checkouts * (1.0 - erlang.at_most(load, used - 2)) < _DOUBT
