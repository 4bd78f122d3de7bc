"""What was measured: whose time it was, how long it took, and what died."""

from __future__ import annotations

import typing as t
from collections.abc import Iterable
from dataclasses import replace

from .._advice.recommend import advise
from .._advice.report import Aims
from ..snapshot import Histogram
from ..snapshot import Holder
from ..snapshot import PoolSnapshot
from ..snapshot import PoolTimeout
from ..snapshot import Survey
from ..snapshot import ViewUse
from ..snapshot import WorkerSnapshot
from .page import Column
from .page import count
from .page import duration
from .page import number
from .page import Page
from .page import some
from .sections import ago
from .sections import doer
from .sections import pids_of

#: Views that are named where a pool is strained; a table has more.
_VIEWS = 3

_MEASURES = (
    *(Column("PID", True), Column("BIND"), Column("TIME TO")),
    *(Column("60S", True), Column("P50", True), Column("P95", True)),
    *(Column("MAX", True), Column("TOTAL", True), Column("P95", True)),
    Column("MAX", True),
)
_PEAKS = (
    *(Column("PID", True), Column("BIND"), Column("USED60", True)),
    *(Column("USED", True), Column("WAIT60", True), Column("WAIT", True)),
    *(Column("OPENED", True), Column("DIED", True), Column("AGE", True)),
)
_VIEW_COLUMNS = (
    *(Column("VIEW"), Column("BIND"), Column("SHARE60", True)),
    *(Column("HOLDS60", True), Column("SHARE", True), Column("HOLDS", True)),
    Column("MEAN", True),
)


class Pools(t.NamedTuple):
    """All live workers' pools of one bind."""

    bind: str
    found: tuple[tuple[WorkerSnapshot, PoolSnapshot], ...]

    def all(self) -> list[PoolSnapshot]:
        """Return the pools."""
        return [pool for _, pool in self.found]


def by_bind(survey: Survey) -> list[Pools]:
    """Return the live workers' pools by bind."""
    grouped: dict[str, list[tuple[WorkerSnapshot, PoolSnapshot]]] = {}
    for worker in survey.live:
        for pool in worker.pools:
            grouped.setdefault(pool.bind, []).append((worker, pool))
    return [Pools(bind, tuple(found)) for bind, found in grouped.items()]


# -- where a pool is strained --------------------------------------------------


def strained(page: Page, survey: Survey) -> None:
    """Tell of each bind that kept somebody waiting in the last minute: why, and whom.

    So that a burst between two looks is seen, and not only its end.
    """
    for pools in by_bind(survey):
        busy = [pool for pool in pools.all() if _is_strained(pool)]
        if busy:
            page.line()
            page.parts(
                [f"Bind {pools.bind}, last minute:", *_strain(busy)], style="bold"
            )
            _most_of_the_time(page, busy)
            _last_timeout(page, survey, busy)
            _size(page, survey, pools.bind)


def _is_strained(pool: PoolSnapshot) -> bool:
    return bool(pool.pending or pool.pending_max_60s or pool.timeouts_60s)


def _strain(pools: Iterable[PoolSnapshot]) -> list[str]:
    pools = list(pools)
    used = max((pool for pool in pools), key=lambda pool: pool.used_max_60s)
    parts = [f"up to {used.used_max_60s}/{number(used.max)} in use"]
    waiting = max(max(p.pending_max_60s or 0, p.pending or 0) for p in pools)
    parts.append(f"and {waiting} waiting in one worker,")
    waits = Histogram.merged(pool.wait_60s for pool in pools)
    if waits.count:
        parts.append(f"95 % of those served waited at most {duration(waits.p95)},")
    parts.append(f"the longest wait {duration(_longest_wait(pools, waits))},")
    holds = Histogram.merged(pool.hold_60s for pool in pools)
    if holds.count:
        parts.append(f"95 % of holds at most {duration(holds.p95)},")
    parts[-1] = parts[-1].rstrip(",")
    return parts


def _longest_wait(pools: Iterable[PoolSnapshot], served: Histogram) -> float:
    """Return how long somebody waited, served or not, or has been waiting till now."""
    gave_up = (
        timeout.waited_s
        for pool in pools
        if pool.timeouts_60s
        for timeout in pool.recent_timeouts
    )
    waits_now = (pool.max_wait_s or 0.0 for pool in pools)
    return max(served.max or 0.0, *waits_now, *gave_up)


def _most_of_the_time(page: Page, pools: Iterable[PoolSnapshot]) -> None:
    views = [v for v in merged_views(pools) if v.share_60s][:_VIEWS]
    if views:
        shares = [f"{v.share_60s or 0:.0%} {doer(v)}" for v in views]
        parts = [f"{share}," for share in shares[:-1]] + shares[-1:]
        page.parts(["Most of its time went to", *parts], indent=2)


def _last_timeout(page: Page, survey: Survey, pools: Iterable[PoolSnapshot]) -> None:
    timeouts = [timeout for pool in pools for timeout in pool.recent_timeouts]
    if timeouts:
        last = max(timeouts, key=lambda timeout: timeout.at_time)
        who = last.endpoint or "somebody"
        page.parts(
            [
                f"{ago(survey, last.at_time)},",
                f"{who} gave up after {duration(last.waited_s)};",
                *_who_held(last),
            ],
            indent=2,
        )


def _size(page: Page, survey: Survey, bind: str) -> None:
    """Say how large the pool should be, as far as that can be told."""
    for advice in advise(survey, Aims(), bind=bind).advice:
        found = advice.recommended
        if found is None:
            page.parts(
                [
                    "What size it should have cannot be told:",
                    *f"{advice.problem}.".split(),
                ],
                indent=2,
            )
            continue
        same = found.max == advice.max
        page.parts(
            [
                f"It should have {found.max} connections,",
                "as it has:" if same else f"in place of {number(advice.max)}:",
                f"pool_size {found.pool_size},",
                f"max_overflow {found.max_overflow}",
                "('pool-advise' tells why)",
            ],
            indent=2,
        )


def _who_held(timeout: PoolTimeout) -> list[str]:
    groups: dict[tuple[str, str | None], list[Holder]] = {}
    for holder in timeout.holders:
        groups.setdefault((doer(holder), holder.at), []).append(holder)
    said = []
    for (who, at), holders in list(groups.items())[:_VIEWS]:
        longest = duration(max(holder.held_s for holder in holders))
        where = f" {at}" if at else ""
        said.append(f"{len(holders)}× {who}{where}, longest {longest}")
    if not said:
        return ["who held then is not known any more"]
    return ["held then by", *(f"{each};" for each in said[:-1]), said[-1]]


# -- what died -----------------------------------------------------------------


def died(page: Page, survey: Survey) -> None:
    """Tell of connections that died in the last minute."""
    for pools in by_bind(survey):
        hit = [(w, p) for w, p in pools.found if p.invalidated_60s]
        if hit:
            total = count(sum(p.invalidated_60s for _, p in hit), "connection")
            ages = Histogram.merged(p.invalidated_age_s for _, p in hit)
            page.parts(
                [
                    f"{total} died in the last minute",
                    f"· bind {pools.bind}",
                    f"· at an age of at most {duration(ages.max)}",
                    f"· pid {some(pids_of(worker for worker, _ in hit))}",
                ],
                style="red",
            )


# -- everything ----------------------------------------------------------------


def measures(page: Page, survey: Survey) -> None:
    """Add all that was measured, and all views: what ``--verbose`` is for."""
    found = [each for pools in by_bind(survey) for each in pools.found]
    if not found:
        return
    page.line()
    page.line("Durations: in the last minute, and since the start", "bold")
    page.table(
        _MEASURES,
        [row for worker, pool in found for row in _measure_rows(worker, pool)],
    )
    page.line()
    page.line("The most at a time, and connections that came and went", "bold")
    page.table(_PEAKS, [_peak_row(worker, pool) for worker, pool in found])
    rows = [
        _view_row(view, pools.bind)
        for pools in by_bind(survey)
        for view in merged_views(pools.all())
    ]
    if rows:
        page.line()
        page.line("Views, by their share of the pool's time", "bold")
        page.table(_VIEW_COLUMNS, rows, below="VIEW")


def _measure_rows(worker: WorkerSnapshot, pool: PoolSnapshot) -> list[list[str]]:
    return [
        [
            *(str(worker.pid), pool.bind, name),
            *_shown(lately, ("count", "p50", "p95", "max")),
            *_shown(ever, ("count", "p95", "max")),
        ]
        for name, lately, ever in (
            ("wait", pool.wait_60s, pool.wait_s),
            ("hold", pool.hold_60s, pool.hold_s),
            ("connect", pool.create_60s, pool.create_s),
        )
    ]


def _shown(histogram: Histogram | None, names: Iterable[str]) -> list[str]:
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


def _view_row(view: ViewUse, bind: str) -> list[str]:
    return [
        doer(view),
        bind,
        "-" if view.share_60s is None else f"{view.share_60s:.0%}",
        str(view.checkouts_60s),
        "-" if view.share is None else f"{view.share:.0%}",
        str(view.checkouts_total),
        duration(view.held_s / view.checkouts_total if view.checkouts_total else None),
    ]


def merged_views(pools: Iterable[PoolSnapshot]) -> list[ViewUse]:
    """Add up what each view had of several pools; who had most comes first."""
    found: dict[t.Hashable, ViewUse] = {}
    for view in (view for pool in pools for view in pool.views):
        key = (view.endpoint, view.method, view.rule, view.command)
        before = found.get(key)
        if before is not None:
            view = replace(  # noqa: PLW2901
                view,
                checkouts_total=before.checkouts_total + view.checkouts_total,
                held_s=before.held_s + view.held_s,
                checkouts_60s=before.checkouts_60s + view.checkouts_60s,
                held_60s=before.held_60s + view.held_60s,
            )
        found[key] = view
    ever = sum(view.held_s for view in found.values())
    lately = sum(view.held_60s for view in found.values())
    views = [
        replace(
            view,
            share=view.held_s / ever if ever else None,
            share_60s=view.held_60s / lately if lately else None,
        )
        for view in found.values()
    ]
    return sorted(views, key=lambda view: (-view.held_60s, -view.held_s))
