"""Why a pool should be as it is advised: a sentence or two for each setting."""

from __future__ import annotations

from .._format import count
from .._format import duration
from .._format import number_of
from .._format import percent
from .report import Aims
from .report import Measured
from .report import Recommended


def reasons(
    measured: Measured, found: Recommended, aims: Aims, worker_timeout: float | None
) -> tuple[str, ...]:
    """Return the reasons for pool_size, max_overflow and pool_timeout.

    :param worker_timeout: Seconds after which the server kills a worker, if known.
    """
    return (
        _pool_size(measured, found),
        f"{_max_overflow(measured, found, aims)} {_caveat(measured, found)}".rstrip(),
        _pool_timeout(found, worker_timeout),
    )


def _pool_size(measured: Measured, found: Recommended) -> str:
    size = found.pool_size
    if measured.bounded and size >= measured.together_max:
        return f"At most {size} were needed at a time; they are kept open."
    return (
        f"{number_of(measured.load)} are in use on average. With {size} kept open,"
        " 95 % of the checkouts need no new connection."
    )


def _max_overflow(measured: Measured, found: Recommended, aims: Aims) -> str:
    most = found.max
    if measured.bounded and most >= measured.together_max:
        spare = " One is spare, for a view that checks out a second connection."
        return (
            f"{most} in all. Never more than {measured.together_max} were wanted at a"
            " time, where random arrivals would have wanted more: the worker has no"
            " more threads, or its requests come one by one. So no checkout waits."
            f"{spare * (most > measured.together_max)}"
        )
    load = f"{aims.growth:g} times the load" if aims.growth != 1 else "this load"
    return (
        f"{most} in all: at {load}, {percent(1 - found.late)} of the checkouts wait"
        f" less than {duration(aims.wait_s)} (Erlang C)."
    )


def _caveat(measured: Measured, found: Recommended) -> str:
    """Say what the formula alone does not."""
    said = []
    if measured.load_most > 1.05 * measured.load:
        said.append(
            "At times all connections were in use, so the real demand cannot be seen:"
            f" it is between {number_of(measured.load)} and"
            f" {number_of(measured.load_most)}, and this is for the latter. Ask again"
            " after the change."
        )
    if measured.bursts:
        said.append(
            f"Up to {measured.used_max} were in use at a time, more than with random"
            " arrivals: requests come in bursts, and this is for the largest."
        )
    elif not measured.bounded and found.max > measured.together_max + 1:
        said.append(
            f"So far at most {measured.together_max} were wanted at a time; a worker"
            " never uses more than one for each of its threads."
        )
    return " ".join(said)


def _pool_timeout(found: Recommended, worker_timeout: float | None) -> str:
    longest = duration(max(found.longest_wait_s, 0.001))
    if found.longest_wait_s > found.pool_timeout:
        said = (
            f"One checkout in a million would wait longer than {longest}, but none"
            " should."
        )
    else:
        said = "A checkout that waits for so long waits for a stuck holder."
        if found.longest_wait_s:
            said = f"Only one checkout in a million waits longer than {longest}. {said}"
    if worker_timeout is not None:
        said += (
            " The pool should give up well before the server may kill the worker,"
            f" after {worker_timeout:g} s."
        )
    return said


def measured_as(measured: Measured, workers: int) -> str:
    """Say what was measured, where and when.

    :param workers: How many workers have such a pool.
    """
    which = f"the busiest of {workers}, " if workers > 1 else ""
    when = (
        f"in its busiest minute (until {_clock(measured.at)})"
        if measured.at is not None
        else f"since its start {duration(measured.span_s)} ago"
    )
    load = (
        f"pid {measured.pid}, {which}{when}: {number_of(measured.rate)} checkouts per"
        f" second, held for {duration(measured.hold_s)} each, make"
        f" {number_of(measured.load)} connections in use on average (give or take"
        f" {percent(measured.load_error)}), {measured.used_max} at most."
    )
    said = [load]
    if measured.wait_p95_s is not None:
        waited = duration(measured.wait_p95_s)
        said.append(f"Since its start, 95 % of the checkouts waited at most {waited}.")
    if measured.pending_max:
        said.append(f"Up to {measured.pending_max} waited at a time.")
    if measured.timeouts:
        said.append(f"{count(measured.timeouts, 'checkout')} timed out.")
    least = measured.load_least_worker
    if workers > 1 and measured.load > 2 * least:
        said.append(f"The workers differ: the least busy one used {number_of(least)}.")
    return " ".join(said)


def _clock(timestamp: str) -> str:
    """Write an RFC 3339 timestamp in UTC for people."""
    return timestamp.partition(".")[0].rstrip("Z").replace("T", " ") + " UTC"
