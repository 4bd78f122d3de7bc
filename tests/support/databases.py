"""The databases that ``[db]`` in setup.cfg names: which are to be had, and how.

An entry is a URL, or says what the tests run themselves: ``pgserver``, ``mariadbd``,
or ``pgbouncer`` in front of the former; ``+`` another driver may follow.
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
from pathlib import Path
from typing import Any

from postgres import fresh_database
from sqlalchemy import create_engine
from sqlalchemy import make_url
from sqlalchemy import NullPool
from sqlalchemy import text
from sqlalchemy import URL
from waiting import wait_until

#: What has to be installed for an entry: programs, by the entry's first word.
PROGRAMS = {
    "mariadbd": ("mariadbd", "mariadb-install-db"),
    "pgbouncer": ("pgbouncer",),
}

#: Debian's servers are here, and not on everybody's PATH.
_MORE_PATHS = os.pathsep.join(("/usr/sbin", "/usr/local/sbin", "/usr/bin"))

_numbers = itertools.count(1)


@dataclass(frozen=True)
class Database:
    """One database, made for one test."""

    url: URL
    """What an application is given."""
    direct: URL
    """The database itself, which may have something in front of it."""
    options: dict[str, Any] = field(default_factory=dict)
    """Engine options that it needs."""


def program(name: str) -> str | None:
    """Return where a program is installed."""
    return shutil.which(name) or shutil.which(name, path=_MORE_PATHS)


def available(value: str) -> bool:
    """Whether what an entry needs is installed here."""
    needed = PROGRAMS.get(value.partition("+")[0], ())
    return all(program(name) for name in needed)


@contextmanager
def a_database(
    value: str, folder: Path, server: Callable[[str], Any]
) -> Iterator[Database]:
    """Make a database as an entry of ``[db]`` describes it, for one test.

    :param folder: The test's own.
    :param server: Returns the fixture of this name, which is the server.
    """
    source, _, driver = value.partition("+")
    if source == "pgserver":
        with fresh_database(server("pg_server")) as url:
            url = url.set(drivername=f"postgresql+{driver or 'psycopg'}")
            yield Database(url, url)
    elif source == "pgbouncer":
        with fresh_database(server("pg_server")) as direct:
            url = server("pgbouncer").set(database=direct.database)
            # What one transaction prepares is not there for the next, which may
            # meet another backend.
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
    """Start a MariaDB on a unix socket, as whoever runs the tests."""
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
    # The data are thrown away; and what the tests need is little.
    command += ["--innodb-flush-log-at-trx-commit=0", "--innodb-buffer-pool-size=8M"]
    # Where it shows what connections are called.
    command += ["--performance-schema=ON"]
    url = URL.create("mysql+pymysql", "root", query={"unix_socket": str(listens)})
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
def pgbouncer_server(parent: Path, server: URL) -> Iterator[URL]:
    """Start a PgBouncer in transaction mode before a PostgreSQL on a unix socket."""
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
# A backend that died is noticed when it is asked for.
server_check_delay = 0
""",
        encoding="utf-8",
    )
    command = [serve, "-q"]
    if os.geteuid() == 0:
        # It refuses to run as root. Only PostgreSQL's own user gets at its socket.
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


# What the server says


#: What the tests' own looks at a server are called there.
_OBSERVER = "tests-observer"


class Backends:
    """What the server itself tells about its connections to one database."""

    def __init__(self, url: URL) -> None:
        self._postgresql = url.get_backend_name() == "postgresql"
        # The server's process outlives a connection that was closed by a moment: its
        # own of a moment ago must not be among the answers.
        arguments = {"application_name": _OBSERVER} if self._postgresql else {}
        self._engine = create_engine(
            url,
            poolclass=NullPool,
            isolation_level="AUTOCOMMIT",
            connect_args=arguments,
        )

    def states(self) -> dict[int, str]:
        """Return each connection's state by its process or thread id.

        ``idle``, ``active`` or ``idle in transaction``, in PostgreSQL's words.
        """
        if not self._postgresql:
            time.sleep(0.12)  # InnoDB shows what it knew a tenth of a second ago
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
        """Return the process or thread ids of all connections."""
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
        """End connections, and return when they are gone."""
        with self._engine.connect() as connection:
            for pid in pids:
                statement = (
                    f"SELECT pg_terminate_backend({pid})"
                    if self._postgresql
                    else f"KILL {pid}"
                )
                connection.execute(text(statement))
        wait_until(lambda: not self.ids() & set(pids), what="the killed are gone")

    def kill_all(self) -> set[int]:
        """End every connection, and return which they were."""
        pids = self.ids()
        self.kill(*pids)
        return pids
