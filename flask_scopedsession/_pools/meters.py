"""Durations and high-water marks: since the start, and over the last minute.

Recording a sample is a single atomic ``deque.append``. Samples are aggregated into
histograms by readers, and as a connection is returned after an interval of ten seconds.
So nothing here takes a lock while a connection is handed out or returned.
"""

from __future__ import annotations

import time
import typing as t
from collections import defaultdict
from collections import deque
from contextlib import contextmanager
from itertools import repeat
from time import perf_counter

from .._runtime.native import allocate_lock
from .._tally import Tally

if t.TYPE_CHECKING:
    from werkzeug.routing import Rule

    from ..snapshot import Histogram

#: The last minute is kept in this many intervals, of this many seconds each.
INTERVALS, INTERVAL = 6, 10.0
_MINUTE = INTERVALS * INTERVAL

#: Samples that may wait to be aggregated.
PENDING = 128

#: Most views that are counted each on its own; the others are added up.
_MOST_VIEWS = 200


def _merged(tallies: t.Iterable[Tally]) -> Tally:
    merged = Tally()
    for tally in tallies:
        merged.merge(tally)
    return merged


class Meter:
    """Durations of one kind, in seconds."""

    __slots__ = ("_before", "_intervals", "_now", "add", "samples")

    def __init__(self) -> None:
        self.samples: deque[t.Any] = deque()
        """Not aggregated yet."""
        self.add = self.samples.append
        self._now = Tally()
        self._intervals: deque[Tally] = deque()
        self._before = Tally()

    def aggregate(self) -> None:
        """Count the samples there are now, and none that busy threads add meanwhile."""
        take = self.samples.popleft
        samples = [take() for _ in range(len(self.samples))]
        if samples:
            self._count(samples)

    def _count(self, samples: t.Sequence[t.Any]) -> None:
        self._now.add(samples)

    def rotate(self) -> None:
        """Begin the next interval."""
        self._intervals.append(self._now)
        self._now = Tally()
        if len(self._intervals) > INTERVALS:
            self._before.merge(self._intervals.popleft())

    def total(self) -> Histogram:
        """Return what was aggregated since the start."""
        return _merged((self._before, *self._intervals, self._now)).histogram()

    def minute(self) -> Histogram:
        """Return what was aggregated in the last minute."""
        return self.lately().histogram()

    def lately(self) -> Tally:
        """Return what was aggregated in the last minute, as counts."""
        return _merged((*self._intervals, self._now))


class Use:
    """How one view used a pool: its holds, their seconds, and its statements."""

    __slots__ = ("lately", "seconds", "statements", "times")

    def __init__(self) -> None:
        self.times = 0
        self.seconds = 0.0
        self.lately = 0.0
        """Seconds of the last minute: of a single hold, at most sixty."""
        self.statements = 0

    def add(self, times: int, seconds: float, lately: float, statements: int) -> None:
        """Add to it."""
        self.times += times
        self.seconds += seconds
        self.lately += lately
        self.statements += statements


#: By endpoint, method, rule, command and job; ``None`` stands for all beyond those that
#: are counted each on its own.
Uses = dict["tuple[str | None, ...] | None", Use]


def use_of(uses: Uses, who: tuple[str | None, ...] | None) -> Use:
    """Return the use of one view, to be added to."""
    found = uses.get(who)
    if found is None:
        if len(uses) >= _MOST_VIEWS:
            who = None
        found = uses.setdefault(who, Use())
    return found


def merge_uses(uses: Uses, more: Uses) -> None:
    """Add the uses of `more` to those in `uses`."""
    for who, use in more.items():
        use_of(uses, who).add(use.times, use.seconds, use.lately, use.statements)


#: How long a connection was held; by which rule, method and command or job; and how
#: many statements were sent.
Hold = tuple[float, "Rule | None", "str | None", "tuple[str | None, ...] | None", int]


class HoldMeter(Meter):
    """How long connections were held, also by view."""

    __slots__ = ("_uses", "_uses_intervals", "_uses_now")

    def __init__(self) -> None:
        super().__init__()
        self._uses: Uses = {}
        self._uses_now: Uses = {}
        self._uses_intervals: deque[Uses] = deque(maxlen=INTERVALS)

    def _count(self, samples: t.Sequence[Hold]) -> None:
        # Most samples are of few views. A rule has no hash.
        groups: dict[t.Hashable, list[Hold]] = defaultdict(list)
        seconds, rules, methods, works, _ = zip(*samples, strict=True)
        views = zip(map(id, rules), methods, works, strict=True)
        for view, sample in zip(views, samples, strict=True):
            groups[view].append(sample)
        for group in groups.values():
            self._count_view(group)
        super()._count(seconds)

    def _count_view(self, group: list[Hold]) -> None:
        """Count holds of one view."""
        _, rule, method, work, _ = group[0]
        who: tuple[str | None, ...] = work or (
            (None, method, None, None, None)
            if rule is None
            else (str(rule.endpoint), method, rule.rule, None, None)
        )
        seconds, _, _, _, statements = zip(*group, strict=True)
        lately = map(min, seconds, repeat(_MINUTE))
        use_of(self._uses_now, who).add(
            len(group), sum(seconds), sum(lately), sum(statements)
        )

    def rotate(self) -> None:
        """Begin the next interval."""
        super().rotate()
        merge_uses(self._uses, self._uses_now)
        self._uses_intervals.append(self._uses_now)
        self._uses_now = {}

    def uses(self) -> Uses:
        """Return each view's use since the start."""
        return self._merged((self._uses, self._uses_now))

    def uses_minute(self) -> Uses:
        """Return each view's use in the last minute."""
        return self._merged((*self._uses_intervals, self._uses_now))

    @staticmethod
    def _merged(parts: t.Iterable[Uses]) -> Uses:
        found: Uses = {}
        for part in parts:
            merge_uses(found, part)
        return found


class Peak:
    """The highest of a count that goes up and down."""

    __slots__ = ("_ever", "_intervals", "now")

    def __init__(self) -> None:
        self.now = 0
        """The highest in the current interval."""
        self._intervals: deque[int] = deque(maxlen=INTERVALS)
        self._ever = 0

    def rotate(self, current: int) -> None:
        """Begin the next interval with the current count."""
        self._intervals.append(self.now)
        self._ever = max(self._ever, self.now)
        self.now = current

    def ever(self, current: int) -> int:
        """Return the highest since the start."""
        return max(self._ever, self.now, current)

    def minute(self, current: int) -> int:
        """Return the highest in the last minute."""
        return max(*self._intervals, self.now, current, 0)


class Busiest(t.NamedTuple):
    """The minute in which connections were held for longest, in total."""

    at: float
    """When it ended, as :func:`time.time` has it."""
    span: float
    """Seconds: less than a minute in a younger process."""
    checkouts: int
    held: float
    """Seconds, of the holds that ended in it."""
    waited: float
    """Seconds."""
    timeouts: int


class Meters:
    """Everything that is measured of one pool."""

    def __init__(self, state: t.Callable[[], tuple[int, int]]) -> None:
        """Begin with nothing.

        :param state: Counts the connections in use and the checkouts that wait, now.
        """
        self.waits = Meter()
        self.held = HoldMeter()
        self.created = Meter()
        self.invalidated = Meter()
        """Ages of connections when they were invalidated."""
        self.timeouts = Meter()
        self.used = Peak()
        self.pending = Peak()
        self.started = perf_counter()
        self.rotate_at = self.started + INTERVAL
        """When the current interval is over."""
        self.busiest: Busiest | None = None
        self._state = state
        self._epoch = time.time()
        self._lock = allocate_lock()

    @property
    def _meters(self) -> tuple[Meter, ...]:
        return self.waits, self.held, self.created, self.invalidated, self.timeouts

    def aggregate(self, now: float) -> None:
        """Aggregate, and begin the next interval if the current one is over.

        Does nothing if another thread is doing it.
        """
        if self._lock.acquire(False):
            try:
                self._aggregate(now)
            finally:
                self._lock.release()

    @contextmanager
    def aggregated(self) -> t.Generator[float, None, None]:
        """Aggregate, and keep others from it; yield the seconds of the last minute."""
        with self._lock:
            now = perf_counter()
            self._aggregate(now)
            yield min(
                now - self.started, now - self.rotate_at + INTERVAL * (INTERVALS + 1)
            )

    def _aggregate(self, now: float) -> None:
        for meter in self._meters:
            meter.aggregate()
        end = self.rotate_at
        while now >= end:
            used, pending = self._state()
            self.used.rotate(used)
            self.pending.rotate(pending)
            for meter in self._meters:
                meter.rotate()
            self._note_minute(time.time() - (now - end))
            # After a long idle period, older intervals are empty: rotate no more often
            # than there are intervals.
            end = self.rotate_at = max(end + INTERVAL, now - INTERVAL * INTERVALS)

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
