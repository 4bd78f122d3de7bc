"""Bars and sparklines: what they show."""

from __future__ import annotations

import pytest
from readings import a_full_pool
from readings import a_last_worker
from readings import a_pool
from readings import a_survey
from readings import a_worker
from readings import AUDIT

from flask_scopedsession._terminal.charts import bar
from flask_scopedsession._terminal.charts import Charts
from flask_scopedsession._terminal.charts import History
from flask_scopedsession._terminal.charts import MOST
from flask_scopedsession._terminal.charts import Sample
from flask_scopedsession._terminal.charts import Shape
from flask_scopedsession._terminal.charts import sparkline
from flask_scopedsession._terminal.charts import style_of
from flask_scopedsession.snapshot import Survey

SHAPE = Shape(8, 2, 12)


def samples(*used: int | None) -> list[Sample | None]:
    return [None if n is None else Sample(n, False) for n in used]


@pytest.mark.parametrize(
    ("used", "most", "pending", "drawn"),
    [
        (0, 15, 0, "░░░░░░░░  "),
        (1, 1000, 0, "█░░░░░░░  "),
        (8, 16, 0, "████░░░░  "),
        (999, 1000, 0, "███████░  "),
        (15, 15, 0, "████████  "),
        (17, 15, 0, "████████  "),
        (15, 15, 1, "████████! "),
        (15, 15, 3, "████████!!"),
        (15, 15, 900, "████████!!"),
        (4, None, 0, "-         "),
        (4, 0, 0, "-         "),
        (None, 15, 0, "-         "),
    ],
)
def test_bar(used: int | None, most: int | None, pending: int, drawn: str) -> None:
    """Empty only if nothing is used, full only if all is; waiters beyond the end."""
    assert bar(used, most, pending, SHAPE) == drawn


@pytest.mark.parametrize(
    ("used", "most", "drawn"),
    [
        ((), 15, "      "),
        ((0, 1, 8, 14, 15), 15, " ▁▂▅▇█"),
        ((15, 16), 15, "    ██"),
        ((0, None, 3), 15, "   ▁ ▂"),
        # The maximum is unknown: the highest sample is the scale.
        ((0, 2, 4), None, "   ▁▅█"),
        ((0, 0), None, "    ▁▁"),
        (range(1, 9), 8, "▄▅▅▆▇█"),
    ],
)
def test_sparkline(used: tuple[int, ...], most: int | None, drawn: str) -> None:
    """The newest is on the right, and a refresh without an answer is a gap."""
    assert sparkline(samples(*used), most, 6) == drawn


def test_waiters_in_the_past() -> None:
    """They are marked by a character, not only by a colour."""
    past = [Sample(15, False), Sample(15, True), Sample(3, False)]
    assert sparkline(past, 15, 3) == "█!▂"


@pytest.mark.parametrize(
    ("chart", "style"),
    [
        ("██░░ ▁", "green"),
        ("████ ▁", "yellow"),
        ("████! ▁", "red"),
        ("███░! ▁", "red"),
        ("███░  !!!", "green"),
        ("-    ▁", ""),
    ],
)
def test_style(chart: str, style: str) -> None:
    """The colour repeats what the bar shows."""
    assert style_of(chart) == style


# History


def history(seconds: float = 2.0) -> History:
    return History(seconds)


def chart(seen: History, survey: Survey, number: int = 0, width: int = 80) -> str:
    worker = survey.workers[number]
    return seen.charts(width).pool(worker, worker.pools[0])


def test_one_sample_for_each_refresh() -> None:
    """Samples are kept by worker and bind."""
    seen = history()
    for used in (0, 15):
        survey = a_survey(
            a_worker(1, [a_pool(used=used), a_pool("audit", 15 - used, url=AUDIT)]),
            a_worker(2, [a_pool(used=0)]),
        )
        seen.add(survey)
    charts = seen.charts(80)
    first, second = survey.workers
    assert charts.pool(first, first.pools[0]) == "████████             ▁█"
    assert charts.pool(first, first.pools[1]) == "░░░░░░░░             █▁"
    assert charts.pool(second, second.pools[0]) == "░░░░░░░░             ▁▁"


def test_a_database_over_all_workers() -> None:
    """All workers' pools are added up; waiters in any of them are marked."""
    seen = history()
    for pools in ([a_pool(used=0)], [a_full_pool()]):
        survey = a_survey(a_worker(1, pools), a_worker(2, [a_pool(used=15)]))
        seen.add(survey)
    (total,) = survey.totals
    assert seen.charts(80).total(total) == "████████!            ▅!"


def test_an_absent_worker() -> None:
    """It has a gap in its past, and no bar while its use is unknown."""
    seen = history()
    live = a_survey(a_worker(1, [a_pool(used=15)]))
    gone = a_survey(a_last_worker(1, "unresponsive", pools=[a_pool(used=15)]))
    for survey in (live, gone):
        seen.add(survey)
    assert chart(seen, gone) == "-                    █ "
    seen.add(live)
    assert chart(seen, live) == "████████            █ █"


def test_history_is_bounded() -> None:
    """The number of samples is limited, and dead workers are dropped."""
    seen = history()
    for pid in range(3 * MOST):
        seen.add(a_survey(a_worker(pid)))
    workers = {key for key in seen._samples if isinstance(key, tuple)}
    assert len(workers) == MOST
    assert max(len(readings) for readings in seen._samples.values()) == MOST
    for _ in range(MOST):
        seen.add(a_survey())
    assert seen._samples == {}


@pytest.mark.parametrize(
    ("seconds", "width", "title"),
    [
        (2.0, 40, "USE        LAST 24 s"),
        (2.0, None, "USE        LAST 24 s"),
        (2.0, 120, "USE           LAST 48 s"),
        (10.0, 200, "USE                       LAST 8 min"),
        (3600.0, 80, "USE        LAST 12 h"),
    ],
)
def test_title(seconds: float, width: int | None, title: str) -> None:
    """It covers both parts, and says how far back the second goes."""
    charts = history(seconds).charts(width)
    assert isinstance(charts, Charts)
    assert charts.title == title
