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
from collections.abc import Callable
from pathlib import Path

from sqlalchemy import event
from sqlalchemy.orm import Session

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
_GUARDED = (
    *("execute", "scalars", "scalar", "flush", "connection", "commit", "rollback"),
    "close",
)


def _unguarded(session_class: t.Any) -> None:
    for name in _GUARDED:
        setattr(session_class, name, getattr(Session, name))


def _unlinked(session_class: t.Any) -> None:
    from flask_scopedsession._sessions.factory import _after_begin

    event.remove(session_class, "after_begin", _after_begin)


def _without(*changes: Callable[[t.Any], None], **config: t.Any) -> InitApp:
    inner = ours(**config)()

    def init_app(app: t.Any, database: Database) -> t.Any:
        access = inner(app, database)
        for change in changes:
            change(access.names["db"]._class)
        return access

    return init_app


def contestants() -> dict[str, InitApp]:
    """Return what is compared, by the title of its row."""
    off = {"SCOPEDSESSION_TRACKING": False}
    least = {**off, "SCOPEDSESSION_LOST_WORK": "ignore"}
    return {
        "by hand": by_hand(),
        "by hand, again": by_hand(),
        "everything": _without(),
        "less the account of pools and statements": _without(**off),
        "less the look for lost work": _without(**least),
        "less the guard against two threads": _without(_unguarded, **least),
        "less the link from connection to session": _without(
            *(_unguarded, _unlinked), **least
        ),
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
