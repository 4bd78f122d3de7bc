"""A database of its own for each process of pytest-xdist."""

from __future__ import annotations

import os
import typing as t
from collections.abc import Mapping

from sqlalchemy import create_engine
from sqlalchemy import text
from sqlalchemy import URL
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool

from .._settings.urls import in_memory
from .._settings.urls import is_sqlite
from .._settings.urls import parse_url
from ..errors import ConfigError
from ..errors import SetupError

#: PostgreSQL cuts off the rest of a name, in bytes.
_LONGEST = 63


def database_for_worker(url: str | URL | Mapping[str, t.Any]) -> URL:
    """Return the URL of a database that this process of pytest-xdist has for itself.

    In the worker ``gw0``, that is ``test_gw0.db`` for the SQLite file ``test.db``, and
    ``test_gw0`` for the PostgreSQL database ``test``. The latter is created if it does
    not exist, and never dropped: the next run finds it as this one has left it.

    :param url: As ``SQLALCHEMY_DATABASE_URI``. It is returned unchanged without
        pytest-xdist; so is that of an in-memory database, which no other process sees.
    :raises ConfigError: The URL is wrong, or of a database that is neither of the two.
    :raises SetupError: The database does not exist, and could not be created.
    """
    found = parse_url("database_for_worker(url)", url)
    worker = os.environ.get("PYTEST_XDIST_WORKER")
    if worker is None or in_memory(found):
        return found
    name = found.database or ""
    if is_sqlite(found):
        stem, suffix = os.path.splitext(name)
        return found.set(database=f"{stem}_{worker}{suffix}")
    if found.get_backend_name() != "postgresql" or not name:
        raise ConfigError(
            "database_for_worker(url) takes an SQLite file, or a PostgreSQL database"
            " with its name. Elsewhere, build a URL from the environment variable"
            " PYTEST_XDIST_WORKER yourself."
        )
    _create(name, own := found.set(database=f"{name}_{worker}"))
    return own


def _create(shared: str, own: URL) -> None:
    """Create a database on PostgreSQL, unless there is one."""
    name = str(own.database)
    if len(name.encode()) > _LONGEST:
        raise ConfigError(
            f"database_for_worker(url): the name {name!r} is longer than PostgreSQL"
            f" keeps, which is {_LONGEST} bytes. Choose a shorter one."
        )
    problem: Exception | None = None
    for known in ("postgres", shared):
        engine = create_engine(
            own.set(database=known), poolclass=NullPool, isolation_level="AUTOCOMMIT"
        )
        try:
            with engine.connect() as connection:
                found = text("SELECT 1 FROM pg_database WHERE datname = :name")
                if connection.scalar(found, {"name": name}) is None:
                    quoted = engine.dialect.identifier_preparer.quote_identifier(name)
                    connection.exec_driver_sql(f"CREATE DATABASE {quoted}")
            return
        except DBAPIError as error:
            problem = problem or t.cast(Exception, error.orig)
    raise SetupError(
        f"database_for_worker(url) could not create the database {name!r}: {problem}\n"
        "Create it, or let the user do so (ALTER ROLE ... CREATEDB)."
    ) from None
