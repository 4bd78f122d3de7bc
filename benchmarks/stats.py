"""Medians and quartiles of the rounds."""

from __future__ import annotations

import statistics
import typing as t
from collections.abc import Sequence


class Spread(t.NamedTuple):
    """The median and the quartiles."""

    low: float
    median: float
    high: float


def spread(values: Sequence[float]) -> Spread:
    """Return the quartiles of some values."""
    if len(values) == 1:
        return Spread(values[0], values[0], values[0])
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return Spread(low, median, high)


def ratios(values: Sequence[float], baseline: Sequence[float]) -> Spread | None:
    """Return the spread of the ratios, each to the baseline of the same round."""
    pairs = [a / b for a, b in zip(values, baseline, strict=True) if b]
    return spread(pairs) if pairs else None
