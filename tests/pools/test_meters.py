"""What is measured: since the start, over the last minute, and in the busiest one."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

import pytest

from flask_scopedsession._pools import meters as _meters
from flask_scopedsession._pools.meters import INTERVAL
from flask_scopedsession._pools.meters import Meters
from flask_scopedsession._pools.meters import PENDING
from flask_scopedsession.snapshot import BUCKET_BOUNDS


class Clock:
    """Time that passes when the test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Pool:
    """What is in use and who waits, as the test says."""

    used = 0
    pending = 0

    def __call__(self) -> tuple[int, int]:
        return self.used, self.pending


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(_meters, "perf_counter", clock)
    monkeypatch.setattr("time.time", lambda: clock.now + 1_800_000_000)
    return clock


@pytest.fixture
def pool() -> Pool:
    return Pool()


@pytest.fixture
def meters(clock: Clock, pool: Pool) -> Meters:
    return Meters(pool)


def counts(meters: Meters) -> tuple[int, int]:
    """Count the waits since the start, and in the last minute."""
    with meters.aggregated():
        return meters.waits.total().count, meters.waits.minute().count


def hold(seconds: float, command: str) -> tuple[Any, ...]:
    """Return the sample of a connection that a command has returned."""
    return seconds, None, None, by_command(command), 2


def by_command(command: str) -> tuple[str | None, ...]:
    """Return the key of a command's use."""
    return None, None, None, command, None


def test_the_last_minute_forgets(meters: Meters, clock: Clock) -> None:
    """After 70 seconds at the latest; what happened since the start stays."""
    meters.waits.add(0.5)
    clock.now += 59
    meters.aggregate(clock.now)
    meters.waits.add(0.25)
    assert counts(meters) == (2, 2)
    clock.now += 11
    assert counts(meters) == (2, 1)
    clock.now += 60
    assert counts(meters) == (2, 0)
    with meters.aggregated():
        assert (meters.waits.total().sum, meters.waits.total().max) == (0.75, 0.5)


def test_nothing_is_forgotten_early(meters: Meters, clock: Clock) -> None:
    """What is younger than a minute is always counted in the last minute."""
    clock.now += INTERVAL - 0.001
    meters.waits.add(0.5)
    clock.now += 60
    assert counts(meters) == (1, 1)


def test_a_batch_that_reaches_every_bucket(meters: Meters) -> None:
    """A value counts for the lowest bound that it does not exceed."""
    near = [at * bound for bound in BUCKET_BOUNDS for at in (0.99, 1.0, 1.01)]
    values = [0.0, *near, 1000.0, 1000.0]
    random.Random(1).shuffle(values)
    for value in values:
        meters.waits.add(value)
    expected = [0] * (len(BUCKET_BOUNDS) + 1)
    for value in values:
        expected[sum(bound < value for bound in BUCKET_BOUNDS)] += 1
    with meters.aggregated():
        found = meters.waits.total()
    assert list(found.buckets) == expected
    assert (found.sum, found.max) == (pytest.approx(sum(values)), 1000.0)


@pytest.mark.parametrize("idle", [61, 75, 700, 100_000])
def test_a_long_idle_period(meters: Meters, clock: Clock, idle: float) -> None:
    """A sample that was not aggregated before it does not count in the last minute."""
    clock.now += 5
    meters.waits.add(0.5)
    clock.now += idle + INTERVAL
    assert counts(meters) == (1, 0)
    meters.waits.add(0.5)
    assert counts(meters) == (2, 1)


def test_what_the_minute_covers(meters: Meters, clock: Clock) -> None:
    """Less than a minute in a young process; afterwards 60 to 70 seconds."""
    windows = []
    for _ in range(40):
        with meters.aggregated() as window:
            windows.append(window)
        clock.now += 2.5
    assert windows[:3] == [0.0, 2.5, 5.0]
    assert windows[28:36] == [60.0, 62.5, 65.0, 67.5] * 2


def test_uses_by_command(meters: Meters, clock: Clock) -> None:
    """By command; of a long hold, at most sixty seconds count in the last minute."""
    meters.held.add(hold(300.0, "slow"))
    for _ in range(3):
        meters.held.add(hold(0.5, "quick"))
    slow, quick = by_command("slow"), by_command("quick")
    with meters.aggregated():
        ever, minute = meters.held.uses(), meters.held.uses_minute()
    assert {
        who: (use.times, use.seconds, use.statements) for who, use in ever.items()
    } == {
        slow: (1, 300.0, 2),
        quick: (3, 1.5, 6),
    }
    assert {who: (use.times, use.lately) for who, use in minute.items()} == {
        slow: (1, 60.0),
        quick: (3, 1.5),
    }
    clock.now += 70
    with meters.aggregated():
        ever, minute = meters.held.uses(), meters.held.uses_minute()
    assert {who: use.times for who, use in ever.items()} == {slow: 1, quick: 3}
    assert minute == {}


def test_a_request_counts_by_its_rule(meters: Meters) -> None:
    """With its endpoint and method; one of Socket.IO by its event, whatever matches."""
    rule: Any = SimpleNamespace(endpoint="show", rule="/<int:id>")
    meters.held.add((0.5, rule, "GET", None, 1))
    meters.held.add((0.25, rule, "POST", None, 1))
    event = None, None, None, None, "event join"
    meters.held.add((1.0, rule, "GET", event, 1))
    other: Any = SimpleNamespace(endpoint="index", rule="/")
    meters.held.add((2.0, other, "GET", None, 1))
    meters.held.add((0.125, rule, "GET", None, 1))
    with meters.aggregated():
        uses = meters.held.uses()
    assert {who: (use.times, use.seconds) for who, use in uses.items()} == {
        ("show", "GET", "/<int:id>", None, None): (2, 0.625),
        ("show", "POST", "/<int:id>", None, None): (1, 0.25),
        ("index", "GET", "/", None, None): (1, 2.0),
        event: (1, 1.0),
    }


def test_the_number_of_views_is_bounded(meters: Meters) -> None:
    """The time of all views beyond it is added up."""
    for number in range(1000):
        meters.held.add(hold(1.0, f"job {number}"))
    with meters.aggregated():
        uses = meters.held.uses()
    assert len(uses) == 201
    assert (uses[None].times, uses[None].seconds) == (800, 800.0)
    assert sum(use.seconds for use in uses.values()) == 1000.0


def test_a_burst_between_two_readings(meters: Meters, clock: Clock, pool: Pool) -> None:
    """Its peak is known for a minute as the last minute's, and for ever as a total."""
    meters.used.now, meters.pending.now = 7, 3
    with meters.aggregated():
        pass
    clock.now += 60
    with meters.aggregated():
        assert (meters.used.minute(1), meters.used.ever(1)) == (7, 7)
        assert (meters.pending.minute(0), meters.pending.ever(0)) == (3, 3)
    clock.now += 10
    with meters.aggregated():
        assert (meters.used.minute(1), meters.used.ever(1)) == (1, 7)
        assert (meters.pending.minute(0), meters.pending.ever(0)) == (0, 3)


def test_what_is_held_all_along(meters: Meters, clock: Clock, pool: Pool) -> None:
    """It counts in each interval, though nothing is checked out in any of them."""
    pool.used = 4
    meters.used.now = 4
    clock.now += 200
    with meters.aggregated():
        pool.used = 0  # all came back just now
        assert meters.used.minute(0) == 4


def test_the_busiest_minute(meters: Meters, clock: Clock) -> None:
    """The six intervals in which connections were held for longest."""
    for minute, held in enumerate([1.0, 8.0, 3.0]):
        for _ in range(minute + 1):
            meters.held.add(hold(held, "job"))
            meters.waits.add(0.1)
        clock.now += 60
        meters.aggregate(clock.now)
    found = meters.busiest
    assert found is not None
    assert (found.checkouts, found.held, found.span) == (2, 16.0, 60.0)
    assert found.waited == pytest.approx(0.2)
    # It ended with the interval of the two samples, 70 s after the start.
    assert found.at == 1_800_000_000 + 1000 + 70


def test_samples_are_aggregated_within_an_interval(
    meters: Meters, clock: Clock
) -> None:
    """Which begins no new interval."""
    for _ in range(PENDING + 1):
        meters.waits.add(0.1)
    meters.aggregate(clock.now)
    assert len(meters.waits.samples) == 0
    clock.now += 69.9
    assert counts(meters) == (PENDING + 1, PENDING + 1)


def test_a_return_does_not_wait_for_a_reader(meters: Meters, clock: Clock) -> None:
    """It leaves the samples for the next time."""
    clock.now += INTERVAL
    with meters.aggregated():
        meters.waits.add(0.1)
        meters.aggregate(clock.now)  # must neither wait nor aggregate
        assert len(meters.waits.samples) == 1
    assert counts(meters) == (1, 1)


def test_samples_that_arrive_during_an_aggregation(clock: Clock, pool: Pool) -> None:
    """Each is counted once: now, or the next time."""

    class Busy(_meters.Meter):
        def _count(self, samples: list[float]) -> None:
            for _ in range(samples.count(1)):
                self.add(2)  # as another thread does at any moment
            super()._count(samples)

    meter = Busy()
    for _ in range(3):
        meter.add(1)
    meter.aggregate()
    meter.aggregate()
    assert (meter.total().count, meter.total().sum) == (6, 9)
