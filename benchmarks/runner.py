"""Runs the cases: processes of their own, rounds in shuffled order."""

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
from .contestants import why_not

ROOT = Path(__file__).parent.parent


@dataclass
class Plan:
    """How long and how often."""

    rounds: int
    slice_s: float
    """Seconds of one slice of one contestant."""
    load_s: float
    """Seconds of one contestant's turn under load."""
    quick: bool
    seed: int = 1

    def shuffled(self, keys: Iterable[str], number: int) -> list[str]:
        """Return the contestants in the order of one round."""
        order = list(keys)
        random.Random(self.seed * 1000 + number).shuffle(order)  # noqa: S311
        return order


@dataclass
class Row:
    """What one contestant gave, metric by metric, a value for each round."""

    contestant: str
    problem: str | None = None
    """Why it did not take part, or not to the end."""
    metrics: dict[str, list[float]] = field(default_factory=dict)

    def add(self, measured: t.Mapping[str, float]) -> None:
        """Take the figures of one round."""
        for key, value in measured.items():
            self.metrics.setdefault(key, []).append(value)


@dataclass
class Result:
    """A case and its rows."""

    case: Case
    rows: dict[str, Row]
    notes: dict[str, t.Any] = field(default_factory=dict)

    @classmethod
    def of(cls, case: Case) -> Result:
        """Return a result that has no figures yet."""
        return cls(case, {key: Row(key) for key in case.contestants})

    @property
    def running(self) -> list[str]:
        """The keys of the rows that nothing is wrong with."""
        return [key for key, row in self.rows.items() if row.problem is None]

    def add(self, measured: t.Mapping[str, t.Mapping[str, float]]) -> None:
        """Take one round: only those who were measured in it."""
        for key, figures in measured.items():
            self.rows[key].add(figures)


class Failed(Exception):
    """A contestant could not do what it was asked; the message says why."""


def say(text: str) -> None:
    """Tell the person who waits."""
    print(text, file=sys.stderr, flush=True)


class Process:
    """A contestant's process; see :mod:`.worker`."""

    def __init__(self, key: str, url: str, options: dict[str, t.Any]) -> None:
        self.key = key
        # Short, for the sake of the control socket's path.
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
        )

    def read(self) -> dict[str, t.Any]:
        """Return the next answer.

        :raises Failed: It is an error, or there is none.
        """
        line = t.cast(t.Any, self._process.stdout).readline()
        answer: dict[str, t.Any] = json.loads(line or '{"error": "ended"}')
        if "error" in answer:
            raise Failed(answer["error"])
        return answer

    def order(self, **what: t.Any) -> dict[str, t.Any]:
        """Have something done, and wait for it."""
        stdin = t.cast(t.Any, self._process.stdin)
        try:
            stdin.write(json.dumps(what) + "\n")
            stdin.flush()
        except BrokenPipeError:
            raise Failed("ended") from None
        return self.read()

    def close(self) -> None:
        """End it, and remove its files."""
        t.cast(t.Any, self._process.stdin).close()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        t.cast(t.Any, self._process.stdout).close()
        shutil.rmtree(self.folder, ignore_errors=True)


class Team:
    """The processes of all contestants that some cases need."""

    def __init__(self) -> None:
        self.processes: dict[str, Process] = {}
        self.problems: dict[str, str] = {}
        self.settings: dict[str, dict[str, t.Any]] = {}

    def start(
        self, keys: Iterable[str], urls: Iterator[str], options: dict[str, t.Any]
    ) -> None:
        """Start everybody, and find out who is able to take part."""
        for key in keys:
            reason = why_not(key)
            if reason is not None:
                self.problems[key] = f"left out: {reason}"
            else:
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
                told = ", ".join(
                    f"{name} is {found.get(name)!r} instead of {expected[name]!r}"
                    for name in differ
                )
                self.drop(key, f"other settings: {told}")

    def drop(self, key: str, problem: str) -> None:
        """Note what is wrong with a contestant, and go on without it."""
        say(f"  {key}: {problem}")
        self.problems[key] = problem
        process = self.processes.pop(key, None)
        if process is not None:
            process.close()

    def each(self, order: Iterable[str], **what: t.Any) -> dict[str, dict[str, t.Any]]:
        """Have the same done by one after the other."""
        answers = {}
        for key in order:
            if key in self.processes:
                try:
                    answers[key] = self.processes[key].order(**what)
                except Failed as error:
                    self.drop(key, str(error))
        return answers

    def note_problems(self, result: Result) -> None:
        """Put into a result who is missing from it."""
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
    """Run with a process for each contestant.

    :param urls: One for each; ``"sqlite"`` is a file in the process's own folder.
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
    # The first calls fill caches, the second tell how many make a slice.
    members.each(result.running, **order, n=10)
    once = members.each([baseline], **order, n=10)
    if baseline not in once:
        members.note_problems(result)
        return result
    n = max(5, int(plan.slice_s * 1e6 / once[baseline]["wall"]))
    result.notes["steps"] = n
    for number in range(plan.rounds):
        say(f"  {case.id}: round {number + 1} of {plan.rounds}, {n} steps each")
        shuffled = plan.shuffled(result.running, number)
        result.add(members.each(shuffled, **order, n=n))
        members.note_problems(result)
    return result
