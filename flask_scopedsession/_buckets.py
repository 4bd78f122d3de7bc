"""The buckets of every histogram. All workers use the same, so that they add up."""

from __future__ import annotations

Bounds = tuple[float, ...]

#: Upper bounds of a histogram's buckets, in seconds. One more bucket counts what is
#: above the last bound.
BUCKET_BOUNDS: tuple[float, ...] = (
    *(0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05),
    *(0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 60.0),
)


#: The same of a histogram that counts statements.
STATEMENT_BOUNDS: tuple[float, ...] = (
    *(0.0, 1.0, 2.0, 3.0, 5.0, 10.0, 20.0, 30.0, 50.0),
    *(100.0, 200.0, 300.0, 500.0, 1000.0, 2000.0, 5000.0, 10000.0),
)


def bucket_range(
    index: int, highest: float, bounds: Bounds = BUCKET_BOUNDS
) -> tuple[float, float]:
    """Return the lowest and highest value that a bucket can hold.

    :param highest: The highest value that the whole histogram has counted.
    """
    low = bounds[index - 1] if index else 0.0
    high = bounds[index] if index < len(bounds) else highest
    return min(low, highest), min(high, highest)
