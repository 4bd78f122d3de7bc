"""Real gunicorn workers."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from collections.abc import Sequence
from pathlib import Path

import gunicorn.config
from lean import LEAN
from serving import Served

#: The classes of workers that do not patch the standard library, which they would have
#: to do before such imports.
UNPATCHED = ("sync", "gthread")


class Prefork(Served):
    """Run ``app`` under gunicorn on a free loopback port.

    ::

        with Prefork(scratch, count=3, worker_class="gthread") as group:
            group.wait_ready()
            assert group.get("/ok").status == 200

    :param scratch: The test's folder, for the log.
    :param app: The application, in gunicorn's syntax.
    :param count: The number of workers.
    :param worker_class: ``"sync"``, ``"gthread"``, ``"gevent"``...
    :param threads: The number of threads per worker, for ``gthread``.
    :param preload: Load the application before the fork.
    :param max_requests: Recycle a worker after this many requests; 0 means never.
    :param address: The loopback address to listen on.
    :param timeout: Seconds after which gunicorn kills an unresponsive worker.
    :param env: Added to the environment; ``None`` removes a variable.
    :param cwd: The working directory; by default the folder of ``live_app.py``.
    :param args: Further options of gunicorn.
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
        address: str = "127.0.0.1",
        timeout: float = 300,
        env: Mapping[str, str | None] | None = None,
        cwd: str | os.PathLike[str] | None = None,
        args: Sequence[str] = (),
        python_args: Sequence[str] = (),
    ) -> None:
        options = {
            "--bind": f"{address}:0",
            "--workers": count,
            "--worker-class": worker_class,
            "--max-requests": max_requests,
            "--timeout": f"{timeout:g}",
            "--graceful-timeout": 1,
        }
        if worker_class == "gthread":
            options["--threads"] = threads
        lean = [LEAN] if worker_class in UNPATCHED else []
        command = [
            *(sys.executable, *python_args, *lean, "-m", "gunicorn"),
            *(str(word) for option in options.items() for word in option),
            *(["--preload"] if preload else []),
            *(own_options()),
            *(*args, app),
        ]
        super().__init__("gunicorn", scratch, command, count=count, env=env, cwd=cwd)


def own_options() -> list[str]:
    """Return the options that stop gunicorn from writing outside the test's folder."""
    known = {setting.name for setting in gunicorn.config.KNOWN_SETTINGS}
    return ["--no-control-socket"] if "control_socket_disable" in known else []
