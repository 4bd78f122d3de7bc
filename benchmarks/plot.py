"""The plot: CPU time of each contestant in each workload, as ratio to the baseline."""

from __future__ import annotations

import textwrap
import typing as t
from pathlib import Path

import matplotlib as mpl

from .contestants import CONTESTANTS

mpl.use("svg")

from matplotlib import pyplot as plt

#: The cases that are ratios of the time of one step.
_SHOWN = ("W1", "W2", "W3", "W4", "W5", "W6", "W7", "W10", "W12")

#: Ratios beyond are cut off, and written at the bar.
_HIGHEST = 1.6

_COLOURS = {
    "hand-again": "#9aa0a6",
    "local-again": "#9aa0a6",
    "local": "#6f7780",
    "flask-sqlalchemy": "#cc79a7",
    "lite": "#d9a300",
    "alchemical": "#56a0d3",
    "advanced-alchemy": "#d55e00",
    "ours": "#009e73",
    "ours-off": "#66c7a8",
}

#: Text and background by theme; furo's colours.
_THEMES = {"light": "#24292f", "dark": "#d7dae0"}


def draw(report: dict[str, t.Any], path: Path) -> list[Path]:
    """Draw to `path` for light pages, and beside it for dark ones; return both.

    :raises SystemExit: There is no case that can be drawn.
    """
    if not _drawable(report):
        raise SystemExit(f"Nothing to draw: none of {', '.join(_SHOWN)} was measured.")
    dark = path.with_name(f"{path.stem}-dark{path.suffix}")
    for theme, where in (("light", path), ("dark", dark)):
        _draw(report, where, _THEMES[theme])
    return [path, dark]


def _drawable(report: dict[str, t.Any]) -> list[dict[str, t.Any]]:
    return [case for case in report["cases"] if case["id"].partition(" ")[0] in _SHOWN]


def _draw(report: dict[str, t.Any], path: Path, ink: str) -> None:
    cases = [case for case in report["cases"] if case["id"].partition(" ")[0] in _SHOWN]
    style: dict[t.Any, t.Any] = {
        "text.color": ink,
        "axes.labelcolor": ink,
        "axes.edgecolor": ink,
        "xtick.color": ink,
        "ytick.color": ink,
        "svg.hashsalt": "benchmarks",
        "svg.fonttype": "none",
        "font.size": 9,
    }
    columns = 3
    rows = -(-len(cases) // columns)
    with mpl.rc_context(style):
        figure, axes = plt.subplots(
            rows, columns, figsize=(11, 2.6 * rows), squeeze=False
        )
        for axis in axes.flat[len(cases) :]:
            axis.set_visible(False)
        for axis, case in zip(axes.flat, cases, strict=False):
            _bars(axis, case, ink)
        figure.tight_layout()
        figure.savefig(path, format="svg", transparent=True, metadata={"Date": None})
        plt.close(figure)
    # matplotlib ends lines with spaces.
    text = path.read_text(encoding="utf-8")
    path.write_text(
        "\n".join(line.rstrip() for line in text.splitlines()) + "\n",
        encoding="utf-8",
    )


def _bars(axis: t.Any, case: dict[str, t.Any], ink: str) -> None:
    shown = [
        row
        for row in case["rows"]
        if row["contestant"] != case["baseline"] and row.get("ratio", {}).get("cpu")
    ]
    lowest = min((row["ratio"]["cpu"][1] for row in shown), default=1.0)
    left = min(0.9, lowest - 0.05)
    for place, row in enumerate(reversed(shown)):
        low, median, high = row["ratio"]["cpu"]
        end = min(median, _HIGHEST)
        axis.barh(
            place, end - left, left=left, color=_COLOURS.get(row["contestant"], ink)
        )
        if high <= _HIGHEST:
            axis.plot([low, high], [place, place], color=ink, linewidth=1)
        label = f"{median:.2f}" if median < 10 else f"{median:.0f}"
        axis.text(
            max(end, min(high, _HIGHEST)) + 0.01, place, label, va="center", fontsize=8
        )
    axis.axvline(1, color=ink, linewidth=0.8, linestyle=":")
    axis.set_xlim(left, _HIGHEST + 0.12)
    axis.set_yticks(range(len(shown)))
    axis.set_yticklabels([_short(row["contestant"]) for row in reversed(shown)])
    # The plots are narrow, and a backquote means nothing here.
    title = f"{case['id']}: {case['title']}".replace("`", "")
    axis.set_title(textwrap.fill(title, 34), fontsize=8.5, loc="left")
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)


def _short(key: str) -> str:
    names = {
        "hand-again": "A/A",
        "local-again": "A/A",
        "local": "thread-local",
        "hand": "with Session()",
        "ours": "ours, tracking on",
        "ours-off": "ours, tracking off",
        "ours-unfair": "ours, fair pool off",
    }
    return names.get(key, CONTESTANTS[key].title)
