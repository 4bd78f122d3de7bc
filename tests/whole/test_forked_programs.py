"""A program that the tests start as a fork is like one with a new interpreter."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from commands import run
from environment import child_environ
from lean import LEAN
from starting import Fork
from starting import start

pytestmark = pytest.mark.subprocess

PROGRAM = """
import atexit, json, os, signal, sys, threading, warnings

atexit.register(print, "over")
try:
    warnings.warn("old", DeprecationWarning)
    warned = ""
except DeprecationWarning as warning:
    warned = str(warning)
print(json.dumps({
    "argv": sys.argv,
    "environ": dict(os.environ),
    "folder": os.getcwd(),
    "input": sys.stdin.read(),
    "leads_session": os.getsid(0) == os.getpid(),
    "module": __name__,
    "path": sys.path,
    "signals": {
        name: str(signal.getsignal(getattr(signal, name)))
        for name in ("SIGCHLD", "SIGHUP", "SIGINT", "SIGPIPE", "SIGTERM")
    },
    "descriptors": len(os.listdir("/dev/fd")),
    "terminals": [os.isatty(number) for number in range(3)],
    "threads": threading.active_count(),
    "warned": warned,
    "warnoptions": sys.warnoptions,
}))
print("wrong", file=sys.stderr)
sys.exit(3)
"""


def told(folder: Path, *before: str, **env: str | None) -> tuple[Any, ...]:
    script = folder / "program.py"
    script.write_text(PROGRAM, encoding="utf-8")
    args = [*before, str(script), "one", "two words"]
    found = run(args, env=env, cwd=folder, input="typed\n")
    said = found.stdout.splitlines()
    return json.loads(said[0]), said[1:], found.stderr, found.code


@pytest.mark.parametrize("options", [[], ["-W", "error"]], ids=["", "warnings"])
@pytest.mark.parametrize("env", [{"PATH": None}, {"PYTHONPATH": "", "NAME": "value"}])
def test_a_fork_is_like_a_new_interpreter(
    short_tmp: Path, options: list[str], env: dict[str, str | None]
) -> None:
    new = told(short_tmp, *options, **env)
    assert new[0]["warned"] == ("old" if options else "")
    assert new[1] == ["over"]
    assert new[2].endswith("wrong\n")
    assert new[3] == 3
    assert told(short_tmp, *options, LEAN, **env) == new


@pytest.mark.parametrize("name", ["COVERAGE_PROCESS_START", "LC_ALL", "PYTHONUTF8"])
def test_what_only_a_new_interpreter_reads(short_tmp: Path, name: str) -> None:
    command = [sys.executable, LEAN, "-m", "platform"]
    env = child_environ({name: "1" if name == "PYTHONUTF8" else "C"})
    with (short_tmp / "log").open("wb") as log:
        process = start(command, env=env, cwd=short_tmp, stdout=log)
    assert isinstance(process, subprocess.Popen)
    process.kill()
    process.wait()


def test_a_killed_fork(short_tmp: Path) -> None:
    """Its exit code tells the signal; a second signal finds nobody."""
    script = short_tmp / "sleeps.py"
    script.write_text("import time\nprint('ready', flush=True)\ntime.sleep(60)\n")
    process = start(
        [sys.executable, LEAN, str(script)],
        env=child_environ(),
        cwd=short_tmp,
        stdout=subprocess.PIPE,
    )
    assert isinstance(process, Fork)
    assert process.stdout is not None
    with process.stdout:
        assert process.stdout.readline() == b"ready\n"
        assert process.poll() is None
        os.kill(process.pid, signal.SIGTERM)
        assert process.wait(10) == -signal.SIGTERM
        process.kill()
        assert process.stdout.read() == b""
