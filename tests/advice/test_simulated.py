"""Simulated requests keep the promised wait at the advised size.

The simulation shares nothing with the formulas. Its arrivals are random, its queue is
first come, first served, and its seeds are fixed. The stated error is one percentage
point: where 95 % are promised, at least 94 % are seen. One scenario for each regime.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import islice
from itertools import takewhile

import pytest
from queueing import arriving
from queueing import circling
from queueing import constant
from queueing import Draw
from queueing import exponential
from queueing import heavy_tailed
from queueing import histogram
from queueing import reading
from queueing import served
from queueing import share_beyond
from queueing import simulate
from queueing import Visit
from readings import a_survey
from readings import a_worker

from flask_scopedsession._advice import erlang as _erlang
from flask_scopedsession._advice.recommend import advise
from flask_scopedsession._advice.report import Aims
from flask_scopedsession._advice.report import Recommended
from flask_scopedsession.snapshot import PoolSnapshot

Kind = Callable[[float, random.Random], Draw]

HOLD = 0.05
WAIT = 0.01
LATE = 0.05
ERROR = 0.01

KINDS = pytest.mark.parametrize("kind", [exponential, constant, heavy_tailed])


@KINDS
@pytest.mark.parametrize(
    ("load", "wait"), [(0.1, WAIT), (1.0, 2 * HOLD), (10.0, 2 * HOLD), (30.0, WAIT)]
)
def test_formula(kind: Kind, load: float, wait: float) -> None:
    """With as many connections as the formula says, waits are as short as it says."""
    chance = random.Random(f"{load} {wait}")
    hold = kind(HOLD, chance)
    seen = histogram([hold() for _ in range(5000)])
    spread = _erlang.spread(_erlang.variability(seen.buckets, seen.max or 0.0))
    servers = _erlang.needed(load, HOLD, wait, LATE, spread)
    count = 60_000 if load > 3 else 20_000
    waits = simulate(load, servers, hold, HOLD, count, seed=3)
    assert share_beyond(waits, wait) <= LATE + ERROR


@pytest.mark.parametrize("load", [0.1, 3.0, 30.0])
def test_formula_is_exact_for_exponential_holds(load: float) -> None:
    """Neither too many are late, nor too few."""
    hold = exponential(HOLD, random.Random(1))
    servers = _erlang.needed(load, HOLD, WAIT, LATE)
    # At a high load, successive waits depend on each other, so more are needed.
    count = 300_000 if load > 3 else 50_000
    waits = simulate(load, servers, hold, HOLD, count, seed=2)
    for wait in (0.0, WAIT / 2, WAIT, 2 * WAIT, HOLD, 2 * HOLD):
        promised = _erlang.late(load, servers, HOLD, wait)
        assert share_beyond(waits, wait) == pytest.approx(promised, abs=ERROR)


def test_one_connection_less_is_too_few() -> None:
    """The advice is not simply generous."""
    load = 3.0
    servers = _erlang.needed(load, HOLD, WAIT, LATE)
    hold = exponential(HOLD, random.Random(5))
    assert (
        share_beyond(simulate(load, servers, hold, HOLD, 30_000, seed=5), WAIT) <= LATE
    )
    waits = simulate(load, servers - 1, hold, HOLD, 30_000, seed=5)
    assert share_beyond(waits, WAIT) > LATE


# From what a worker reports to its next minutes


def visits_of(
    load: float, servers: int, hold: Draw, seconds: float, chance: random.Random
) -> list[Visit]:
    arrivals = arriving(load / HOLD, hold, chance)
    within = takewhile(lambda arrival: arrival[0] < seconds, arrivals)
    return list(served(within, servers))


def recommended(*pools: PoolSnapshot, age_s: float, growth: float = 1) -> Recommended:
    workers = [
        a_worker(pid, [pool], age_s=age_s) for pid, pool in enumerate(pools, start=1)
    ]
    (advice,) = advise(a_survey(*workers), Aims(WAIT, growth)).advice
    assert advice.recommended is not None, advice.problem
    return advice.recommended


@KINDS
@pytest.mark.parametrize("load", [0.3, 20.0])
def test_one_worker(kind: Kind, load: float) -> None:
    """The advice of a worker with a large pool serves its load."""
    chance = random.Random(f"{load} {kind.__name__}")
    hold = kind(HOLD, chance)
    seconds = 120.0
    pool = reading(visits_of(load, 200, hold, seconds, chance), seconds, 200)
    advised = recommended(pool, age_s=seconds)
    waits = simulate(load, advised.max, hold, HOLD, 30_000, seed=9)
    assert share_beyond(waits, WAIT) <= LATE + ERROR
    assert advised.max <= 2 * _erlang.needed(load, HOLD, WAIT, LATE) + 2


def test_growth() -> None:
    """The advice serves so many times the load."""
    growth = 3.0
    chance = random.Random(11)
    hold = exponential(HOLD, chance)
    pool = reading(visits_of(4.0, 200, hold, 120.0, chance), 120.0, 200)
    advised = recommended(pool, age_s=120.0, growth=growth)
    waits = simulate(4.0 * growth, advised.max, hold, HOLD, 30_000, seed=11)
    assert share_beyond(waits, WAIT) <= LATE + ERROR


def test_a_pool_that_was_too_small() -> None:
    """The demand was higher than what the pool could serve; the advice serves it."""
    chance = random.Random(13)
    hold = exponential(HOLD, chance)
    seconds = 60.0
    visits = visits_of(4.0, 4, hold, seconds, chance)
    advised = recommended(reading(visits, seconds, 4), age_s=seconds)
    assert advised.max > 4
    waits = simulate(4.0, advised.max, hold, HOLD, 30_000, seed=13)
    assert share_beyond(waits, WAIT) <= LATE + ERROR


@pytest.mark.parametrize(("threads", "servers"), [(1, 1), (8, 2), (40, 5)])
def test_threads_that_take_turns(threads: int, servers: int) -> None:
    """No worker needs more than its threads, and with the advice no thread waits."""
    chance = random.Random(17)
    hold, think = exponential(HOLD, chance), exponential(0.02, chance)
    visits = circling(threads, servers, hold, think, 60.0)
    advised = recommended(reading(visits, 60.0, servers), age_s=60.0, growth=1.5)
    # One is spare.
    assert advised.max <= threads + 1
    waits = [v.waited for v in circling(threads, advised.max, hold, think, 60.0)]
    assert share_beyond(waits, WAIT) <= LATE


# Thousands of workers


@KINDS
def test_thousands_of_workers(kind: Kind) -> None:
    """The busiest worker's advice serves all together, and 99 % of them alone."""
    chance = random.Random(kind.__name__)
    hold = kind(HOLD, chance)
    seconds = 15.0
    loads = [0.4] * 1500 + [chance.uniform(0.3, 0.8) for _ in range(500)]
    pools = [
        reading(visits_of(load, 50, hold, seconds, chance), seconds, 50)
        for load in loads
    ]
    advised = recommended(*pools, age_s=seconds)
    assert advised.max <= 9
    everybody: list[float] = []
    kept = 0
    for load in loads:
        arrivals = islice(arriving(load / HOLD, hold, chance), 60)
        waits = [visit.waited for visit in served(arrivals, advised.max)]
        kept += share_beyond(waits, WAIT) <= LATE
        everybody += waits
    assert share_beyond(everybody, WAIT) <= LATE
    assert kept >= 0.99 * len(loads)
