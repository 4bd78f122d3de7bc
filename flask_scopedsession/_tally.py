"""Values that are counted by bucket, until somebody asks for a histogram."""

from __future__ import annotations

import typing as t
from bisect import bisect_left
from bisect import bisect_right

from ._buckets import Bounds
from ._buckets import BUCKET_BOUNDS

if t.TYPE_CHECKING:
    from .snapshot import Histogram


class Tally:
    """Counts of values by bucket, their sum and the highest."""

    __slots__ = ("_bounds", "counts", "highest", "sum")

    def __init__(self, bounds: Bounds = BUCKET_BOUNDS) -> None:
        self._bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0
        self.highest = 0.0

    def add(self, values: t.Sequence[float]) -> None:
        """Count some more, bucket by bucket."""
        ordered, bounds, start = sorted(values), self._bounds, 0
        while start < len(ordered):
            bucket = bisect_left(bounds, ordered[start])
            end = len(ordered)
            if bucket < len(bounds):
                end = bisect_right(ordered, bounds[bucket], start)
            self.counts[bucket] += end - start
            start = end
        self.sum += sum(values)
        self.highest = max(self.highest, ordered[-1])

    def merge(self, other: Tally) -> None:
        """Count what `other` has counted."""
        self.counts = [a + b for a, b in zip(self.counts, other.counts, strict=True)]
        self.sum += other.sum
        self.highest = max(self.highest, other.highest)

    def histogram(self) -> Histogram:
        """Return what was counted."""
        from .snapshot import Histogram  # only where somebody asks

        return Histogram.of(self.counts, self.sum, self.highest, self._bounds)
