"""What a connection is called at its server: the app, the host, and the process.

PostgreSQL shows the name as ``application_name``, MySQL and MariaDB as the connection
attribute ``program_name``. A name that the application sets is kept, even if empty.
"""

from __future__ import annotations

import os
import re
import socket
import typing as t
from collections.abc import Callable
from collections.abc import Mapping

if t.TYPE_CHECKING:
    from sqlalchemy import Engine
    from sqlalchemy.engine.interfaces import DBAPIConnection

#: How many bytes of a name PostgreSQL keeps.
_LONGEST = 63

#: How many characters of an app's name are kept. They are few enough that the names of
#: all its processes begin alike, however long the name of their host is.
_LONGEST_APP = 24

_UNSAFE = r"[^A-Za-z0-9_.:/+-]"
_SET_AT_SERVER = r"(?i)application[_-]name\s*="

_Finder = Callable[[t.Sequence[t.Any], Mapping[str, t.Any]], "str | None"]


def name_connections(engine: Engine, app_name: str) -> None:
    """Give an engine's connections the name of the process that opens them.

    This has no effect if the application's own `creator` connects.

    :param app_name: The first part of the name.
    """
    dialect = engine.dialect
    if dialect.driver == "asyncpg":
        _name_asyncpg(dialect, app_name)
        return
    find = _ARGUMENTS.get((dialect.name, dialect.driver))
    if find is None:
        return

    connect = dialect.connect

    def connect_by_name(*cargs: t.Any, **cparams: t.Any) -> DBAPIConnection:
        argument = find(cargs, cparams)
        if argument is not None and argument not in cparams:
            # The process may be a fork, younger than the engine.
            cparams[argument] = own_name(app_name)
        return connect(*cargs, **cparams)

    # Not an event on "do_connect": any event of a dialect slows each execution down.
    dialect.connect = connect_by_name  # type: ignore[method-assign]


def _name_asyncpg(dialect: t.Any, app_name: str) -> None:
    connect = dialect.connect

    def connect_by_name(*cargs: t.Any, **cparams: t.Any) -> DBAPIConnection:
        given = cparams.get("server_settings") or {}
        if isinstance(given, Mapping):
            name = {"application_name": own_name(app_name)}
            cparams["server_settings"] = {**name, **given}
        return t.cast("DBAPIConnection", connect(*cargs, **cparams))

    dialect.connect = connect_by_name


def own_name(app_name: str) -> str:
    """Return the name of this process's connections."""
    return process_name(app_name, socket.gethostname(), os.getpid())


def process_name(app_name: str, host: str, pid: int) -> str:
    """Return ``app@host:pid``, in at most 63 ASCII characters.

    The process ID is never cut. The app's name is cut at its end, and the host's at its
    beginning, because the hosts of one deployment differ at the end.
    """
    label = host.partition(".")[0]
    host = re.sub(_UNSAFE, "_", host if label.isdigit() else label)
    start, end = family(app_name), f":{pid}"
    room = _LONGEST - len(start) - len(end)
    return start + host[-room:] + end


def family(app_name: str) -> str:
    """Return how the names of all processes of an app begin."""
    return re.sub(_UNSAFE, "_", app_name)[:_LONGEST_APP] + "@"


def family_of(name: str) -> str | None:
    """Return how the names of this app's processes begin, from this process's name.

    ``None`` if this process did not make the name, but the application set it.
    """
    found = re.fullmatch(rf"([^@]*@)[^@]+:{os.getpid()}", name)
    return found and found[1]


def _postgresql(cargs: t.Sequence[t.Any], cparams: Mapping[str, t.Any]) -> str | None:
    # A name among the options would be overridden by the one that we send.
    options = cparams.get("options", os.environ.get("PGOPTIONS"))
    given = (options, cparams.get("dsn"), cparams.get("conninfo"), *cargs)
    if any(re.search(_SET_AT_SERVER, text) for text in given if isinstance(text, str)):
        return None
    # libpq uses it if no other is set in the URL, PGAPPNAME or a service file.
    return "fallback_application_name"


def _pymysql(_: t.Sequence[t.Any], __: Mapping[str, t.Any]) -> str | None:
    return "program_name"


#: By dialect and driver: finds the argument that names a connection. Other drivers are
#: left alone.
_ARGUMENTS: Mapping[tuple[str, str], _Finder] = {
    ("postgresql", "psycopg"): _postgresql,
    ("postgresql", "psycopg2"): _postgresql,
    ("mysql", "pymysql"): _pymysql,
    ("mariadb", "pymysql"): _pymysql,
}
