"""How many connections a load needs: Erlang's formulas, and what they assume.

A pool is a queue with ``servers`` connections in front of which requests wait. Its
load ``a``, in erlangs, is the arrival rate times the mean hold: as many connections
would be in use on average if nobody ever had to wait.

A. K. Erlang, "Løsning af nogle Problemer fra Sandsynlighedsregningen af Betydning for
de automatiske Telefoncentraler", Elektroteknikeren 13 (1917); today in any textbook,
as R. B. Cooper, *Introduction to Queueing Theory*, 2nd ed. (1981), chapter 3.
"""

from __future__ import annotations

import itertools
import math
import typing as t
from collections.abc import Sequence

from .._buckets import BUCKET_BOUNDS


def blocking(load: float, servers: int) -> float:
    """Return Erlang B: the share that finds all of `servers` busy, without a queue."""
    return next(b for c, b in _blocking(load) if c == servers)


def _blocking(load: float) -> t.Iterator[tuple[int, float]]:
    """Yield Erlang B for 0, 1, 2, ... servers, without a factorial that overflows."""
    b = 1.0
    yield 0, b
    for servers in itertools.count(1):
        b = load * b / (servers + load * b)
        yield servers, b


def delayed(load: float, servers: int) -> float:
    """Return Erlang C: the share that has to wait for one of `servers`."""
    return _delayed(load, servers, blocking(load, servers))


def _delayed(load: float, servers: int, b: float) -> float:
    if servers <= load:
        return 1.0  # the queue grows without end
    return b / (1.0 - load / servers * (1.0 - b))


def late(
    load: float, servers: int, hold_s: float, wait_s: float, spread: float = 1.0
) -> float:
    """Return the share of checkouts that wait longer than `wait_s` seconds.

    With random arrivals and exponential holds: ``C(c, a) exp(-(c - a) t / h)``.

    :param hold_s: The mean hold, in seconds.
    :param spread: What holds of another kind stretch the wait by; :func:`spread`.
    """
    return _late(load, servers, blocking(load, servers), hold_s, wait_s, spread)


def _late(
    load: float, servers: int, b: float, hold_s: float, wait_s: float, spread: float
) -> float:
    if servers <= load:
        return 1.0
    rate = (servers - load) / (hold_s * spread) if hold_s else math.inf
    return _delayed(load, servers, b) * (math.exp(-rate * wait_s) if wait_s else 1.0)


def longest(
    load: float, servers: int, hold_s: float, share: float, spread: float = 1.0
) -> float:
    """Return how many seconds all but a `share` of the checkouts wait at most."""
    if servers <= load:
        return math.inf
    ratio = max(1.0, delayed(load, servers) / share)
    return math.log(ratio) * hold_s * spread / (servers - load)


def needed(
    load: float, hold_s: float, wait_s: float, share: float, spread: float = 1.0
) -> int:
    """Return the fewest servers with which no more than a `share` is late."""
    return next(
        servers
        for servers, b in _blocking(load)
        if servers and _late(load, servers, b, hold_s, wait_s, spread) <= share
    )


def spread(variability: float) -> float:
    """Return how much longer those wait who wait, than with exponential holds.

    Allen and Cunneen's ``(ca² + cs²) / 2``, with random arrivals, so ``ca² = 1``. Holds
    that vary less than exponential ones are not given credit for it: with few waiters,
    the formula promises too much there.

    :param variability: The squared coefficient of variation of the holds.
    """
    return max(1.0, (1.0 + variability) / 2.0)


def variability(buckets: Sequence[int], highest: float) -> float:
    """Return the squared coefficient of variation of what a histogram has counted.

    Within a bucket, all values are taken to be equally likely.

    :param highest: The greatest value of all.
    """
    count = mean = square = 0.0
    for index, inside in enumerate(buckets):
        if inside:
            low = min(BUCKET_BOUNDS[index - 1] if index else 0.0, highest)
            last = index >= len(BUCKET_BOUNDS)
            high = highest if last else min(BUCKET_BOUNDS[index], highest)
            count += inside
            mean += inside * (low + high) / 2
            square += inside * (low * low + low * high + high * high) / 3
    return max(0.0, square * count / (mean * mean) - 1.0) if mean else 0.0


# -- how many at once ----------------------------------------------------------


def at_most(mean: float, number: int) -> float:
    """Return the probability that a Poisson number with this mean is at most `number`.

    That is how many are in use at a random moment, and when one arrives, if nobody
    ever has to wait; however the holds are distributed.
    """
    return min(1.0, math.fsum(_poisson(mean, k) for k in range(number + 1)))


def quantile(mean: float, share: float) -> int:
    """Return the least number that covers a `share`, below 1, of a Poisson number."""
    number, covered = 0, _poisson(mean, 0)
    # Far out, rounding may leave the sum a little below any share.
    while covered < share and number < mean + 40 * math.sqrt(mean) + 40:
        number += 1
        covered += _poisson(mean, number)
    return number


def _poisson(mean: float, number: int) -> float:
    if mean <= 0:
        return 1.0 if number == 0 else 0.0
    return math.exp(number * math.log(mean) - mean - math.lgamma(number + 1))
