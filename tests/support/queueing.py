"""Simulated pools: requests arrive, wait in order, and hold a connection."""

from __future__ import annotations

import heapq
import math
import random
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Sequence
from itertools import islice
from typing import Any
from typing import NamedTuple

from readings import a_pool

from flask_scopedsession.snapshot import BUCKET_BOUNDS
from flask_scopedsession.snapshot import BusyMinute
from flask_scopedsession.snapshot import Histogram
from flask_scopedsession.snapshot import PoolSnapshot

Draw = Callable[[], float]


class Visit(NamedTuple):
    """One checkout, its times in seconds."""

    asked: float
    got: float
    back: float

    @property
    def waited(self) -> float:
        return self.got - self.asked


def exponential(mean: float, chance: random.Random) -> Draw:
    return lambda: chance.expovariate(1 / mean)


def constant(mean: float, chance: random.Random) -> Draw:
    return lambda: mean


def heavy_tailed(mean: float, chance: random.Random) -> Draw:
    """Lognormal; the squared coefficient of variation is e^1.44 - 1, or 3.2."""
    sigma = 1.2
    mu = math.log(mean) - sigma * sigma / 2
    return lambda: chance.lognormvariate(mu, sigma)


def arriving(rate: float, hold: Draw, chance: random.Random) -> Iterator[Any]:
    """Yield the time of each random arrival, and how long it will hold, in seconds."""
    now = 0.0
    while True:
        now += chance.expovariate(rate)
        yield now, hold()


def served(arrivals: Iterable[tuple[float, float]], servers: int) -> Iterator[Visit]:
    """Yield every visit to a pool of so many connections: first come, first served."""
    free = [0.0] * servers
    for asked, hold in arrivals:
        got = free[0]
        if got < asked:  # max() takes longer, and tests ask a million times
            got = asked
        back = got + hold
        heapq.heapreplace(free, back)
        yield Visit(asked, got, back)


def circling(
    threads: int, servers: int, hold: Draw, think: Draw, seconds: float
) -> list[Visit]:
    """Return the visits of threads that ask again some time after each return."""
    asking = [think() for _ in range(threads)]
    heapq.heapify(asking)
    free = [0.0] * servers
    visits = []
    while asking[0] < seconds:
        asked = asking[0]
        got = max(asked, free[0])
        back = got + hold()
        heapq.heapreplace(free, back)
        heapq.heapreplace(asking, back + think())
        visits.append(Visit(asked, got, back))
    return visits


def simulate(
    load: float, servers: int, hold: Draw, mean: float, count: int, seed: int
) -> list[float]:
    """Return how long each of `count` random arrivals waited."""
    chance = random.Random(seed)
    arrivals = islice(arriving(load / mean, hold, chance), count)
    return [visit.waited for visit in served(arrivals, servers)]


def share_beyond(waits: Sequence[float], wait: float) -> float:
    return sum(each > wait for each in waits) / len(waits)


# What a worker would report


def reading(visits: Sequence[Visit], seconds: float, servers: int) -> PoolSnapshot:
    """Return what the pool would have counted, ``seconds`` after the start."""
    minutes: defaultdict[int, list[float]] = defaultdict(lambda: [0.0, 0.0, 0.0])
    for asked, got, back in visits:
        if got < seconds:
            minute = minutes[int(got // 60)]
            minute[0] += 1.0
            minute[1] += got - asked
        if back < seconds:
            minutes[int(back // 60)][2] += back - got
    number, (checkouts, waited, held) = max(
        minutes.items(), key=lambda minute: minute[1][2]
    )
    return a_pool(
        size=servers,
        max=servers,
        used=0,
        used_max=most_at_once((v.got, v.back) for v in visits),
        pending_max=most_at_once((v.asked, v.got) for v in visits if v.waited),
        checkouts_total=sum(visit.got < seconds for visit in visits),
        hold_s=histogram([v.back - v.got for v in visits if v.back < seconds]),
        wait_s=histogram([v.waited for v in visits if v.got < seconds]),
        busiest=BusyMinute(
            at="2026-11-22T10:07:00.000Z",
            span_s=min(60.0, seconds - 60.0 * number),
            checkouts=int(checkouts),
            held_s=held,
            waited_s=waited,
            timeouts=0,
        ),
    )


def most_at_once(spans: Iterable[tuple[float, float]]) -> int:
    spans = list(spans)
    ends = sorted(end for _, end in spans)
    most = ended = 0
    for begun, begin in enumerate(sorted(begin for begin, _ in spans), start=1):
        while ended < begun and ends[ended] <= begin:
            ended += 1
        most = max(most, begun - ended)
    return most


def histogram(values: Sequence[float]) -> Histogram:
    counts = [0] * (len(BUCKET_BOUNDS) + 1)
    for value in values:
        counts[bisect_left(BUCKET_BOUNDS, value)] += 1
    return Histogram.of(counts, sum(values), max(values, default=0.0))
