"""The buckets of all histograms: the same in each worker, so that they add up."""

from __future__ import annotations

#: Upper bounds, in seconds, of a histogram's buckets; a last one takes the rest.
BUCKET_BOUNDS: tuple[float, ...] = (
    *(0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05),
    *(0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 60.0),
)
