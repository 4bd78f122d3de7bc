"""Any real server: start it, wait for it, send requests, and always stop it by PID."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from collections.abc import Sequence
from concurrent.futures import Future
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any
from typing import TypeVar
from urllib.parse import urlsplit

import psutil
from environment import child_environ
from environment import WORKERS
from starting import Process
from starting import start
from waiting import wait_until

#: The status with which ``live_app`` rejects a request for another worker.
WRONG_WORKER = 421

Self = TypeVar("Self", bound="Served")


@dataclass(frozen=True)
class Reply:
    """A response to a request."""

    status: int
    text: str
    worker: int | None = None
    """The PID of the worker, if the response names it as ``live_app`` does."""

    @property
    def json(self) -> Any:
        """Return the parsed body."""
        return json.loads(self.text)


class Served:
    """Run a command that serves ``live_app``, or an application with the same views.

    ::

        command = [sys.executable, "-m", "waitress", "--listen=127.0.0.1:0", "app:app"]
        with Served("waitress", scratch, command, in_children=False) as group:
            group.wait_ready()
            assert group.get("/ok").status == 200

    :param name: The name in messages and of the log.
    :param scratch: The test's folder, for the log.
    :param command: The command, which must listen on port 0 of 127.0.0.1. The real port
        is found out.
    :param count: The number of processes that serve requests.
    :param in_children: Whether these are children of the process that is started.
    :param env: Added to the environment; ``None`` removes a variable.
    :param cwd: The working directory; by default the folder of ``live_app.py``.
    """

    def __init__(
        self,
        name: str,
        scratch: Path,
        command: Sequence[str],
        *,
        count: int = 1,
        in_children: bool = True,
        env: Mapping[str, str | None] | None = None,
        cwd: str | os.PathLike[str] | None = None,
    ) -> None:
        self.name = name
        self.count = count
        self.log_path = scratch / f"{name}-{time.monotonic_ns()}.log"
        self.env = dict(env or {})
        self.cwd = cwd or WORKERS
        self._command = list(command)
        self._in_children = in_children
        self._process: Process | None = None
        self._known: dict[int, psutil.Process] = {}
        self._url: str | None = None
        self._answered: set[int] = set()
        self._pool = ThreadPoolExecutor(64, thread_name_prefix="visitor")

    def __enter__(self: Self) -> Self:  # noqa: PYI019  # Self is newer than 3.10
        self.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self.stop()

    # Start and stop

    def start(self) -> None:
        """Start the command. Use :meth:`wait_ready` to wait until it serves."""
        with self.log_path.open("wb") as log:
            self._process = start(
                self._command, env=child_environ(self.env), cwd=self.cwd, stdout=log
            )

    def stop(self, *, timeout: float = 8.0) -> None:
        """Stop the command and all processes that it has started, by their PIDs."""
        if self._process is None:
            return
        self._note_children()
        for worker in self._known.values():
            _send(worker, signal.SIGCONT)
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(timeout)
            except subprocess.TimeoutExpired:
                self._note_children()
                self._process.kill()
                self._process.wait(timeout)
        for worker in self._known.values():
            _send(worker, signal.SIGKILL)
        psutil.wait_procs(self._known.values(), timeout=timeout)
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._process = None

    def wait_ready(self: Self, *, timeout: float = 40.0) -> Self:  # noqa: PYI019
        """Wait until all workers have started, and one answers ``/pid``."""
        wait_until(self._is_ready, timeout=timeout, what=self._not_ready)
        return self

    def wait_listening(self: Self) -> Self:  # noqa: PYI019
        """Wait until requests can be sent, and send none: no worker has served one."""
        wait_until(self._is_listening, what=self._not_ready)
        return self

    def _is_listening(self) -> bool:
        self.check_running()
        self._url = self._url or self._find_url()
        return self._url is not None

    def _is_ready(self) -> bool:
        if not self._is_listening() or len(self.worker_pids()) < self.count:
            return False
        with contextlib.suppress(OSError):
            status = self.get("/pid").status
            if status >= 500:
                raise RuntimeError(f"/pid fails: {status}\n{self._end_of_log()}")
            return True
        return False

    def check_running(self) -> None:
        """Raise an error with the end of the log if the command has ended."""
        assert self._process is not None
        if self._process.poll() is not None:
            raise RuntimeError(f"{self.name} has ended\n{self._end_of_log()}")

    def _find_url(self) -> str | None:
        """Return the URL on which one of the processes listens, if any."""
        with contextlib.suppress(psutil.NoSuchProcess):
            for process in [psutil.Process(self.pid), *self._note_children()]:
                for found in process.net_connections("inet4"):
                    if found.status == psutil.CONN_LISTEN:
                        return f"http://{found.laddr.ip}:{found.laddr.port}"
        return None

    def _not_ready(self) -> str:
        return f"{self.name} ready\n{self._end_of_log()}"

    def _end_of_log(self) -> str:
        return "\n".join(self.log.splitlines()[-60:])

    # Processes

    @property
    def log(self) -> str:
        """Return the output of all processes until now."""
        return self.log_path.read_text(encoding="utf-8", errors="replace")

    @property
    def pid(self) -> int:
        """Return the PID of the process that was started: the arbiter, if any."""
        assert self._process is not None
        return self._process.pid

    @property
    def url(self) -> str:
        """Return the server's URL, without a slash at the end."""
        assert self._url is not None, "call wait_ready() first"
        return self._url

    @property
    def port(self) -> int:
        """Return the server's port."""
        port = urlsplit(self.url).port
        assert port is not None
        return port

    def worker_pids(self) -> list[int]:
        """Return the sorted PIDs of the live workers."""
        if not self._in_children:
            return [self.pid]
        return sorted(worker.pid for worker in self._note_children())

    def serving_pids(self) -> list[int]:
        """Return the sorted PIDs of the live workers that have answered a request."""
        return sorted(self._answered.intersection(self.worker_pids()))

    def _note_children(self) -> list[psutil.Process]:
        """Return the live children, and remember all children for :meth:`stop`."""
        try:
            children = psutil.Process(self.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []
        self._known.update((child.pid, child) for child in children)
        # Leave out a killed worker that the arbiter has not reaped yet.
        return [child for child in children if _lives(child)]

    def kill(self, pid: int, number: int = signal.SIGKILL) -> None:
        """Send a signal to the arbiter or to one of its workers."""
        if pid != self.pid:
            self._note_children()
            assert pid in self._known, f"{pid} is no process of this group"
        os.kill(pid, number)

    def wait_gone(self, pid: int, *, timeout: float = 30.0) -> None:
        """Wait until the worker has been reaped."""
        wait_until(
            lambda: not psutil.pid_exists(pid), timeout=timeout, what=f"end of {pid}"
        )

    # Traffic

    def get(
        self,
        path: str,
        *,
        on: int | None = None,
        method: str = "GET",
        timeout: float = 30.0,
    ) -> Reply:
        """Send one request and return its response, whatever its status.

        :param on: The PID of the worker that must serve it. Other workers reject it
            before they do anything, and it is sent again.
        :param timeout: Seconds to wait for a response, and to reach ``on``.
        """
        if on is not None:
            path = f"{path}{'&' if '?' in path else '?'}only={on}"
        request = urllib.request.Request(self.url + path, method=method)
        deadline = time.monotonic() + timeout
        while True:
            reply = _open(request, timeout)
            if reply.worker is not None:
                self._answered.add(reply.worker)
            if on is None or reply.status != WRONG_WORKER:
                return reply
            if time.monotonic() > deadline:
                raise TimeoutError(f"worker {on} served no request in {timeout:g} s")

    def send(self, path: str, **kwargs: Any) -> Future[Reply]:
        """Send one request in the background; see :meth:`get`."""
        return self._pool.submit(self.get, path, **kwargs)

    def send_many(self, path: str, count: int, **kwargs: Any) -> list[Future[Reply]]:
        """Send ``count`` requests at once in the background."""
        return [self.send(path, **kwargs) for _ in range(count)]

    def visit_all(self, path: str = "/pid", *, timeout: float = 30.0) -> list[int]:
        """Let every live worker serve one request; return the workers' PIDs."""
        pids = self.worker_pids()
        waiting = [self.send(path, on=pid, timeout=timeout) for pid in pids]
        for reply in waiting:
            assert reply.result(timeout).status == 200
        return pids


def _open(request: urllib.request.Request, timeout: float) -> Reply:
    try:
        with urllib.request.urlopen(request, timeout=timeout) as answer:
            return _reply(answer.status, answer)
    except urllib.error.HTTPError as error:
        with error:
            return _reply(error.code, error)


def _reply(status: int, answer: Any) -> Reply:
    worker = answer.headers.get("X-Worker")
    return Reply(status, answer.read().decode(), worker and int(worker))


def _lives(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _send(process: psutil.Process, number: int) -> None:
    # psutil compares the start time first, so a reused PID is safe.
    with contextlib.suppress(psutil.NoSuchProcess):
        process.send_signal(number)
