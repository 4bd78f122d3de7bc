"""Why a pool should be as it is advised: a sentence for each setting."""

from __future__ import annotations

import typing as t

from .._format import count
from .._format import duration
from .._format import number_of
from .._format import percent

if t.TYPE_CHECKING:
    from .demand import Measured
    from .recommend import Aims
    from .recommend import Recommended


def reasons(
    measured: Measured, found: Recommended, aims: Aims, worker_timeout: float | None
) -> tuple[str, ...]:
    """Return why: pool_size, max_overflow, pool_timeout."""
    return (
        _pool_size(measured, found),
        f"{_max_overflow(measured, found, aims)} {_cap(measured, found)}".rstrip(),
        _pool_timeout(found, worker_timeout),
    )


def _pool_size(measured: Measured, found: Recommended) -> str:
    size = found.pool_size
    if measured.bounded and size >= measured.together_max:
        return f"{size} at once were needed at most, and are kept open."
    return (
        f"{number_of(measured.load)} are in use on average: {size} kept open spare"
        " 95 % of the checkouts a connect."
    )


def _max_overflow(measured: Measured, found: Recommended, aims: Aims) -> str:
    most = found.pool_size + found.max_overflow
    if measured.bounded and most >= measured.together_max:
        spare = " One is to spare, for a view that takes a second connection."
        return (
            f"to {most} in all. Never more than {measured.together_max} were wanted at"
            " once, where as many requests at random would have shown more: the worker"
            " has no more threads for it, or its requests come one by one. So nobody"
            f" waits.{spare * (most > measured.together_max)}"
        )
    grown = f"{aims.growth:g} times the load" if aims.growth != 1 else "this load"
    return (
        f"to {most} in all: with {grown}, {percent(1 - found.late)} of the checkouts"
        f" wait less than {duration(aims.wait_s)} (Erlang C)."
    )


def _cap(measured: Measured, found: Recommended) -> str:
    """Say what the formula alone does not."""
    most = found.pool_size + found.max_overflow
    said = []
    if measured.load_most > 1.05 * measured.load:
        said.append(
            "All were in use at times, so the real demand cannot be seen: it is between"
            f" {number_of(measured.load)} and {number_of(measured.load_most)}, and this"
            " is made for the latter. Ask again afterwards."
        )
    if measured.bursts:
        said.append(
            f"{measured.used_max} were in use at once, more than random arrivals bring:"
            " they come in bursts, and this is for the largest of them."
        )
    elif not measured.bounded and most > measured.together_max + 1:
        said.append(
            f"Up to now at most {measured.together_max} were wanted at once; a worker"
            " never uses more than one for each of its threads."
        )
    return " ".join(said)


def _pool_timeout(found: Recommended, worker_timeout: float | None) -> str:
    longest = duration(max(found.longest_wait_s, 0.001))
    said = "Whoever waits for this long waits for a holder that is stuck."
    if found.longest_wait_s > found.pool_timeout:
        said = (
            f"One checkout in a million would wait longer than {longest}, but nobody"
            " should."
        )
    elif found.longest_wait_s:
        said = f"Only one checkout in a million waits longer than {longest}. {said}"
    if worker_timeout is not None:
        said += (
            f" The server may kill the worker after {worker_timeout:g} s, and that"
            " must come later."
        )
    return said


def measured_as(measured: Measured, workers: int) -> str:
    """Say what was measured, where and when."""
    which = f"the busiest of {workers}, " if workers > 1 else ""
    when = (
        f"in its busiest minute (until {_clock(measured.at)})"
        if measured.at is not None
        else f"since its start {duration(measured.span_s)} ago"
    )
    rate = number_of(measured.rate)
    held = duration(measured.hold_s)
    error = percent(measured.load_error)
    load = (
        f"pid {measured.pid}, {which}{when}: {rate} checkouts per second, held for"
        f" {held} each, make {number_of(measured.load)} connections in use on average"
        f" (give or take {error}), {measured.used_max} at most."
    )
    said = [load]
    if measured.wait_p95_s is not None:
        waited = duration(measured.wait_p95_s)
        said.append(f"Since its start, 95 % of the checkouts waited at most {waited}.")
    if measured.pending_max:
        said.append(f"Up to {measured.pending_max} waited at once.")
    if measured.timeouts:
        said.append(f"{count(measured.timeouts, 'checkout')} timed out.")
    least = measured.load_least_worker
    if workers > 1 and measured.load > 2 * least:
        said.append(f"The workers differ: the least busy one used {number_of(least)}.")
    return " ".join(said)


def _clock(timestamp: str) -> str:
    """Write an RFC 3339 timestamp in UTC for people."""
    return timestamp.partition(".")[0].rstrip("Z").replace("T", " ") + " UTC"
