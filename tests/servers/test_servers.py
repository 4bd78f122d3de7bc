"""What holds under each server, of its requests and of the processes that serve.

Each server is started once. The pool is smaller than the number of requests that
a process serves at a time, so that some have to wait for others.
"""

from __future__ import annotations

import itertools
import sys
import tempfile
from collections.abc import Callable
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextlib import suppress
from dataclasses import dataclass
from dataclasses import field
from pathlib import Path
from typing import Any

import commands
import psycopg
import pytest
from postgres import fresh_database
from prefork import Prefork
from serving import Served
from sqlalchemy import URL
from waiting import wait_until

pytestmark = [pytest.mark.workers, pytest.mark.slow]

HERE = Path(__file__).parent
REQUESTS = 40
AT_ONCE = 12

POOL = {
    "FLASK_SQLALCHEMY_ENGINE_OPTIONS__pool_size": "2",
    "FLASK_SQLALCHEMY_ENGINE_OPTIONS__max_overflow": "1",
    "FLASK_SQLALCHEMY_ENGINE_OPTIONS__pool_timeout": "10",
}


@dataclass(frozen=True)
class Kind:
    """A server, and how it is started."""

    name: str
    make: Callable[..., Served]
    server: str
    """How the live view calls it, less the version."""
    concurrent: bool = True
    """Whether one process serves several requests at a time."""
    loads_in: str = "worker"
    """Which process loads the application: each worker, or its parent before it
    forks; "both" when they do not have that in common by a fork."""
    recycles: bool = False
    options: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.name


def gunicorn(scratch: Path, env: dict[str, str], **options: Any) -> Served:
    return Prefork(scratch, "served_app:app", env=env, cwd=HERE, count=2, **options)


def waitress(scratch: Path, env: dict[str, str]) -> Served:
    return start(
        "waitress",
        scratch,
        env,
        ["-m", "waitress", "--listen=127.0.0.1:0", "--threads=6", "served_app:app"],
        in_children=False,
    )


def granian(scratch: Path, env: dict[str, str]) -> Served:
    options = "--host 127.0.0.1 --port 0 --workers 2 --blocking-threads 4"
    command = ["-m", "granian", "--interface", "wsgi", *options.split()]
    return start("granian", scratch, env, [*command, "served_app:app"], count=2)


def uwsgi(scratch: Path, env: dict[str, str], *more: str) -> Served:
    options = "--master --processes 2 --enable-threads --threads 4 --need-app"
    command = [
        *("-c", "import pyuwsgi; pyuwsgi.run()", "--http-socket", "127.0.0.1:0"),
        *(*options.split(), "--die-on-term", "--worker-reload-mercy", "2"),
        *("--pythonpath", str(HERE), "--module", "served_app:app", *more),
    ]
    return start("uwsgi", scratch, env, command, count=2)


def werkzeug(scratch: Path, env: dict[str, str]) -> Served:
    touched = scratch / "touched"
    touched.touch()
    options = ["--debug", "--port", "0", "--extra-files", str(touched)]
    command = ["-m", "flask", "--app", "served_app:app", "run", *options]
    return start("flask", scratch, {**env, "WERKZEUG_DEBUG_PIN": "off"}, command)


def start(
    name: str, scratch: Path, env: dict[str, str], args: list[str], **options: Any
) -> Served:
    return Served(name, scratch, [sys.executable, *args], env=env, cwd=HERE, **options)


KINDS = [
    *(
        Kind(
            "-".join(
                (
                    "gunicorn",
                    worker_class,
                    *(["preload"] if preload else []),
                    *(["recycled"] if recycles else []),
                )
            ),
            gunicorn,
            "gevent" if worker_class == "gevent" else "gunicorn",
            concurrent=worker_class != "sync",
            loads_in="parent" if preload else "worker",
            recycles=recycles,
            options={
                "worker_class": worker_class,
                "preload": preload,
                "max_requests": 9 if recycles else 0,
            },
        )
        for worker_class in ("sync", "gthread", "gevent")
        for preload, recycles in ((False, False), (True, False), (True, True))
    ),
    Kind("waitress", waitress, "waitress"),
    Kind("granian", granian, "Granian"),
    Kind("uwsgi", uwsgi, "uWSGI", loads_in="parent"),
    Kind("werkzeug", werkzeug, "Werkzeug", loads_in="both"),
]
