"""``--check`` and the plugin for monitoring, with real workers in each state."""

from __future__ import annotations

import importlib.util
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import commands
import pytest
from commands import Result
from environment import child_environ
from gates import Gates
from lean import LEAN
from postgres import activity
from postgres import fresh_database
from postgres import Server
from prefork import Prefork
from sqlalchemy import URL
from waiting import wait_until

pytestmark = [pytest.mark.workers, pytest.mark.slow]

Start = Callable[..., Prefork]
Cli = Callable[..., Result]
Plugin = Callable[..., Result]

SCRIPT = Path(__file__).parents[3] / "examples" / "check_flask_pool.py"
STATUS = [LEAN, "-m", "flask_scopedsession", "--app", "live_app", "pool-status"]


@pytest.fixture
def small_pool(live_env: dict[str, str]) -> None:
    """Pools of one connection, for which requests wait as long as it is held."""
    prefix = "FLASK_SQLALCHEMY_ENGINE_OPTIONS__"
    options = {"pool_size": "1", "max_overflow": "0", "pool_timeout": "300"}
    live_env |= {f"{prefix}{name}": value for name, value in options.items()}


@pytest.fixture
def plugin(live_env: dict[str, str]) -> Plugin:
    """Run the plugin with ``pool-status`` and these options."""

    def run(*options: str, command: list[str] | None = None) -> Result:
        words = command or [sys.executable, *STATUS]
        # Isolated: it needs the standard library only.
        return commands.run(["-I", str(SCRIPT), *words, *options], env=live_env)

    return run


@pytest.fixture
def held(small_pool: None, prefork: Start, gates: Gates) -> Prefork:
    """One worker, whose only connection is held."""
    group = prefork(count=1)
    group.visit_all("/ok")
    group.send("/block")
    gates.wait()
    return group


def look(run_cli: Cli) -> Any:
    return run_cli(["pool-status", "--json"]).check().json


def wait_for_waiter(run_cli: Cli) -> None:
    wait_until(lambda: look(run_cli)["totals"][0]["pending"] == 1)


# The plugin


def test_ok(prefork: Start, plugin: Plugin, sqlite_url: str) -> None:
    prefork(count=2).visit_all("/ok")
    found = plugin()
    assert found.code == 0
    said, _, data = found.stdout.partition(" | ")
    assert said == "POOL OK - 2 workers, 0 connections in use"
    path = sqlite_url.removeprefix("sqlite:///")
    assert data.strip().split(" '") == [
        "workers=2;;;0 silent=0;;;0",
        f"/{path} used'=0;;;0;30",
        f"/{path} idle'=2;;;0;30",
        f"/{path} pending'=0;;;0",
        f"/{path} max_wait'=0s;;;0",
        f"/{path} timeouts'=0c;;;0",
    ]
    assert found.stderr == ""


def test_warning(held: Prefork, plugin: Plugin) -> None:
    found = plugin()
    assert found.code == 1
    assert re.match(
        r"POOL WARNING - warning: pid \d+, bind default: used_pct 100 >= 90 \| ",
        found.stdout,
    )
    assert " used'=1;;;0;1 " in found.stdout
    # Options are passed on to the command.
    assert plugin("--warn", "").code == 0


def test_critical(held: Prefork, run_cli: Cli, plugin: Plugin) -> None:
    held.send("/ok")
    wait_for_waiter(run_cli)
    found = plugin("--crit", "pending=1")
    assert found.code == 2
    first, *rest = found.stdout.splitlines()
    assert first.startswith("POOL CRITICAL - critical: pid ")
    assert " pending'=1;;;0 " in first
    assert rest[-1].startswith("warning: ")


def test_silent(prefork: Start, plugin: Plugin) -> None:
    """If the others are fine, it is a warning that names the worker; else critical."""
    group = prefork(count=2)
    pid, other = group.visit_all("/ok")
    os.kill(pid, signal.SIGSTOP)
    found = plugin("--timeout", "1")
    assert found.code == 1
    assert found.stdout.startswith(f"POOL WARNING - silent: pid {pid}: stopped | ")
    assert "| workers=1;;;0 silent=1;;;0 " in found.stdout
    os.kill(other, signal.SIGSTOP)
    found = plugin("--timeout", "1")
    assert found.code == 2
    assert found.stdout.startswith("POOL CRITICAL - silent: pid ")
    assert "| workers=0;;;0 silent=2;;;0" in found.stdout


def test_none(plugin: Plugin) -> None:
    found = plugin()
    assert found.code == 2
    said = "POOL CRITICAL - critical: no worker has answered"
    assert found.stdout == f"{said} | workers=0;;;0 silent=0;;;0\n"


def test_no_permission(plugin: Plugin) -> None:
    """Nothing is known about the workers of another user."""
    # Import everything first: the user "nobody" may not read this Python.
    as_nobody = """if True:
        import os
        import flask_scopedsession.cli.check, flask_scopedsession._live.survey
        from flask_scopedsession import __main__, cli
        if os.geteuid() == 0:
            os.setgroups([])
            os.setresuid(65534, 65534, 65534)
        __main__.main()
    """
    theirs = ["pool-status", "--control-dir", "/usr"]
    found = plugin(command=[sys.executable, "-c", as_nobody, *theirs])
    assert found.code == 3
    assert found.stdout.startswith("POOL UNKNOWN - critical: no permission: /usr | ")


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["/no/such/flask"], "/no/such/flask: No such file or directory"),
        ([sys.executable, *STATUS, "--bogus"], "exit code 2: Error: No such option"),
        ([sys.executable, "-c", "print('{}')"], "exit code 0: it printed no document"),
        ([sys.executable, "-c", "print('|')"], "exit code 0: it printed no document"),
        ([sys.executable, "-c", "exit('a|b')"], "exit code 1: a/b"),
    ],
)
def test_pools_that_cannot_be_checked(
    plugin: Plugin, command: list[str], said: str
) -> None:
    """The state is UNKNOWN, with a reason, and never a traceback."""
    found = plugin(command=command)
    assert found.code == 3
    assert found.stdout.startswith(f"POOL UNKNOWN - {said}")
    assert found.stderr == ""


def test_deadline(live_env: dict[str, str]) -> None:
    endless = ["--deadline=0.2", sys.executable, "-c", "import time; time.sleep(600)"]
    found = commands.run([str(SCRIPT), *endless], env=live_env)
    assert found.code == 3
    assert found.stdout == "POOL UNKNOWN - no result within 0.2 s\n"
    assert commands.run([str(SCRIPT)], env=live_env).code == 3


def test_names_of_databases() -> None:
    """They cannot end their label early."""
    spec = importlib.util.spec_from_file_location("check_flask_pool", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    url = {"host": "h", "port": 5432, "database": "a'b=c|d\n"}
    assert module.database(url) == "h:5432/a_b_c_d_"
    pools = [{"n": 1, "s": None}, {"n": None, "s": None}]
    assert (module.added(pools, "n"), module.highest(pools, "n")) == (None, 1)
    assert module.highest(pools, "s") is None


# The probe of docs/checks.md


@pytest.fixture
def probe(short_tmp: Path, live_env: dict[str, str]) -> Callable[[], int]:
    """Run the readiness probe exactly as it is documented."""
    page = (SCRIPT.parents[1] / "docs" / "checks.md").read_text(encoding="utf-8")
    found = re.search(r"- >-\n(.*?)\n +periodSeconds", page, re.DOTALL)
    assert found is not None
    live_env["FLASK_SCOPEDSESSION_CONTROL_DIR"] = str(short_tmp / "run")
    script = " ".join(line.strip() for line in found[1].splitlines())
    script = script.replace("/run/flights", str(short_tmp / "run"))
    script = script.replace("python -m", f"{sys.executable} -m")

    def run() -> int:
        words = ["sh", "-c", script]
        done = subprocess.run(words, env=child_environ(live_env), check=False)
        return done.returncode

    return run


def test_readiness(
    probe: Callable[[], int],
    small_pool: None,
    prefork: Start,
    gates: Gates,
    run_cli: Cli,
) -> None:
    """Ready before the first request and under load, but not if the pool is wedged."""
    assert probe() == 0
    group = prefork(count=1)
    assert probe() == 0
    group.send("/block")
    gates.wait()
    assert probe() == 0
    group.send("/ok")
    wait_until(lambda: look(run_cli)["workers"][0]["state"] == "wedged")
    assert probe() == 1


# It takes no connection


def test_an_exhausted_pool(held: Prefork, run_cli: Cli) -> None:
    """The commands answer without a free connection, and change no counter."""
    held.send("/ok")
    wait_for_waiter(run_cli)
    (before,) = look(run_cli)["workers"][0]["pools"]
    for command in ("pool-status", "session-status"):
        assert run_cli([command, "--check"]).code == 4
    (after,) = look(run_cli)["workers"][0]["pools"]
    counts = ("used", "open", "pending", "checkouts_total", "connects_total")
    assert [after[name] for name in counts] == [before[name] for name in counts]
    assert before["checkouts_total"] == 2


@pytest.fixture
def deaf_database() -> Iterator[socket.socket]:
    """A port that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0)
        yield server


def test_nothing_connects(
    deaf_database: socket.socket, prefork: Start, run_cli: Cli, live_env: dict[str, str]
) -> None:
    """Neither the command nor the worker connects to the database."""
    port = deaf_database.getsockname()[1]
    url = URL.create("postgresql+psycopg", "me", host="127.0.0.1", port=port)
    live_env["FLASK_SQLALCHEMY_DATABASE_URI"] = url.render_as_string(False)
    prefork(count=1).visit_all("/pid")
    for command in ("pool-status", "session-status"):
        assert run_cli([command, "--check"]).check().stderr == ""
    with pytest.raises(BlockingIOError):
        deaf_database.accept()
    # A command that connects is noticed.
    assert run_cli(["db-ping", "--timeout=0.5"]).code == 4
    deaf_database.accept()[0].close()


def test_a_database_that_is_down(
    frail_server: Server, prefork: Start, run_cli: Cli, live_env: dict[str, str]
) -> None:
    """The check answers at once, but cannot know that the database is down."""
    with fresh_database(frail_server.url) as url:
        live_env["FLASK_SQLALCHEMY_DATABASE_URI"] = url.render_as_string(False)
        group = prefork(count=1)
        group.visit_all("/ok")
        assert run_cli(["pool-status", "--check"]).code == 0
        assert len(activity(url)) == 1
        frail_server.crash()
        try:
            assert run_cli(["pool-status", "--check"]).code == 0
            assert run_cli(["db-ping"]).code == 4
        finally:
            frail_server.start()
        (pool,) = look(run_cli)["workers"][0]["pools"]
        assert pool["connects_total"] == 1
        group.stop()
