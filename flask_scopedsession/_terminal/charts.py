"""The use of each pool as ``--watch`` has seen it: bars and sparklines.

Drawn in Unicode; :class:`~.page.Page` prints ASCII where the encoding has no more.
"""

from __future__ import annotations

import math
import typing as t
from collections import deque
from collections.abc import Iterable

from .._format import duration
from ..snapshot import DatabaseTotal
from ..snapshot import DatabaseURL
from ..snapshot import PoolSnapshot
from ..snapshot import Survey
from ..snapshot import WorkerSnapshot

if t.TYPE_CHECKING:
    from ..snapshot._servers import ServerView

FULL, EMPTY = "█", "░"
#: From no connection in use to all of them.
LEVELS = "▁▂▃▄▅▆▇█"
#: A thread waits, so all connections are in use: no level is lost.
WAITS = "!"

#: Samples that are kept: as many as the widest terminal shows.
MOST = 50


class Refresh(t.NamedTuple):
    """What one refresh found."""

    survey: Survey
    """The workers and binds that were asked for."""
    servers: tuple[ServerView, ...] | None = None
    """The reports of the database servers; ``None`` if they were not asked."""
    other_pids: tuple[int, ...] = ()
    """Live workers that were not asked for."""


class Sample(t.NamedTuple):
    """The use of one pool at one refresh."""

    used: int
    waits: bool


#: A worker's id and a bind; for a whole database, its URL.
Key = tuple[str, str] | DatabaseURL
Samples = t.Sequence[Sample | None]


class Shape(t.NamedTuple):
    """How many characters each part of a chart takes."""

    bar: int
    beyond: int
    samples: int


#: The shape of charts on a terminal of at least so many columns.
_SHAPES = (
    (160, Shape(20, 5, MOST)),
    (100, Shape(10, 3, 24)),
    (0, Shape(8, 2, 12)),
)


class History:
    """The last samples of each pool, and of each database over all workers.

    :param seconds: The time between two refreshes.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._samples: dict[Key, deque[Sample | None]] = {}

    def add(self, survey: Survey) -> None:
        """Keep a sample of each pool, or a gap if its worker did not answer."""
        found = dict(_samples_in(survey))
        for key in found:
            self._samples.setdefault(key, deque(maxlen=MOST))
        for key, samples in list(self._samples.items()):
            samples.append(found.get(key))
            if not any(samples):  # the worker has been gone for long
                del self._samples[key]

    def charts(self, width: int | None) -> Charts:
        """Return the charts for a terminal of this many columns."""
        shape = next(shape for least, shape in _SHAPES if (width or 80) >= least)
        return Charts(self._samples, shape, self._seconds)


def _samples_in(survey: Survey) -> Iterable[tuple[Key, Sample]]:
    for worker in survey.live:
        for pool in worker.pools:
            yield (worker.id, pool.bind), Sample(pool.used, bool(pool.pending))
    waits = {p.url for w in survey.live for p in w.pools if p.pending}
    for total in survey.totals:
        yield total.url, Sample(total.used, total.url in waits)


class Charts:
    """Draws the use of pools: a bar for now, and a sparkline for the past."""

    def __init__(
        self, samples: t.Mapping[Key, Samples], shape: Shape, seconds: float
    ) -> None:
        self._samples = samples
        self._shape = shape
        span = duration(shape.samples * seconds)
        self.title = f"{'USE':<{shape.bar + shape.beyond}} LAST {span}"

    def pool(self, worker: WorkerSnapshot, pool: PoolSnapshot) -> str:
        """Draw one pool of one worker; only its past if the worker is silent."""
        live = worker.source == "live"
        most = None if pool.unlimited else pool.max
        pending = pool.pending if live else 0
        used = pool.used if live else None
        return self._draw((worker.id, pool.bind), used, most, pending)

    def total(self, total: DatabaseTotal) -> str:
        """Draw one database: the pools of all workers."""
        return self._draw(total.url, total.used, total.max, total.pending)

    def _draw(
        self, key: Key, used: int | None, most: int | None, pending: int | None
    ) -> str:
        now = bar(used, most, pending or 0, self._shape)
        past = sparkline(self._samples.get(key, ()), most, self._shape.samples)
        return f"{now} {past}"


def bar(used: int | None, most: int | None, pending: int, shape: Shape) -> str:
    """Draw how much of a pool is used, with waiting threads beyond its end.

    Only an unused pool is drawn empty, and only an exhausted one full.
    """
    if used is None or not most:
        return "-".ljust(shape.bar + shape.beyond)
    cells = _share(used, most, shape.bar)
    beyond = min(math.ceil(pending / most * shape.bar), shape.beyond)
    drawn = FULL * cells + EMPTY * (shape.bar - cells) + WAITS * beyond
    return drawn.ljust(shape.bar + shape.beyond)


def sparkline(samples: Samples, most: int | None, length: int) -> str:
    """Draw the last samples, the newest on the right, with gaps for ``None``.

    The scale is what the pool may open; if that is unknown, the highest sample.
    """
    shown = list(samples)[-length:]
    highest = max((sample.used for sample in shown if sample), default=0)
    return "".join(_mark(sample, most or highest) for sample in shown).rjust(length)


def _mark(sample: Sample | None, scale: int) -> str:
    if sample is None:
        return " "
    if sample.waits:
        return WAITS
    return LEVELS[_share(sample.used, scale, len(LEVELS) - 1)]


def _share(used: int, most: int, size: int) -> int:
    """Return how much of `size` is used: 0 or `size` only if that is exact."""
    if used <= 0:
        return 0
    if used >= most:
        return size
    return max(1, min(size - 1, round(used / most * size)))


def style_of(chart: str) -> str:
    """Return the colour of a chart, which only repeats its characters."""
    now = chart.partition(" ")[0]
    if now.endswith(WAITS):
        return "red"
    return "green" if EMPTY in now else "yellow" if FULL in now else ""
