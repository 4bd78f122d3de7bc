"""The commands: where they are, their options, their exit codes."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from collections.abc import Iterator
from contextlib import contextmanager
from inspect import getsourcelines
from inspect import signature
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner
from click.testing import Result
from environment import child_environ
from environment import WORKERS
from flask import Flask
from flask.cli import FlaskGroup
from inside import LiveView
from inside import Refresh
from lean import LEAN
from readings import a_full_pool
from readings import a_last_worker
from readings import a_pool
from readings import a_session
from readings import a_silent
from readings import a_survey
from readings import a_worker
from sqlalchemy import text
from starting import Process
from starting import start

from flask_scopedsession import cli
from flask_scopedsession import ScopedSession
from flask_scopedsession.__main__ import main
from flask_scopedsession.cli import watch as watching
from flask_scopedsession.snapshot import BusyMinute
from flask_scopedsession.snapshot import SearchedDirectory
from flask_scopedsession.snapshot import Survey

MakeApp = Callable[..., Flask]
Invoke = Callable[..., Result]
RunCli = Callable[..., Any]

STATUS = ["pool-status", "session-status"]

#: Until Click 8.2, a test runner mixes the two streams unless told.
SEPARATE = (
    {"mix_stderr": False} if "mix_stderr" in signature(CliRunner).parameters else {}
)


@pytest.fixture
def db() -> ScopedSession:
    return ScopedSession()


@pytest.fixture
def flask_app(make_app: MakeApp, db: ScopedSession) -> Flask:
    return make_app(
        db,
        SQLALCHEMY_DATABASE_URI="sqlite:///app.db",
        SQLALCHEMY_BINDS={"audit": "sqlite:///audit.db"},
    )


@pytest.fixture
def invoke(flask_app: Flask) -> Invoke:
    """Run a command of the application, as its tests would."""

    def run(*args: str) -> Result:
        return flask_app.test_cli_runner(**SEPARATE).invoke(args=args)

    return run


@pytest.fixture
def surveyed(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Replace the survey that the commands get."""

    def see(*workers: Any, **changes: Any) -> None:
        survey = a_survey(*workers, **changes)
        monkeypatch.setattr(LiveView, "survey", lambda *_: survey)

    return see


@contextmanager
def serving(app: Flask, db: ScopedSession) -> Iterator[None]:
    """Be a live worker that holds a connection."""
    with app.app_context():
        db.serve_control("job")
        db.session.execute(text("SELECT 1"))
        try:
            yield
        finally:
            db.dispose()


# Where they are


def test_app_cli(flask_app: Flask) -> None:
    """The commands are in ``app.cli``, so a test runner finds them."""
    names = {"pool-status", "session-status", "pool-advise", "db-ping"}
    assert names <= set(flask_app.cli.commands)


HELP = {
    "pool-status": "Show all database pools, and who holds connections.",
    "session-status": "Show all open database sessions, and what each belongs to.",
    "pool-advise": "Say how large each database pool should be, and why.",
    "db-ping": "Test whether every database answers, and how fast.",
}


def test_group_help(invoke: Invoke) -> None:
    """Each command has one line of help, uncut at 80 columns."""
    output = invoke("--help").output
    for name, line in HELP.items():
        assert re.search(rf"^  {name} +{line}$", output, re.MULTILINE)


def test_entry_points(flask_app: Flask, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are plugins of ``flask``, listed once even if the app has them, too."""
    points = {
        "pool-status": "pool_status",
        "session-status": "session_status",
        "pool-advise": "pool_advise",
        "db-ping": "db_ping",
    }
    pyproject = Path(__file__).parents[2] / "pyproject.toml"
    for name, attribute in points.items():
        line = f'{name} = "flask_scopedsession.cli:{attribute}"'
        assert line in pyproject.read_text(encoding="utf-8")
    group = FlaskGroup(create_app=lambda: flask_app)
    for name, attribute in points.items():
        group.add_command(getattr(cli, attribute), name)
    output = flask_app.test_cli_runner().invoke(group, ["--help"]).output
    for name, line in HELP.items():
        assert len(re.findall(rf"^  {name} ", output, re.MULTILINE)) == 1
        assert line in output


def test_module(flask_app: Flask) -> None:
    """``python -m flask_scopedsession`` lists these five commands and no others."""
    runner = flask_app.test_cli_runner()
    output = runner.invoke(main, ["--help"]).output
    listed = re.findall(
        r"^  ([a-z-]+)  +[A-Z]", output.partition("Commands:")[2], re.MULTILINE
    )
    assert listed == sorted([*HELP, "pool-metrics"])
    assert "Error" not in output


@pytest.mark.parametrize("name", STATUS)
def test_help_explains_every_column(name: str, invoke: Invoke, surveyed: Any) -> None:
    """The help explains every column and option, within 80 columns."""
    surveyed(a_worker(sessions=(a_session(),)))
    columns = invoke(name).output.splitlines()[2].split()
    assert len(columns) == 10
    output = invoke(name, "--help").output
    explained = output.partition("Options:")[0]
    for column in columns:
        assert re.search(rf"(^  |, ){column}\b", explained, re.MULTILINE), column
    for option in (
        *("--json", "--watch [SECONDS]", "--bind NAME", "--pid", "--timeout SECONDS"),
        *("--control-dir DIR", "--verbose", "--check", "--warn", "--crit", "--help"),
    ):
        assert option in output
    assert "held_long=1,used_pct=90" in output.replace("\n", "").replace(" ", "")
    assert max(map(len, output.splitlines())) <= 80


def test_server_needs_the_application(invoke: Invoke, short_tmp: Path) -> None:
    """--server refuses --control-dir, and session-status has no --server."""
    result = invoke("pool-status", "--server", "--control-dir", str(short_tmp))
    assert result.exit_code == 2
    assert "--server and --control-dir cannot be combined" in result.stderr
    assert invoke("session-status", "--server").exit_code == 2
    assert "--server" in invoke("pool-status", "--help").output


def test_server_without_one(invoke: Invoke) -> None:
    """SQLite has no server: one line for each bind, below the pools."""
    plain = invoke("pool-status").output
    result = invoke("pool-status", "--server")
    assert result.exit_code == 0
    assert result.output.count("no server: SQLite has none") == 2
    assert result.output.splitlines()[2:4] == plain.splitlines()[2:4]
    document = json.loads(invoke("pool-status", "--server", "--json").stdout)
    assert [view["binds"] for view in document["servers"]] == [["default"], ["audit"]]
    one = invoke("pool-status", "--server", "--json", "--bind", "audit")
    assert [view["binds"] for view in json.loads(one.stdout)["servers"]] == [["audit"]]
    assert "servers" not in json.loads(invoke("pool-status", "--json").stdout)


def test_help_of_db_ping(invoke: Invoke) -> None:
    """It explains the columns and the exit codes."""
    output = invoke("db-ping", "--help").output
    for column in ("BIND", "LATENCY", "VERSION", "DATABASE"):
        assert re.search(rf"^  {column} ", output, re.MULTILINE)
    assert "Exits with 0 if all databases answered, else with 4." in output


def test_help_of_pool_advise(invoke: Invoke) -> None:
    """It explains every setting and option, within 80 columns."""
    output = invoke("pool-advise", "--help").output
    explained = output.partition("Options:")[0]
    for setting in ("pool_size", "max_overflow", "pool_timeout"):
        assert re.search(rf"^  {setting} ", explained, re.MULTILINE)
    for option in (
        *("--json", "--bind NAME", "--timeout SECONDS", "--control-dir DIR"),
        *("--wait SECONDS", "--growth FACTOR", "--max-connections N"),
        "--worker-timeout SECONDS",
    ):
        assert option in output
    assert max(map(len, output.splitlines())) <= 80


@pytest.mark.subprocess
def test_help_of_flask_with_a_broken_app(run_cli: RunCli) -> None:
    """The help of a command needs no application."""
    result = run_cli(["pool-status", "--help"], app="no_such_module")
    assert result.code == 0
    assert "USED/MAX" in result.stdout


# Nobody answers


@pytest.mark.parametrize("name", STATUS)
def test_no_worker(name: str, invoke: Invoke, short_tmp: Path) -> None:
    """Where it looked, why none answered, how to start one, and configured pools."""
    result = invoke(name)
    assert result.exit_code == 0
    where = rf"{short_tmp}/flask-scopedsession-{os.geteuid()}/[0-9a-f]{{12}}"
    assert re.search(
        rf"No worker has answered \(looked in {where}\)\.\n", result.output
    )
    assert "  does not exist\n" in result.output
    assert "db.serve_control()" in result.output
    assert "Configured pools" in result.output
    assert "audit" in result.output
    assert invoke(name, "--check").exit_code == 69


@pytest.mark.parametrize(
    ("key", "value"),
    [("SCOPEDSESSION_CONTROL", False), ("SCOPEDSESSION_TRACKING", "off")],
)
def test_no_worker_by_configuration(
    make_app: MakeApp, db: ScopedSession, key: str, value: object
) -> None:
    """The reason is shown if the configuration has it."""
    app = make_app(db, **{key: value})
    result = app.test_cli_runner().invoke(args=["pool-status"])
    assert f"  {key} is off\n" in result.output


def test_a_command_opens_nothing(invoke: Invoke, db: ScopedSession, flask_app: Flask,
                                 short_tmp: Path) -> None:  # fmt: skip
    """A command opens no connection and no socket, and writes no file."""
    before = set(short_tmp.rglob("*"))
    for name in STATUS:
        for options in ((), ("--json",), ("--check",), ("--verbose",)):
            invoke(name, *options)
    assert set(short_tmp.rglob("*")) == before
    with flask_app.app_context():
        assert [pool.connects_total for pool in db.snapshot().pools] == [0, 0]


# Somebody answers


def test_live_worker(invoke: Invoke, flask_app: Flask, db: ScopedSession) -> None:
    """A real worker is asked through its socket."""
    with serving(flask_app, db):
        pools = invoke("pool-status", "--verbose")
        sessions = invoke("session-status")
        document = json.loads(invoke("pool-status", "--json").output)
    assert pools.exit_code == sessions.exit_code == 0
    assert re.search(rf"^{os.getpid()}  ok  +default ", pools.output, re.MULTILINE)
    assert "Held connections" in pools.output
    assert re.search(rf"^{os.getpid()} .* holding ", sessions.output, re.MULTILINE)
    assert [worker["pid"] for worker in document["workers"]] == [os.getpid()]


def test_bind(invoke: Invoke, flask_app: Flask, db: ScopedSession) -> None:
    """--bind shows only the pools and sessions of that bind."""
    with serving(flask_app, db):
        db.get_session("audit").execute(text("SELECT 1"))
        document = json.loads(invoke("pool-status", "--bind", "audit", "--json").output)
        sessions = invoke("session-status", "--bind", "audit").output
        shown = invoke("pool-status", "--bind", "audit").output
    (worker,) = document["workers"]
    assert [pool["bind"] for pool in worker["pools"]] == ["audit"]
    assert [session["name"] for session in worker["sessions"]] == ["audit"]
    assert [total["url"]["database"].endswith("audit.db")
            for total in document["totals"]] == [True]  # fmt: skip
    assert " default " not in sessions + shown


def test_bind_of_configured_pools(invoke: Invoke) -> None:
    """--bind also applies to configured pools, when no worker answers."""
    document = json.loads(invoke("pool-status", "--bind", "audit", "--json").output)
    assert [pool["bind"] for pool in document["configured"]] == ["audit"]


@pytest.mark.parametrize("name", [*STATUS, "pool-advise", "db-ping"])
def test_unknown_bind(name: str, invoke: Invoke) -> None:
    """It is a usage error that lists the known binds."""
    result = invoke(name, "--bind", "nil")
    assert result.exit_code == 2
    assert "There is no bind 'nil'. Binds: audit, default." in result.stderr


def test_unknown_bind_of_a_directory(
    invoke: Invoke, flask_app: Flask, db: ScopedSession
) -> None:
    """Without the application, the binds of the workers are the known ones."""
    directory = re.search(r"looked in (\S+)\)", invoke("pool-status").output)
    assert directory is not None
    args = ("pool-status", "--control-dir", directory[1], "--bind", "nil")
    assert invoke(*args).exit_code == 0
    with serving(flask_app, db):
        result = invoke(*args)
    assert result.exit_code == 2
    assert "Binds: audit, default." in result.stderr


def test_pid(invoke: Invoke, surveyed: Any) -> None:
    """--pid shows only that worker, whether it answered or not."""
    workers = (a_worker(1), a_worker(2), a_last_worker(3, "stopped"))
    silent = (a_silent(3, "stopped"), a_silent(4, "unresponsive"))
    surveyed(*workers, silent=silent)
    document = json.loads(invoke("pool-status", "--pid", "2", "--json").output)
    assert [worker["pid"] for worker in document["workers"]] == [2]
    assert document["silent"] == []
    assert document["totals"][0]["workers"] == 1
    document = json.loads(invoke("pool-status", "--pid", "3", "--json").output)
    assert [worker["pid"] for worker in document["silent"]] == [3]


@pytest.mark.parametrize("name", STATUS)
def test_pid_of_a_worker_that_is_gone(name: str, invoke: Invoke, surveyed: Any) -> None:
    """It is shown, and does not mean that no other has answered."""
    surveyed(a_worker(1), a_last_worker(2, "gone"))
    output = invoke(name, "--pid", "2").output
    assert "1 worker is gone (killed): pid 2 " in output
    assert "No worker has answered" not in output


def test_unknown_pid(invoke: Invoke, surveyed: Any) -> None:
    """The live workers are listed; for --check, there is no live worker."""
    surveyed(a_worker(1), a_worker(2))
    result = invoke("pool-status", "--pid", "7")
    assert result.exit_code == 0
    assert "No worker with PID 7 answered. Live workers: 1, 2.\n" in result.output
    assert invoke("pool-status", "--pid", "7", "--check").exit_code == 69


@pytest.mark.parametrize("name", STATUS)
@pytest.mark.parametrize("option", ["--timeout=0", "--timeout=-1", "--watch=0.05",
                                    "--watch=x", "--pid=x", "--warn=x=1",
                                    "--crit=pending=x", "--timeout=1e9",
                                    "--timeout=nan", "--watch=nan",
                                    "--control-dir="])  # fmt: skip
def test_usage(name: str, option: str, invoke: Invoke) -> None:
    """Invalid values are usage errors that name the option."""
    result = invoke(name, option)
    assert result.exit_code == 2
    assert option.partition("=")[0] in result.stderr


def test_timeout(invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    """--timeout is how long each worker is asked."""
    seen: list[float] = []

    def survey(_: LiveView, timeout: float) -> Survey:
        seen.append(timeout)
        return a_survey()

    monkeypatch.setattr(LiveView, "survey", survey)
    invoke("pool-status")
    invoke("pool-status", "--timeout", "0.0001")
    assert seen == [2.0, 0.0001]


# Check


DENIED = (SearchedDirectory("/run/theirs", "belongs to uid 7, not to uid 8", True),)


@pytest.mark.parametrize(
    ("workers", "changes", "args", "code"),
    [
        ([a_worker()], {}, [], 0),
        ([a_worker(pools=[a_pool(held_long=1)])], {}, [], 3),
        ([a_worker(pools=[a_pool(held_long=1)])], {}, ["--warn", "held_long=2"], 0),
        ([a_worker(pools=[a_pool(held_long=1)])], {}, ["--crit", "held_long=1"], 4),
        ([a_worker(pools=[a_full_pool()])], {}, [], 4),
        ([a_worker()], {"silent": (a_silent(9, "stopped"),)}, [], 5),
        ([], {"silent": (a_silent(9, "stopped"),)}, [], 5),
        ([a_last_worker(9, "gone")], {}, [], 69),
        ([], {"searched": DENIED}, [], 77),
    ],
)
@pytest.mark.parametrize("name", STATUS)
def test_check(
    name: str,
    workers: list[Any],
    changes: dict[str, Any],
    args: list[str],
    code: int,
    invoke: Invoke,
    surveyed: Any,
) -> None:
    """The exit code, the reasons on stderr; and 0 without ``--check``."""
    surveyed(*workers, **changes)
    result = invoke(name, "--check", *args)
    assert result.exit_code == code
    assert bool(result.stderr) is (code != 0)
    assert "shop on web-1" in result.stdout
    assert invoke(name, *args).exit_code == 0
    with_json = invoke(name, "--check", "--json", *args)
    assert with_json.exit_code == code
    assert json.loads(with_json.stdout)["schema"] == 1


def test_check_and_watch(invoke: Invoke) -> None:
    """They cannot be combined: --watch never exits with a verdict."""
    result = invoke("pool-status", "--check", "--watch")
    assert result.exit_code == 2
    assert "--check and --watch cannot be combined." in result.stderr


# db-ping


@pytest.fixture
def databases(short_tmp: Path) -> None:
    """Make the application's databases; SQLite's may be empty files."""
    for name in ("app.db", "audit.db"):
        (short_tmp / name).touch()


@pytest.mark.usefixtures("databases")
def test_db_ping(invoke: Invoke) -> None:
    """Every bind has a row with latency and version."""
    result = invoke("db-ping")
    assert result.exit_code == 0
    lines = result.output.splitlines()
    assert lines[0].split() == ["BIND", "LATENCY", "VERSION", "DATABASE"]
    for line, name in zip(lines[1:], ["default", "audit"], strict=True):
        assert re.match(rf"{name} +[\d.]+ m?s  3\.\d+\.\d+ +sqlite:///", line)


@pytest.mark.usefixtures("databases")
def test_db_ping_json(invoke: Invoke) -> None:
    """Every key is present, even if its value is unknown."""
    document = json.loads(invoke("db-ping", "--json", "--bind", "audit").output)
    assert document["schema"] == 1
    (ping,) = document["pings"]
    assert set(ping) == {"bind", "url", "latency_s", "version", "error"}
    assert set(ping["url"]) == {"drivername", "host", "port", "database"}
    assert ping["bind"] == "audit"
    assert 0 < ping["latency_s"] < 5
    assert ping["error"] is None


def test_another_database_was_configured(invoke: Invoke, flask_app: Flask) -> None:
    """The engine that ``db-ping`` would test is not the configured one."""
    flask_app.config["SQLALCHEMY_DATABASE_URI"] = "sqlite:///other.db"
    result = invoke("db-ping")
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: SQLALCHEMY_DATABASE_URI was changed after")
    for name in [*STATUS, "pool-advise"]:
        assert invoke(name).exit_code == 0


def test_db_ping_fails(make_app: MakeApp, db: ScopedSession) -> None:
    """It exits with 4 if one database does not answer; the others are shown."""
    binds = {"here": "sqlite://", "gone": "sqlite:////no/such/folder/x.db"}
    runner = make_app(db, SQLALCHEMY_BINDS=binds).test_cli_runner()
    result = runner.invoke(args=["db-ping"])
    assert result.exit_code == 4
    assert re.search(r"^here +[\d.]+ m?s ", result.output, re.MULTILINE)
    assert re.search(r"^gone +-  - ", result.output, re.MULTILINE)
    assert result.output.endswith(
        "bind 'gone': OperationalError (unable to open database file)\n"
    )
    result = runner.invoke(args=["db-ping", "--json"])
    assert result.exit_code == 4
    here, gone = json.loads(result.output)["pings"]
    assert here["error"] is None
    assert gone["latency_s"] is None
    assert gone["version"] is None


def test_db_ping_creates_no_database(invoke: Invoke, short_tmp: Path) -> None:
    """A SQLite file that is missing is an error that names it."""
    (short_tmp / "audit.db").touch()
    result = invoke("db-ping")
    assert result.exit_code == 4
    assert re.search(r"^audit +[\d.]+ m?s ", result.output, re.MULTILINE)
    assert result.output.endswith(
        f"bind 'default': there is no SQLite file {short_tmp}/app.db. Check the path,"
        " or create it with db.create_all() or a migration.\n"
    )
    assert not (short_tmp / "app.db").exists()


def test_db_ping_postgresql(make_app: MakeApp, db: ScopedSession, pg_url: str) -> None:
    """The version is that of the server."""
    app = make_app(db, SQLALCHEMY_DATABASE_URI=pg_url)
    result = app.test_cli_runner().invoke(args=["db-ping", "--json"])
    (ping,) = json.loads(result.output)["pings"]
    assert re.fullmatch(r"\d\d(\.\d+)+", ping["version"])
    assert ping["url"]["drivername"] == "postgresql+psycopg"


# The application does not load, or does not use us


def failing(error: Exception) -> Any:
    def create_app() -> Flask:
        raise error

    return FlaskGroup(create_app=create_app, add_default_commands=False)


RAISED = r"""Error: The application could not be loaded:

Traceback \(most recent call last\):
  File "{file}", line \d+, in create_app
    raise error
RuntimeError: no connection to postgresql://\*\*\*@h/d

To ask the workers without the application: root {name} --control-dir DIR, such as
  (/\S+)  \(tests_app, pid {pid}\)
"""


@pytest.mark.parametrize("name", STATUS)
def test_app_that_raises(name: str, flask_app: Flask, db: ScopedSession) -> None:
    """The traceback without what leads to the app, and a hint; no password."""
    group = failing(RuntimeError("no connection to postgresql://u:swordfish@h/d"))
    group.add_command(getattr(cli, name.replace("-", "_")))
    with serving(flask_app, db):
        result = CliRunner().invoke(group, [name])
        assert result.exit_code == 1
        expected = RAISED.format(name=name, file=__file__, pid=os.getpid())
        said = re.fullmatch(expected, result.output)
        assert said is not None, result.output
        # And the hint works.
        result = CliRunner().invoke(group, [name, "--control-dir", said[1]])
    assert result.exit_code == 0
    assert str(os.getpid()) in result.output


def test_app_with_bad_configuration() -> None:
    """The package's own errors are safe to show, and say what to do."""

    def create_app() -> Flask:
        app = Flask("broken")
        ScopedSession(app)
        return app

    group = FlaskGroup(create_app=create_app, add_default_commands=False)
    group.add_command(cli.pool_status)
    result = CliRunner().invoke(group, ["pool-status"])
    assert result.exit_code == 1
    assert "ConfigError: SQLALCHEMY_DATABASE_URI is not set" in result.output
    # The line is the one that called the package, not the one in it that raised.
    line = getsourcelines(create_app)[1] + 2
    assert f" (in {__file__}, line {line})\n" in result.output


def test_app_without_the_extension(flask_app: Flask) -> None:
    """The error names the app and what is missing."""
    other = Flask("other")
    for command in cli.COMMANDS:
        result = other.test_cli_runner().invoke(command)
        assert result.exit_code == 1
        assert "The app 'other' does not use Flask-ScopedSession" in result.output
        assert "db.init_app(app)" in result.output


@pytest.mark.subprocess
def test_no_app(run_cli: RunCli, short_tmp: Path) -> None:
    """Flask's own message, and a hint; db-ping needs the application."""
    result = run_cli(["pool-status"], app=None, cwd=short_tmp)
    assert result.code == 2
    assert "Could not locate a Flask application" in result.stderr
    assert "pool-status --control-dir DIR" in result.stderr
    result = run_cli(["db-ping"], app=None, cwd=short_tmp)
    assert result.code == 2
    assert "--control-dir" not in result.stderr


@pytest.mark.subprocess
@pytest.mark.parametrize(
    ("source", "code", "first", "last"),
    [
        ("import gone", 2, "While importing 'broken_app', an ImportError was raised:",
         "ModuleNotFoundError: No module named 'gone'"),
        ("1 / 0", 1, "The application could not be loaded:",
         "ZeroDivisionError: division by zero"),
        ("1 +", 1, "The application could not be loaded:",
         "SyntaxError: invalid syntax"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("command", ["pool-status", "db-ping"])
def test_app_that_cannot_be_imported(
    run_cli: RunCli,
    short_tmp: Path,
    source: str,
    code: int,
    first: str,
    last: str,
    command: str,
) -> None:
    """As with Flask's own commands: the error, and the line of the application."""
    path = short_tmp / "broken_app.py"
    path.write_text(f"{source}\n", encoding="utf-8")
    result = run_cli([command], app="broken_app", cwd=short_tmp)
    assert result.code == code
    assert f"Error: {first}\n" in result.stderr
    assert f'File "{path}", line 1' in result.stderr
    assert f"\n    {source}\n" in result.stderr
    assert f"\n{last}\n" in result.stderr
    assert ("--control-dir" in result.stderr) is (command == "pool-status")


@pytest.mark.parametrize(
    "said",
    [
        "postgresql://u:swordfish@h/d",
        "postgresql://u:sword@swordfish/fish@h/d",
        "connection to 'host=h password=swordfish' failed",
        "{'password': 'swordfish', 'host': 'h'}",
        "mysql://h/d?passwd=swordfish&x=1",
        "DRIVER={ODBC};UID=u;PWD=swordfish;Encrypt=yes",
    ],
)
def test_no_password_in_a_traceback(said: str) -> None:
    """What a driver says is the application's to show, but for passwords."""
    group = failing(RuntimeError(f"{said} by a driver"))
    group.add_command(cli.pool_status)
    result = CliRunner().invoke(group, ["pool-status"])
    assert "swordfish" not in result.output
    assert "***" in result.output
    assert " by a driver\n" in result.output


@pytest.mark.subprocess
def test_control_dir_never_loads_the_app(run_cli: RunCli, short_tmp: Path) -> None:
    """A module that would leave a trace is not imported."""
    (short_tmp / "loud_app.py").write_text(
        "import pathlib\npathlib.Path('imported').touch()\n", encoding="utf-8"
    )
    result = run_cli(
        ["pool-status", "--control-dir", str(short_tmp / "none")],
        app="loud_app",
        cwd=short_tmp,
    )
    assert result.code == 0
    assert "No worker has answered" in result.stdout
    assert result.stderr == ""
    assert not (short_tmp / "imported").exists()


# Advice


def test_pool_advise(invoke: Invoke, surveyed: Any) -> None:
    """The options reach the advice, and --bind limits it to one bind."""
    minute = BusyMinute("2026-11-22T10:08:00.000Z", 60.0, 2400, 120.0, 0.0, 0)
    pools = [
        a_pool(bind, checkouts_total=2400, used_max=9, pending_max=0, busiest=minute)
        for bind in ("default", "audit")
    ]
    surveyed(a_worker(4711, pools))
    found = json.loads(invoke("pool-advise", "--json").output)
    assert [each["bind"] for each in found["advice"]] == ["default", "audit"]
    aims = ("--wait", "0.1", "--growth", "3", "--worker-timeout", "9")
    limit = ("--max-connections", "4")
    output = invoke("pool-advise", "--bind", "audit", "--json", *aims, *limit).output
    other = json.loads(output)
    assert other["aims"] == {"wait_s": 0.1, "growth": 3.0, "worker_timeout_s": 9.0}
    (advice,) = other["advice"]
    assert advice["bind"] == "audit"
    assert advice["recommended"]["pool_timeout"] == 3
    assert other["servers"][0]["limit"] == 4
    shown = invoke("pool-advise", "--bind", "audit", *aims).output
    assert f'"pool_size": {advice["recommended"]["pool_size"]}, ' in shown
    assert '"pool_timeout": 3' in shown


@pytest.mark.parametrize(
    "args",
    [
        ("--wait", "0"),
        ("--wait", "nan"),
        ("--growth", "0.5"),
        ("--growth", "nan"),
        ("--max-connections", "0"),
        ("--worker-timeout", "-1"),
        ("--bind", "no_such"),
    ],
)
def test_pool_advise_refuses(invoke: Invoke, args: tuple[str, str]) -> None:
    result = invoke("pool-advise", *args)
    assert result.exit_code == 2
    assert args[1] in result.output + getattr(result, "stderr", "")


@pytest.mark.parametrize("name", [*STATUS, "pool-advise"])
def test_no_worker_is_no_error(name: str, invoke: Invoke) -> None:
    result = invoke(name)
    assert result.exit_code == 0
    assert "No worker has answered" in result.output


# Watching


def in_python(args: list[str], **env: str) -> dict[str, Any]:
    """Return the arguments for a process that runs a command of ``live_app``."""
    module = [sys.executable, LEAN, "-m", "flask_scopedsession"]
    command = [*module, "--app", "live_app", *args]
    url = {"FLASK_SQLALCHEMY_DATABASE_URI": "sqlite://"}
    return {"command": command, "env": child_environ({**url, **env}), "cwd": WORKERS}


@contextmanager
def running(args: list[str], **options: Any) -> Iterator[Process]:
    process = start(**in_python(args), **options)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.wait(10)
        for stream in (process.stdout, process.stderr):
            if stream is not None:
                stream.close()


def test_watch_computes_no_advice(
    invoke: Invoke, surveyed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes too long for every refresh."""

    def no_advice(*_: object, **__: object) -> None:
        raise AssertionError

    def interrupt(_: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("flask_scopedsession._terminal.load.advise", no_advice)
    monkeypatch.setattr("time.sleep", interrupt)
    surveyed(a_worker(1, [a_full_pool()]))
    result = invoke("pool-status", "--watch")
    assert result.exit_code == 130
    assert "Bind default, last minute: up to 15/15 in use" in result.output
    assert "Recommended" not in result.output


def test_watch_samples_what_is_asked_for(
    invoke: Invoke, surveyed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With --pid, other workers do not count in the charts of the database."""
    seen: list[Survey] = []

    def watch(ask: Callable[[], Refresh], *_: object, **__: object) -> None:
        seen.append(ask().survey)

    monkeypatch.setattr("flask_scopedsession.cli.watch.watch", watch)
    surveyed(a_worker(1, [a_pool(used=3)]), a_worker(2, [a_pool(used=5)]))
    invoke("pool-status", "--watch", "--pid", "2")
    assert [total.used for total in seen[0].totals] == [5]


@pytest.mark.subprocess
def test_watch_json() -> None:
    """One document a line, at once; Ctrl-C ends it with 130, without a message."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with running(["pool-status", "--json", "--watch", "0.1"], **pipes) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        for _ in range(3):
            assert json.loads(process.stdout.readline())["schema"] == 1
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 130
        assert process.stderr.read() == b""


@pytest.mark.subprocess
def test_watch_through_a_pipe() -> None:
    """Plain text, an empty line between two pages, no escape sequence."""
    with running(["session-status", "--watch=0.1"], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        seen = b""
        while seen.count(b"No worker has answered") < 3:
            seen += process.stdout.read1()
        assert b"\x1b" not in seen
        assert b"\n\nlive_app on " in seen
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 130


@pytest.mark.subprocess
def test_closed_pipe() -> None:
    """As with ``| head -1``: no error message."""
    with running(
        ["pool-status", "--watch", "0.1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        process.wait(10)
        assert process.stderr.read() == b""


@pytest.mark.subprocess
def test_no_standard_output() -> None:
    """Where it is closed, as by ``>&-``, the exit code still tells."""
    arguments = in_python(["pool-status", "--check"])
    command = ["sh", "-c", 'exec "$@" >&-', "sh", *arguments.pop("command")]
    done = subprocess.run(command, **arguments, stderr=subprocess.PIPE, check=False)
    assert done.returncode == 69
    assert done.stderr == b"critical: no worker has answered\n"


def test_watch_without_standard_output(
    invoke: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It goes on until Ctrl-C, as it does through a pipe."""

    def watch(*args: Any, **options: Any) -> None:
        with monkeypatch.context() as patch:
            patch.setattr("sys.stdout", None)
            original(*args, **options)

    def interrupt(_: float) -> None:
        raise KeyboardInterrupt

    original = watching.watch
    monkeypatch.setattr(watching, "watch", watch)
    monkeypatch.setattr("time.sleep", interrupt)
    result = invoke("pool-status", "--watch")
    assert result.exit_code == 130
    assert result.output == ""


def on_terminal(args: list[str], enough: Callable[[str], bool], **env: str) -> str:
    """Run a command on a terminal of 80 columns and 24 lines, until `enough`."""
    main_end, other_end = pty.openpty()
    size = struct.pack("HHHH", 24, 80, 0, 0)
    fcntl.ioctl(main_end, termios.TIOCSWINSZ, size)
    environ = {"TERM": "xterm-256color", **env}
    process = start(
        **in_python(args, **environ),
        stdin=other_end,
        stdout=other_end,
        stderr=other_end,
    )
    os.close(other_end)
    seen = b""
    try:
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            if select.select([main_end], [], [], 0.2)[0]:
                try:
                    chunk = os.read(main_end, 65536)
                except OSError:  # the other end was closed
                    break
                if not chunk:
                    break
                seen += chunk
                if enough(seen.decode()):
                    break
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(10)
        os.close(main_end)
    return seen.decode().replace("\r\n", "\n")


@pytest.mark.subprocess
def test_on_a_terminal() -> None:
    """Lines fit, and NO_COLOR switches colours off."""
    seen = on_terminal(["pool-status"], lambda _: False)
    assert "\x1b[" in seen
    bare = re.sub(r"\x1b\[[0-9;]*m", "", seen)
    assert max(map(len, bare.splitlines())) <= 80
    assert "QueuePool" in bare
    assert "\x1b" not in on_terminal(["pool-status"], lambda _: False, NO_COLOR="1")


@pytest.mark.subprocess
@pytest.mark.parametrize(
    "env",
    [
        {"PYTHONIOENCODING": "ascii"},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    ],
)
@pytest.mark.parametrize("name", STATUS)
def test_ascii_only(name: str, env: dict[str, str]) -> None:
    """A command works where the encoding has only ASCII."""
    arguments = in_python([name], **env)
    command = arguments.pop("command")
    done = subprocess.run(command, **arguments, capture_output=True, check=True)
    assert b"live_app on " in done.stdout
    assert b" | this host only\n" in done.stdout
    assert done.stdout.isascii()
    assert done.stderr == b""


# What an import costs


@pytest.mark.subprocess
def test_imports(run_script: RunCli) -> None:
    """Rich is loaded only by a command that draws; a worker loads few modules."""
    result = run_script(
        """
        import sys

        import sqlalchemy.orm
        from flask import Flask

        app = Flask("app")
        app.config["SQLALCHEMY_DATABASE_URI"] = "sqlite://"
        sqlalchemy.create_engine("sqlite://")
        before = set(sys.modules)
        from flask_scopedsession import ScopedSession

        ScopedSession(app)
        print(*sorted(set(sys.modules) - before))
        app.test_cli_runner().invoke(args=["pool-status", "--json"])
        app.test_cli_runner().invoke(args=["pool-advise", "--json"])
        assert "rich" not in sys.modules
        app.test_cli_runner().invoke(args=["pool-status"])
        assert "rich" in sys.modules
        """
    ).check()
    added = [
        name
        for name in result.stdout.split()
        if not name.startswith(("flask_scopedsession", "_"))
    ]
    assert len(added) <= 10, added


def test_commands_are_commands() -> None:
    """The public names are commands, not functions."""
    assert all(isinstance(command, click.Command) for command in cli.COMMANDS)
    names = [command.name for command in cli.COMMANDS]
    assert names == [*STATUS, "pool-advise", "db-ping"]
