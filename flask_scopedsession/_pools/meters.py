"""Durations and high-water marks: since the start, and over the last minute.

Who measures appends to a deque, which the interpreter does in one step; who reads, or
comes by when a step of ten seconds is over, folds what has gathered into counts. So
nothing here takes a lock while a connection is handed out or comes back.
"""

from __future__ import annotations

import time
import typing as t
from bisect import bisect_left
from collections import deque
from contextlib import contextmanager
from time import perf_counter

from .._buckets import BUCKET_BOUNDS
from .._runtime.native import allocate_lock
from .._scopes.scope import responsible
from .._scopes.scope import Scope

if t.TYPE_CHECKING:
    from ..snapshot import Histogram

#: The last minute is told in steps: so many, of so many seconds.
STEPS, STEP = 6, 10.0
_MINUTE = STEPS * STEP

#: Samples that may wait to be folded. They keep owners alive, which makes the collector
#: work: 16 times in 1,000 requests if these are 1024, 13 times if they are 64.
UNFOLDED = 128

#: Views that are told apart; what others took is added up under nobody's name.
_MOST_VIEWS = 200


class Tally:
    """Durations that were counted: a histogram in the making."""

    __slots__ = ("counts", "highest", "sum")

    def __init__(self) -> None:
        self.counts = [0] * (len(BUCKET_BOUNDS) + 1)
        self.sum = 0.0
        self.highest = 0.0

    def add(self, durations: t.Sequence[float]) -> None:
        """Count some more."""
        counts = self.counts
        for seconds in durations:
            counts[bisect_left(BUCKET_BOUNDS, seconds)] += 1
        self.sum += sum(durations)
        self.highest = max(self.highest, *durations)

    def merge(self, other: Tally) -> None:
        """Count what `other` has counted."""
        self.counts = [a + b for a, b in zip(self.counts, other.counts, strict=True)]
        self.sum += other.sum
        self.highest = max(self.highest, other.highest)

    def histogram(self) -> Histogram:
        """Return what was counted."""
        from ..snapshot import Histogram  # only where somebody asks

        return Histogram.of(tuple(self.counts), self.sum, self.highest)


def _merged(tallies: t.Iterable[Tally]) -> Tally:
    merged = Tally()
    for tally in tallies:
        merged.merge(tally)
    return merged


class Meter:
    """Durations of one kind, recorded without a lock."""

    __slots__ = ("_before", "_now", "_steps", "add", "samples")

    def __init__(self) -> None:
        self.samples: deque[t.Any] = deque()
        """What waits to be folded."""
        self.add = self.samples.append
        self._now = Tally()
        self._steps: deque[Tally] = deque()
        self._before = Tally()
        """What is older than the steps."""

    def fold(self) -> None:
        """Count what has gathered."""
        # Only as many as are there now, so that busy threads cannot keep us here.
        next_one = self.samples.popleft
        samples = [next_one() for _ in range(len(self.samples))]
        if samples:
            self._count(samples)

    def _count(self, samples: list[t.Any]) -> None:
        self._now.add(samples)

    def rotate(self) -> None:
        """Begin the next step."""
        self._steps.append(self._now)
        self._now = Tally()
        if len(self._steps) > STEPS:
            self._before.merge(self._steps.popleft())

    def total(self) -> Histogram:
        """Return everything that was folded."""
        return _merged((self._before, *self._steps, self._now)).histogram()

    def minute(self) -> Histogram:
        """Return what was folded in the last minute."""
        return self.lately().histogram()

    def lately(self) -> Tally:
        """Return what was folded in the last minute, as counts."""
        return _merged((*self._steps, self._now))


class Use:
    """What one view had of a pool: how often, and for how many seconds in all."""

    __slots__ = ("lately", "seconds", "times")

    def __init__(self) -> None:
        self.times = 0
        self.seconds = 0.0
        self.lately = 0.0
        """Seconds, of each time no more than a minute."""

    def add(self, times: int, seconds: float, lately: float) -> None:
        """Add to it."""
        self.times += times
        self.seconds += seconds
        self.lately += lately


#: By what names a view or a command, in the order of :class:`Responsible`; ``None``
#: for all beyond those that are told apart.
Uses = dict["tuple[str | None, ...] | None", Use]


def use_of(uses: Uses, who: tuple[str | None, ...] | None) -> Use:
    """Return what a view had, to be added to."""
    found = uses.get(who)
    if found is None:
        if len(uses) >= _MOST_VIEWS:
            who = None
        found = uses.setdefault(who, Use())
    return found


def merge_uses(uses: Uses, more: Uses) -> None:
    """Add what each view had."""
    for who, use in more.items():
        use_of(uses, who).add(use.times, use.seconds, use.lately)


class HoldMeter(Meter):
    """How long connections were held, and by whom: adds seconds and owner."""

    __slots__ = ("_uses", "_uses_now", "_uses_steps")

    def __init__(self) -> None:
        super().__init__()
        self._uses: Uses = {}
        self._uses_now: Uses = {}
        self._uses_steps: deque[Uses] = deque(maxlen=STEPS)

    def _count(self, samples: list[tuple[float, Scope]]) -> None:
        super()._count([seconds for seconds, _ in samples])
        uses = self._uses_now
        for seconds, scope in samples:
            rule = scope.rule
            # Once for each checkout, if not on its way: spare it a call, and a class.
            who: tuple[str | None, ...] = (
                responsible(scope)
                if rule is None
                else (rule.endpoint, scope.method, rule.rule, None)
            )
            use = uses.get(who) or use_of(uses, who)
            use.times += 1
            use.seconds += seconds
            # A view has no more of a minute than a minute for each connection.
            use.lately += min(_MINUTE, seconds)

    def rotate(self) -> None:
        """Begin the next step."""
        super().rotate()
        merge_uses(self._uses, self._uses_now)
        self._uses_steps.append(self._uses_now)
        self._uses_now = {}

    def uses(self) -> Uses:
        """Return what each view had since the start."""
        return self._merged((self._uses, self._uses_now))

    def uses_minute(self) -> Uses:
        """Return what each view had in the last minute."""
        return self._merged((*self._uses_steps, self._uses_now))

    @staticmethod
    def _merged(parts: t.Iterable[Uses]) -> Uses:
        found: Uses = {}
        for part in parts:
            merge_uses(found, part)
        return found


class Peak:
    """The most of something at a time."""

    __slots__ = ("_ever", "_steps", "now")

    def __init__(self) -> None:
        self.now = 0
        """Within the current step."""
        self._steps: deque[int] = deque(maxlen=STEPS)
        self._ever = 0

    def rotate(self, current: int) -> None:
        """Begin the next step with what there is now."""
        self._steps.append(self.now)
        self._ever = max(self._ever, self.now)
        self.now = current

    def ever(self, current: int) -> int:
        """Return the most since the start."""
        return max(self._ever, self.now, current)

    def minute(self, current: int) -> int:
        """Return the most in the last minute."""
        return max(*self._steps, self.now, current, 0)


class Busiest(t.NamedTuple):
    """The minute that had most of a pool."""

    at: float
    span: float
    checkouts: int
    held: float
    waited: float
    timeouts: int


class Meters:
    """Everything that is measured of one pool.

    :param state: Counts what is in use and who waits, now.
    """

    def __init__(self, state: t.Callable[[], tuple[int, int]]) -> None:
        self.waits = Meter()
        self.held = HoldMeter()
        self.created = Meter()
        self.invalidated = Meter()
        """How old connections were when they died."""
        self.timeouts = Meter()
        self.used = Peak()
        self.pending = Peak()
        self.started = perf_counter()
        self.rotate_at = self.started + STEP
        """When the current step is over."""
        self.busiest: Busiest | None = None
        self._state = state
        self._epoch = time.time()
        self._lock = allocate_lock()

    @property
    def _meters(self) -> tuple[Meter, ...]:
        return self.waits, self.held, self.created, self.invalidated, self.timeouts

    def rotate(self, now: float) -> None:
        """Fold, and begin the next step if it is time; unless somebody is at it."""
        if self._lock.acquire(False):
            try:
                self._rotate(now)
            finally:
                self._lock.release()

    @contextmanager
    def at_rest(self) -> t.Generator[float, None, None]:
        """Keep everybody else from folding; give the seconds of the last minute."""
        with self._lock:
            now = perf_counter()
            self._rotate(now)
            yield min(now - self.started, now - self.rotate_at + STEP * (STEPS + 1))

    def _rotate(self, now: float) -> None:
        for meter in self._meters:
            meter.fold()
        end = self.rotate_at
        while now >= end:
            used, pending = self._state()
            self.used.rotate(used)
            self.pending.rotate(pending)
            for meter in self._meters:
                meter.rotate()
            self._note_minute(time.time() - (now - end))
            # After a long rest, all steps are to go, and no more than those.
            end = self.rotate_at = max(end + STEP, now - STEP * STEPS)

    def _note_minute(self, at: float) -> None:
        held, waited, timeouts = (
            meter.lately() for meter in (self.held, self.waits, self.timeouts)
        )
        if self.busiest is None or held.sum > self.busiest.held:
            self.busiest = Busiest(
                at,
                min(at - self._epoch, _MINUTE),
                sum(waited.counts),
                held.sum,
                waited.sum,
                sum(timeouts.counts),
            )
