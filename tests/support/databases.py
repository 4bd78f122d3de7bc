"""The databases in ``[db]`` of setup.cfg: which are available, and how to start them.

An entry is a URL, or names a server that the tests start: ``pgserver``, ``mariadbd``,
or ``pgbouncer`` in front of ``pgserver``. ``+`` and a driver can follow.
"""

from __future__ import annotations

import itertools
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from dataclasses import field
from functools import cache
from pathlib import Path
from typing import Any

from postgres import fresh_database
from sqlalchemy import create_engine
from sqlalchemy import make_url
from sqlalchemy import NullPool
from sqlalchemy import text
from sqlalchemy import URL
from waiting import wait_until

#: The programs that an entry needs, by the entry's first word.
PROGRAMS = {
    "mariadbd": ("mariadbd", "mariadb-install-db"),
    "pgbouncer": ("pgbouncer",),
}

#: Debian installs servers here, and not every PATH includes these folders.
_MORE_PATHS = os.pathsep.join(("/usr/sbin", "/usr/local/sbin", "/usr/bin"))

_numbers = itertools.count(1)


@dataclass(frozen=True)
class Database:
    """A database for one test."""

    url: URL
    """The URL for the application."""
    direct: URL
    """The URL of the database itself, without a proxy or pooler in front of it."""
    options: dict[str, Any] = field(default_factory=dict)
    """The engine options that it needs."""


@cache
def program(name: str) -> str | None:
    """Return the path of a program, or ``None`` if it is not installed."""
    return shutil.which(name) or shutil.which(name, path=_MORE_PATHS)


def available(value: str) -> bool:
    """Return whether the programs that an entry needs are installed."""
    needed = PROGRAMS.get(value.partition("+")[0], ())
    return all(program(name) for name in needed)


@contextmanager
def a_database(
    value: str, folder: Path, server: Callable[[str], Any]
) -> Iterator[Database]:
    """Create a database for one test, as an entry of ``[db]`` describes it.

    :param folder: The test's folder.
    :param server: Returns the fixture with this name, which runs the server.
    """
    source, _, driver = value.partition("+")
    if source == "pgserver":
        with fresh_database(server("pg_server")) as url:
            url = url.set(drivername=f"postgresql+{driver or 'psycopg'}")
            yield Database(url, url)
    elif source == "pgbouncer":
        with fresh_database(server("pg_server")) as direct:
            url = server("pgbouncer").set(database=direct.database)
            # A statement that one transaction prepares can be missing in the next,
            # because that may use another backend.
            yield Database(url, direct, {"connect_args": {"prepare_threshold": None}})
    elif source == "mariadbd":
        with _fresh_mariadb(server("mariadb_server")) as url:
            yield Database(url, url)
    else:
        url = make_url(value.replace("{tmp}", str(folder)))
        fresh = {
            "postgresql": fresh_database,
            "mysql": _fresh_mariadb,
            "mariadb": _fresh_mariadb,
        }.get(url.get_backend_name())
        if fresh is None:
            yield Database(url, url)
        else:
            with fresh(url) as url:
                yield Database(url, url)


# MariaDB


@contextmanager
def mariadb_server(parent: Path) -> Iterator[URL]:
    """Start MariaDB on a Unix socket, as the user who runs the tests."""
    install, serve = program("mariadb-install-db"), program("mariadbd")
    if not (install and serve):
        raise RuntimeError("mariadbd is not installed (Debian: mariadb-server)")
    folder = Path(tempfile.mkdtemp(prefix="my-", dir=parent))
    data, listens = folder / "data", folder / "sock"
    user = f"--user={_user_name()}"
    command = [install, "--no-defaults", f"--datadir={data}", user, "--skip-test-db"]
    command += ["--auth-root-authentication-method=normal"]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    command = [serve, "--no-defaults", f"--datadir={data}", user]
    command += [f"--socket={listens}", "--skip-networking", f"--tmpdir={folder}"]
    # The data need not survive a crash, and there is little of it.
    command += ["--innodb-flush-log-at-trx-commit=0", "--innodb-buffer-pool-size=8M"]
    # MariaDB shows the names of connections in the performance schema.
    command += ["--performance-schema=ON"]
    # Otherwise PyMySQL reads the certificates of the system for each connection, which
    # takes longer than everything else about it.
    query = {"unix_socket": str(listens), "ssl_disabled": "true"}
    url = URL.create("mysql+pymysql", "root", query=query)
    with _running(command, folder, lambda: _listens(listens)):
        yield url


@contextmanager
def _fresh_mariadb(server: URL) -> Iterator[URL]:
    name = f"scopedsession_{os.getpid()}_{next(_numbers)}"
    _run(server, f"CREATE DATABASE {name}")
    try:
        yield server.set(database=name)
    finally:
        _run(server, f"DROP DATABASE {name}")


# PgBouncer


@contextmanager
def pgbouncer_server(parent: Path, server: URL, **settings: object) -> Iterator[URL]:
    """Start PgBouncer in transaction mode, in front of PostgreSQL on a Unix socket.

    :param settings: More settings of its section ``[pgbouncer]``.
    """
    serve = program("pgbouncer")
    if not serve:
        raise RuntimeError("pgbouncer is not installed")
    folder = Path(tempfile.mkdtemp(prefix="pb-", dir=parent))
    sockets = Path(str(server.query["host"]))
    config = folder / "config.ini"
    config.write_text(
        f"""\
[databases]
* = host={sockets} port=5432 user=postgres
[pgbouncer]
pool_mode = transaction
listen_addr =
listen_port = 6432
unix_socket_dir = {folder}
auth_type = any
admin_users = postgres
ignore_startup_parameters = extra_float_digits
# Check a backend each time it is assigned, so that a dead one is noticed.
server_check_delay = 0
"""
        + "".join(f"{name} = {value}\n" for name, value in settings.items()),
        encoding="utf-8",
    )
    command = [serve, "-q"]
    if os.geteuid() == 0:
        # PgBouncer refuses to run as root, and only PostgreSQL's user has access to
        # PostgreSQL's socket.
        owner = sockets.owner()
        for path in (folder, config):
            shutil.chown(path, owner)
        command += ["-u", owner]
    url = server.set(host=None, query={"host": str(folder), "port": "6432"})
    listens = folder / ".s.PGSQL.6432"
    with _running([*command, str(config)], folder, lambda: _listens(listens)):
        yield url


# Servers


def _user_name() -> str:
    import pwd

    return pwd.getpwuid(os.geteuid()).pw_name


@contextmanager
def _running(
    command: list[str], folder: Path, ready: Callable[[], bool]
) -> Iterator[None]:
    log = folder / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, cwd=folder)
    try:

        def alive_and_ready() -> bool:
            if process.poll() is not None:
                raise RuntimeError(f"{command[0]}: {log.read_text(errors='replace')}")
            return ready()

        wait_until(alive_and_ready, timeout=60, what=command[0])
        yield
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _listens(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as visitor:
        return visitor.connect_ex(str(path)) == 0


def _run(url: URL, statement: str) -> None:
    engine = create_engine(url, poolclass=NullPool, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text(statement))


# The server's view


#: The name of the connections with which the tests themselves query a server.
_OBSERVER = "tests-observer"


class Backends:
    """The server's own view of the connections to one database."""

    def __init__(self, url: URL) -> None:
        self._postgresql = url.get_backend_name() == "postgresql"
        # A backend lives for a moment after its connection was closed. Name this
        # connection, so that earlier ones of this class are not counted.
        arguments = {"application_name": _OBSERVER} if self._postgresql else {}
        self._engine = create_engine(
            url,
            poolclass=NullPool,
            isolation_level="AUTOCOMMIT",
            connect_args=arguments,
        )

    def states(self) -> dict[int, str]:
        """Return the state of each connection by its process or thread ID.

        ``idle``, ``active`` or ``idle in transaction``, in PostgreSQL's words.
        """
        if not self._postgresql:
            time.sleep(0.12)  # InnoDB caches this view for a tenth of a second
        query = (
            "SELECT pid, state FROM pg_stat_activity WHERE datname ="
            f" current_database() AND application_name <> '{_OBSERVER}' AND"
            " backend_type = 'client backend'"
            if self._postgresql
            else "SELECT p.id, CASE WHEN p.command <> 'Sleep' THEN 'active'"
            " WHEN t.trx_id IS NULL THEN 'idle' ELSE 'idle in transaction' END"
            " FROM information_schema.processlist p LEFT JOIN"
            " information_schema.innodb_trx t ON t.trx_mysql_thread_id = p.id"
            " WHERE p.db = DATABASE() AND p.id <> CONNECTION_ID()"
        )
        with self._engine.connect() as connection:
            rows = connection.execute(text(query)).all()
        return {pid: str(state) for pid, state in rows}

    def ids(self) -> set[int]:
        """Return the process or thread IDs of all connections."""
        query = (
            "SELECT pid FROM pg_stat_activity WHERE datname = current_database()"
            f" AND application_name <> '{_OBSERVER}'"
            " AND backend_type = 'client backend'"
            if self._postgresql
            else "SELECT id FROM information_schema.processlist"
            " WHERE db = DATABASE() AND id <> CONNECTION_ID()"
        )
        with self._engine.connect() as connection:
            return set(connection.scalars(text(query)))

    def kill(self, *pids: int) -> None:
        """Terminate connections, and wait until they are gone."""
        with self._engine.connect() as connection:
            for pid in pids:
                statement = (
                    f"SELECT pg_terminate_backend({pid})"
                    if self._postgresql
                    else f"KILL {pid}"
                )
                connection.execute(text(statement))
        wait_until(lambda: not self.ids() & set(pids), what="end of the backends")

    def kill_all(self) -> set[int]:
        """Terminate all connections, and return their IDs."""
        pids = self.ids()
        self.kill(*pids)
        return pids
