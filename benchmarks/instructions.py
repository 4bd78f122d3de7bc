"""Instructions per request, counted by valgrind; a busy machine hardly changes them.

``python -m benchmarks.instructions`` writes ``results/instructions.json``, for the
page. Each figure comes from the difference between two runs with different numbers of
requests.
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

from . import apps
from . import machine
from .contestants import CONTESTANTS
from .report import markdown
from .report import Table
from .runner import ROOT
from .runner import say

COUNTED = ROOT / "benchmarks" / "results" / "instructions.json"


class Case(t.NamedTuple):
    """A workload, and the steps of its two runs.

    CPython specializes code in the first hundred steps, which must not be counted. The
    start of a process differs by some millions of instructions from run to run, so the
    runs must differ by many steps.
    """

    workload: str
    title: str
    few: int
    many: int


CASES = (
    Case("W2", "one SELECT", 200, 1800),
    Case("W3", "get, insert, commit", 200, 1000),
    Case("W4", "ten SELECTs", 150, 550),
)

#: The first one is the baseline.
ROWS = ("hand", "flask-sqlalchemy", "ours")

#: What the ratio of ours should not exceed.
AIM = 1.04


def run(valgrind: str) -> dict[str, t.Any]:
    """Count, and return what the page needs."""
    commit = machine.commit()
    jobs = [(case, row) for case in CASES for row in ROWS]
    # Compile all modules now, so that no run that counts compiles any.
    _count(valgrind, CASES[0], "ours", 1)
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        counted = list(pool.map(lambda job: _per_step(valgrind, *job), jobs))
    counts = dict(zip(jobs, counted, strict=True))
    return {
        "made_at": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": commit,
        "lines": [
            {
                "case": case.workload,
                "contestant": row,
                "instructions": round(counts[case, row]),
                "ratio": counts[case, row] / counts[case, ROWS[0]],
            }
            for case, row in jobs
        ],
    }


def _per_step(valgrind: str, case: Case, row: str) -> float:
    say(f"  instructions: {case.workload}, {row}")
    few, many = (_count(valgrind, case, row, n) for n in (case.few, case.many))
    return (many - few) / (case.many - case.few)


def _count(valgrind: str, case: Case, row: str, n: int) -> int:
    folder = tempfile.mkdtemp(prefix="fs-bench-")
    try:
        done = subprocess.run(
            [
                *(valgrind, "--tool=callgrind", "--callgrind-out-file=/dev/null"),
                *(sys.executable, "-m", "benchmarks.counted"),
                *(case.workload, row, str(n), folder),
            ],
            capture_output=True,
            cwd=ROOT,
            env={**os.environ, "PYTHONHASHSEED": "0"},
            encoding="utf-8",
            check=True,
        )
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return int(re.findall(r"Collected : (\d+)", done.stderr)[0])


def prepared(folder: str) -> str:
    """Return the URL of a small database in `folder`."""
    url = f"sqlite:///{folder}/bench.db"
    apps.fill(url)
    return url


def read(path: Path = COUNTED) -> dict[str, t.Any]:
    """Return what was counted last."""
    return t.cast("dict[str, t.Any]", json.loads(path.read_text(encoding="utf-8")))


def table(counted: dict[str, t.Any]) -> Table:
    """Return the counts as a table."""
    lines = [
        [
            line["case"],
            CONTESTANTS[line["contestant"]].title,
            f"{line['ratio']:.3f}",
            f"{line['instructions']:,}",
        ]
        for line in counted["lines"]
    ]
    return ["case", "", "ratio", "instructions"], lines


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
