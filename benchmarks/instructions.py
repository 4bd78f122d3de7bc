"""Instructions per step, counted by valgrind; a busy machine hardly changes them.

``python -m benchmarks.instructions`` writes ``results/instructions.json``, for the
page. Only the thread that runs the steps is counted, and only while it does.
Still, one run differs from the next by up to one percent, so each figure is the median
of runs with different hash seeds.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import typing as t
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from datetime import timezone
from pathlib import Path
from statistics import median

from . import apps
from . import machine
from .contestants import CONTESTANTS
from .report import markdown
from .report import Table
from .runner import ROOT
from .runner import say

COUNTED = ROOT / "benchmarks" / "results" / "instructions.json"


#: The contestants of a case. The first one is the baseline.
ROWS = ("hand", "flask-sqlalchemy", "ours")


class Case(t.NamedTuple):
    """A workload, and how many steps of it are counted in a run."""

    workload: str
    setting: str
    title: str
    steps: int
    aim: float = 1.04
    """What the ratio of ours should not exceed."""
    rows: tuple[str, ...] = ROWS

    @property
    def id(self) -> str:
        """The name in JSON and in tables."""
        return f"{self.workload} {self.setting}".rstrip()


_LOCAL = ("local", *ROWS[1:])

CASES = (
    Case("W1", "", "a request that uses no database", 800),
    Case("W2", "", "one SELECT", 400),
    Case("W3", "", "get, insert, commit", 200),
    Case("W4", "", "ten SELECTs", 100),
    Case(
        *("W5", "attribute", "1,000 reads of an attribute of the session"),
        *(20, 0.9, _LOCAL),
    ),
    Case(
        *("W5", "call", "1,000 calls of the session's `get_bind()`"),
        *(20, 0.9, _LOCAL),
    ),
    Case("W6", "", "create an application", 30, 1.08),
    Case(
        *("W10", "", "check out a connection and return it"),
        *(2000, 1.2, ("hand", "ours")),
    ),
)

#: Values of ``PYTHONHASHSEED``.
SEEDS = range(5)

#: The function of CPython within which instructions are counted: that of
#: ``operator.call()``, which nothing else here uses.
COUNTED_WITHIN = "_operator_call"


def run(valgrind: str) -> dict[str, t.Any]:
    """Count, and return what the page needs."""
    commit = machine.commit()
    jobs = [(case, row, seed) for case in CASES for row in case.rows for seed in SEEDS]
    # Compile all modules now, so that no run that counts compiles any.
    _count(valgrind, CASES[0], "ours", 0)
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        counted = list(pool.map(lambda job: _count(valgrind, *job), jobs))
    baselines = {case.id: case.rows[0] for case in CASES}
    counts: dict[tuple[str, str], list[int]] = {}
    for (case, row, _), count in zip(jobs, counted, strict=True):
        counts.setdefault((case.id, row), []).append(count)
    return {
        "made_at": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": commit,
        "lines": [
            {
                "case": case_id,
                "contestant": row,
                "instructions": round(median(found)),
                "runs": len(found),
                "least": min(found),
                "most": max(found),
                "ratio": median(found) / median(counts[case_id, baselines[case_id]]),
            }
            for (case_id, row), found in counts.items()
        ],
    }


def _count(valgrind: str, case: Case, row: str, seed: int) -> int:
    """Return the instructions of a step."""
    say(f"  instructions: {case.id}, {row}, seed {seed}")
    folder = tempfile.mkdtemp(prefix="fs-bench-")
    try:
        done = subprocess.run(
            [
                *(valgrind, "--tool=callgrind", "--callgrind-out-file=/dev/null"),
                f"--toggle-collect={COUNTED_WITHIN}",
                *(sys.executable, "-m", "benchmarks.counted"),
                *(case.workload, case.setting, row, str(case.steps), folder),
            ],
            capture_output=True,
            cwd=ROOT,
            env={**os.environ, "PYTHONHASHSEED": str(seed)},
            encoding="utf-8",
            check=True,
        )
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    collected = int(re.findall(r"Collected : (\d+)", done.stderr)[0])
    if collected == 0:
        sys.exit(f"This Python has no symbol {COUNTED_WITHIN!r}: use one with symbols.")
    return round(collected / case.steps)


def prepared(folder: str) -> str:
    """Return the URL of a small database in `folder`."""
    url = f"sqlite:///{folder}/bench.db"
    apps.fill(url)
    return url


def read(path: Path = COUNTED) -> dict[str, t.Any]:
    """Return what was counted last."""
    return t.cast("dict[str, t.Any]", json.loads(path.read_text(encoding="utf-8")))


def judged(
    counted: dict[str, t.Any],
) -> t.Iterator[tuple[str, str, float, float, float]]:
    """Yield each case's name and title, its aim, the ratio of ours, and the noise.

    The noise is half of what lies between the least and the most of the baseline.
    """
    lines = {(line["case"], line["contestant"]): line for line in counted["lines"]}
    for case in CASES:
        base, ours = (lines[case.id, row] for row in (case.rows[0], "ours"))
        noise = (base["most"] - base["least"]) / 2 / base["instructions"]
        yield case.id, case.title, case.aim, ours["ratio"], noise


def table(counted: dict[str, t.Any]) -> Table:
    """Return the counts as a table."""
    lines = [
        [
            line["case"],
            CONTESTANTS[line["contestant"]].title,
            f"{line['ratio']:.3f}",
            f"{line['instructions']:,}",
            f"{line['least']:,} to {line['most']:,}",
            str(line["runs"]),
        ]
        for line in counted["lines"]
    ]
    return ["case", "", "ratio", "instructions", "least to most", "runs"], lines


def main() -> None:
    """Count, write the file and print the table."""
    valgrind = shutil.which("valgrind")
    if valgrind is None:
        sys.exit("valgrind is not installed")
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    counted = run(valgrind)
    COUNTED.write_text(json.dumps(counted, indent=1) + "\n", encoding="utf-8")
    print(markdown(table(counted)))


if __name__ == "__main__":
    main()
