"""Run a command or a script in a separate interpreter."""

from __future__ import annotations

import json
import os
import sys
import textwrap
from collections.abc import Mapping
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from subprocess import PIPE
from tempfile import TemporaryFile
from typing import Any
from typing import IO

from environment import child_environ
from environment import WORKERS
from lean import LEAN
from starting import start


@dataclass(frozen=True)
class Result:
    """The exit code and the output of a process."""

    code: int
    stdout: str
    stderr: str

    @property
    def json(self) -> Any:
        """Return the one JSON document on stdout."""
        return json.loads(self.stdout)

    def check(self) -> Result:
        """Return this result, or fail with its output if the exit code is not 0."""
        assert self.code == 0, f"exit {self.code}\n{self.stdout}\n{self.stderr}"
        return self


def run(
    args: Sequence[str | os.PathLike[str]],
    *,
    env: Mapping[str, str | None] | None = None,
    cwd: str | os.PathLike[str] | None = None,
    input: str | None = None,  # noqa: A002  # as in subprocess.run
    timeout: float = 60.0,
) -> Result:
    """Run ``sys.executable`` with ``args``.

    The process is killed, and :exc:`subprocess.TimeoutExpired` raised, after
    ``timeout`` seconds.
    """
    command = [sys.executable, *(str(each) for each in args)]
    with ThreadPoolExecutor(2) as readers, TemporaryFile() as stdin:
        stdin.write((input or "").encode())
        stdin.seek(0)
        process = start(
            command,
            env=child_environ(env),
            cwd=cwd or WORKERS,
            stdin=stdin,
            stdout=PIPE,
            stderr=PIPE,
        )
        outputs = (process.stdout, process.stderr)
        texts = [readers.submit(_text, each) for each in outputs if each]
        try:
            code = process.wait(timeout)
        finally:
            process.kill()
            process.wait()
    return Result(code, *(text.result() for text in texts))


def _text(output: IO[bytes]) -> str:
    with output:
        text = output.read().decode("utf-8", "replace")
    return text.replace("\r\n", "\n")


def flask(
    args: Sequence[str],
    *,
    app: str | None = "live_app:create_app",
    python_args: Sequence[str] = (),
    **kwargs: Any,
) -> Result:
    """Run ``flask --app APP ARGS``; ``app=None`` omits ``--app``."""
    chosen = [] if app is None else ["--app", app]
    return run([*python_args, LEAN, "-m", "flask", *chosen, *args], **kwargs)


def script(
    source: str,
    *args: str,
    beside: Path,
    scratch: Path,
    python_args: Sequence[str] = (),
    **kwargs: Any,
) -> Result:
    """Run a script in a fresh interpreter.

    :param source: The name of a file (``name.py``) in ``beside``, or the code itself.
    :param scratch: The folder to write the code to.
    """
    if "\n" in source:
        path = scratch / "script.py"
        path.write_text(textwrap.dedent(source), encoding="utf-8")
    else:
        path = beside / source
    # gevent has to patch the standard library before anything else is imported.
    is_patched = "patch_all()" in path.read_text(encoding="utf-8")
    lean = [LEAN, "--gevent"] if is_patched else [LEAN]
    return run([*python_args, *lean, str(path), *args], **kwargs)
