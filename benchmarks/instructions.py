"""Instructions per request, counted by valgrind; the load does not change them.

``python -m benchmarks --only instructions``. Each figure comes from the difference
between two runs with different numbers of requests.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import typing as t
from concurrent.futures import ThreadPoolExecutor

from . import apps
from .runner import ROOT
from .runner import say

CASES = (("W1", ""), ("W2", ""), ("W5", "attribute"))
ROWS = ("hand", "local", "flask-sqlalchemy", "ours", "ours-off")

#: CPython specializes code in the first hundred requests, which must not be counted.
_FEW, _MANY = 200, 600


def run() -> dict[str, t.Any] | str:
    """Count; return the report's entry, or the reason why there is none."""
    valgrind = shutil.which("valgrind")
    if valgrind is None:
        return "valgrind is not installed"
    jobs = [(*case, row) for row in ROWS for case in CASES]
    # Compile all modules now, so that no run that counts compiles any.
    _count(valgrind, "W1", "", "ours", 1)
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        counted = list(pool.map(lambda job: _per_request(valgrind, *job), jobs))
    counts = dict(zip(jobs, counted, strict=True))
    lines = []
    for workload, setting in CASES:
        baseline = counts[workload, setting, "local" if workload == "W5" else "hand"]
        for row in ROWS:
            count = counts[workload, setting, row]
            lines.append(
                {
                    "case": f"{workload} {setting}".rstrip(),
                    "contestant": row,
                    "instructions": count,
                    "ratio": count / baseline,
                }
            )
    return {"id": "instructions", "title": "Instructions per request", "lines": lines}


def _per_request(valgrind: str, workload: str, setting: str, key: str) -> float:
    say(f"  instructions: {workload} {setting} {key}")
    few, many = (_count(valgrind, workload, setting, key, n) for n in (_FEW, _MANY))
    return (many - few) / (_MANY - _FEW)


def _count(valgrind: str, workload: str, setting: str, key: str, n: int) -> int:
    folder = tempfile.mkdtemp(prefix="fs-bench-")
    try:
        done = subprocess.run(
            [
                *(valgrind, "--tool=callgrind", "--callgrind-out-file=/dev/null"),
                *(sys.executable, "-m", "benchmarks.counted"),
                *(workload, setting, key, str(n), folder),
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
