"""What was measured: which views used the pools, how long, and how much they waited."""

from __future__ import annotations

import typing as t
from collections.abc import Iterable
from collections.abc import Sequence
from dataclasses import replace

from .._advice.recommend import advise
from .._advice.report import Aims
from .._format import duration
from .._format import number
from ..snapshot import Histogram
from ..snapshot import Holder
from ..snapshot import PoolSnapshot
from ..snapshot import PoolTimeout
from ..snapshot import Survey
from ..snapshot import ViewUse
from ..snapshot import WorkerSnapshot
from .page import commas
from .page import Page
from .sections import ago
from .sections import by_bind
from .sections import label
from .sections import place_of

#: How many views and groups of holders are named for a pool with waiters.
_VIEWS = 3

_DURATIONS = (
    *(">PID", "BIND", "TIME TO", ">60S", ">P50", ">P95", ">MAX"),
    *(">TOTAL", ">P95", ">MAX"),
)
_PEAKS = (
    *(">PID", "BIND", ">USED60", ">USED", ">WAIT60", ">WAIT"),
    *(">OPENED", ">DIED", ">AGE"),
)
VIEW_USE = (
    *("VIEW", "BIND", ">SHARE60", ">HOLDS60", ">STMTS60"),
    *(">SHARE", ">HOLDS", ">STMTS", ">MEAN"),
)
_SUMMED = ("checkouts_total", "held_s", "checkouts_60s", "held_60s")
_COUNTED = ("statements_total", "statements_60s")


# -- the last minute -----------------------------------------------------------


def last_minute(page: Page, survey: Survey, *, advice: bool) -> None:
    """Explain the waits of each bind, so that a burst between two refreshes is seen.

    :param advice: Add the recommended size, which takes the most time to compute.
    """
    for bind, found in by_bind(survey).items():
        pools = [
            pool
            for _, pool in found
            if pool.pending or pool.pending_max_60s or pool.timeouts_60s
        ]
        if pools:
            page.line()
            page.parts([f"Bind {bind}, last minute:", *_waits(pools)], style="bold")
            _views(page, pools)
            _last_timeout(page, survey, pools)
            if advice:
                _size(page, survey, bind)


def _waits(pools: Sequence[PoolSnapshot]) -> list[str]:
    used = max(pools, key=lambda pool: pool.used_max_60s)
    waiting = max(max(p.pending_max_60s or 0, p.pending or 0) for p in pools)
    waits = Histogram.merged(pool.wait_60s for pool in pools)
    holds = Histogram.merged(pool.hold_60s for pool in pools)
    parts = [
        f"up to {used.used_max_60s}/{number(used.max)} in use",
        f"and {waiting} waiting in one worker",
    ]
    if waits.count:
        parts.append(f"95 % of checkouts waited at most {duration(waits.p95)}")
    parts.append(f"longest wait {duration(_longest_wait(pools, waits))}")
    if holds.count:
        parts.append(f"95 % of holds lasted at most {duration(holds.p95)}")
    return [parts[0], *commas(parts[1:])]


def _longest_wait(pools: Iterable[PoolSnapshot], completed: Histogram) -> float:
    """Return the longest wait: of completed, timed out and waiting checkouts."""
    timed_out = (
        timeout.waited_s
        for pool in pools
        if pool.timeouts_60s
        for timeout in pool.recent_timeouts
    )
    waiting = (pool.max_wait_s or 0.0 for pool in pools)
    return max(completed.max or 0.0, *waiting, *timed_out)


def _views(page: Page, pools: Iterable[PoolSnapshot]) -> None:
    views = [view for view in _merged_views(pools) if view.share_60s][:_VIEWS]
    if views:
        shares = [f"{view.share_60s or 0:.0%} {label(view)}" for view in views]
        page.parts(["Hold time by view:", *commas(shares)], indent=2)


def _last_timeout(page: Page, survey: Survey, pools: Iterable[PoolSnapshot]) -> None:
    timeouts = [timeout for pool in pools for timeout in pool.recent_timeouts]
    if timeouts:
        last = max(timeouts, key=lambda timeout: timeout.at_time)
        page.parts(
            [
                f"{ago(survey, last.at_time)},",
                f"{last.endpoint or 'a checkout'}",
                f"timed out after {duration(last.waited_s)};",
                *_holders_then(last),
            ],
            indent=2,
        )


def _holders_then(timeout: PoolTimeout) -> list[str]:
    groups: dict[tuple[str, str | None], list[Holder]] = {}
    for holder in timeout.holders:
        groups.setdefault((label(holder), place_of(holder)), []).append(holder)
    said = []
    for (view, at), holders in list(groups.items())[:_VIEWS]:
        longest = duration(max(holder.held_s for holder in holders))
        where = f" {at}" if at else ""
        said.append(f"{len(holders)}× {view}{where}, longest {longest}")
    if not said:
        return ["the holders at that time are unknown"]
    return ["connections were held by", *commas(said, ";")]


def _size(page: Page, survey: Survey, bind: str) -> None:
    """Add the recommended size, or why there is none."""
    for advice in advise(survey, Aims(), bind=bind).advice:
        found = advice.recommended
        if found is None:
            problem = f"{advice.problem}.".split()
            page.parts(["No recommendation:", *problem], indent=2)
            continue
        same = found.max == advice.max
        page.parts(
            [
                f"Recommended: {found.max} connections,",
                "as configured:" if same else f"instead of {number(advice.max)}:",
                f"pool_size {found.pool_size},",
                f"max_overflow {found.max_overflow}",
                "('pool-advise' explains why)",
            ],
            indent=2,
        )


# -- everything that was measured ----------------------------------------------


def measurements(page: Page, survey: Survey) -> None:
    """Add the tables of ``--verbose``: durations, peaks and views."""
    found = [each for pools in by_bind(survey).values() for each in pools]
    if not found:
        return
    page.title("Durations, in the last minute and since the start")
    page.table(
        _DURATIONS,
        [row for worker, pool in found for row in _duration_rows(worker, pool)],
    )
    page.title("Highest numbers at a time, and connections opened and invalidated")
    page.table(_PEAKS, [_peak_row(worker, pool) for worker, pool in found])
    views = view_rows(survey)
    if views:
        page.title("Views, by their share of the hold time")
        page.table(VIEW_USE, views, below="VIEW")


def _duration_rows(worker: WorkerSnapshot, pool: PoolSnapshot) -> list[list[str]]:
    return [
        [
            *(str(worker.pid), pool.bind, name),
            *_values(lately, ("count", "p50", "p95", "max")),
            *_values(ever, ("count", "p95", "max")),
        ]
        for name, lately, ever in (
            ("wait", pool.wait_60s, pool.wait_s),
            ("hold", pool.hold_60s, pool.hold_s),
            ("connect", pool.create_60s, pool.create_s),
        )
    ]


def _values(histogram: Histogram | None, names: Iterable[str]) -> list[str]:
    if histogram is None:
        return ["-" for _ in names]
    values = [getattr(histogram, name) for name in names]
    return [str(v) if isinstance(v, int) else duration(v) for v in values]


def _peak_row(worker: WorkerSnapshot, pool: PoolSnapshot) -> list[str]:
    ages = pool.invalidated_age_s
    return [
        str(worker.pid),
        pool.bind,
        number(pool.used_max_60s),
        number(pool.used_max),
        number(pool.pending_max_60s),
        number(pool.pending_max),
        number(pool.connects_total),
        number(pool.invalidated_total),
        duration(ages.max if ages else None),
    ]


def view_rows(survey: Survey) -> list[list[str]]:
    """Return the row of each view of each bind, over all live workers."""
    return [
        _view_row(view, bind)
        for bind, pools in by_bind(survey).items()
        for view in _merged_views(pool for _, pool in pools)
    ]


def _view_row(view: ViewUse, bind: str) -> list[str]:
    return [
        label(view),
        bind,
        "-" if view.share_60s is None else f"{view.share_60s:.0%}",
        str(view.checkouts_60s),
        number(view.statements_60s),
        "-" if view.share is None else f"{view.share:.0%}",
        str(view.checkouts_total),
        number(view.statements_total),
        duration(view.held_s / view.checkouts_total if view.checkouts_total else None),
    ]


def _merged_views(pools: Iterable[PoolSnapshot]) -> list[ViewUse]:
    """Add up each view's use of several pools; the view with the longest is first."""
    merged: dict[t.Hashable, ViewUse] = {}
    for view in (view for pool in pools for view in pool.views):
        key = (view.endpoint, view.method, view.rule, view.command, view.job)
        sums = {name: getattr(view, name) for name in _SUMMED}
        counts = {name: getattr(view, name) for name in _COUNTED}
        if key in merged:
            known = merged[key]
            sums = {name: sums[name] + getattr(known, name) for name in sums}
            counts = {
                name: None
                if None in (one, other := getattr(known, name))
                else one + other
                for name, one in counts.items()
            }
        merged[key] = replace(view, **sums, **counts)
    ever = sum(view.held_s for view in merged.values())
    lately = sum(view.held_60s for view in merged.values())
    views = [
        replace(
            view,
            share=view.held_s / ever if ever else None,
            share_60s=view.held_60s / lately if lately else None,
        )
        for view in merged.values()
    ]
    return sorted(views, key=lambda view: (-view.held_60s, -view.held_s))
