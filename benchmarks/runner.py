"""Runs the cases: a process for each contestant, rounds in shuffled order."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
import tempfile
import typing as t
from collections.abc import Iterable
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from dataclasses import field
from pathlib import Path

from . import apps
from .cases import Case

ROOT = Path(__file__).parent.parent


@dataclass
class Plan:
    """The number of rounds, and how long they take."""

    rounds: int
    slice_s: float
    """Seconds that one contestant runs in one round."""
    load_s: float
    """The same in W9 and W12, which send requests from many threads."""
    quick: bool
    seed: int = 1

    def shuffled(self, keys: Iterable[str], number: int) -> list[str]:
        """Return the contestants in the order of one round."""
        order = list(keys)
        random.Random(self.seed * 1000 + number).shuffle(order)  # noqa: S311
        return order


@dataclass
class Row:
    """The measurements of one contestant: for each metric, a value for each round."""

    contestant: str
    problem: str | None = None
    """Why the contestant was left out, or stopped."""
    metrics: dict[str, list[float]] = field(default_factory=dict)

    def add(self, measured: t.Mapping[str, float]) -> None:
        """Add the figures of one round."""
        for key, value in measured.items():
            self.metrics.setdefault(key, []).append(value)


@dataclass
class Result:
    """A case and the measurements of its contestants."""

    case: Case
    rows: dict[str, Row]
    notes: dict[str, t.Any] = field(default_factory=dict)

    @classmethod
    def of(cls, case: Case) -> Result:
        """Return a result without figures."""
        return cls(case, {key: Row(key) for key in case.contestants})

    @property
    def running(self) -> list[str]:
        """The keys of the contestants that have no problem."""
        return [key for key, row in self.rows.items() if row.problem is None]

    def add(self, measured: t.Mapping[str, t.Mapping[str, float]]) -> None:
        """Add one round; a contestant that stopped is not in it."""
        for key, figures in measured.items():
            self.rows[key].add(figures)


class Failed(Exception):
    """A contestant failed; the message says why."""


def say(text: str) -> None:
    """Print a progress message."""
    print(text, file=sys.stderr, flush=True)


class Process:
    """A contestant's process; see :mod:`.worker`."""

    def __init__(self, key: str, url: str, options: dict[str, t.Any]) -> None:
        self.key = key
        # A short name: the path of the control socket is limited to about 100 bytes.
        self.folder = tempfile.mkdtemp(prefix="fs-bench-")
        if url == "sqlite":
            url = f"sqlite:///{self.folder}/bench.db"
            apps.fill(url)
        job = {"contestant": key, "url": url, "options": options, "folder": self.folder}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.worker", json.dumps(job)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=ROOT,
            encoding="utf-8",
            # Ctrl+C interrupts the parent only, which then ends the process.
            start_new_session=True,
        )

    def read(self) -> dict[str, t.Any]:
        """Return the next answer.

        :raises Failed: The answer is an error, or the process has ended.
        """
        line = t.cast(t.Any, self._process.stdout).readline()
        answer: dict[str, t.Any] = json.loads(line or '{"error": "ended"}')
        if "error" in answer:
            raise Failed(answer["error"])
        return answer

    def order(self, **what: t.Any) -> dict[str, t.Any]:
        """Send an order, and return the answer.

        :raises Failed: The answer is an error, or the process has ended.
        """
        stdin = t.cast(t.Any, self._process.stdin)
        try:
            stdin.write(json.dumps(what) + "\n")
            stdin.flush()
        except BrokenPipeError:
            raise Failed("ended") from None
        return self.read()

    def close(self) -> None:
        """End the process, and remove its files."""
        t.cast(t.Any, self._process.stdin).close()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        t.cast(t.Any, self._process.stdout).close()
        shutil.rmtree(self.folder, ignore_errors=True)


class Team:
    """The processes of the contestants of a case."""

    def __init__(self) -> None:
        self.processes: dict[str, Process] = {}
        self.problems: dict[str, str] = {}
        self.settings: dict[str, dict[str, t.Any]] = {}

    def start(
        self, keys: Iterable[str], urls: Iterator[str], options: dict[str, t.Any]
    ) -> None:
        """Start all contestants; note the problem of each that cannot take part."""
        for key in keys:
            self.processes[key] = Process(key, next(urls), options)
        for key, process in list(self.processes.items()):
            try:
                self.settings[key] = process.read()["settings"]
            except Failed as error:
                self.drop(key, str(error))
        self._compare_settings()

    def _compare_settings(self) -> None:
        expected = next(iter(self.settings.values()), {})
        for key, found in self.settings.items():
            differ = [name for name in expected if found.get(name) != expected[name]]
            if differ:
                details = ", ".join(
                    f"{name} is {found.get(name)!r} instead of {expected[name]!r}"
                    for name in differ
                )
                self.drop(key, f"other settings: {details}")

    def drop(self, key: str, problem: str) -> None:
        """Note the problem of a contestant, and continue without it."""
        say(f"  {key}: {problem}")
        self.problems[key] = problem
        process = self.processes.pop(key, None)
        if process is not None:
            process.close()

    def each(self, order: Iterable[str], **what: t.Any) -> dict[str, dict[str, t.Any]]:
        """Send an order to one contestant after the other; return their answers."""
        answers = {}
        for key in order:
            if key in self.processes:
                try:
                    answers[key] = self.processes[key].order(**what)
                except Failed as error:
                    self.drop(key, str(error))
        return answers

    def note_problems(self, result: Result) -> None:
        """Copy the problems of the contestants into a result."""
        for key, problem in self.problems.items():
            if key in result.rows and result.rows[key].problem is None:
                result.rows[key].problem = problem

    def close(self) -> None:
        """End all processes."""
        for process in self.processes.values():
            process.close()


@contextmanager
def team(
    keys: Iterable[str], urls: Iterator[str], options: dict[str, t.Any] | None = None
) -> Iterator[Team]:
    """Start a process for each contestant; end them all on exit.

    :param urls: A URL for each; ``"sqlite"`` is a file in the process's own folder.
    """
    found = Team()
    try:
        found.start(keys, urls, options or {})
        yield found
    finally:
        found.close()


def run_sliced(case: Case, members: Team, plan: Plan) -> Result:
    """Run one case of slices, round by round."""
    result = Result.of(case)
    order = {"do": "slice", "workload": case.workload, "setting": case.setting}
    members.note_problems(result)
    baseline = t.cast(str, case.baseline)
    # The first calls fill caches; the second are timed to size the slices.
    members.each(result.running, **order, n=10)
    once = members.each(result.running, **order, n=10)
    members.note_problems(result)
    if baseline not in once:
        return result
    base = once[baseline]["wall"]
    n = max(5, int(plan.slice_s * 1e6 / base))
    # A contestant that takes several times as long gets fewer steps: its difference
    # shows soon, and the others need the time. All others run equally many.
    steps = {
        key: max(5, n // max(1, int(found["wall"] / base)))
        for key, found in once.items()
    }
    result.notes["steps"] = steps
    for number in range(plan.rounds):
        say(f"  {case.id}: round {number + 1} of {plan.rounds}, {n} steps")
        for key in plan.shuffled(result.running, number):
            result.add(members.each([key], **order, n=steps[key]))
        members.note_problems(result)
    return result
