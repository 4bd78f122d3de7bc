"""Run a program as Python does, in less time than its imports usually take.

``python lean.py script.py ARGS`` and ``python lean.py -m module ARGS``. For a program
that lets gevent patch the standard library, ``python lean.py --gevent script.py ARGS``.

A short process that imports Flask and SQLAlchemy spends most of its time on that, and
on garbage collections that find nothing: while it imports them, and when it ends. Here
they are imported first, and collections leave them out. What the program makes is
collected as always. ``-m flask`` does not import commands of other distributions.

``python lean.py --fork`` imports them once for many programs, each of which is a fork;
``starting.py`` asks for them.
"""

import builtins
import contextlib
import gc
import json
import os
import re
import runpy
import signal
import socket
import struct
import sys
import warnings
from importlib import metadata
from pathlib import Path
from typing import Any

#: The path of this file.
LEAN = __file__

#: A number in what ``--fork`` is sent, and answers.
NUMBER = struct.Struct("i")

_entry_points: Any = metadata.entry_points


def import_libraries() -> None:
    """Import what most programs need, and leave it out of garbage collections."""
    gc.disable()
    import flask.cli  # noqa: F401
    import sqlalchemy.orm  # noqa: F401

    gc.freeze()
    gc.enable()


def entry_points(**params: Any) -> Any:
    """Return the entry points; as commands of Flask, only those of this package."""
    found = _entry_points(**params)
    if params.get("group") != "flask.commands":
        return found
    return [each for each in found if each.value.startswith("flask_scopedsession.")]


def fork_programs(control: socket.socket) -> list[str]:
    """Fork for each request, until the tests end; return its arguments in the fork.

    A request is the length of a JSON document, together with the descriptors of
    standard input, output and error and of a pipe for the answer, and then the
    document. The answer is the program's PID, and once it has ended, its exit code as
    :mod:`subprocess` has it. Numbers have four bytes.
    """
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those who wait
    while True:
        length, descriptors, _, _ = socket.recv_fds(control, 4, 4)
        if not length:
            sys.exit()
        (size,) = NUMBER.unpack(length)
        request = json.loads(control.recv(size, socket.MSG_WAITALL))
        if os.fork() == 0:
            control.close()
            return _as_program(request, descriptors)
        for descriptor in descriptors:
            os.close(descriptor)


def _as_program(request: dict[str, Any], descriptors: list[int]) -> list[str]:
    """Fork again and wait, because only a parent learns of the exit code."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    *standard, answer = descriptors
    pid = os.fork()
    for number, descriptor in enumerate(standard):
        if pid == 0:
            os.dup2(descriptor, number)
        os.close(descriptor)
    if pid != 0:
        os.write(answer, NUMBER.pack(pid))
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        with contextlib.suppress(BrokenPipeError):
            os.write(answer, NUMBER.pack(code))
        os._exit(0)
    os.close(answer)
    os.setsid()
    os.chdir(request["cwd"])
    before = _python_path()
    os.environ.clear()
    os.environ.update(request["env"])
    sys.path[1 : 1 + len(before)] = _python_path()
    warn(request["warnings"])
    arguments: list[str] = request["args"]
    return arguments


def _python_path() -> list[str]:
    given = os.environ.get("PYTHONPATH")
    return given.split(os.pathsep) if given else []


def warn(options: list[str]) -> None:
    """Do what the interpreter does with its options ``-W``."""
    for option in options:
        fields = [*option.split(":"), "", ""]
        action: Any = fields[0]
        category = getattr(builtins, fields[2] or "Warning")
        warnings.filterwarnings(action, re.escape(fields[1]), category)
    sys.warnoptions.extend(options)


def run(arguments: list[str]) -> None:
    """Run a program as the main module."""
    sys.argv[:] = arguments
    is_module = sys.argv[0] == "-m"
    sys.path[0] = str(Path.cwd() if is_module else Path(sys.argv[0]).parent)
    metadata.entry_points = entry_points
    if is_module:
        runpy.run_module(sys.argv.pop(1), run_name="__main__", alter_sys=True)
    else:
        # The names of the main module last until the process ends.
        names = sys.modules["__main__"].__dict__
        names["__file__"] = sys.argv[0]
        code = Path(sys.argv[0]).read_bytes()
        exec(compile(code, sys.argv[0], "exec", 0, True), names)


if __name__ == "__main__":
    given = sys.argv[1:]
    if given[0] == "--gevent":
        del given[0]
        import gevent.monkey

        gevent.monkey.patch_all()
    import_libraries()
    if given == ["--fork"]:
        given = fork_programs(socket.socket(fileno=0))
    run(given)
