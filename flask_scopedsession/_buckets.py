"""The buckets of every histogram. All workers use the same, so that they add up."""

from __future__ import annotations

#: Upper bounds of a histogram's buckets, in seconds. One more bucket counts what is
#: above the last bound.
BUCKET_BOUNDS: tuple[float, ...] = (
    *(0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05),
    *(0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 60.0),
)


def bucket_range(index: int, highest: float) -> tuple[float, float]:
    """Return the lowest and highest value that a bucket can hold, in seconds.

    :param highest: The highest value that the whole histogram has counted.
    """
    low = BUCKET_BOUNDS[index - 1] if index else 0.0
    high = BUCKET_BOUNDS[index] if index < len(BUCKET_BOUNDS) else highest
    return min(low, highest), min(high, highest)
