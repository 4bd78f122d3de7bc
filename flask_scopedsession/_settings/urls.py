"""Database URLs: parsed, refused where they cannot work, and made safe to show.

No driver is imported. A message shows nothing of a URL but its dialect, because a
password may be in its query as well (``?password=``, ``odbc_connect=...PWD``).
"""

from __future__ import annotations

import re
import typing as t
from collections.abc import Mapping
from contextlib import suppress
from functools import cache

from sqlalchemy.engine import make_url
from sqlalchemy.engine import URL
from sqlalchemy.exc import ArgumentError
from sqlalchemy.exc import NoSuchModuleError

from ..errors import ConfigError
from .values import file_name
from .values import kind

if t.TYPE_CHECKING:
    from ..snapshot import DatabaseURL

#: For the messages about an async or misspelt one.
_DRIVERS = {
    "mariadb": ("pymysql", "mysqldb", "mariadbconnector", "mysqlconnector"),
    "mssql": ("pyodbc", "pymssql"),
    "mysql": ("pymysql", "mysqldb", "mysqlconnector"),
    "oracle": ("oracledb", "cx_oracle"),
    "postgresql": ("psycopg", "psycopg2", "pg8000"),
    "sqlite": ("pysqlite", "pysqlcipher"),
}
_ASYNC_DRIVERS = {
    "mariadb": "aiomysql",
    "mssql": "aioodbc",
    "mysql": "aiomysql",
    "oracle": "oracledb",
    "postgresql": "asyncpg",
    "sqlite": "aiosqlite",
}
#: Drivers of SQLite's library, whose databases are files or in memory. Other dialects
#: of the same family talk to a server.
_SQLITE_DRIVERS = (
    *("pysqlite", "pysqlcipher", "pysqlite_numeric", "pysqlite_dollar"),
    "aiosqlite",
)
_TEXT_PARTS = ("username", "password", "host", "database")
_PARTS = frozenset((*_TEXT_PARTS, "drivername", "port", "query"))


def parse_url(key: str, value: object, is_async: bool = False) -> URL:
    """Return a configured URL: a string, a :class:`URL`, or a dict of its parts.

    :param is_async: The driver must be an async one, and else must not be.
    :raises ConfigError: It cannot be parsed, or its dialect cannot be used.
    """
    if isinstance(value, Mapping):
        url = _from_parts(key, value)
    elif isinstance(value, str):
        url = _from_text(key, value)
    elif isinstance(value, URL):
        url = value
        # It may come from make_url(). In a dict, each part is where it was meant to be.
        if url.password is not None and _shows_password(url):
            raise _unparsed(key)
    else:
        raise ConfigError(f"{key} must be a str, a URL or a dict, not {kind(value)}.")
    _check_dialect(key, url, is_async)
    return url


def _from_text(key: str, value: str) -> URL:
    if not value.strip():
        raise ConfigError(f"{key} is empty. Set it to a database URL, or remove it.")
    url = None
    # Raised outside of an except block: SQLAlchemy's error may quote the password.
    with suppress(ArgumentError, ValueError):
        url = make_url(value.strip())
    # The query of one whose password was split, which SQLAlchemy may have left out.
    in_query = re.search(r"@.*\?([^=&]*@|.*@[^&]*/)", value)
    if url is None or in_query or _shows_password(url):
        raise _unparsed(key)
    return url


def _unparsed(key: str) -> ConfigError:
    return ConfigError(
        f"{key} could not be parsed as a database URL. It looks like"
        " dialect+driver://user:password@host:port/database; special characters"
        " in the password must be percent-encoded, or the parts given as a dict."
    )


def _shows_password(url: URL) -> bool:
    """Whether SQLAlchemy took a part of the password for something else.

    It ends the password at the first ``@``, and the host at the next ``/`` or ``?``.
    """
    return "@" in (url.host or "") or _may_hold_password(url)


def _may_hold_password(url: URL) -> bool:
    """Whether the database's name may have a part of the password: ``w0rd@host``."""
    is_path = is_sqlite(url) and url.password is None
    return "@" in (url.database or "") and not is_path


def _from_parts(key: str, value: Mapping[str, t.Any]) -> URL:
    parts: dict[str, t.Any] = {
        # from_prefixed_env() reads a password of digits as a number.
        name: str(part) if name in _TEXT_PARTS and type(part) is int else part
        for name, part in value.items()
    }
    url = None
    # The name of an unknown part may be a secret in the wrong place: do not show it.
    if _PARTS.issuperset(parts):
        with suppress(TypeError, ValueError, ArgumentError):
            url = URL.create(**parts)
    if url is None:
        raise ConfigError(
            f"{key} is a dict that sqlalchemy.URL.create() does not accept. It takes"
            " drivername, username, password, host, port, database and query."
        )
    return url


def _check_dialect(key: str, url: URL, is_async: bool) -> None:
    name = url.drivername
    if not re.fullmatch(r"[\w.+]+", name):
        # It may be a whole URL, with its password.
        raise ConfigError(
            f"{key}: the drivername must be a dialect and driver, such as"
            " 'postgresql+psycopg'."
        )
    dialect: t.Any = None
    try:
        dialect = url.get_dialect()
    except ImportError:
        return  # the dialect imports its driver; creating the engine will report that
    except (NoSuchModuleError, ArgumentError):
        pass
    if dialect is None:
        raise _unknown_dialect(key, name)
    backend = url.get_backend_name()
    if is_async:
        # A driver like psycopg has two dialects, of which that above is one.
        if not dialect.get_async_dialect_cls(url).is_async:
            instead = "+".join((backend, _ASYNC_DRIVERS.get(backend, "...")))
            raise ConfigError(
                f"{key} names the driver {name!r}, which is not async. Use an async"
                f" driver, such as {instead!r}, or move it to SQLALCHEMY_BINDS."
            )
    elif dialect.is_async:
        instead = "+".join((backend, *_DRIVERS.get(backend, ())[:1]))
        raise ConfigError(
            f"{key} names the async driver {name!r}. 'db.session' is synchronous: use a"
            f" synchronous driver, such as {instead!r}. Async drivers are for"
            " 'db.async_session': set SQLALCHEMY_ASYNC_BINDS."
        )
    if is_sqlite(url):
        if url.host or url.port is not None:
            raise ConfigError(
                f"{key} names a host, which SQLite does not have. A path follows three"
                " slashes, as in sqlite:///app.db, or four if it is absolute."
            )
        file_name(key, url.database or "")


def _unknown_dialect(key: str, name: str) -> ConfigError:
    remedy = " Use 'postgresql'."
    if name.partition("+")[0] != "postgres":
        near = _near_dialect(name)
        hint = f" Did you mean {near!r}?" if near else ""
        remedy = f"{hint} Check the spelling, or install what provides it."
    return ConfigError(
        f"{key} names the dialect {name!r}, which SQLAlchemy does not know.{remedy}"
    )


def _near_dialect(name: str) -> str | None:
    import difflib
    from importlib.metadata import entry_points

    installed = entry_points(group="sqlalchemy.dialects").names
    backend, _, driver = name.lower().partition("+")
    known = {*_DRIVERS, *(each.partition(".")[0] for each in installed)}
    for found in difflib.get_close_matches(backend, known, 1, 0.7):
        drivers = difflib.get_close_matches(driver, _DRIVERS.get(found, ()), 1)
        if drivers or found != name.partition("+")[0]:
            return "+".join((found, *drivers))
    return None


def driver_of(url: URL) -> tuple[str, str]:
    """Return the names of dialect and driver, the default driver's included."""
    try:
        return url.get_backend_name(), _driver_name(url.drivername)
    except ImportError as error:
        return url.get_backend_name(), str(error)


@cache
def _driver_name(drivername: str) -> str:
    """Return the name of the driver; SQLAlchemy looks for the dialect each time."""
    return URL.create(drivername).get_driver_name()


def is_sqlite(url: URL) -> bool:
    """Whether the database is a file of SQLite's, or in memory."""
    of_family = url.get_backend_name() == "sqlite"
    return of_family and driver_of(url)[1] in _SQLITE_DRIVERS


def is_sqlite_uri(url: URL) -> bool:
    """Whether the path is one of SQLite's own URIs, ``file:...?uri=true``."""
    wanted = str(url.query.get("uri", "")).lower()
    return wanted in ("true", "yes", "on", "y", "t", "1")


def in_memory(url: URL) -> bool:
    """Whether the database is SQLite's and lives in memory."""
    if not is_sqlite(url):
        return False
    database = url.database or ":memory:"
    if is_sqlite_uri(url):
        in_query = url.query.get("mode") == "memory" or url.query.get("vfs") == "memdb"
        return in_query or database.startswith("file::memory:")
    return database == ":memory:"


def is_private(url: URL) -> bool:
    """Whether the database is in memory and of one engine alone, whatever its URL."""
    has_name = (url.database or "").startswith("file:/")
    return in_memory(url) and not has_name and url.query.get("cache") != "shared"


# -- what may be shown ---------------------------------------------------------

#: What no name of a host or database has. Drivers also accept a whole connection
#: string there, or a URL with options.
_OPTIONS = r"[?;&=]|://"


def safe_url(url: URL) -> DatabaseURL:
    """Return the parts of a URL that may be shown, and no others."""
    from ..snapshot import DatabaseURL

    database = url.database
    if _may_hold_password(url):
        database = "…"
    elif is_sqlite(url):
        if database is not None and database.startswith("file:"):
            database = _cut(database, database.find("?"))
    else:
        database = _name(database)
    host = url.host if is_sqlite(url) else _name(url.host)
    return DatabaseURL(url.drivername, host, url.port, database)


def _name(part: str | None) -> str | None:
    found = None if part is None else re.search(_OPTIONS, part)
    return part if part is None or found is None else _cut(part, found.start())


def _cut(part: str, at: int) -> str:
    return part if at < 0 else f"{part[:at]}…"
