"""Histograms, as the shapes of an SVG that a policy without inline styles allows."""

from __future__ import annotations

import typing as t

from .._format import duration
from ..snapshot import BUCKET_BOUNDS
from ..snapshot import Histogram

#: The size of a histogram in the units of its view box.
WIDTH, HEIGHT = 320, 72

#: Buckets that have a label at their upper bound: the decades.
_LABELLED = (0.0001, 0.001, 0.01, 0.1, 1.0, 10.0)


class Bar(t.NamedTuple):
    """One bucket."""

    x: float
    y: float
    width: float
    height: float
    title: str


class Label(t.NamedTuple):
    """A point of the scale."""

    x: float
    text: str


class Drawing(t.NamedTuple):
    """A histogram of durations."""

    name: str
    """What was measured, and when."""
    numbers: str
    """The same in words."""
    bars: tuple[Bar, ...]
    rows: tuple[tuple[str, int], ...]
    """The buckets that are not empty, for a table."""


def draw(name: str, found: Histogram | None) -> Drawing:
    """Draw a histogram."""
    if found is None or not found.count:
        nothing = "not known" if found is None else "nothing"
        return Drawing(name, nothing, (), ())
    step = WIDTH / (len(BUCKET_BOUNDS) + 1)
    highest = max(found.buckets)
    bars, rows = [], []
    for index, inside in enumerate(found.buckets):
        if inside:
            # A single long wait among thousands of short ones must be visible.
            height = max(2.0, round(inside / highest * HEIGHT, 1))
            span = _span(index)
            bars.append(
                Bar(
                    x=round(index * step + 0.5, 2),
                    y=round(HEIGHT - height, 1),
                    width=round(step - 1, 2),
                    height=height,
                    title=f"{span}: {inside}",
                )
            )
            rows.append((span, inside))
    numbers = (
        f"{found.count} in all · P50 {duration(found.p50)} · P95 {duration(found.p95)}"
        f" · max {duration(found.max)}"
    )
    return Drawing(name, numbers, tuple(bars), tuple(rows))


def _span(index: int) -> str:
    if index == 0:
        return f"up to {_short(BUCKET_BOUNDS[0])}"
    if index == len(BUCKET_BOUNDS):
        return f"above {_short(BUCKET_BOUNDS[-1])}"
    return f"{_short(BUCKET_BOUNDS[index - 1])} to {_short(BUCKET_BOUNDS[index])}"


def _short(seconds: float) -> str:
    """Write a bound, which is a round number."""
    return f"{seconds * 1000:g} ms" if seconds < 1 else f"{seconds:g} s"


class Scale(t.NamedTuple):
    """What all histograms share."""

    width: int
    height: int
    labels: tuple[Label, ...]


SCALE = Scale(
    WIDTH,
    HEIGHT,
    tuple(
        Label(round((index + 1) * WIDTH / (len(BUCKET_BOUNDS) + 1), 2), _short(bound))
        for index, bound in enumerate(BUCKET_BOUNDS)
        if bound in _LABELLED
    ),
)
