"""What each part costs: W2 with one part of the extension after the other switched off.

``python -m benchmarks.parts [ROUNDS]`` writes ``results/parts.json``, for the page.
All applications run in one process, on SQLite, in shuffled order.
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
from . import stats
from .contestants import by_hand
from .contestants import Database
from .contestants import InitApp
from .contestants import ours
from .contestants import thread_local_by_hand
from .report import markdown
from .runner import ROOT
from .worker import measure

PARTS = ROOT / "benchmarks" / "results" / "parts.json"

_STEPS = 200

_UNFAIR = {"SCOPEDSESSION_FAIR_POOL": False}
_UNTRACKED = {**_UNFAIR, "SCOPEDSESSION_TRACKING": False}
_UNCHECKED = {**_UNTRACKED, "SCOPEDSESSION_LOST_WORK": "ignore"}

#: A part costs as much as the first application takes longer than the second.
_PARTS = (
    ("fair queue, instead of SQLAlchemy's", "everything", "no fair queue"),
    ("account of connections, sessions and statements", "no fair queue", "untracked"),
    ("check for lost work", "untracked", "unchecked"),
    ("scope, session and teardown", "unchecked", "by hand"),
    ("**everything**", "everything", "by hand"),
    (
        "for comparison: thread-local `scoped_session` by hand",
        *("thread-local", "by hand"),
    ),
    ("for comparison: by hand once more (A/A)", "by hand again", "by hand"),
)


def contestants() -> dict[str, InitApp]:
    """Return the applications by name."""
    return {
        "by hand": by_hand(),
        "by hand again": by_hand(),
        "thread-local": thread_local_by_hand(),
        "everything": ours()(),
        "no fair queue": ours(**_UNFAIR)(),
        "untracked": ours(**_UNTRACKED)(),
        "unchecked": ours(**_UNCHECKED)(),
    }


def run(rounds: int) -> dict[str, t.Any]:
    """Measure; return microseconds of CPU time per request.

    ``baseline_us`` is that of the application by hand. Each of ``parts`` has the
    quartiles of its differences in the same round.
    """
    folder = tempfile.mkdtemp(prefix="fs-bench-")
    url = f"sqlite:///{folder}/bench.db"
    apps.fill(url)
    database = Database(url, apps.ENGINE, {"SCOPEDSESSION_CONTROL": False})
    request = apps.environ("/W2")
    served = {
        name: apps.make_app(init_app, database, folder)[0]
        for name, init_app in contestants().items()
    }
    times: dict[str, list[float]] = {name: [] for name in served}
    order = list(served)
    for _ in range(rounds):
        random.shuffle(order)
        for name in order:
            app = served[name]

            def slice_of(n: int, app: t.Any = app) -> None:
                for _ in range(n):
                    apps.call(app, request)

            times[name].append(measure(slice_of, _STEPS)["cpu"])
    return {
        "rounds": rounds,
        "steps": _STEPS,
        "baseline_us": statistics.median(times["by hand"]),
        "parts": [
            {
                "title": title,
                "cost_us": stats.spread(
                    [a - b for a, b in zip(times[more], times[less], strict=True)]
                ),
            }
            for title, more, less in _PARTS
        ],
    }


def table(path: Path = PARTS) -> str:
    """Return the measured costs as Markdown."""
    found = json.loads(path.read_text(encoding="utf-8"))
    lines = []
    for part in found["parts"]:
        low, median, high = part["cost_us"]
        share = 100 * median / found["baseline_us"]
        cost = f"{median:+.1f} ({low:+.1f} to {high:+.1f})"
        lines.append([part["title"], cost, f"{share:+.1f} %"])
    return markdown((["part", "CPU, µs per request", "of a request by hand"], lines))


def main() -> None:
    """Measure, write the file and print the table."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 100
    PARTS.write_text(json.dumps(run(rounds), indent=1) + "\n", encoding="utf-8")
    print(table())


if __name__ == "__main__":
    main()
