"""W9: more threads than connections.

Closed loop: each thread sends its next request as soon as the last is answered. That
flatters an unfair queue, because a thread that starves sends no more requests. Open
loop: requests arrive at fixed times, and a latency counts from the arrival, even while
no thread is free to serve it.
"""

from __future__ import annotations

import itertools
import random
import threading
import time
import typing as t
from collections.abc import Callable

from flask import Flask

from . import apps

#: Threads that serve; the pool has five connections.
THREADS = 16

#: Engine options of this workload, for all contestants.
OPTIONS = {"pool_size": 5, "max_overflow": 0, "pool_timeout": 2.0}


class _Thread:
    """The latencies and timeouts of one thread."""

    def __init__(self) -> None:
        self.latencies: list[float] = []
        self.timeouts = 0


def closed_loop(app: Flask, hold: str, seconds: float) -> dict[str, float]:
    """Let every thread send one request after the other.

    :param hold: ``"sleep"`` or ``"cpu"``: what a view does while it holds a connection.
    """
    end = time.perf_counter() + seconds

    def serve(mine: _Thread, request: dict[str, t.Any]) -> None:
        while True:
            began = time.perf_counter()
            if began >= end:
                return
            _one(app, request, mine, began)

    return _run(serve, hold)


def open_loop(
    app: Flask, hold: str, seconds: float, rate: float, seed: int
) -> dict[str, float]:
    """Let requests arrive at random times, the same for every contestant.

    :param rate: Arrivals per second, on average.
    """
    arrivals = _arrivals(seconds, rate, seed)
    numbers = itertools.count()
    began = time.perf_counter() + 0.01

    def serve(mine: _Thread, request: dict[str, t.Any]) -> None:
        while True:
            number = next(numbers)
            if number >= len(arrivals):
                return
            intended = began + arrivals[number]
            until = intended - time.perf_counter()
            if until > 0:
                time.sleep(until)
            _one(app, request, mine, intended)

    return _run(serve, hold)


def _arrivals(seconds: float, rate: float, seed: int) -> list[float]:
    chance = random.Random(seed)  # noqa: S311
    found: list[float] = []
    at = 0.0
    while (at := at + chance.expovariate(rate)) < seconds:
        found.append(at)
    return found


def _one(app: Flask, request: dict[str, t.Any], mine: _Thread, since: float) -> None:
    try:
        apps.call(app, request)
    except apps.BadStatus:
        mine.timeouts += 1
    mine.latencies.append(time.perf_counter() - since)


def _run(
    serve: Callable[[_Thread, dict[str, t.Any]], None], hold: str
) -> dict[str, float]:
    request = apps.environ(f"/{hold}")
    seen = [_Thread() for _ in range(THREADS)]
    threads = [threading.Thread(target=serve, args=(mine, request)) for mine in seen]
    wall, cpu = time.perf_counter(), time.process_time()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    latencies = sorted(one for mine in seen for one in mine.latencies)
    served = [len(mine.latencies) for mine in seen]
    return {
        "p50": _quantile(latencies, 0.50) * 1000,
        "p99": _quantile(latencies, 0.99) * 1000,
        "max": latencies[-1] * 1000,
        "rate": len(latencies) / wall,
        "cpu": cpu * 1e6 / len(latencies),
        "timeouts": sum(mine.timeouts for mine in seen),
        "least": 100 * min(served) * THREADS / sum(served),
    }


def _quantile(ordered: list[float], q: float) -> float:
    return ordered[min(len(ordered) - 1, int(q * len(ordered)))]
