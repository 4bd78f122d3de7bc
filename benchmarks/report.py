"""Results as JSON, and tables as text and as Markdown."""

from __future__ import annotations

import typing as t

from . import stats
from .contestants import CONTESTANTS
from .runner import Result

FORMAT = 1

#: What a view of W9 does while it holds a connection.
HOLDS = {"cpu": "computing", "sleep": "waiting"}

Table = tuple[list[str], list[list[str]]]


def to_dict(result: Result) -> dict[str, t.Any]:
    """Return a result for JSON: the figures of each round, and their quartiles."""
    case = result.case
    base = result.rows[case.baseline] if case.baseline else None
    rows = []
    for key, row in result.rows.items():
        found: dict[str, t.Any] = {"contestant": key, "title": CONTESTANTS[key].title}
        if row.problem is not None or not row.metrics:
            found["problem"] = row.problem or "the baseline failed"
        else:
            found["metrics"] = {
                name: [round(value, 4) for value in values]
                for name, values in row.metrics.items()
            }
            found["median"] = {
                name: stats.spread(values) for name, values in row.metrics.items()
            }
            if base is not None and base.problem is None:
                found["ratio"] = {
                    metric.key: stats.ratios(
                        row.metrics[metric.key], base.metrics[metric.key]
                    )
                    for metric in case.metrics
                    if metric.ratio
                }
        rows.append(found)
    return {
        "id": case.id,
        "title": case.title,
        "baseline": case.baseline,
        "metrics": [metric._asdict() for metric in case.metrics],
        "notes": result.notes,
        "rows": rows,
    }


def heading(case: dict[str, t.Any]) -> str:
    """Return the title of a case's table."""
    hold = case["notes"].get("hold")
    return f"{case['id']}: {case['title']}{f', {HOLDS[hold]}' if hold else ''}"


def table_of(case: dict[str, t.Any]) -> Table:
    """Return a case as a table of strings."""
    ratios = [metric for metric in case["metrics"] if metric["ratio"]]
    plain = [metric for metric in case["metrics"] if not metric["ratio"]]
    if not case["baseline"]:
        ratios, plain = [], case["metrics"]
    head = [
        "",
        *(f"{metric['title']}, ratio" for metric in ratios),
        *(_with_unit(metric) for metric in ratios),
        *(_with_unit(metric) for metric in plain),
    ]
    lines = []
    for row in case["rows"]:
        if "problem" in row:
            lines.append([row["title"], row["problem"], *[""] * (len(head) - 2)])
            continue
        median = row["median"]
        lines.append(
            [
                row["title"],
                *(_ratio(row.get("ratio", {}).get(metric["key"])) for metric in ratios),
                *(_figure(median[metric["key"]][1]) for metric in ratios),
                *(_figure(median[metric["key"]][1]) for metric in plain),
            ]
        )
    return head, lines


def _with_unit(metric: dict[str, t.Any]) -> str:
    title, unit = metric["title"], metric["unit"]
    return f"{title}, {unit}" if unit and unit not in title else str(title)


def _ratio(spread: t.Sequence[float] | None) -> str:
    if spread is None:
        return "-"
    low, median, high = spread
    if low == median == high == 1:
        return "1"
    return f"{_short(median)} ({_short(low)} to {_short(high)})"


def _short(ratio: float) -> str:
    return f"{ratio:.3f}" if ratio < 10 else f"{ratio:.1f}"


def _figure(value: float) -> str:
    if value == int(value) or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def status_table(status: dict[str, t.Any]) -> Table:
    """Return W11 as a table."""
    head = ["workers", "sessions in each", "answered", "ask, ms", "command, ms"]
    lines = [
        [
            *(f"{line[key]:,}" for key in ("workers", "sessions", "answered")),
            *(_milliseconds(line[key]) for key in ("ask", "command")),
        ]
        for line in status["lines"]
    ]
    return head, lines


def _milliseconds(spread: t.Sequence[float]) -> str:
    low, median, high = spread
    return f"{_figure(median)} ({_figure(low)} to {_figure(high)})"


def tables(report: dict[str, t.Any]) -> t.Iterator[tuple[str, Table]]:
    """Return all tables of a report, with their headings."""
    for case in report["cases"]:
        yield heading(case), table_of(case)
    if report.get("status"):
        yield f"W11: {report['status']['title']}", status_table(report["status"])


def to_text(report: dict[str, t.Any]) -> str:
    """Return all tables as they are printed."""
    parts = []
    for title, table in tables(report):
        parts.append(f"{title}\n{_aligned(table)}")
    parts.extend(f"Left out: {note}" for note in report["left_out"])
    return "\n\n".join(parts)


def _aligned(table: Table) -> str:
    head, lines = table
    widths = [max(len(line[column]) for line in (head, *lines)) for column in range(1)]
    for column in range(1, len(head)):
        # The reason why a row is missing may overlap the other columns.
        cells = [line[column] for line in lines if any(line[2:]) or len(head) <= 2]
        widths.append(max(map(len, (head[column], *cells))))
    text = []
    for line in (head, *lines):
        cells = [
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        text.append("  ".join(cells).rstrip())
    return "\n".join(text)


def markdown(table: Table) -> str:
    """Return a table as Markdown, with numbers aligned to the right."""
    head, lines = table
    rule = [
        ":---" if any(line[column][:1].isalpha() for line in lines) else "---:"
        for column in range(1, len(head))
    ]
    rule.insert(0, ":---")
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, rule, *lines))
