"""The common part of the scripts of the fork and gevent tests.

It has an application that serves its control socket, and an observer: another process,
forked before the first request, which asks the workers on command.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flask import Flask
from sqlalchemy import select

from flask_scopedsession import ScopedSession

#: Seconds after which a process of a failed script ends.
LONGEST = 40
signal.alarm(LONGEST)

HERE = tempfile.mkdtemp(prefix="")
HOME = Path(HERE) / "run"

db = ScopedSession()
app = Flask("served", root_path=HERE, instance_path=HERE)
app.config.update(
    SQLALCHEMY_DATABASE_URI=f"sqlite:///{HERE}/test.db",
    SCOPEDSESSION_CONTROL_DIR=str(HOME),
)
db.init_app(app)


@app.get("/work")
def work() -> str:
    return str(db.session.scalar(select(1)))


@app.get("/idle")
def idle() -> str:
    return "no database"


def serve(path: str = "/work") -> None:
    assert app.test_client().get(path).status_code == 200


class Pipe:
    """Lines between two processes, by descriptors that a fork does not close."""

    def __init__(self) -> None:
        self._read, self._write = os.pipe()
        self._rest = b""

    def send(self, line: str) -> None:
        os.write(self._write, f"{line}\n".encode())

    def receive(self) -> str:
        while b"\n" not in self._rest:
            self._rest += os.read(self._read, 65536)
        line, _, self._rest = self._rest.partition(b"\n")
        return line.decode()


class Observer:
    """Asks all workers from another process."""

    def __init__(self) -> None:
        self._questions, self._answers = Pipe(), Pipe()
        self._pid = os.fork()
        if self._pid == 0:
            signal.alarm(LONGEST)
            try:
                self._run()
            finally:
                os._exit(0)

    def _run(self) -> None:
        while (line := self._questions.receive()) != "end":
            with app.app_context():
                answers = db.workers(float(line))
            found = {
                "live": {w.pid: w.id for w in answers.workers if w.source == "live"},
                "silent": {s.pid: s.reason for s in answers.silent},
                "at": [
                    holder.at
                    for worker in answers.workers
                    for pool in worker.pools
                    for holder in pool.holders
                ],
            }
            self._answers.send(json.dumps(found))

    def ask(self, timeout: float = 5.0) -> None:
        """Let it ask, and do not wait."""
        self._questions.send(str(timeout))

    def answer(self) -> dict[str, Any]:
        """Return the workers that it found, by process ID."""
        found = json.loads(self._answers.receive())
        for key in ("live", "silent"):
            found[key] = {int(pid): value for pid, value in found[key].items()}
        return found  # type: ignore[no-any-return]

    def look(self, timeout: float = 5.0) -> dict[str, Any]:
        """Ask, and return the workers that answer now."""
        self.ask(timeout)
        return self.answer()

    def live(self) -> set[int]:
        """Return the process IDs of the workers that answer; all must."""
        found = self.look()
        assert not found["silent"], found
        return set(found["live"])

    def close(self) -> None:
        """End the other process."""
        self._questions.send("end")
        wait_for(self._pid)


def files() -> list[str]:
    """Return the names of the files in the control directory."""
    return sorted(path.name for path in HOME.iterdir()) if HOME.exists() else []


def wait_for(pid: int) -> None:
    """Reap a child, which must exit with 0."""
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


class Child:
    """A fork that runs a function, and exits normally on command."""

    def __init__(self, todo: Callable[[], object]) -> None:
        self._done, self._go_on = Pipe(), Pipe()
        self.pid = os.fork()
        if self.pid == 0:
            signal.alarm(LONGEST)
            todo()
            self._done.send("done")
            assert self._go_on.receive() == "end"
            sys.exit(0)

    def wait_done(self) -> None:
        """Wait until the function has returned."""
        assert self._done.receive() == "done"

    def end(self) -> None:
        """Let it exit."""
        self._go_on.send("end")
        wait_for(self.pid)
