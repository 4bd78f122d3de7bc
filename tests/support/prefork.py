"""A real gunicorn with real workers: started, awaited, asked, always reaped."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
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

import gunicorn.config
import psutil
from environment import child_environ
from environment import WORKERS
from waiting import wait_until

_LISTENING = re.compile(r"Listening at: (http://127\.0\.0\.1:\d+)")

#: What a worker of ``live_app`` answers to a request that names another one.
WRONG_WORKER = 421


@dataclass(frozen=True)
class Reply:
    """An answer to a request."""

    status: int
    text: str

    @property
    def json(self) -> Any:
        """Return the body, parsed."""
        return json.loads(self.text)


class Prefork:
    """Run ``app`` under gunicorn on a free loopback port.

    ::

        with Prefork(scratch, count=3, worker_class="gthread") as group:
            group.wait_ready()
            assert group.get("/ok").status == 200

    :param scratch: A folder of the test's own, for the log.
    :param app: The application, as gunicorn reads it.
    :param count: How many workers.
    :param worker_class: ``"sync"``, ``"gthread"``, ``"gevent"``...
    :param threads: Threads of each worker, for ``gthread``.
    :param preload: Load the application before the fork.
    :param max_requests: Recycle a worker after so many requests; 0: never.
    :param timeout: Seconds after which gunicorn kills a silent worker.
    :param env: Added to the environment; ``None`` takes a variable away.
    :param cwd: The working directory; by default the folder of ``live_app.py``.
    :param args: More of gunicorn's options.
    :param python_args: Options for the interpreter, such as ``-W error``.
    """

    def __init__(
        self,
        scratch: Path,
        app: str = "live_app:create_app()",
        *,
        count: int = 3,
        worker_class: str = "gthread",
        threads: int = 4,
        preload: bool = False,
        max_requests: int = 0,
        timeout: float = 30,
        env: Mapping[str, str | None] | None = None,
        cwd: str | os.PathLike[str] | None = None,
        args: Sequence[str] = (),
        python_args: Sequence[str] = (),
    ) -> None:
        self.count = count
        self.log_path = scratch / f"gunicorn-{time.monotonic_ns()}.log"
        self.env = dict(env or {})
        self.cwd = cwd or WORKERS
        options = {
            "--bind": "127.0.0.1:0",
            "--workers": count,
            "--worker-class": worker_class,
            "--max-requests": max_requests,
            "--timeout": f"{timeout:g}",
            "--graceful-timeout": 1,
        }
        if worker_class == "gthread":
            options["--threads"] = threads
        self._command = [
            *(sys.executable, *python_args, "-m", "gunicorn"),
            *(str(word) for option in options.items() for word in option),
            *(["--preload"] if preload else []),
            *(_own_options()),
            *(*args, app),
        ]
        self._process: subprocess.Popen[bytes] | None = None
        self._known: dict[int, psutil.Process] = {}
        self._url: str | None = None
        self._pool = ThreadPoolExecutor(64, thread_name_prefix="visitor")

    def __enter__(self) -> Prefork:  # noqa: PYI034  # Self is newer than 3.10
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
        """Start the arbiter; :meth:`wait_ready` tells when it serves."""
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
        """End the arbiter and every worker it ever had, by their ids."""
        if self._process is None:
            return
        self._note_workers()
        for worker in self._known.values():
            _send(worker, signal.SIGCONT)
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(timeout)
            except subprocess.TimeoutExpired:
                self._note_workers()
                self._process.kill()
                self._process.wait(timeout)
        for worker in self._known.values():
            _send(worker, signal.SIGKILL)
        psutil.wait_procs(self._known.values(), timeout=timeout)
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._process = None

    def wait_ready(self, *, timeout: float = 15.0) -> Prefork:
        """Wait until all workers have been started, and one has answered."""
        wait_until(self._is_ready, timeout=timeout, what=self._not_ready)
        return self

    def _is_ready(self) -> bool:
        assert self._process is not None
        if self._process.poll() is not None:
            raise RuntimeError(f"gunicorn has ended\n{self.log}")
        found = _LISTENING.search(self.log)
        if found is None:
            return False
        self._url = found[1]
        if len(self.worker_pids()) < self.count:
            return False
        with contextlib.suppress(OSError):
            return self.get("/pid").status == 200
        return False

    def _not_ready(self) -> str:
        return f"gunicorn ready\n{self.log}"

    # Who is there

    @property
    def log(self) -> str:
        """Return what arbiter and workers have written so far."""
        return self.log_path.read_text(encoding="utf-8", errors="replace")

    @property
    def pid(self) -> int:
        """Return the arbiter's process id."""
        assert self._process is not None
        return self._process.pid

    @property
    def url(self) -> str:
        """Return where it listens, without a slash at the end."""
        assert self._url is not None, "call wait_ready() first"
        return self._url

    def worker_pids(self) -> list[int]:
        """Return the process ids of the workers that live now, sorted."""
        return sorted(worker.pid for worker in self._note_workers())

    def _note_workers(self) -> list[psutil.Process]:
        """Return the workers, and keep them in mind for :meth:`stop`."""
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
            self._note_workers()
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


def _own_options() -> list[str]:
    """Return what keeps gunicorn within the test's folder."""
    known = {setting.name for setting in gunicorn.config.KNOWN_SETTINGS}
    return ["--no-control-socket"] if "control_socket_disable" in known else []


def _open(request: urllib.request.Request, timeout: float) -> Reply:
    try:
        with urllib.request.urlopen(request, timeout=timeout) as answer:
            return Reply(answer.status, answer.read().decode())
    except urllib.error.HTTPError as error:
        with error:
            return Reply(error.code, error.read().decode())


def _lives(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _send(process: psutil.Process, number: int) -> None:
    # psutil compares the start time first, so a reused id is safe.
    with contextlib.suppress(psutil.NoSuchProcess):
        process.send_signal(number)
