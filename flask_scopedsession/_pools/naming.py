"""What a connection is called at its server: the app, the host, and the process.

PostgreSQL shows it as ``application_name``, MySQL and MariaDB as the connection
attribute ``program_name``. A name of the user's own, an empty one too, is kept.
"""

from __future__ import annotations

import os
import re
import socket
import typing as t
from collections.abc import Callable
from collections.abc import Mapping

from sqlalchemy import event

if t.TYPE_CHECKING:
    from sqlalchemy import Engine

#: What PostgreSQL keeps of a name, in bytes.
_LONGEST = 63

#: All processes of an app shall begin alike, however long the name of their host.
_LONGEST_APP = 24

_UNSAFE = re.compile(r"[^A-Za-z0-9_.:/+-]")
_SET_AT_SERVER = re.compile(r"application[_-]name\s*=", re.IGNORECASE)

_Finder = Callable[[t.Sequence[t.Any], Mapping[str, t.Any]], "str | None"]


def name_connections(engine: Engine, app_name: str) -> None:
    """Let an engine's connections bear the name of the process that opens them.

    Where the user's `creator` connects, this has no effect.
    """
    dialect = engine.dialect
    find = _ARGUMENTS.get((dialect.name, dialect.driver))
    if find is None:
        return
    last: str | None = None

    def connecting(_: object, __: object, cargs: t.Any, cparams: t.Any) -> None:
        # The engine may be older than the process, which may be a fork. Old versions
        # of SQLAlchemy give the same dict each time, with the name we set last.
        nonlocal last
        argument = find(cargs, cparams)
        if argument is not None and cparams.get(argument, last) == last:
            cparams[argument] = last = own_name(app_name)

    event.listen(engine, "do_connect", connecting)


def own_name(app_name: str) -> str:
    """Return what this process's connections are called."""
    return process_name(app_name, socket.gethostname(), os.getpid())


def process_name(app_name: str, host: str, pid: int) -> str:
    """Return ``app@host:pid``, in at most 63 characters of ASCII.

    The process id is never cut. Of the app's name the beginning is kept, of the
    host's the end, by which the hosts of one deployment differ.
    """
    label = host.partition(".")[0]
    host = _UNSAFE.sub("_", host if label.isdigit() else label)
    start, end = family(app_name), f":{pid}"
    room = _LONGEST - len(start) - len(end)
    return start + host[-room:] + end


def family(app_name: str) -> str:
    """Return how the names of all processes of an app begin."""
    return _UNSAFE.sub("_", app_name)[:_LONGEST_APP] + "@"


def family_of(name: str) -> str | None:
    """Return how names like this process's begin; ``None`` for one of the user's."""
    found = re.fullmatch(rf"([^@]*@)[^@]+:{os.getpid()}", name)
    return found and found[1]


def _postgresql(cargs: t.Sequence[t.Any], cparams: Mapping[str, t.Any]) -> str | None:
    # Given as an option, a name would lose against the one that we send.
    options = cparams.get("options", os.environ.get("PGOPTIONS"))
    given = (options, cparams.get("dsn"), cparams.get("conninfo"), *cargs)
    if any(_SET_AT_SERVER.search(text) for text in given if isinstance(text, str)):
        return None
    # libpq uses it when there is no other: in the URL, PGAPPNAME, a service file.
    return "fallback_application_name"


def _pymysql(_: t.Sequence[t.Any], __: Mapping[str, t.Any]) -> str | None:
    return "program_name"


#: By dialect and driver: the argument that names a connection, where that is certain.
_ARGUMENTS: Mapping[tuple[str, str], _Finder] = {
    ("postgresql", "psycopg"): _postgresql,
    ("postgresql", "psycopg2"): _postgresql,
    ("mysql", "pymysql"): _pymysql,
    ("mariadb", "pymysql"): _pymysql,
}
