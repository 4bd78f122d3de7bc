"""What ``--watch`` has seen of each pool, as bars and sparklines.

Drawn in Unicode; :class:`~._page.Page` writes ASCII where the encoding has no more.
"""

from __future__ import annotations

import math
import typing as t
from collections import deque
from collections.abc import Callable
from collections.abc import Iterable

from ..snapshot import DatabaseTotal
from ..snapshot import DatabaseURL
from ..snapshot import PoolSnapshot
from ..snapshot import Survey
from ..snapshot import WorkerSnapshot

if t.TYPE_CHECKING:
    from ..snapshot._servers import ServerView

FULL, EMPTY = "█", "░"
#: From no connection to all of them.
LEVELS = "▁▂▃▄▅▆▇█"
#: Somebody waits, and then all connections are in use: no level is lost.
WAITS = "!"

#: Readings that are kept: what the widest terminal shows.
MOST = 50


class Look(t.NamedTuple):
    """What one look has found."""

    survey: Survey
    servers: tuple[ServerView, ...] | None = None
    """What the databases' servers say; ``None`` if they were not to be asked."""


class Reading(t.NamedTuple):
    """What one look has found of one pool."""

    used: int
    waits: bool


#: A worker's id and a bind; for a whole database, its URL.
Key = tuple[str, str] | DatabaseURL
Readings = t.Sequence[Reading | None]


class Shape(t.NamedTuple):
    """How many characters each part of a chart takes."""

    bar: int
    beyond: int
    looks: int


#: From how many columns on a terminal has charts of a shape.
_SHAPES = (
    (160, Shape(20, 5, MOST)),
    (100, Shape(10, 3, 24)),
    (0, Shape(8, 2, 12)),
)


class History:
    """The last readings of each pool, and of each database over all workers."""

    def __init__(self, narrow: Callable[[Survey], Survey], seconds: float) -> None:
        """Begin with nothing.

        :param narrow: Leaves what was asked for of a survey.
        :param seconds: Between two looks.
        """
        self._narrow = narrow
        self._seconds = seconds
        self._readings: dict[Key, deque[Reading | None]] = {}

    def add(self, survey: Survey) -> None:
        """Keep one reading of each pool; none of those that did not answer."""
        found = dict(_readings_in(self._narrow(survey)))
        for key in found:
            self._readings.setdefault(key, deque(maxlen=MOST))
        for key, readings in list(self._readings.items()):
            readings.append(found.get(key))
            # Its worker is gone, and so is all that was known of it.
            if not any(readings):
                del self._readings[key]

    def charts(self, width: int | None) -> Charts:
        """Return what draws for a terminal of so many columns."""
        shape = next(shape for least, shape in _SHAPES if (width or 80) >= least)
        return Charts(self._readings, shape, self._seconds)


def _readings_in(survey: Survey) -> Iterable[tuple[Key, Reading]]:
    for worker in survey.live:
        for pool in worker.pools:
            yield (worker.id, pool.bind), Reading(pool.used, bool(pool.pending))
    waits = {p.url for w in survey.live for p in w.pools if p.pending}
    for total in survey.totals:
        yield total.url, Reading(total.used, total.url in waits)


class Charts:
    """Draws the use of pools: how it is now, and how it was."""

    def __init__(
        self, readings: t.Mapping[Key, Readings], shape: Shape, seconds: float
    ) -> None:
        self._readings = readings
        self._shape = shape
        from .page import duration

        span = duration(shape.looks * seconds)
        self.title = f"{'USE':<{shape.bar + shape.beyond}} LAST {span}"

    def pool(self, worker: WorkerSnapshot, pool: PoolSnapshot) -> str:
        """Draw one pool of one worker; of one that is silent, only its past."""
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
        past = sparkline(self._readings.get(key, ()), most, self._shape.looks)
        return f"{now} {past}"


def bar(used: int | None, most: int | None, pending: int, shape: Shape) -> str:
    """Draw how much of a pool is used; who waits stands beyond its end.

    Only an unused pool is empty, and only one that is used up is full.
    """
    if used is None or not most:
        return "-".ljust(shape.bar + shape.beyond)
    cells = _share(used, most, shape.bar)
    beyond = min(math.ceil(pending / most * shape.bar), shape.beyond)
    drawn = FULL * cells + EMPTY * (shape.bar - cells) + WAITS * beyond
    return drawn.ljust(shape.bar + shape.beyond)


def sparkline(readings: Readings, most: int | None, length: int) -> str:
    """Draw the last readings, the newest on the right; none is a gap.

    Its scale is what the pool may open; where that is unknown, the highest reading.
    """
    shown = list(readings)[-length:]
    highest = max((reading.used for reading in shown if reading), default=0)
    scale = most or highest
    return "".join(_mark(reading, scale) for reading in shown).rjust(length)


def _mark(reading: Reading | None, scale: int) -> str:
    if reading is None:
        return " "
    if reading.waits:
        return WAITS
    return LEVELS[_share(reading.used, scale, len(LEVELS) - 1)]


def _share(used: int, most: int, size: int) -> int:
    """Return how much of `size` is used: 0 and all of it only where that is so."""
    if used <= 0:
        return 0
    if used >= most:
        return size
    return max(1, min(size - 1, round(used / most * size)))


def style_of(chart: str) -> str:
    """Return the colour of a chart, which only repeats what it says."""
    now = chart.partition(" ")[0]
    if now.endswith(WAITS):
        return "red"
    return "green" if EMPTY in now else "yellow" if FULL in now else ""
