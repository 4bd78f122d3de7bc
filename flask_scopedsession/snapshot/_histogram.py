"""A histogram of durations or counts, and its quantiles."""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Sequence
from dataclasses import dataclass

from .._buckets import Bounds
from .._buckets import BUCKET_BOUNDS
from .._buckets import bucket_range
from ._json import Reading


@dataclass(frozen=True, slots=True)
class Histogram(Reading):
    """A distribution: of durations in seconds, unless a field says otherwise.

    All workers use the same buckets, so that histograms can be added up.
    """

    count: int
    """How many values were recorded."""
    sum: float
    """Their sum."""
    p50: float | None
    """The median, interpolated within its bucket; null if ``count`` is 0."""
    p95: float | None
    """The 95th percentile, interpolated as well; null if ``count`` is 0."""
    max: float | None
    """The highest value; null if ``count`` is 0."""
    buckets: tuple[int, ...]
    """How many values were at most each of :data:`BUCKET_BOUNDS` (statements:
    :data:`STATEMENT_BOUNDS`), but above the bound before. The last bucket counts those
    above all bounds."""

    @classmethod
    def of(
        cls,
        counts: Sequence[int],
        total: float,
        highest: float,
        bounds: Bounds = BUCKET_BOUNDS,
    ) -> Histogram:
        """Make a histogram from raw counts.

        :param counts: One number for each bucket.
        :param total: The sum of the values.
        :param highest: The highest of them.
        :param bounds: The upper bounds of the buckets.
        """
        count = sum(counts)
        return cls(
            count=count,
            sum=total,
            p50=_quantile(counts, count, highest, 0.50, bounds),
            p95=_quantile(counts, count, highest, 0.95, bounds),
            max=highest if count else None,
            buckets=tuple(counts),
        )

    @classmethod
    def merged(
        cls, found: Iterable[Histogram | None], bounds: Bounds = BUCKET_BOUNDS
    ) -> Histogram:
        """Add up several histograms, such as one of each worker. ``None`` is empty.

        How long the connections of all workers were held::

            pools = [pool for worker in db.workers().live for pool in worker.pools]
            Histogram.merged(pool.hold_s for pool in pools).p95

        :param found: The histograms. All have the same bounds.
        :param bounds: The upper bounds of their buckets.
        """
        known = [each for each in found if each is not None]
        size = max((len(each.buckets) for each in known), default=1)
        counts = [0] * size
        for each in known:
            for index, inside in enumerate(each.buckets):
                counts[index] += inside
        highest = max((each.max or 0.0 for each in known), default=0.0)
        return cls.of(counts, sum(each.sum for each in known), highest, bounds)


def _quantile(
    counts: Sequence[int], count: int, highest: float, q: float, bounds: Bounds
) -> float | None:
    if not count:
        return None
    rank = q * count
    below = 0
    for index, inside in enumerate(counts):
        if inside and below + inside >= rank:
            low, high = bucket_range(index, highest, bounds)
            return low + (high - low) * (rank - below) / inside
        below += inside
    return highest
