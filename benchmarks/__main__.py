"""The command line: ``python -m benchmarks``."""

from __future__ import annotations

import argparse
import itertools
import json
import os
import sys
import tempfile
import typing as t
from collections.abc import Iterator
from contextlib import contextmanager
from contextlib import ExitStack
from datetime import datetime
from datetime import timezone
from pathlib import Path

from . import apps
from . import crowds
from . import http_run
from . import imports
from . import instructions
from . import machine
from . import report
from . import status
from .cases import SLICED
from .cases import WORKLOADS
from .runner import Plan
from .runner import Result
from .runner import ROOT
from .runner import run_sliced
from .runner import say
from .runner import team


def options() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__import__("benchmarks").__doc__
    )
    parser.add_argument("--quick", action="store_true", help="a couple of minutes")
    parser.add_argument(
        "--only",
        metavar="W2,W10",
        help=f"some of {', '.join(WORKLOADS)}, and 'instructions' (needs valgrind)",
    )
    parser.add_argument("--rounds", type=int, help="rounds of each workload")
    parser.add_argument("--seed", type=int, default=1, help="of the shuffling")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw, as SVG")
    return parser


def main() -> None:
    """Measure, print the tables, and write what was asked for."""
    parser = options()
    given = parser.parse_args()
    everything = {*WORKLOADS, "instructions"}
    usual = set(WORKLOADS) if given.quick else everything
    chosen = set(given.only.split(",")) if given.only else usual
    if unknown := chosen - everything:
        parser.error(f"--only: there is no {', '.join(sorted(unknown))}")
    plan = (
        Plan(given.rounds or 5, 0.04, 1.0, quick=True, seed=given.seed)
        if given.quick
        else Plan(given.rounds or 25, 0.15, 4.0, quick=False, seed=given.seed)
    )
    # An installed package is compiled, as the peers are here. With this set, a checkout
    # would be compiled anew in each process, which makes its import four times as long.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    found = measure(chosen, plan)
    print(report.to_text(found))
    if given.json is not None:
        given.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    if given.plot is not None:
        from .plot import draw

        draw(found, given.plot)


def measure(chosen: set[str], plan: Plan) -> dict[str, t.Any]:
    """Run what was chosen; return the whole report."""
    began = datetime.now(timezone.utc)
    before = machine.describe()
    left_out: list[str] = []
    results: list[Result] = []
    results += _sliced("sqlite", itertools.repeat("sqlite"), chosen, plan)
    if chosen & {"W2", "W3", "W4", "W12"}:
        with ExitStack() as stack:
            try:
                urls = stack.enter_context(postgresql())
            except Exception as error:  # noqa: BLE001 - named in the report
                left_out.append(
                    f"everything with PostgreSQL, since {type(error).__name__}: {error}"
                )
            else:
                results += _sliced("postgresql", urls, chosen, plan)
                if "W12" in chosen:
                    results += http_run.run(_heavy(plan), urls)
    if "W7" in chosen:
        results.append(imports.run(plan))
    if "W8" in chosen:
        results.append(crowds.memory(plan))
    if "W9" in chosen:
        results += crowds.contention(_heavy(plan))
    results.sort(key=lambda result: int(result.case.workload[1:]))
    found: dict[str, t.Any] = {
        "format": report.FORMAT,
        "made_at": began.isoformat(timespec="seconds"),
        "quick": plan.quick,
        "rounds": plan.rounds,
        "seed": plan.seed,
        "commit": machine.commit(),
        "machine": before,
        "versions": machine.versions(),
        "cases": [report.to_dict(result) for result in results],
        "left_out": left_out,
    }
    if "W11" in chosen:
        found["status"] = status.run(plan)
    if "instructions" in chosen:
        counted = instructions.run()
        if isinstance(counted, str):
            left_out.append(f"the count of instructions, since {counted}")
        else:
            found["instructions"] = counted
    found["minutes"] = round((datetime.now(timezone.utc) - began).total_seconds() / 60)
    return found


def _heavy(plan: Plan) -> Plan:
    """Return the plan of workloads whose rounds take seconds for each contestant."""
    rounds = max(2, plan.rounds // 3)
    return Plan(rounds, plan.slice_s, plan.load_s, plan.quick, plan.seed)


def _sliced(
    database: str, urls: Iterator[str], chosen: set[str], plan: Plan
) -> Iterator[Result]:
    for case in SLICED:
        mine = (case.setting == "postgresql") == (database == "postgresql")
        if mine and case.workload in chosen:
            # Processes of its own for each case: nothing of one is in the next.
            with team(case.contestants, urls) as members:
                say(f"{case.id}: {case.title}")
                yield run_sliced(case, members, plan)


@contextmanager
def postgresql() -> Iterator[Iterator[str]]:
    """Start the PostgreSQL that the tests bring; give the URL of one database each."""
    sys.path.insert(0, str(ROOT / "tests" / "support"))
    from postgres import brought_server
    from postgres import fresh_database

    with (
        tempfile.TemporaryDirectory(prefix="fs-bench-") as folder,
        ExitStack() as stack,
    ):
        # PostgreSQL, under a user of its own, has to get through.
        Path(folder).chmod(0o755)
        server = stack.enter_context(brought_server(Path(folder)))

        def urls() -> Iterator[str]:
            while True:
                url = stack.enter_context(fresh_database(server.url))
                text = url.render_as_string(hide_password=False)
                apps.fill(text)
                yield text

        yield urls()


if __name__ == "__main__":
    main()
