"""What the scripts of the fork and gevent tests begin with.

An application that serves its control socket, and an observer: another process,
forked before anything was served, that looks from outside when it is told to.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flask import Flask
from sqlalchemy import select

from flask_scopedsession import ScopedSession
from flask_scopedsession._control.client import ask
from flask_scopedsession._control.directory import Place

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


class Observer:
    """Looks at all workers from another process."""

    def __init__(self) -> None:
        mine, its = socket.socketpair()
        self._pid = os.fork()
        if self._pid == 0:
            mine.close()
            try:
                self._run(its.makefile("rw"))
            finally:
                os._exit(0)
        its.close()
        self._socket = mine
        self._file = mine.makefile("rw")

    @staticmethod
    def _run(file: Any) -> None:
        for line in file:
            answers = ask([Place(str(HOME), None)], float(line))
            found = {
                "live": {w.pid: w.id for w in answers.workers if w.source == "live"},
                "gone": [w.pid for w in answers.workers if w.state == "gone"],
                "silent": {s.pid: s.reason for s in answers.silent},
                "at": [
                    holder.at
                    for worker in answers.workers
                    for pool in worker.pools
                    for holder in pool.holders
                ],
            }
            print(json.dumps(found), file=file, flush=True)

    def ask(self, timeout: float = 5.0) -> None:
        """Let it look, and do not wait."""
        print(timeout, file=self._file, flush=True)

    def answer(self) -> dict[str, Any]:
        """Return what it has found, by process id."""
        found = json.loads(self._file.readline())
        found["live"] = {int(pid): id for pid, id in found["live"].items()}
        found["silent"] = {int(pid): r for pid, r in found["silent"].items()}
        return found  # type: ignore[no-any-return]

    def look(self, timeout: float = 5.0) -> dict[str, Any]:
        """Return what there is to see now."""
        self.ask(timeout)
        return self.answer()

    def live(self) -> set[int]:
        """Return the process ids of those that answer; nobody may be silent."""
        found = self.look()
        assert not found["silent"], found
        return set(found["live"])

    def close(self) -> None:
        """End the other process."""
        self._file.close()
        self._socket.close()
        wait_for(self._pid)


def files() -> list[str]:
    """Return what is in the control directory."""
    return sorted(path.name for path in HOME.iterdir()) if HOME.exists() else []


def wait_for(pid: int) -> None:
    """Reap a child; it must have ended well."""
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


class Child:
    """A fork that does as it is told, and then exits as processes do."""

    def __init__(
        self, todo: Callable[[], object], fork: Callable[[], int] = os.fork
    ) -> None:
        self._done, done = socket.socketpair()
        go_on, self._go_on = socket.socketpair()
        self.pid = fork()
        if self.pid == 0:
            todo()
            done.send(b".")
            self._go_on.close()
            go_on.recv(1)
            sys.exit(0)
        done.close()
        go_on.close()

    def wait_done(self) -> None:
        """Wait until it has done what it was told."""
        assert self._done.recv(1) == b"."

    def end(self) -> None:
        """Let it exit."""
        self._go_on.close()
        self._done.close()
        wait_for(self.pid)
