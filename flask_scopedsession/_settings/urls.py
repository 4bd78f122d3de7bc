"""Configured database URLs: parsed, and refused where they cannot work.

No driver is imported. No message shows more of a URL than its dialect: a password
also stands in query strings (``?password=``, ``odbc_connect=...PWD``).
"""

from __future__ import annotations

import re
import typing as t
from collections.abc import Mapping
from urllib.parse import quote_plus

from sqlalchemy.engine import make_url
from sqlalchemy.engine import URL
from sqlalchemy.exc import ArgumentError
from sqlalchemy.exc import NoSuchModuleError

from ..errors import ConfigError
from .values import attempt
from .values import kind

if t.TYPE_CHECKING:
    from ..snapshot import DatabaseURL

_SYNC_DRIVERS = {
    "mariadb": "mariadb+pymysql",
    "mssql": "mssql+pyodbc",
    "mysql": "mysql+pymysql",
    "oracle": "oracle+oracledb",
    "postgresql": "postgresql+psycopg",
    "sqlite": "sqlite",
}
_TEXT_PARTS = ("username", "password", "host", "database")
_PARTS = frozenset((*_TEXT_PARTS, "drivername", "port", "query"))


def parse_url(key: str, value: object) -> URL:
    """Return a configured URL: a string, a :class:`URL`, or a dict of its parts.

    :raises ConfigError: It cannot be parsed, or its dialect not be used.
    """
    if isinstance(value, Mapping):
        url = _from_parts(key, value)
    elif isinstance(value, str):
        url = _from_text(key, value)
    elif isinstance(value, URL):
        url = value
    else:
        raise ConfigError(f"{key} must be a str, a URL or a dict, not {kind(value)}.")
    _check_dialect(key, url)
    return url


def _from_text(key: str, value: str) -> URL:
    if not value.strip():
        raise ConfigError(f"{key} is empty. Set it to a database URL, or remove it.")
    url = attempt(lambda: make_url(value.strip()), ArgumentError, ValueError)
    # SQLAlchemy takes what follows an @ in the password for the host.
    if isinstance(url, Exception) or "@" in (url.host or ""):
        raise ConfigError(
            f"{key} could not be parsed as a database URL. It looks like"
            " dialect+driver://user:password@host:port/database; special characters"
            " in the password must be percent-encoded, or the parts given as a dict."
        )
    return url


def _from_parts(key: str, value: Mapping[str, t.Any]) -> URL:
    parts: dict[str, t.Any] = {
        # from_prefixed_env() reads a password of digits as a number.
        name: str(part) if name in _TEXT_PARTS and type(part) is int else part
        for name, part in value.items()
    }
    if not _PARTS.issuperset(parts):
        # The name of a part that is none may be a slip of a secret; do not show it.
        url: URL | Exception = TypeError()
    else:
        url = attempt(lambda: URL.create(**parts), TypeError, ValueError, ArgumentError)
    if isinstance(url, Exception):
        raise ConfigError(
            f"{key} is a dict that sqlalchemy.URL.create() does not accept. It takes"
            " drivername, username, password, host, port, database and query."
        )
    return url


def _check_dialect(key: str, url: URL) -> None:
    name = url.drivername
    if not re.fullmatch(r"[\w.+]+", name):
        # Perhaps a whole URL: not to be shown.
        raise ConfigError(
            f"{key}: the drivername must be a dialect and driver, such as"
            " 'postgresql+psycopg'."
        )
    dialect: t.Any = attempt(
        url.get_dialect, NoSuchModuleError, ArgumentError, ImportError
    )
    if isinstance(dialect, ImportError):
        return  # it imports its driver at once; creating the engine will tell
    if isinstance(dialect, Exception):
        instead = " Use 'postgresql'." if name.partition("+")[0] == "postgres" else ""
        raise ConfigError(
            f"{key} names the dialect {name!r}, which SQLAlchemy does not know."
            f"{instead or ' Check the spelling, or install what provides it.'}"
        )
    if dialect.is_async:
        backend = url.get_backend_name()
        instead = repr(_SYNC_DRIVERS.get(backend, backend))
        raise ConfigError(
            f"{key} names the async driver {name!r}. This extension serves"
            f" synchronous sessions; use a synchronous driver, such as {instead}."
        )
    if is_sqlite(url) and (url.host or url.port is not None):
        raise ConfigError(
            f"{key} names a host, which SQLite does not have. A path follows three"
            " slashes, as in sqlite:///app.db, or four if it is absolute."
        )


class MaskedURL(URL):
    """A URL whose text shows no value of its query, where secrets also stand.

    Engines, sessionmakers and error trackers show their URL's text.
    """

    def render_as_string(self, hide_password: bool = True) -> str:
        """Return the whole URL only when asked for it with its password."""
        if not hide_password:
            return super().render_as_string(hide_password=False)
        plain = URL.render_as_string(self.set(query={}))
        names = (quote_plus(name) for name in sorted(self.query))
        shown = "&".join(f"{name}=***" for name in names)
        return f"{plain}?{shown}" if shown else plain

    def __hash__(self) -> int:
        # By its text, as SQLAlchemy's, which it may equal.
        return hash(URL.render_as_string(self))


def masked(url: URL) -> URL:
    """Return the same URL, to give to an engine."""
    return MaskedURL._make(url)


def driver_of(url: URL) -> tuple[str, str]:
    """Return the names of dialect and driver, the dialect's default spelt out."""
    driver = attempt(url.get_driver_name, ImportError)
    return url.get_backend_name(), str(driver)


def is_sqlite(url: URL) -> bool:
    """Whether the database is SQLite, with whatever driver."""
    return url.get_backend_name() == "sqlite"


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
        in_query = url.query.get("mode") == "memory"
        return in_query or database.startswith("file::memory:")
    return database == ":memory:"


# -- what may be shown ---------------------------------------------------------

#: Where a name stops to be one: drivers also take a whole connection string, or a URL
#: with options, for the name of a host or database.
_OPTIONS = re.compile(r"[?;&=]|://")


def safe_url(url: URL) -> DatabaseURL:
    """Return the parts of a URL that may be shown: a list of the good ones."""
    from ..snapshot import DatabaseURL

    if is_sqlite(url):
        database = url.database
        if database is not None and database.startswith("file:"):
            database = _cut(database, database.find("?"))
        return DatabaseURL(url.drivername, url.host, url.port, database)
    return DatabaseURL(url.drivername, _name(url.host), url.port, _name(url.database))


def _name(part: str | None) -> str | None:
    found = None if part is None else _OPTIONS.search(part)
    return part if part is None or found is None else _cut(part, found.start())


def _cut(part: str, at: int) -> str:
    return part if at < 0 else f"{part[:at]}…"
