"""Fixtures for all tests. The helpers themselves are in ``support/``.

No fixture is called ``app`` or ``client``: pytest-flask pushes a request context around
every test that uses ``app``. A test that wants this context defines ``app`` itself,
with ``make_app``.
"""

from __future__ import annotations

import configparser
import functools
import gc
import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Callable
from collections.abc import Iterator
from contextlib import ExitStack
from contextlib import suppress
from pathlib import Path
from typing import Any

import commands
import pytest
from commands import Result
from databases import a_database
from databases import available
from databases import Backends
from databases import Database
from databases import mariadb_server as run_mariadb
from databases import pgbouncer_server as run_pgbouncer
from databases import program
from flask import Flask
from gates import Gates
from postgres import brought_server
from postgres import fresh_database
from postgres import Server
from prefork import Prefork
from sqlalchemy import URL
from waiting import wait_until

from flask_scopedsession import ScopedSession

#: The longest folder name that leaves room for a control socket's path, which is
#: limited to 107 bytes (103 on macOS).
LONGEST_TEMP = 40


# Options


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--db",
        action="append",
        metavar="NAME",
        help="a database from [db] in setup.cfg, for tests that use 'db_url';"
        " can be given more than once (default: all whose programs are installed)",
    )


def pytest_configure(config: pytest.Config) -> None:
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        # SIGINT is ignored in a shell's background and with nohup. Children would
        # inherit this, and tests send Ctrl-C to children.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    known = databases(config)
    if unknown := set(config.getoption("db") or ()) - known.keys():
        raise pytest.UsageError(
            f"--db: {', '.join(sorted(unknown))} is not in [db] of setup.cfg,"
            f" which has {', '.join(known)}"
        )


@functools.cache
def databases(config: pytest.Config) -> dict[str, str]:
    """Read ``[db]`` of setup.cfg."""
    parser = configparser.ConfigParser(interpolation=None)
    parser.read(config.rootpath / "setup.cfg", encoding="utf-8")
    return dict(parser["db"])


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    # It makes a million objects that stay, and no rubbish to look for.
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "db_name" not in metafunc.fixturenames:
        return
    known = databases(metafunc.config)
    names = metafunc.config.getoption("db") or [
        name for name, value in known.items() if available(value)
    ]
    only = metafunc.definition.get_closest_marker("databases")
    chosen: list[Any] = [name for name in names if only is None or name in only.args]
    # Deselect a test for which no database is available, instead of skipping it.
    absent = pytest.param("none", marks=pytest.mark.absent)
    metafunc.parametrize("db_name", chosen or [absent], indirect=True, scope="session")


def pytest_collection_modifyitems(
    config: pytest.Config, items: list[pytest.Item]
) -> None:
    soak = "soak" in config.getoption("markexpr") or os.environ.get("SOAK_SECONDS")
    left_out = [
        item
        for item in items
        if item.get_closest_marker("absent")
        or (item.get_closest_marker("soak") and not soak)
        or (item.get_closest_marker("prometheus") and not program("prometheus"))
    ]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


# Places


@pytest.fixture(scope="session")
def short_root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a short name, for the whole run.

    The path of a socket in pytest's own folders is too long.
    """
    tmp_path_factory.getbasetemp()  # fixes pytest's folder before TMPDIR changes
    temp = Path(tempfile.gettempdir()).resolve()
    parent = Path("/tmp") if len(str(temp)) > LONGEST_TEMP else temp
    root = Path(tempfile.mkdtemp(prefix="ss-", dir=parent))
    # PostgreSQL can run as another user, and needs access to this folder.
    root.chmod(0o755)
    yield root
    shutil.rmtree(root, ignore_errors=True)


@pytest.fixture
def short_tmp(short_root: Path) -> Iterator[Path]:
    """The test's folder, with a short name. It is also the test's TMPDIR."""
    path = Path(tempfile.mkdtemp(dir=short_root, prefix=""))
    yield path
    for folder, _, _ in os.walk(path):  # some tests remove permissions
        Path(folder).chmod(0o700)
    shutil.rmtree(path)


@pytest.fixture(autouse=True)
def own_temp(short_tmp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the default control directory and files of children in the test's folder."""
    monkeypatch.setenv("TMPDIR", str(short_tmp))
    monkeypatch.setattr(tempfile, "tempdir", str(short_tmp))
    monkeypatch.delenv("SCOPEDSESSION_CONTROL", raising=False)


# Leaks


def own_threads() -> list[str]:
    """Return the names of the extension's threads in this process."""
    names = (thread.name for thread in threading.enumerate())
    return [name for name in names if name.startswith("scopedsession")]


@pytest.fixture(autouse=True)
def no_leaks(own_temp: None) -> Iterator[None]:
    """Fail a test that leaves a thread, a connection or a socket behind.

    An open connection or socket causes a ResourceWarning when it is collected, and
    this warning is an error here. What imports and earlier tests left on the heap is
    not searched again: compiled statements alone would take most of the time.
    """
    gc.collect()
    gc.freeze()
    yield
    gc.collect()
    with suppress(TimeoutError):
        wait_until(lambda: not own_threads(), timeout=2)
    assert own_threads() == []


@pytest.fixture(scope="session", autouse=True)
def real_temp_untouched(short_root: Path) -> Iterator[None]:
    """Fail the run if this process leaves files in the real control directory."""
    parent = Path(tempfile.gettempdir())
    yield
    ours = parent.glob(f"flask-scopedsession-*/*/{os.getpid()}-*")
    assert list(ours) == []


# Databases


@pytest.fixture(scope="session")
def pg_server(short_root: Path) -> Iterator[URL]:
    """The URL of a PostgreSQL server that runs until the tests end."""
    with brought_server(short_root) as server:
        yield server.url


@pytest.fixture(scope="session")
def frail_server(short_root: Path) -> Iterator[Server]:
    """A durable PostgreSQL server with few connections, which tests can crash."""
    with brought_server(short_root, durable=True) as server:
        server.set(max_connections=20, superuser_reserved_connections=3)
        server.crash()
        server.start()
        yield server


@pytest.fixture(scope="session")
def mariadb_server(short_root: Path) -> Iterator[URL]:
    """The URL of a MariaDB server that runs until the tests end."""
    with run_mariadb(short_root) as url:
        yield url


@pytest.fixture(scope="session")
def pgbouncer(short_root: Path, pg_server: URL) -> Iterator[URL]:
    """The URL of a PgBouncer in transaction mode, in front of ``pg_server``."""
    with run_pgbouncer(short_root, pg_server) as url:
        yield url


@pytest.fixture
def pg_url(pg_server: URL) -> Iterator[str]:
    """The URL of a new PostgreSQL database, which is dropped after the test."""
    with fresh_database(pg_server) as url:
        yield url.render_as_string(hide_password=False)


@pytest.fixture(scope="session")
def db_name(request: pytest.FixtureRequest) -> str:
    """The name in ``[db]`` of the test's database. The test runs once for each."""
    return str(request.param)


@pytest.fixture(scope="session")
def db_value(db_name: str, request: pytest.FixtureRequest) -> str:
    """The value of ``db_name`` in ``[db]``."""
    return databases(request.config)[db_name]


@pytest.fixture
def database(
    db_value: str, request: pytest.FixtureRequest, short_tmp: Path
) -> Iterator[Database]:
    """An empty database on each selected server, with the options that it needs."""
    with a_database(db_value, short_tmp, request.getfixturevalue) as found:
        yield found


@pytest.fixture
def db_url(database: Database) -> str:
    """The URL of an empty database on each selected server."""
    return database.url.render_as_string(hide_password=False)


@pytest.fixture
def backends(database: Database) -> Backends:
    """The view that the database server has of the test's connections."""
    return Backends(database.direct)


@pytest.fixture
def sqlite_url(short_tmp: Path) -> str:
    """The URL of an SQLite file that does not exist yet."""
    return f"sqlite:///{short_tmp / 'test.db'}"


# Applications in this process


@pytest.fixture
def make_app(short_tmp: Path) -> Iterator[Callable[..., Flask]]:
    """Create applications, and dispose of them after the test.

    ``make_app(db, **config)`` returns an application with ``TESTING``, in-memory
    SQLite and the given configuration, for which ``db.init_app()`` was called.
    ``import_name`` and ``flask_options`` are for ``flask_class``.
    """
    with ExitStack() as stack:

        def make(
            db: ScopedSession[Any] | None = None,
            *,
            import_name: str = "tests_app",
            flask_class: type[Flask] = Flask,
            flask_options: dict[str, Any] | None = None,
            **config: Any,
        ) -> Flask:
            # No route for static files: its compilation is half of what Flask costs.
            options: dict[str, Any] = {
                "root_path": str(short_tmp),
                "instance_path": str(short_tmp),
                "static_folder": None,
            }
            app = flask_class(import_name, **{**options, **(flask_options or {})})
            app.config["TESTING"] = True
            if not config.keys() & {"SQLALCHEMY_DATABASE_URI", "SQLALCHEMY_BINDS"}:
                app.config["SQLALCHEMY_DATABASE_URI"] = "sqlite:///:memory:"
            app.config.update(config)
            extension = ScopedSession() if db is None else db
            extension.init_app(app)
            stack.callback(extension.dispose, app)
            return app

        yield make


# Other processes


@pytest.fixture
def gates(short_tmp: Path) -> Iterator[Gates]:
    """Gates at which views of ``live_app`` wait. All are opened after the test."""
    gates = Gates(short_tmp / "gates")
    yield gates
    gates.open_all()


@pytest.fixture
def live_env(sqlite_url: str, gates: Gates) -> dict[str, str]:
    """The environment of ``live_app``: SQLite and the test's gates.

    Change it before you call ``prefork`` and ``run_cli``.
    """
    return {"FLASK_SQLALCHEMY_DATABASE_URI": sqlite_url, **gates.env}


@pytest.fixture
def prefork(
    short_tmp: Path, live_env: dict[str, str], gates: Gates
) -> Iterator[Callable[..., Prefork]]:
    """Start real workers, and stop them after the test.

    ``prefork(count=3, worker_class="gthread", ...)`` has the arguments of
    :class:`~prefork.Prefork`, and returns a group that is ready. ``env`` is added to
    ``live_env``; ``ready=False`` does not wait.
    """
    with ExitStack() as stack:

        def start(
            *args: Any,
            env: dict[str, str | None] | None = None,
            ready: bool = True,
            **kwargs: Any,
        ) -> Prefork:
            group = Prefork(short_tmp, *args, env={**live_env, **(env or {})}, **kwargs)
            stack.enter_context(group)
            if ready:
                group.wait_ready()
            return group

        yield start
        gates.open_all()


@pytest.fixture
def run_cli(live_env: dict[str, str]) -> Callable[..., Result]:
    """Run ``flask --app live_app:create_app ARGS`` in a separate process.

    ``run_cli(args, app=..., env=..., cwd=..., input=..., timeout=60)`` returns
    ``code``, ``stdout`` and ``stderr``. ``env`` is added to ``live_env``;
    ``app=None`` omits ``--app``.
    """

    def run(
        args: list[str], *, env: dict[str, str | None] | None = None, **kwargs: Any
    ) -> Result:
        return commands.flask(args, env={**live_env, **(env or {})}, **kwargs)

    return run


@pytest.fixture
def run_script(
    request: pytest.FixtureRequest, short_tmp: Path
) -> Callable[..., Result]:
    """Run a script in a new interpreter, for example because it forks.

    ``run_script(source, *args, python_args=("-W", "error"), env=..., cwd=...)``;
    ``source`` is code, or the name of a file in the test's folder.
    """
    return functools.partial(
        commands.script, beside=request.path.parent, scratch=short_tmp
    )
