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
from dataclasses import replace
from datetime import datetime
from datetime import timezone
from pathlib import Path

from . import apps
from . import crowds
from . import http_run
from . import imports
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
    parser.add_argument(
        "--quick", action="store_true", help="take a few minutes, with more noise"
    )
    parser.add_argument(
        "--only",
        metavar="W2,W10",
        help="run only these workloads, from W1 to W12",
    )
    parser.add_argument(
        "--rounds", type=int, help="number of rounds (default: 25, with --quick 5)"
    )
    parser.add_argument(
        "--seed", type=int, default=1, help="seed that shuffles the contestants"
    )
    parser.add_argument(
        "--json",
        type=Path,
        metavar="FILE",
        help="write all figures, again after each workload",
    )
    parser.add_argument(
        "--plot",
        type=Path,
        metavar="FILE",
        help="draw the plots as SVG: for light, dark, wide and narrow pages",
    )
    return parser


def main() -> None:
    """Measure, print the tables, and write the files that were asked for."""
    parser = options()
    given = parser.parse_args()
    chosen = set(given.only.split(",") if given.only else WORKLOADS)
    if unknown := chosen - {*WORKLOADS}:
        parser.error(f"--only: there is no {', '.join(sorted(unknown))}")
    plan = (
        Plan(given.rounds or 5, 0.04, 1.0, quick=True, seed=given.seed)
        if given.quick
        else Plan(given.rounds or 25, 0.15, 3.0, quick=False, seed=given.seed)
    )
    # An installed package is compiled, as the peers are here. With this variable, each
    # process would compile a checkout again, and its import would take far longer.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    found = Report(plan, given.json)
    exit_status = 0
    try:
        measure(found, chosen, plan)
    except KeyboardInterrupt:
        exit_status = 130
    print(report.to_text(found.content))
    if given.plot is not None:
        from .plot import draw

        draw(found.content, given.plot)
    sys.exit(exit_status)


class Report:
    """The report of a run: the file has all that is measured so far."""

    def __init__(self, plan: Plan, path: Path | None) -> None:
        self._began = datetime.now(timezone.utc)
        self._path = path
        self.content: dict[str, t.Any] = {
            "format": report.FORMAT,
            "made_at": self._began.isoformat(timespec="seconds"),
            "quick": plan.quick,
            "finished": False,
            "rounds": plan.rounds,
            "seed": plan.seed,
            "commit": machine.commit(),
            "machine": machine.describe(),
            "versions": machine.versions(),
            "cases": [],
            "left_out": [],
        }

    def add(self, *results: Result) -> None:
        """Add the results of some cases."""
        cases = self.content["cases"]
        cases.extend(report.to_dict(result) for result in results)
        cases.sort(key=lambda case: int(case["id"].partition(" ")[0][1:]))
        self.put()

    def leave_out(self, note: str) -> None:
        """Note what was not measured, and why."""
        self.content["left_out"].append(note)
        self.put()

    def put(self, **entries: t.Any) -> None:
        """Set entries of the report, and write the file."""
        took = datetime.now(timezone.utc) - self._began
        self.content.update(entries, minutes=round(took.total_seconds() / 60))
        if self._path is not None:
            # Replaced in one step, so that an interrupt never leaves half a file.
            part = self._path.with_name(f"{self._path.name}.part")
            text = json.dumps(self.content, indent=1) + "\n"
            part.write_text(text, encoding="utf-8")
            part.replace(self._path)


def measure(found: Report, chosen: set[str], plan: Plan) -> None:
    """Run the chosen workloads; add each result as soon as it is there."""
    for result in _sliced("sqlite", itertools.repeat("sqlite"), chosen, plan):
        found.add(result)
    if chosen & {"W2", "W3", "W4", "W12"}:
        with ExitStack() as stack:
            try:
                urls = stack.enter_context(postgresql())
            except Exception as error:  # noqa: BLE001 - named in the report
                found.leave_out(
                    f"everything with PostgreSQL: {type(error).__name__}: {error}"
                )
            else:
                for result in _sliced("postgresql", urls, chosen, plan):
                    found.add(result)
                if "W12" in chosen:
                    found.add(*http_run.run(_with_rounds(plan, 3), urls))
    if "W7" in chosen:
        found.add(imports.run(plan))
    if "W8" in chosen:
        found.add(crowds.memory(plan))
    if "W9" in chosen:
        for result in crowds.contention(_with_rounds(plan, 4)):
            found.add(result)
    if "W11" in chosen:
        found.put(status=status.run(plan))
    found.put(finished=True)


def _with_rounds(plan: Plan, divisor: int) -> Plan:
    """Return a plan with fewer rounds, because those under load take seconds each."""
    return replace(plan, rounds=max(2, plan.rounds // divisor))


def _sliced(
    database: str, urls: Iterator[str], chosen: set[str], plan: Plan
) -> Iterator[Result]:
    for case in SLICED:
        mine = (case.setting == "postgresql") == (database == "postgresql")
        if mine and case.workload in chosen:
            # New processes for each case, so that no case affects the next.
            with team(case.contestants, urls) as members:
                say(f"{case.id}: {case.title}")
                yield run_sliced(case, members, plan)


@contextmanager
def postgresql() -> Iterator[Iterator[str]]:
    """Start the PostgreSQL of the tests; yield URLs, each of a new database."""
    sys.path.insert(0, str(ROOT / "tests" / "support"))
    from postgres import brought_server
    from postgres import fresh_database

    with (
        tempfile.TemporaryDirectory(prefix="fs-bench-") as folder,
        ExitStack() as stack,
    ):
        # PostgreSQL runs as another user, which must be able to enter.
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
