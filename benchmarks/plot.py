"""The plots: CPU time of each contestant in each workload, relative to the baseline."""

from __future__ import annotations

import math
import textwrap
import typing as t
from pathlib import Path

import matplotlib as mpl

from .contestants import CONTESTANTS

mpl.use("svg")

from matplotlib import pyplot as plt

#: The workloads whose CPU time is compared with a baseline.
_SHOWN = ("W1", "W2", "W3", "W4", "W5", "W6", "W7", "W10", "W12")

#: Bars of a higher ratio are cut, so that they do not flatten the others.
_CUT_ABOVE = 1.4

_COLOURS = {
    "hand-again": "#9aa0a6",
    "local-again": "#9aa0a6",
    "local": "#6f7780",
    "hand": "#6f7780",
    "flask-sqlalchemy": "#cc79a7",
    "lite": "#d9a300",
    "alchemical": "#56a0d3",
    "advanced-alchemy": "#d55e00",
    "ours": "#009e73",
    "ours-off": "#66c7a8",
    "ours-unfair": "#3f7f6c",
}

_NAMES = {
    "hand-again": "A/A",
    "local-again": "A/A",
    "local": "thread-local",
    "hand": "with Session()",
    "ours": "Flask-ScopedSession",
    "ours-off": "… tracking off",
    "ours-unfair": "… fair pool off",
}

#: Ink by theme, in furo's colours.
_THEMES = {"": "#24292f", "-dark": "#d7dae0"}

#: Columns by width of the page. One column fits a phone of 360 pixels.
_COLUMNS = {"": 2, "-narrow": 1}

# Inches of a panel. An image of 3.3 inches is 238 points wide: on a phone, where about
# 330 pixels are left for it, a font of 9 points is 12 pixels high.
_WIDTH, _NAMES_WIDTH, _BAR, _TITLE, _AXIS = 3.3, 1.52, 0.175, 0.38, 0.32

Row = dict[str, t.Any]


def draw(report: dict[str, t.Any], path: Path) -> list[Path]:
    """Draw to `path`, and beside it for dark and for narrow pages; return all files.

    :raises SystemExit: The report has no case that can be drawn.
    """
    cases = [
        case
        for case in report["cases"]
        if case["id"].split()[0] in _SHOWN and _bars_of(case)
    ]
    if not cases:
        raise SystemExit(f"Nothing to draw: none of {', '.join(_SHOWN)} was measured.")
    found = []
    for width, columns in _COLUMNS.items():
        for theme, ink in _THEMES.items():
            where = path.with_name(f"{path.stem}{width}{theme}{path.suffix}")
            _draw(cases, where, ink, columns)
            found.append(where)
    return found


def _bars_of(case: dict[str, t.Any]) -> list[Row]:
    return [
        row
        for row in case["rows"]
        if row["contestant"] != case["baseline"] and row.get("ratio", {}).get("cpu")
    ]


def _draw(cases: list[dict[str, t.Any]], path: Path, ink: str, columns: int) -> None:
    style: dict[t.Any, t.Any] = {
        "text.color": ink,
        "axes.edgecolor": ink,
        "xtick.color": ink,
        "ytick.color": ink,
        "svg.hashsalt": "benchmarks",
        "svg.fonttype": "none",
        "font.size": 9,
    }
    lines = [cases[i : i + columns] for i in range(0, len(cases), columns)]
    heights = [
        _TITLE + _BAR * max(len(_bars_of(case)) for case in line) + _AXIS
        for line in lines
    ]
    width, height = columns * _WIDTH, sum(heights)
    with mpl.rc_context(style):
        figure = plt.figure(figsize=(width, height))
        top = height
        for line, line_height in zip(lines, heights, strict=True):
            for column, case in enumerate(line):
                left = column * _WIDTH + _NAMES_WIDTH
                own = _BAR * len(_bars_of(case))
                axis = figure.add_axes(
                    (
                        left / width,
                        (top - _TITLE - own) / height,
                        (_WIDTH - _NAMES_WIDTH - 0.1) / width,
                        own / height,
                    )
                )
                _panel(axis, case, ink)
                # The plots are narrow, and a backquote means nothing here.
                title = f"{case['id']}: {case['title']}".replace("`", "")
                figure.text(
                    (column * _WIDTH + 0.05) / width,
                    (top - _TITLE + 0.04) / height,
                    textwrap.fill(title, 44),
                    va="bottom",
                    weight="bold",
                    fontsize=8.5,
                )
            top -= line_height
        figure.savefig(path, format="svg", transparent=True, metadata={"Date": None})
        plt.close(figure)
    # matplotlib ends lines with spaces.
    text = path.read_text(encoding="utf-8")
    path.write_text(
        "\n".join(line.rstrip() for line in text.splitlines()) + "\n",
        encoding="utf-8",
    )


def _panel(axis: t.Any, case: dict[str, t.Any], ink: str) -> None:
    shown = list(reversed(_bars_of(case)))
    medians = [row["ratio"]["cpu"][1] for row in shown]
    uncut = [ratio for ratio in medians if ratio <= _CUT_ABOVE]
    # Panels have the same scale unless a bar needs more room.
    left = min(0.95, *uncut) if uncut else 0.95
    right = max(1.25, *uncut) if uncut else 1.25
    room = right - left
    for place, row in enumerate(shown):
        low, median, high = row["ratio"]["cpu"]
        colour = _COLOURS.get(row["contestant"], ink)
        if median > _CUT_ABOVE:
            end = right + 0.02 * room
            _cut_bar(axis, place, end, 0.03 * room, colour)
        else:
            axis.barh(place, median - 1, left=1, color=colour, height=0.72)
            axis.plot([low, high], [place, place], color=ink, linewidth=1)
            end = max(median, high, 1)
        label = f"{median:.2f}" if median < 10 else f"{median:.0f}"
        axis.text(end + 0.02 * room, place, label, va="center", fontsize=8.5)
    axis.axvline(1, color=ink, linewidth=0.8)
    axis.set_xlim(left - 0.02 * room, right + 0.24 * room)
    axis.set_ylim(-0.6, len(shown) - 0.4)
    axis.set_xticks(_ticks(left, right))
    axis.set_yticks(range(len(shown)), [_name(row["contestant"]) for row in shown])
    axis.tick_params(axis="y", length=0)
    axis.tick_params(axis="x", labelsize=8)
    for side in ("top", "right", "left"):
        axis.spines[side].set_visible(False)


def _cut_bar(axis: t.Any, place: int, end: float, slant: float, colour: str) -> None:
    """Draw a bar from 1 to `end` with a slanted gap before its end."""
    low, high = place - 0.36, place + 0.36
    gap = end - 4 * slant
    axis.fill([1, gap, gap + slant, 1], [low, low, high, high], color=colour, lw=0)
    after = gap + slant
    axis.fill(
        [after, end, end, after + slant], [low, low, high, high], color=colour, lw=0
    )


def _ticks(left: float, right: float) -> list[float]:
    step = 0.1 if right - left < 0.45 else 0.25
    first = math.ceil(left / step)
    return [n * step for n in range(first, math.floor(right / step + 1e-9) + 1)]


def _name(key: str) -> str:
    return _NAMES.get(key, CONTESTANTS[key].title)
