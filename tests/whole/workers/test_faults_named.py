"""One command names the cause of each fault, under a real server with three workers.

The application is not prepared for it. Each test causes a fault, runs one command once,
and reads its output.
"""

from __future__ import annotations

import os
import re
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path

import pytest
from commands import Result
from gates import Gates
from prefork import Prefork
from sqlalchemy import create_engine
from sqlalchemy import NullPool
from sqlalchemy import text
from waiting import wait_until

pytestmark = [pytest.mark.workers, pytest.mark.slow]

Start = Callable[..., Prefork]
Cli = Callable[..., Result]

APP = Path(__file__).with_name("live_app.py").read_text().splitlines()
POOL = "FLASK_SQLALCHEMY_ENGINE_OPTIONS__"


def line_of(start: str, within: str = "") -> int:
    """Return the number of a function's first line that begins with a text."""
    first = next(
        (n for n, line in enumerate(APP) if line.startswith(f"def {within}(")), 0
    )
    return next(
        number
        for number, line in enumerate(APP[first:], first + 1)
        if line.strip().startswith(start)
    )


def defined(view: str) -> str:
    return f"live_app.py:{line_of(f'def {view}(')} {view}"


def small(live_env: dict[str, str], size: int, timeout: float = 30) -> None:
    """Set the pool size of each worker."""
    live_env |= {f"{POOL}pool_size": str(size), f"{POOL}max_overflow": "0"}
    live_env[f"{POOL}pool_timeout"] = str(timeout)


def pool_status(run_cli: Cli, *args: str) -> str:
    return run_cli(["pool-status", *args]).check().stdout


def session_status(run_cli: Cli) -> str:
    return run_cli(["session-status"]).check().stdout


def held_long(live_env: dict[str, str]) -> None:
    live_env["FLASK_SCOPEDSESSION_HELD_LONG_AFTER"] = "0.1"
    begins(live_env)


def begins(live_env: dict[str, str]) -> None:
    """Let SQLite begin a transaction with each session, not only with a write."""
    live_env["FLASK_SCOPEDSESSION_SQLITE_BEGIN"] = "DEFERRED"


def test_a_connection_kept_in_a_global(
    prefork: Start, run_cli: Cli, live_env: dict[str, str]
) -> None:
    held_long(live_env)
    group = prefork()
    guilty = group.visit_all("/ok")[0]
    group.get("/leak", on=guilty)
    time.sleep(0.3)
    assert re.search(
        rf"1× leak defined at {re.escape(defined('leak'))}, held [\d.]+ m?s, idle in"
        rf" transaction for [\d.]+ m?s, its request is over, its thread is alive"
        rf" · bind default · pid {guilty}\n",
        pool_status(run_cli),
    )


@pytest.mark.parametrize("worker_class", ["gthread", "sync"])
def test_slow_work_in_a_transaction(
    prefork: Start,
    run_cli: Cli,
    gates: Gates,
    live_env: dict[str, str],
    worker_class: str,
) -> None:
    """The view and its current line."""
    held_long(live_env)
    group = prefork(worker_class=worker_class)
    for pid in group.visit_all("/ok"):
        group.send("/block", on=pid)
    gates.wait(count=3)
    time.sleep(0.3)
    first = line_of("while not path.exists()", "wait_for_gate")
    found = re.findall(
        r"(\d)× block live_app\.py:(\d+) wait_for_gate, (?:longest|held) [\d.]+ m?s,"
        r" idle in transaction for [\d.]+ m?s",
        pool_status(run_cli),
    )
    assert sum(int(times) for times, _ in found) == 3
    assert {int(line) for _, line in found} <= {first, first + 1}


def test_a_slow_statement(
    prefork: Start, run_cli: Cli, live_env: dict[str, str], pg_url: str
) -> None:
    """That it runs, and since when; its text only on request."""
    held_long(live_env)
    live_env["FLASK_SQLALCHEMY_DATABASE_URI"] = pg_url
    group = prefork()
    guilty = group.visit_all("/ok")[0]
    group.send("/slow?seconds=300", on=guilty)
    place = f"live_app.py:{line_of('db.session.execute', 'slow')} slow"
    said = rf"1× slow {re.escape(place)}, held .*, running a statement for [\d.]+ m?s"
    wait_until(lambda: re.search(said, pool_status(run_cli)), what="the statement")
    shown = pool_status(run_cli, "--verbose")
    assert "pg_sleep" not in shown
    end_statements(pg_url)


def end_statements(url: str) -> None:
    """End long statements, so that no test waits for them."""
    engine = create_engine(url, poolclass=NullPool)
    with engine.connect() as connection:
        connection.execute(
            text(
                "SELECT pg_cancel_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
        )


def test_a_view_that_waits_for_itself(
    prefork: Start, run_cli: Cli, live_env: dict[str, str]
) -> None:
    """Both lines: where it waits, and where it checked its connection out."""
    small(live_env, 1)
    group = prefork()
    guilty = group.visit_all("/ok")[0]
    group.send("/nested", on=guilty)
    here = f"live_app.py:{line_of('with db.engine.connect()', 'nested')} nested"
    there = f"live_app.py:{line_of('db.session.scalar', 'nested')} nested"
    said = (
        rf"1× nested {re.escape(here)}, for [\d.]+ m?s, self-deadlock: its own thread"
        rf" holds a connection, checked out at {re.escape(there)} · bind default"
        rf" · pid {guilty}\n"
    )
    wait_until(lambda: re.search(said, pool_status(run_cli)), what="the deadlock")


def test_a_pool_too_small_for_the_traffic(
    prefork: Start, run_cli: Cli, live_env: dict[str, str]
) -> None:
    """Who waits, for how long, and which view takes the time; also afterwards."""
    small(live_env, 1)
    group = prefork(threads=6)
    guilty = group.visit_all("/ok")[0]
    seen = threading.Event()

    def visit(_: int) -> None:
        # At least 120 together: what pool-advise needs, and a few more.
        for number in count():
            if seen.is_set() and number >= 12:
                return
            assert group.get("/hold?seconds=0.03", on=guilty).status == 200

    with ThreadPoolExecutor(10) as visitors:
        visits = visitors.map(visit, range(10))
        try:
            wait_until(
                lambda: re.search(r"\d× hold .*longest [\d.]+", pool_status(run_cli)),
                what="waiters",
            )
        finally:
            seen.set()
        list(visits)
    shown = pool_status(run_cli)
    assert "Waiting for a connection" not in shown
    assert re.search(
        r"Bind default, last minute: up to 1/1 in use and \d waiting in one worker,"
        r" 95 % of checkouts waited at most [\d.]+ m?s, longest wait [\d.]+ m?s,"
        r" 95 % of holds lasted at most",
        shown,
    )
    assert re.search(r"Hold time by view: (9\d|100)% hold", shown)
    assert re.search(r"Recommended: \d+ connections, instead of 1: pool_size", shown)


def test_checkouts_that_gave_up(
    prefork: Start, run_cli: Cli, gates: Gates, live_env: dict[str, str]
) -> None:
    """Who held the connections then; it is shown afterwards, and in the log."""
    small(live_env, 1, timeout=0.2)
    group = prefork()
    guilty = group.visit_all("/ok")[0]
    blocked = group.send("/block", on=guilty)
    gates.wait()
    assert group.get("/ok", on=guilty).status == 500
    gates.open()
    assert blocked.result(10).status == 200
    said = (
        r"ok timed out after [\d.]+ m?s; connections were held by 1× block"
        r" live_app\.py:\d+ wait_for_gate, longest"
    )
    assert re.search(said, pool_status(run_cli))
    assert re.search(
        r"connection pool timeout\nBind 'default': gave up after 0\.\d s; 1 connection"
        r" is checked out, longest:\n  block at live_app\.py:\d+ wait_for_gate, held",
        group.log,
    )


def test_a_forgotten_commit(
    prefork: Start, run_cli: Cli, live_env: dict[str, str]
) -> None:
    """Counted in every worker, and logged once in each."""
    run_cli(["create-tables"]).check()
    group = prefork()
    workers = group.visit_all("/ok")
    for pid in workers:
        for _ in range(2):
            group.get("/forget", on=pid)
    assert re.search(
        rf"  6× GET /forget → forget, 6 Note, last .* ago · pid"
        rf" {', '.join(map(str, sorted(workers)))}\n",
        session_status(run_cli),
    )
    said = "GET /forget -> forget ended without commit(): unsaved changes were rolled"
    assert group.log.count(said) == 3


def test_a_session_used_from_two_threads(prefork: Start, run_cli: Cli) -> None:
    """Both threads and both lines."""
    group = prefork()
    guilty = group.visit_all("/ok")[0]
    assert group.get("/share", on=guilty).status == 200
    first = line_of("db.session.execute", "count_far")
    second = line_of("db.session.scalar", "share")
    assert re.search(
        rf"GET /share → share, .* ago: helper at live_app\.py:{first} count_far and"
        rf" ThreadPoolExecutor\S* at live_app\.py:{second} share"
        rf" \(in one transaction\) · pid {guilty}\n",
        session_status(run_cli),
    )


def test_a_job_that_never_removes_its_session(
    prefork: Start, run_cli: Cli, live_env: dict[str, str]
) -> None:
    """The thread, for how long, and whether it is alive."""
    begins(live_env)
    group = prefork()
    alive, dead, _ = group.visit_all("/ok")
    group.get("/thread", on=alive)
    group.get("/thread?ends", on=dead)
    shown = session_status(run_cli)
    row = r"{} +thread nightly{} +default +[\d.]+ m?s +idle in transaction +#\d"
    assert re.search(row.format(alive, ""), shown)
    assert re.search(row.format(dead, ", its thread has ended"), shown)


@pytest.mark.parametrize("number", [signal.SIGSTOP, signal.SIGKILL])
def test_a_worker_that_froze_or_was_killed(
    prefork: Start,
    run_cli: Cli,
    gates: Gates,
    live_env: dict[str, str],
    short_tmp: Path,
    number: signal.Signals,
) -> None:
    """Its last snapshot: its connections, and the snapshot's age."""
    live_env["FLASK_SCOPEDSESSION_CONTROL_DIR"] = str(short_tmp / "run")
    small(live_env, 1)
    group = prefork()
    guilty = group.visit_all("/ok")[0]
    group.send("/block", on=guilty)
    gates.wait()
    group.send("/ok", on=guilty)
    wait_until(lambda: list((short_tmp / "run").glob("*.json")), what="the snapshot")
    try:
        os.kill(guilty, number)
        if number == signal.SIGKILL:
            group.wait_gone(guilty)
        shown = pool_status(run_cli)
    finally:
        if number == signal.SIGSTOP:
            os.kill(guilty, signal.SIGCONT)
    state = "gone" if number == signal.SIGKILL else "stopped"
    assert re.search(
        rf"1× block live_app\.py:\d+ wait_for_gate, held .* · pid {guilty}"
        rf" \({state}\)\n",
        shown,
    )
    assert re.search(
        rf"1 worker is {state} \(.*\): pid {guilty} \(as of .* ago\)", shown
    )


def test_connections_that_die_in_the_pool(
    prefork: Start, run_cli: Cli, live_env: dict[str, str], pg_url: str
) -> None:
    """Their number and age."""
    live_env["FLASK_SQLALCHEMY_DATABASE_URI"] = pg_url
    live_env["FLASK_SCOPEDSESSION_PING_IDLE_AFTER"] = "0"
    group = prefork()
    guilty = group.visit_all("/ok")[0]
    engine = create_engine(pg_url, poolclass=NullPool)
    with engine.connect() as connection:
        connection.execute(
            text(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
        )
    assert group.get("/ok", on=guilty).status == 200
    assert re.search(
        rf"1 connection invalidated in the last minute · bind default · at most .* old"
        rf" · pid {guilty}\n",
        pool_status(run_cli),
    )
