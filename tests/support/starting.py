"""Start a process; a program of ``lean.py`` as a fork that finds its imports done."""

from __future__ import annotations

import functools
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping
from collections.abc import Sequence
from contextlib import ExitStack
from contextlib import suppress
from pathlib import Path
from typing import Any
from typing import IO

from environment import child_environ
from lean import LEAN
from lean import NUMBER

#: Variables that an interpreter, or what it imports, reads only once.
_READ_AT_START = ("COVERAGE_", "LANG", "LC_", "LD_", "PYTHON", "TZ")

_lock = threading.Lock()


class Fork:
    """A fork that runs a program, as :class:`subprocess.Popen` has processes.

    :param request: See ``fork_programs()`` of ``lean.py``.
    :param standard: The descriptors of standard input, output and error.
    :param stdout: Where its output can be read, and so ``stderr``.
    """

    def __init__(
        self,
        request: Mapping[str, Any],
        standard: Sequence[int],
        stdout: IO[bytes] | None = None,
        stderr: IO[bytes] | None = None,
    ) -> None:
        body = json.dumps(request).encode()
        ours, theirs = os.pipe()
        self._answers = os.fdopen(ours, "rb", 0)
        try:
            control = _control()
            with _lock:
                length = NUMBER.pack(len(body))
                socket.send_fds(control, [length], [*standard, theirs])
                control.sendall(body)
        finally:
            os.close(theirs)
        self.stdout, self.stderr = stdout, stderr
        self.pid = self._answer()
        self.returncode: int | None = None

    def _answer(self) -> int:
        answer = self._answers.read(NUMBER.size)
        assert answer, "the process that forks has ended"
        return int(NUMBER.unpack(answer)[0])

    def wait(self, timeout: float | None = None) -> int:
        """Return the exit code once the program has ended.

        :raises subprocess.TimeoutExpired: It runs for longer than `timeout` seconds.
        """
        if self.returncode is None:
            if not select.select([self._answers], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(str(self.pid), timeout or 0)
            self.returncode = self._answer()
            self._answers.close()
        return self.returncode

    def poll(self) -> int | None:
        """Return the exit code if the program has ended."""
        try:
            return self.wait(0)
        except subprocess.TimeoutExpired:
            return None

    def send_signal(self, number: int) -> None:
        """Send a signal, unless the program has ended."""
        if self.poll() is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        """End the program at once."""
        self.send_signal(signal.SIGKILL)


Process = Fork | subprocess.Popen[bytes]


@functools.cache
def _control() -> socket.socket:
    """Start the process that forks; it ends with this one."""
    ours, theirs = socket.socketpair()
    with theirs:
        command = [sys.executable, LEAN, "--fork"]
        process = subprocess.Popen(
            command,
            env=child_environ(),
            stdin=theirs.fileno(),
            start_new_session=True,
        )
        process.returncode = 0  # else Popen would warn that nobody waits for it
    return ours


def start(
    command: Sequence[str],
    *,
    env: Mapping[str, str],
    cwd: str | os.PathLike[str],
    stdin: int | IO[Any] = subprocess.DEVNULL,
    stdout: int | IO[Any],
    stderr: int | IO[Any] = subprocess.STDOUT,
) -> Process:
    """Start a command in a session of its own; see :class:`subprocess.Popen`.

    :param stdout: May be ``subprocess.PIPE``, and so ``stderr``.
    """
    request = _request(list(command), env, cwd)
    if request is None:
        # A signal to the tests' process group must not reach it.
        return subprocess.Popen(
            command,
            env=env,
            cwd=cwd,
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            start_new_session=True,
        )
    standard: list[int] = []
    pipes: list[IO[bytes] | None] = []
    with ExitStack() as stack:
        stream: int | IO[Any]
        for stream in (stdin, stdout, stderr):
            pipe = None
            if stream == subprocess.PIPE:
                ours, theirs = os.pipe()
                pipe = os.fdopen(ours, "rb")
                stream = stack.enter_context(os.fdopen(theirs, "wb"))
            elif stream == subprocess.DEVNULL:
                stream = stack.enter_context(Path(os.devnull).open("r+b"))
            elif stream == subprocess.STDOUT:
                stream = standard[-1]
            pipes.append(pipe)
            standard.append(stream if isinstance(stream, int) else stream.fileno())
        return Fork(request, standard, *pipes[1:])


def _request(
    command: list[str], env: Mapping[str, str], cwd: str | os.PathLike[str]
) -> dict[str, Any] | None:
    """Return what to ask for, or ``None`` if a fork would not do the same."""
    if command[0] != sys.executable or LEAN not in command:
        return None
    number = command.index(LEAN)
    options, args = command[1:number], command[number + 1 :]
    options = [each for each in options if each != "-W"]
    ours = child_environ()
    if (
        args[0] == "--gevent"
        or any(each.startswith("-") for each in options)
        or "COVERAGE_PROCESS_START" in ours
        or any(
            ours.get(name) != env.get(name)
            for name in {*ours, *env}
            if name.startswith(_READ_AT_START) and name != "PYTHONPATH"
        )
    ):
        return None
    return {"args": args, "env": dict(env), "cwd": str(cwd), "warnings": options}
