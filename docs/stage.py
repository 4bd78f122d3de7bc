"""What ``capture.py`` needs: a running server, and commands run on a terminal."""

from __future__ import annotations

import itertools
import os
import re
import sys
import time
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
from contextlib import contextmanager
from contextlib import ExitStack
from contextlib import suppress
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

from lean import LEAN
from serving import Served
from starting import start

from example_app import demo
from flask_scopedsession._live.survey import survey_directory
from flask_scopedsession.snapshot import PoolSnapshot

#: Seconds to wait for an expected output.
PATIENCE = 30

#: The width of the terminal, in characters.
COLUMNS = 90

CONTROL_DIR = "FLASK_SCOPEDSESSION_CONTROL_DIR"


class Scene:
    """A running server to send requests to, and commands that inspect it."""

    def __init__(self, env: Mapping[str, str], server: demo.Server) -> None:
        self._env = env
        self.server = server
        self._open: list[HTTPConnection] = []

    def begin(self, method: str, path: str) -> HTTPConnection:
        """Send a request without waiting for the response."""
        connection = self.server.connect()
        self._open.append(connection)
        connection.request(method, path)
        return connection

    def ask(self, method: str, path: str) -> int:
        """Send a request, and return the status code of the response."""
        response = self.begin(method, path).getresponse()
        response.read()
        return response.status

    def close(self) -> None:
        """Close all connections to the server."""
        for connection in self._open:
            connection.close()

    def flask(self, *args: str, **terminal: Any) -> str:
        """Run a Flask command; return the command line and its output."""
        said = self._run(*args, **terminal)
        return f"$ flask --app {demo.APP} {' '.join(args)}\n{said}"

    def _run(self, *args: str, **terminal: Any) -> str:
        where = self._env["EXAMPLE_INSTANCE_PATH"]
        command = (LEAN, "-m", "flask", "--app", demo.APP, *args)
        return on_terminal(self._env, *command, cwd=where, **terminal)[1]

    def pools(self) -> list[PoolSnapshot]:
        """Ask the workers, and return all pools of the default bind."""
        survey = survey_directory(self._env[CONTROL_DIR], timeout=2)
        pools = [pool for worker in survey.workers for pool in worker.pools]
        return [pool for pool in pools if pool.bind == "default"]

    def until(self, what: Callable[[PoolSnapshot], object], pools: int = 1) -> None:
        """Wait until *what* is true of at least *pools* pools."""
        deadline = time.monotonic() + PATIENCE
        while sum(bool(what(pool)) for pool in self.pools()) < pools:
            if time.monotonic() > deadline:
                raise TimeoutError(self._run("pool-status"))
            time.sleep(0.1)

    def logged(self, pattern: str) -> str:
        """Wait until *pattern* matches in the server's log; return the first match."""
        deadline = time.monotonic() + PATIENCE
        compiled = re.compile(pattern, re.MULTILINE)
        while not (found := compiled.findall(self.server.log.read_text())):
            if time.monotonic() > deadline:
                raise TimeoutError(self.server.log.read_text())
            time.sleep(0.1)
        return f"{found[0]}\n"

    def error(self, name: str) -> str:
        """Return the message of an error of SQLAlchemy's or ours, without a link.

        The driver's error, of the same name, stands before it in the log.
        """
        owner = r"(?:sqlalchemy|flask_scopedsession)\."
        more = r"(?:\n(?![\[(]|Traceback|Background on).+)*"
        return self.logged(rf"^{owner}[\w.]*{name}: .*{more}")


def on_terminal(
    env: Mapping[str, str],
    *args: str,
    cwd: str | Path,
    columns: int = COLUMNS,
    colors: bool = False,
) -> tuple[int, str]:
    """Run Python on a pseudo-terminal, and return its exit code and its output."""
    # An empty NO_COLOR is as good as none.
    style = {"NO_COLOR": "" if colors else "1", "TERM": "xterm-256color"}
    ours, theirs = os.openpty()
    process = start(
        [sys.executable, *args],
        env={**env, **style, "COLUMNS": str(columns)},
        cwd=cwd,
        stdout=theirs,
    )
    os.close(theirs)
    said = b""
    with os.fdopen(ours, "rb", 0) as screen, suppress(OSError):
        # At the end of the output, Linux raises an error.
        while chunk := screen.read(1 << 16):
            said += chunk
    return process.wait(PATIENCE), said.decode().replace("\r\n", "\n")


class Stage:
    """A folder and a database with the airports, which all scenes share."""

    def __init__(self, folder: Path, **settings: str) -> None:
        folder.mkdir(exist_ok=True)
        self._folder = folder
        self._numbers = itertools.count()
        # With this variable, a command can be a fork; see ``starting.py``.
        unbuffered = {"PYTHONUNBUFFERED": "1"}
        self.env = {**demo.environment(folder), **unbuffered, **settings}
        command = (LEAN, "-m", "flask", "--app", demo.APP, "import-airports")
        code, said = on_terminal(self.env, *command, cwd=folder)
        if code != 0:
            raise RuntimeError(said)

    @contextmanager
    def scene(self, workers: int = 1, **settings: str) -> Iterator[Scene]:
        """Run the server with its own control directory."""
        run = self._folder / f"run-{next(self._numbers)}"
        where = {CONTROL_DIR: str(run)}
        env = {**self.env, **where, **settings}
        command = [
            *(sys.executable, LEAN, "-m", "gunicorn", "--bind", "127.0.0.1:0"),
            *("--config", str(demo.HERE / "gunicorn_conf.py")),
            *("--workers", str(workers), "--graceful-timeout", "1"),
            f"{demo.APP}:create_app()",
        ]
        with ExitStack() as stack:
            served = Served(
                "gunicorn", self._folder, command, env=env, cwd=self._folder
            )
            stack.enter_context(served).wait_listening()
            scene = Scene(env, demo.Server(served.port, served.log_path))
            stack.callback(scene.close)
            while scene.ask("GET", "/airports/EDDF") != 200:
                time.sleep(0.1)
            yield scene
