"""W7: the duration of an import, in fresh processes."""

from __future__ import annotations

import json
import subprocess
import sys
import typing as t

from .cases import IMPORTS
from .contestants import CONTESTANTS
from .runner import Plan
from .runner import Result
from .runner import ROOT
from .runner import say

_SCRIPT = """
import json, sys, time
before = len(sys.modules)
wall, cpu = time.perf_counter(), time.process_time()
import flask, sqlalchemy, sqlalchemy.orm
{imports}
cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
print(json.dumps(
    dict(wall=wall * 1e6, cpu=cpu * 1e6, modules=len(sys.modules) - before)
))
"""


def run(plan: Plan) -> Result:
    """Run the case."""
    result = Result.of(IMPORTS)
    for number in range(-1, plan.rounds):  # the first round fills the disk cache
        say(f"  {IMPORTS.id}: round {number + 1} of {plan.rounds}")
        for key in plan.shuffled(result.running, number):
            measured = _import(CONTESTANTS[key].imports)
            if isinstance(measured, str):
                result.rows[key].problem = measured
            elif number >= 0:
                result.rows[key].add(measured)
    return result


def _import(imports: str) -> dict[str, float] | str:
    done = subprocess.run(
        [sys.executable, "-c", _SCRIPT.format(imports=imports)],
        capture_output=True,
        cwd=ROOT,
        encoding="utf-8",
        check=False,
    )
    if done.returncode:
        return done.stderr.strip().splitlines()[-1]
    return t.cast("dict[str, float]", json.loads(done.stdout))
