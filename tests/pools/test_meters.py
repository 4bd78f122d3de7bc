"""What is measured: since the start, over the last minute, and in the busiest one."""

from __future__ import annotations

import pytest
from inside import Owner
from inside import Responsible

from flask_scopedsession._pools import meters as _meters
from flask_scopedsession._pools.meters import Meters
from flask_scopedsession._pools.meters import STEP
from flask_scopedsession._pools.meters import UNFOLDED


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
    with meters.at_rest():
        return meters.waits.total().count, meters.waits.minute().count


def an_owner(endpoint: str | None) -> Owner:
    owner = Owner(None, None)
    owner.command = endpoint
    return owner


def test_the_last_minute_forgets(meters: Meters, clock: Clock) -> None:
    """After 70 seconds at the latest; what happened since the start stays."""
    meters.waits.add(0.5)
    clock.now += 59
    meters.turn(clock.now)
    meters.waits.add(0.25)
    assert counts(meters) == (2, 2)
    clock.now += 11
    assert counts(meters) == (2, 1)
    clock.now += 60
    assert counts(meters) == (2, 0)
    with meters.at_rest():
        assert (meters.waits.total().sum, meters.waits.total().max) == (0.75, 0.5)


def test_nothing_is_forgotten_early(meters: Meters, clock: Clock) -> None:
    """What is younger than a minute is always told."""
    clock.now += STEP - 0.001
    meters.waits.add(0.5)
    clock.now += 60
    assert counts(meters) == (1, 1)


@pytest.mark.parametrize("rest", [61, 75, 700, 100_000])
def test_a_long_rest(meters: Meters, clock: Clock, rest: float) -> None:
    """What nobody has folded meanwhile belongs to the time before the rest."""
    clock.now += 5
    meters.waits.add(0.5)
    clock.now += rest + STEP
    assert counts(meters) == (1, 0)
    meters.waits.add(0.5)
    assert counts(meters) == (2, 1)


def test_what_the_minute_covers(meters: Meters, clock: Clock) -> None:
    """As long as the process is young, less than a minute; then up to 70 seconds."""
    windows = []
    for _ in range(40):
        with meters.at_rest() as window:
            windows.append(window)
        clock.now += 2.5
    assert windows[:3] == [0.0, 2.5, 5.0]
    assert windows[28:36] == [60.0, 62.5, 65.0, 67.5] * 2


def test_who_held_for_how_long(meters: Meters, clock: Clock) -> None:
    """By view, and in the last minute never more than that minute."""
    meters.held.add((300.0, an_owner("slow")))
    for _ in range(3):
        meters.held.add((0.5, an_owner("quick")))
    slow, quick = (Responsible(command=name) for name in ("slow", "quick"))
    with meters.at_rest():
        ever, minute = meters.held.uses(), meters.held.uses_minute()
    assert {who: (use.times, use.seconds) for who, use in ever.items()} == {
        slow: (1, 300.0),
        quick: (3, 1.5),
    }
    assert {who: (use.times, use.lately) for who, use in minute.items()} == {
        slow: (1, 60.0),
        quick: (3, 1.5),
    }
    clock.now += 70
    with meters.at_rest():
        ever, minute = meters.held.uses(), meters.held.uses_minute()
    assert {who: use.times for who, use in ever.items()} == {slow: 1, quick: 3}
    assert minute == {}


def test_the_number_of_views_is_bounded(meters: Meters) -> None:
    """Beyond it, the time is nobody's, but not lost."""
    for number in range(1000):
        meters.held.add((1.0, an_owner(f"view {number}")))
    with meters.at_rest():
        uses = meters.held.uses()
    assert len(uses) == 201
    assert (uses[None].times, uses[None].seconds) == (800, 800.0)
    assert sum(use.seconds for use in uses.values()) == 1000.0


def test_a_burst_between_two_looks(meters: Meters, clock: Clock, pool: Pool) -> None:
    """Its height is known for a minute, and since the start for ever."""
    meters.used.now, meters.pending.now = 7, 3
    with meters.at_rest():
        pass
    clock.now += 60
    with meters.at_rest():
        assert (meters.used.minute(1), meters.used.ever(1)) == (7, 7)
        assert (meters.pending.minute(0), meters.pending.ever(0)) == (3, 3)
    clock.now += 10
    with meters.at_rest():
        assert (meters.used.minute(1), meters.used.ever(1)) == (1, 7)
        assert (meters.pending.minute(0), meters.pending.ever(0)) == (0, 3)


def test_what_is_held_all_along(meters: Meters, clock: Clock, pool: Pool) -> None:
    """It counts in each step, though nothing is checked out in any."""
    pool.used = 4
    meters.used.now = 4
    clock.now += 200
    with meters.at_rest():
        pool.used = 0  # all came back just now
        assert meters.used.minute(0) == 4


def test_the_busiest_minute(meters: Meters, clock: Clock) -> None:
    """The one with the most seconds of use, of whole steps, with its time."""
    for minute, held in enumerate([1.0, 8.0, 3.0]):
        for _ in range(minute + 1):
            meters.held.add((held, an_owner("view")))
            meters.waits.add(0.1)
        clock.now += 60
        meters.turn(clock.now)
    found = meters.busiest
    assert found is not None
    assert (found.checkouts, found.held, found.span) == (2, 16.0, 60.0)
    assert found.waited == pytest.approx(0.2)
    # Ended with the step that the two fell into, 70 s after the start.
    assert found.at == 1_800_000_000 + 1000 + 70


def test_samples_are_folded_as_they_gather(meters: Meters, clock: Clock) -> None:
    """A turn in the midst of a step folds, and begins no new one."""
    for _ in range(UNFOLDED + 1):
        meters.waits.add(0.1)
    meters.turn(clock.now)
    assert len(meters.waits.fresh) == 0
    clock.now += 69.9
    assert counts(meters) == (UNFOLDED + 1, UNFOLDED + 1)


def test_nobody_waits_for_who_reads(meters: Meters, clock: Clock) -> None:
    """A turn while somebody reads is left to the next one."""
    clock.now += STEP
    with meters.at_rest():
        meters.waits.add(0.1)
        meters.turn(clock.now)  # would deadlock, and must not fold
        assert len(meters.waits.fresh) == 1
    assert counts(meters) == (1, 1)


def test_what_comes_while_others_are_folded(clock: Clock, pool: Pool) -> None:
    """It is counted once: now, or the next time."""

    class Busy(_meters.Meter):
        def _count(self, samples: list[float]) -> None:
            for _ in range(samples.count(1)):
                self.add(2)  # as another thread does at any moment
            super()._count(samples)

    meter = Busy()
    for _ in range(3):
        meter.add(1)
    meter.fold()
    meter.fold()
    assert (meter.total().count, meter.total().sum) == (6, 9)
