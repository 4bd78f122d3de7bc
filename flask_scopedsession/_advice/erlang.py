"""How many connections a load needs: Erlang's formulas, and what they assume.

A pool is a queue: requests wait for one of `servers` connections. The load, in erlangs,
is the arrival rate times the mean hold. It is the number of connections that would be
in use on average if nobody ever had to wait.

A. K. Erlang, "Løsning af nogle Problemer fra Sandsynlighedsregningen af Betydning for
de automatiske Telefoncentraler", Elektroteknikeren 13 (1917); in any textbook, such as
R. B. Cooper, *Introduction to Queueing Theory*, 2nd ed. (1981), chapter 3.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from .._buckets import bucket_range


def blocking(load: float, servers: int) -> float:
    """Return Erlang B: the share that finds all of `servers` busy, without a queue."""
    # The recurrence needs no factorials, which would overflow.
    b = 1.0
    for number in range(1, servers + 1):
        b = load * b / (number + load * b)
    return b


def delayed(load: float, servers: int) -> float:
    """Return Erlang C: the share that has to wait for one of `servers`."""
    if servers <= load:
        return 1.0  # the queue grows without end
    b = blocking(load, servers)
    return b / (1.0 - load / servers * (1.0 - b))


def late(
    load: float, servers: int, hold_s: float, wait_s: float, spread: float = 1.0
) -> float:
    """Return the share of checkouts that wait longer than `wait_s` seconds.

    With random arrivals and exponential holds: ``C(c, a) exp(-(c - a) t / h)``.

    :param hold_s: The mean hold, in seconds.
    :param spread: The factor by which other holds extend the wait, see :func:`spread`.
    """
    if servers <= load:
        return 1.0
    rate = (servers - load) / (hold_s * spread) if hold_s else math.inf
    return delayed(load, servers) * (math.exp(-rate * wait_s) if wait_s else 1.0)


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
    """Return the fewest servers with which at most a `share`, below 1, is late."""
    servers = math.floor(load) + 1
    while late(load, servers, hold_s, wait_s, spread) > share:
        servers += 1
    return servers


def spread(variability: float) -> float:
    """Return the factor by which waits exceed those of exponential holds.

    Allen and Cunneen's ``(ca² + cs²) / 2`` with random arrivals, so ``ca² = 1``. It is
    never below 1: for holds that vary less than exponential ones, and few waiters, the
    formula would promise too much.

    :param variability: The squared coefficient of variation of the holds.
    """
    return max(1.0, (1.0 + variability) / 2.0)


def variability(buckets: Sequence[int], highest: float) -> float:
    """Return the squared coefficient of variation of what a histogram has counted.

    Within a bucket, all values are taken to be equally likely.

    :param highest: The greatest value of all, in seconds.
    """
    count = mean = square = 0.0
    for index, inside in enumerate(buckets):
        if inside:
            low, high = bucket_range(index, highest)
            count += inside
            mean += inside * (low + high) / 2
            square += inside * (low * low + low * high + high * high) / 3
    return max(0.0, square * count / (mean * mean) - 1.0) if mean else 0.0


# -- how many at a time --------------------------------------------------------


def at_most(mean: float, number: int) -> float:
    """Return the probability that a Poisson number with this mean is at most `number`.

    If nobody ever has to wait, the number of connections in use is distributed so, at
    any moment and when a request arrives, whatever the holds are like.
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
