"""``pool-advise``: what is recommended for what was measured, and what is warned of."""

from __future__ import annotations

import io
import json
import re
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from inside import render_advice
from readings import a_holder
from readings import a_last_worker
from readings import a_pool
from readings import a_silent
from readings import a_survey
from readings import a_waiter
from readings import a_worker
from readings import AUDIT
from readings import ORDERS

from flask_scopedsession._advice.recommend import advise
from flask_scopedsession._advice.report import Advice
from flask_scopedsession._advice.report import Aims
from flask_scopedsession._advice.report import Recommended
from flask_scopedsession._advice.report import ServerTotal
from flask_scopedsession.snapshot import BusyMinute
from flask_scopedsession.snapshot import DatabaseURL
from flask_scopedsession.snapshot import Histogram
from flask_scopedsession.snapshot import PoolSnapshot
from flask_scopedsession.snapshot import PoolTimeout
from flask_scopedsession.snapshot import Survey

AT = "2026-11-22T10:08:00.000Z"


def times(mean: float, count: int) -> Histogram:
    """Return so many times, all in one bucket."""
    return Histogram.of([0] * 9 + [count] + [0] * 10, mean * count, 0.1)


def busy(
    load: float = 2.0,
    rate: float = 40.0,
    *,
    bind: str = "default",
    waited: float = 0.0,
    timeouts: int = 0,
    **changes: Any,
) -> PoolSnapshot:
    """Return a pool with a minute of this load; random arrivals, as far as is seen."""
    minute = BusyMinute(AT, 60.0, round(60 * rate), 60 * load, waited, timeouts)
    fields: dict[str, Any] = {
        "checkouts_total": round(60 * rate),
        "used_max": round(load + 4 * load**0.5 + 2),
        "pending_max": 0,
        "size": 50,
        "max": 100,
        "pool_timeout": 5.0,
        "hold_s": times(load / rate, round(60 * rate)),
        "busiest": minute,
    }
    return a_pool(bind, **{**fields, **changes})


def of(*pools: PoolSnapshot, age_s: float = 600.0, **aims: Any) -> Advice:
    """Return the advice when each pool is that of a worker."""
    workers = [a_worker(pid, [p], age_s=age_s) for pid, p in enumerate(pools, start=1)]
    (advice,) = advise(a_survey(*workers), Aims(**aims)).advice
    return advice


def sizes(*pools: PoolSnapshot, **aims: Any) -> Recommended:
    advice = of(*pools, **aims)
    assert advice.recommended is not None, advice.problem
    return advice.recommended


def codes(advice: Advice | ServerTotal) -> list[str]:
    return [warning.code for warning in advice.warnings]


# Sizes


def test_the_load_is_time_held_over_time_passed() -> None:
    measured = of(busy(load=2.0, rate=40.0)).measured
    assert measured is not None
    assert (measured.load, measured.rate, measured.hold_s) == (2.0, 40.0, 0.05)
    assert (measured.at, measured.span_s, measured.checkouts) == (AT, 60.0, 2400)
    assert not measured.full
    assert not measured.bounded
    assert not measured.bursts


def test_sizes() -> None:
    """By hand: P(N ≤ 4) = 0.947 and P(N ≤ 5) = 0.983 for a mean of 2, so 6 are kept.

    For 3 erlangs, C(6, 3) = 0.0991, and exp(-3 · 0.2) of those wait beyond 10 ms, which
    is 5.4 % and too many. C(7, 3) = 0.0376, of which exp(-4 · 0.2) remain.
    """
    found = sizes(busy(load=2.0, rate=40.0))
    assert (found.pool_size, found.max_overflow) == (6, 1)
    assert found.late == pytest.approx(0.0376 * 0.4493, abs=1e-4)
    assert found.reasons[0].startswith("2.0 are in use on average. With 6 kept open")
    assert "at 1.5 times the load, 98 % of the checkouts wait" in found.reasons[1]


@given(
    load=st.floats(0.05, 60),
    hold=st.floats(0.002, 5),
    wait=st.floats(0.001, 2),
    growth=st.floats(1, 5),
)
def test_what_is_promised_holds(
    load: float, hold: float, wait: float, growth: float
) -> None:
    rate = max(load / hold, 4.0)
    found = sizes(busy(load, rate), wait_s=wait, growth=growth)
    assert found.pool_size >= 1
    assert found.max_overflow >= 1
    assert found.late <= 0.05
    assert 1 <= found.pool_timeout <= 10
    less = sizes(busy(load / 2, rate / 2), wait_s=wait, growth=growth)
    assert less.max <= found.max
    patient = sizes(busy(load, rate), wait_s=2 * wait, growth=growth)
    assert patient.max <= found.max
    assert sizes(busy(load, rate), wait_s=wait, growth=growth + 1).max >= found.max


def test_holds_that_vary_need_more() -> None:
    even = sizes(busy(10.0, 200.0), wait_s=0.05)
    buckets = [0] * 20
    buckets[4], buckets[13] = 990, 10
    varying = Histogram.of(buckets, 50.0, 5.0)
    assert sizes(busy(10.0, 200.0, hold_s=varying), wait_s=0.05).max > even.max


def test_the_busiest_worker_sets_the_size() -> None:
    """Each worker's pool is its own: loads are not added up."""
    advice = of(busy(0.5, 10.0), busy(3.0, 60.0), busy(0.4, 8.0))
    assert advice.measured is not None
    assert advice.measured.pid == 2
    assert advice.measured.load_least_worker == 0.4
    assert advice.recommended == sizes(busy(3.0, 60.0))
    assert "The workers differ: the least busy one used 0.40." in shown(advice_of=3)


def test_a_worker_with_one_thread_needs_one() -> None:
    """And one spare, whatever the formula says; the reason is given."""
    found = sizes(busy(0.8, 16.0, used_max=1), growth=3)
    assert (found.pool_size, found.max_overflow, found.late) == (1, 1, 0.0)
    assert "Never more than 1 were wanted at a time" in found.reasons[1]
    assert "One is spare" in found.reasons[1]


def test_more_than_was_ever_used_is_said() -> None:
    """The load may grow, but a quiet worker may have only one thread."""
    found = sizes(busy(0.02, 2.0, used_max=1), growth=50)
    assert found.max > 2
    assert "So far at most 1 were wanted at a time" in found.reasons[1]


def test_bursts_are_provided_for() -> None:
    found = sizes(busy(0.5, 10.0, used_max=12))
    assert found.max == 12
    assert "requests come in bursts" in found.reasons[1]


def test_a_full_pool_hides_the_demand() -> None:
    """Waiting threads would have held a connection at most as long as they waited."""
    full = busy(3.9, 40.0, size=2, max=4, used_max=4, pending_max=30, waited=300.0)
    advice = of(full)
    assert advice.measured is not None
    assert advice.measured.load == 3.9
    assert advice.measured.load_most == pytest.approx(3.9 + 5.0)
    found = sizes(full)
    assert found.max > 9
    assert "it is between 3.9 and 8.9" in found.reasons[1]


def test_waits_for_a_new_connection_are_no_load() -> None:
    """The pool was never full: no thread waited for another's connection."""
    assert sizes(busy(waited=300.0)) == sizes(busy())


def test_long_holds_count_no_more_than_were_in_use() -> None:
    """A hold of an hour ends in one minute, but was only one connection."""
    measured = of(busy(60.0, 5.0, used_max=3)).measured
    assert measured is not None
    assert measured.load == 3.0


def test_timed_out_checkouts_are_demand() -> None:
    full = busy(4.0, 40.0, size=4, max=4, used_max=4, pending_max=50, timeouts=600)
    measured = of(full).measured
    assert measured is not None
    assert measured.load == pytest.approx(5.0)
    assert measured.load_most == pytest.approx(4.0 + 600 * 5.0 / 60)
    assert measured.rate == 50.0


def test_without_a_busy_minute_everything_since_the_start_counts() -> None:
    """In the first ten seconds of a worker there is no busy minute yet."""
    pool = busy(busiest=None, checkouts_total=1200, hold_s=times(0.05, 1200))
    measured = of(pool, age_s=600.0).measured
    assert measured is not None
    assert measured.at is None
    assert (measured.load, measured.rate) == (pytest.approx(0.1), 2.0)


def test_threads_that_wait_for_themselves() -> None:
    """Four threads with one connection each want a second: five would do."""
    waiters = tuple(a_waiter(self_deadlock=True) for _ in range(4))
    holds = {"size": 4, "max": 4, "used_max": 4, "pending_max": 4, "waiters": waiters}
    advice = of(busy(0.5, 10.0, **holds))
    assert advice.recommended is not None
    assert advice.recommended.max >= 5
    # A thread counts once, although it both holds and waits.
    assert sizes(busy(0.01, 10.0, **holds)).max == 5
    assert codes(advice) == ["self_deadlock"]
    assert "orders.index" in advice.warnings[0].text


# Timeouts


def test_pool_timeout_stays_well_below_the_servers() -> None:
    assert sizes(busy()).pool_timeout == 5
    assert sizes(busy(), worker_timeout_s=6.0).pool_timeout == 2
    assert sizes(busy(), worker_timeout_s=1.0).pool_timeout == 1


def test_pool_timeout_is_above_any_plausible_wait() -> None:
    slow = sizes(busy(8.0, 2.0), wait_s=2.0, worker_timeout_s=120.0)
    assert slow.longest_wait_s > 5
    assert slow.pool_timeout >= min(40, slow.longest_wait_s)
    assert sizes(busy(8.0, 2.0), wait_s=2.0).pool_timeout == 10


# Too little, or nothing to choose


def test_too_little_was_measured() -> None:
    advice = of(busy(checkouts_total=99), busy(checkouts_total=5), age_s=125.0)
    assert advice.recommended is None
    assert advice.problem == (
        "too little was measured (99 checkouts in 2 min, in the worker with the most;"
        " 100 are needed)"
    )


@pytest.mark.parametrize("name", ["StaticPool", "SingletonThreadPool", "AssertionPool"])
def test_pools_without_a_size(name: str) -> None:
    size = 5 if name == "SingletonThreadPool" else None
    advice = of(busy(pool_class=name, size=size, max=None, unlimited=None))
    assert advice.recommended is None
    assert name in (advice.problem or "")


def test_only_live_workers_count() -> None:
    gone = a_last_worker(2, "gone", pools=[busy(9.0)])
    report = advise(a_survey(a_worker(1, [busy()]), gone), Aims())
    assert report.workers == 1
    assert report.advice[0].workers == 1


# Warnings


def test_no_warnings() -> None:
    assert codes(of(busy())) == []


@pytest.mark.parametrize("server", ["gunicorn/23.0.0", "Werkzeug/3.1", None])
def test_pool_timeout_beyond_the_servers(server: str | None) -> None:
    """gunicorn's default is known; another server's timeout must be given."""
    pool = busy(pool_timeout=30.0)
    workers = [a_worker(1, [pool], server=server, age_s=600.0)]

    def warned(**aims: Any) -> list[str]:
        (advice,) = advise(a_survey(*workers), Aims(**aims)).advice
        return [warning.text for warning in advice.warnings]

    assumed = warned()
    assert bool(assumed) == (server == "gunicorn/23.0.0")
    assert all("gunicorn's default" in text for text in assumed)
    assert warned(worker_timeout_s=31.0) == []
    (told,) = warned(worker_timeout_s=25.0)
    assert "after 25 s:" in told


def test_timeouts_on_short_holds() -> None:
    short = PoolTimeout(AT, 5.0, "orders.show", (a_holder(0.2), a_holder(0.1)))
    advice = of(busy(timeouts_total=3, recent_timeouts=(short,)))
    assert codes(advice) == ["too_small"]
    assert "the pool is too small for its load" in advice.warnings[0].text
    assert "Most of its time went to orders.show (100 %)." in advice.warnings[0].text


def test_timeouts_on_holders_that_are_stuck() -> None:
    """A larger pool would not help, and the waits do not count as load."""
    stuck = PoolTimeout(
        AT,
        5.0,
        "orders.show",
        (
            *(a_holder(40.0, endpoint="reports.build") for _ in range(3)),
            a_holder(0.1, endpoint="orders.show"),
        ),
    )
    full = busy(
        3.9,
        40.0,
        size=4,
        max=4,
        used_max=4,
        pending_max=30,
        waited=900.0,
        timeouts_total=3,
        recent_timeouts=(stuck,),
    )
    advice = of(full)
    assert codes(advice) == ["held"]
    assert "while reports.build held connections" in advice.warnings[0].text
    assert "A larger pool will not help" in advice.warnings[0].text
    assert advice.measured is not None
    assert advice.measured.load_most == advice.measured.load


def test_connections_held_for_long_right_now() -> None:
    advice = of(busy(held_long=2, holders=(a_holder(90.0),)))
    assert codes(advice) == ["held"]
    assert "orders.show" in advice.warnings[0].text


def test_null_pool_under_load() -> None:
    """The advice is what a QueuePool would need."""
    null = {"pool_class": "NullPool", "size": None, "max": None, "unlimited": True}
    advice = of(busy(create_s=times(0.05, 2400), pool_timeout=None, **null))
    assert codes(advice) == ["null_pool"]
    assert "50 % of the time went into 2400 connects" in advice.warnings[0].text
    assert advice.recommended == sizes(busy())
    rare = busy(0.001, 0.1, checkouts_total=200, create_s=times(0.0, 0), **null)
    assert codes(of(rare)) == []


def test_an_async_bind_has_no_size() -> None:
    """Its connections cannot be pooled; those of ``db.session`` are."""
    null = {"pool_class": "NullPool", "size": None, "max": None, "unlimited": True}
    pool = busy(create_s=times(0.05, 2400), pool_timeout=None, **null)
    advice = of(replace(pool, bind="async:default"))
    assert advice.recommended is None
    assert advice.problem is not None
    assert "async connections cannot be pooled" in advice.problem
    assert advice.warnings[0].text.endswith(
        "use 'db.session', whose connections are pooled."
    )


def test_connections_that_come_and_go() -> None:
    churn = {"size": 1, "connects_total": 800, "create_s": times(0.02, 800)}
    advice = of(busy(**churn))
    assert codes(advice) == ["churn"]
    assert "800 connects for 2400 checkouts" in advice.warnings[0].text
    assert codes(of(busy(**churn, invalidated_total=790))) == []


def test_no_limit_at_all() -> None:
    assert codes(of(busy(size=5, max=None, unlimited=True))) == ["unlimited"]


def test_oversized() -> None:
    pools = [busy(0.2, 5.0, used_max=2, size=10, max=20) for _ in range(2)]
    assert codes(of(*pools, age_s=7200.0)) == ["oversized"]
    assert codes(of(*pools, age_s=60.0)) == []
    assert codes(of(pools[0], busy(used_max=6, max=20), age_s=7200.0)) == []


# The worst case


def total_of(*pools: PoolSnapshot, limit: int | None, silent: int = 0) -> ServerTotal:
    survey = a_survey(
        *(a_worker(pid, pools) for pid in (1, 2, 3)),
        silent=tuple(a_silent(pid, "unresponsive") for pid in range(10, 10 + silent)),
    )
    (total,) = advise(survey, Aims(), limit).servers
    return total


def test_the_worst_case_is_of_the_server() -> None:
    """Two databases of one server share its limit; SQLite has none."""
    billing = DatabaseURL("postgresql+psycopg2", "db.internal", 5432, "billing")
    total = total_of(
        busy(max=20), busy(bind="billing", url=billing, max=30), limit=None
    )
    assert total.server == "postgresql://db.internal:5432"
    assert total.binds == ("default", "billing")
    assert (total.workers, total.now) == (3, 150)
    assert total.advised == 3 * 2 * sizes(busy()).max
    local = a_worker(1, [busy(url=AUDIT)])
    assert advise(a_survey(local), Aims(), 1).servers == ()
    served = DatabaseURL("sqlite+libsql", "db.internal", None, "app")
    assert total_of(busy(url=served), limit=None).server == "sqlite://db.internal"


def test_the_total_includes_the_other_binds() -> None:
    """Advice for one bind; the total of its server includes the others."""
    other = busy(bind="billing", max=30)
    alone = busy(bind="elsewhere", url=DatabaseURL("mysql", "other"), max=5)
    survey = a_survey(a_worker(1, [busy(max=20), other, alone]))
    report = advise(survey, Aims(), bind="billing")
    assert [one.bind for one in report.advice] == ["billing"]
    assert [total.now for total in report.servers] == [50]


def test_unresponsive_workers_count_as_the_others() -> None:
    total = total_of(busy(max=20), limit=None, silent=2)
    assert (total.workers, total.now) == (5, 100)


def test_no_advice_for_any_bind_of_a_server() -> None:
    """The total says so, and does not warn of advice that was not given."""
    idle = total_of(busy(max=20, checkouts_total=5), limit=50)
    assert not idle.has_advice
    assert (idle.now, idle.advised) == (60, 60)
    assert codes(idle) == ["over_limit"]
    assert total_of(busy(max=20), limit=None).has_advice


def test_more_than_the_server_accepts() -> None:
    advised = 3 * sizes(busy()).max
    assert codes(total_of(busy(max=20), limit=60)) == []
    assert codes(total_of(busy(max=20), limit=59)) == ["over_limit"]
    both = total_of(busy(max=20), limit=advised - 1)
    assert codes(both) == ["over_limit", "advice_over_limit"]
    assert "6 per worker" in both.warnings[1].text
    without = busy(max=None, unlimited=True)
    assert codes(total_of(without, limit=60)) == ["over_limit"]


# What is printed


def page(survey: Survey, limit: int | None = None) -> str:
    return render_advice(survey, advise(survey, Aims(), limit))


def shown(advice_of: int) -> str:
    loads = [0.5, 3.0, 0.4][:advice_of]
    return page(
        a_survey(*(a_worker(i, [busy(x, 20 * x)]) for i, x in enumerate(loads)))
    )


def test_a_whole_page() -> None:
    survey = a_survey(
        a_worker(4711, [busy(), busy(0.5, 10.0, bind="audit", url=ORDERS)]),
        a_worker(4712, [busy(checkouts_total=5)]),
    )
    title = "default: postgresql+psycopg://db.internal:5432/orders, 2 workers,"
    measured = (
        "  Measured: pid 4711, the busiest of 2, in its busiest minute (until"
        " 2026-11-22 10:08:00 UTC): 40.0 checkouts per second, held for 50 ms each,"
        " make 2.0 connections in use on average (give or take 2.1 %), 10 at most."
        " Since its start, 95 % of the checkouts waited at most 3.9 ms."
    )
    total = "postgresql://db.internal:5432: 2 workers may open at most 300 connections,"
    lines = page(survey, limit=10).splitlines()
    for line in (
        f"{title} QueuePool of 50, at most 100, timeout 5 s",
        measured,
        "  SQLALCHEMY_ENGINE_OPTIONS = {",
        '      "pool_size": 6, "max_overflow": 1, "pool_timeout": 5,',
        "  FLASK_SQLALCHEMY_ENGINE_OPTIONS__pool_size=6",
        '  SQLALCHEMY_BINDS = {"audit": {',
        "  FLASK_SQLALCHEMY_BINDS__audit__max_overflow=1",
        f"{total} and {2 * 7 + 1 * 4} as advised. The server accepts 10.",
    ):
        assert line in lines, line


@pytest.mark.parametrize(
    ("limits", "said"),
    [
        ({"max": 15}, "at most 15 connections."),
        ({"size": 1, "max": 1}, "at most 1 connection."),
        ({"max": None, "unlimited": True}, "any number of connections."),
    ],
)
def test_nothing_is_as_advised_without_advice(
    limits: dict[str, Any], said: str
) -> None:
    """Only what the workers may open now, and what the server accepts."""
    survey = a_survey(a_worker(1, [busy(checkouts_total=5, **limits)]))
    shown = page(survey, limit=100)
    assert "No recommendation: " in shown
    assert (
        f"\npostgresql://db.internal:5432: 1 worker may open {said}"
        " The server accepts 100.\n"
    ) in shown
    assert "advised" not in shown


def test_how_to_find_the_limit() -> None:
    survey = a_survey(a_worker(1, [busy()]))
    assert "'SHOW max_connections' shows the limit" in page(survey)
    assert "SHOW" not in page(survey, limit=10)


def test_no_worker() -> None:
    """As the status commands say it."""
    assert "No worker has answered" in page(a_survey())


class Terminal(io.StringIO):
    """Standard output of a terminal."""

    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


def test_it_fits_80_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdout", Terminal())
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "80")
    stuck = PoolTimeout(AT, 5.0, "orders.show", (a_holder(40.0),))
    full = busy(
        size=4, max=4, used_max=4, waited=90.0, pending_max=9, recent_timeouts=(stuck,)
    )
    pools = [full, busy(bind="audit", url=AUDIT), busy(bind="b", checkouts_total=1)]
    said = page(a_survey(a_worker(1, pools), silent=(a_silent(2, "stopped"),)))
    said = re.sub(r"\x1b\[[0-9;]*m", "", said)
    assert max(len(line) for line in said.splitlines()) <= 80
    assert len(said.splitlines()) > 40


def test_what_is_pasted_is_python() -> None:
    """Both forms, as an application would read them."""
    lines = page(a_survey(a_worker(1, [busy()]))).splitlines()
    begin = lines.index("  SQLALCHEMY_ENGINE_OPTIONS = {")
    config: dict[str, Any] = {}
    exec("\n".join(line.strip() for line in lines[begin : begin + 3]), config)
    wanted = {"pool_size": 6, "max_overflow": 1, "pool_timeout": 5}
    assert config["SQLALCHEMY_ENGINE_OPTIONS"] == wanted


def test_json_has_it_all() -> None:
    survey = a_survey(a_worker(1, [busy()]))
    document = json.loads(json.dumps(advise(survey, Aims()).to_dict()))
    assert document["schema"] == 1
    (advice,) = document["advice"]
    assert advice["recommended"]["pool_size"] == 6
    assert advice["measured"]["load"] == 2.0
    assert document["servers"][0]["limit"] is None
    assert document["aims"] == {
        "wait_s": 0.01,
        "growth": 1.5,
        "worker_timeout_s": None,
    }
