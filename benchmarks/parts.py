"""Where the time goes: W2 with one part of ours after the other taken out.

``python -m benchmarks.parts [ROUNDS]`` writes ``results/parts.json``, for the page.
All applications are in one process, which serves them in turn, on SQLite.
"""

from __future__ import annotations

import json
import random
import statistics
import sys
import tempfile
import typing as t
from pathlib import Path

from . import apps
from .contestants import by_hand
from .contestants import Database
from .contestants import InitApp
from .contestants import ours
from .contestants import thread_local_by_hand
from .runner import ROOT
from .worker import measure

PARTS = ROOT / "benchmarks" / "results" / "parts.json"

_STEPS = 200


def contestants() -> dict[str, InitApp]:
    """Return what is compared, by the title of its row."""
    off = {"SCOPEDSESSION_TRACKING": False}
    return {
        "by hand": by_hand(),
        "by hand, again": by_hand(),
        "everything": ours()(),
        "less the fair queue": ours(SCOPEDSESSION_FAIR_POOL=False)(),
        "less the account of pools and statements": ours(**off)(),
        "less the watch for lost work, too": ours(
            SCOPEDSESSION_LOST_WORK="ignore", **off
        )(),
        "thread-local `scoped_session` by hand": thread_local_by_hand(),
    }


def run(rounds: int) -> list[dict[str, t.Any]]:
    """Measure; return one row for each, with the median of its ratios."""
    folder = tempfile.mkdtemp(prefix="fs-bench-")
    url = f"sqlite:///{folder}/bench.db"
    apps.fill(url)
    database = Database(url, apps.ENGINE, {"SCOPEDSESSION_CONTROL": False})
    request = apps.environ("/W2")
    served = {
        title: apps.make_app(init_app, database, folder)[0]
        for title, init_app in contestants().items()
    }
    times: dict[str, list[float]] = {title: [] for title in served}
    order = list(served)
    for _ in range(rounds):
        random.shuffle(order)
        for title in order:
            app = served[title]

            def slice_of(n: int, app: t.Any = app) -> None:
                for _ in range(n):
                    apps.call(app, request)

            times[title].append(measure(slice_of, _STEPS)["cpu"])
    baseline = times["by hand"]
    return [
        {
            "title": title,
            "cpu_us": statistics.median(found),
            "ratio": statistics.median(
                mine / theirs for mine, theirs in zip(found, baseline, strict=True)
            ),
        }
        for title, found in times.items()
    ]


def table(path: Path = PARTS) -> str:
    """Return what was measured, as Markdown."""
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
    lines = [f"| {r['title']} | {r['cpu_us']:.0f} | {r['ratio']:.3f} |" for r in rows]
    return "\n".join(["| | CPU, µs | ratio |", "|:--|--:|--:|", *lines])


def main() -> None:
    """Measure, write and show."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 100
    found = {"rounds": rounds, "steps": _STEPS, "rows": run(rounds)}
    PARTS.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(table())


if __name__ == "__main__":
    main()
