"""Any real server: started, awaited, asked, always reaped by its processes' ids."""

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

import psutil
from environment import child_environ
from environment import WORKERS
from waiting import wait_until

#: What a worker of ``live_app`` answers to a request that names another one.
WRONG_WORKER = 421

Self = TypeVar("Self", bound="Served")


@dataclass(frozen=True)
class Reply:
    """An answer to a request."""

    status: int
    text: str
    worker: int | None = None
    """The process that answered, if it signs as ``live_app`` does."""

    @property
    def json(self) -> Any:
        """Return the body, parsed."""
        return json.loads(self.text)


class Served:
    """Run a command that serves ``live_app``, or what has its views.

    ::

        command = [sys.executable, "-m", "waitress", "--listen=127.0.0.1:0", "app:app"]
        with Served("waitress", scratch, command, in_children=False) as group:
            group.wait_ready()
            assert group.get("/ok").status == 200

    :param name: For messages, and for the name of the log.
    :param scratch: A folder of the test's own, for the log.
    :param command: Listens on port 0 of 127.0.0.1; which port that is, is found out.
    :param count: How many processes serve.
    :param in_children: Whether those are children of the one that is started.
    :param env: Added to the environment; ``None`` takes a variable away.
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
        self._process: subprocess.Popen[bytes] | None = None
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

    # Life

    def start(self) -> None:
        """Start the command; :meth:`wait_ready` tells when it serves."""
        with self.log_path.open("wb") as log:
            self._process = subprocess.Popen(
                self._command,
                cwd=self.cwd,
                env=child_environ(self.env),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                # A signal to the tests' process group is not for the workers.
                start_new_session=True,
            )

    def stop(self, *, timeout: float = 8.0) -> None:
        """End the command and every process it ever had, by their ids."""
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

    def wait_ready(self: Self, *, timeout: float = 15.0) -> Self:  # noqa: PYI019
        """Wait until all workers have been started, and one answers ``/pid``."""
        wait_until(self._is_ready, timeout=timeout, what=self._not_ready)
        return self

    def _is_ready(self) -> bool:
        self.check_running()
        self._url = self._url or self._find_url()
        if self._url is None or len(self.worker_pids()) < self.count:
            return False
        with contextlib.suppress(OSError):
            status = self.get("/pid").status
            if status >= 500:
                raise RuntimeError(f"/pid fails: {status}\n{self._end_of_log()}")
            return True
        return False

    def check_running(self) -> None:
        """Fail, with the end of the log, if the command has ended."""
        assert self._process is not None
        if self._process.poll() is not None:
            raise RuntimeError(f"{self.name} has ended\n{self._end_of_log()}")

    def _find_url(self) -> str | None:
        """Return where one of the processes listens, once one does."""
        with contextlib.suppress(psutil.NoSuchProcess):
            for process in [psutil.Process(self.pid), *self._note_children()]:
                for found in process.net_connections("inet4"):
                    if found.status == psutil.CONN_LISTEN:
                        return f"http://127.0.0.1:{found.laddr.port}"
        return None

    def _not_ready(self) -> str:
        return f"{self.name} ready\n{self._end_of_log()}"

    def _end_of_log(self) -> str:
        return "\n".join(self.log.splitlines()[-60:])

    # Who is there

    @property
    def log(self) -> str:
        """Return what all processes have written so far."""
        return self.log_path.read_text(encoding="utf-8", errors="replace")

    @property
    def pid(self) -> int:
        """Return the id of the process that was started: the arbiter, if any."""
        assert self._process is not None
        return self._process.pid

    @property
    def url(self) -> str:
        """Return where it listens, without a slash at the end."""
        assert self._url is not None, "call wait_ready() first"
        return self._url

    def worker_pids(self) -> list[int]:
        """Return the process ids of the workers that live now, sorted."""
        if not self._in_children:
            return [self.pid]
        return sorted(worker.pid for worker in self._note_children())

    def serving_pids(self) -> list[int]:
        """Return the process ids of those that have answered and still live."""
        return sorted(self._answered.intersection(self.worker_pids()))

    def _note_children(self) -> list[psutil.Process]:
        """Return the children, and keep them in mind for :meth:`stop`."""
        try:
            children = psutil.Process(self.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []
        self._known.update((child.pid, child) for child in children)
        # A killed worker that the arbiter has not reaped yet is no worker.
        return [child for child in children if _lives(child)]

    def kill(self, pid: int, number: int = signal.SIGKILL) -> None:
        """Send a signal to the arbiter or to one of its own workers."""
        if pid != self.pid:
            self._note_children()
            assert pid in self._known, f"{pid} is no process of this group"
        os.kill(pid, number)

    def wait_gone(self, pid: int, *, timeout: float = 10.0) -> None:
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
        timeout: float = 10.0,
    ) -> Reply:
        """Send one request and return its answer, whatever its status.

        :param on: The process id of the one worker that shall serve it. Others
            turn it down before they do anything, and it is sent again.
        :param timeout: Seconds to wait for an answer, and to look for ``on``.
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
                raise TimeoutError(f"worker {on} took no request in {timeout:g} s")

    def send(self, path: str, **kwargs: Any) -> Future[Reply]:
        """Send one request in the background; see :meth:`get`."""
        return self._pool.submit(self.get, path, **kwargs)

    def send_many(self, path: str, count: int, **kwargs: Any) -> list[Future[Reply]]:
        """Send ``count`` requests at once in the background."""
        return [self.send(path, **kwargs) for _ in range(count)]

    def visit_all(self, path: str = "/pid", *, timeout: float = 15.0) -> list[int]:
        """Have every live worker serve one request; return their process ids."""
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
    # psutil compares the start time first, so a reused id is safe.
    with contextlib.suppress(psutil.NoSuchProcess):
        process.send_signal(number)
