"""Werkzeug's development server: its debugger and its reloader."""

from __future__ import annotations

import html
import re
import sys
from collections.abc import Callable
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from commands import Result
from postgres import activity
from serving import Served
from sqlalchemy import make_url
from waiting import wait_until

pytestmark = [pytest.mark.workers, pytest.mark.slow]

Cli = Callable[..., Result]


@pytest.fixture
def watched_file(short_tmp: Path) -> Path:
    path = short_tmp / "watched"
    path.touch()
    return path


@pytest.fixture
def server(
    short_tmp: Path, live_env: dict[str, str], pg_url: str, watched_file: Path
) -> Iterator[Served]:
    live_env["FLASK_SQLALCHEMY_DATABASE_URI"] = pg_url
    live_env["WERKZEUG_DEBUG_PIN"] = "off"
    options = ["--debug", "--port", "0", "--extra-files", str(watched_file)]
    command = [sys.executable, "-m", "flask", "--app", "live_app:create_app", "run"]
    with Served("flask", short_tmp, [*command, *options], env=live_env) as server:
        yield server.wait_ready()
        server.stop(timeout=1)


def look(run_cli: Cli) -> Any:
    return run_cli(["pool-status", "--json"]).check().json["workers"]


def used(run_cli: Cli) -> int:
    ((pool,),) = (worker["pools"] for worker in look(run_cli))
    return int(pool["used"])


def test_a_debugged_request_and_its_console_hold_no_connection(
    server: Served, run_cli: Cli
) -> None:
    """The debugger keeps the frames and contexts of a failed request."""
    failed = server.get("/fail")
    assert failed.status == 500
    secret = re.search(r'SECRET = "(\w+)"', failed.text)
    assert secret is not None
    frame = re.findall(r'id="frame-(\d+)"', failed.text)[-1]
    assert used(run_cli) == 0
    for statement in ("db.session.scalar(select(41)) + 1", "db.session.execute(1 / 0)"):
        query = {"__debugger__": "yes", "cmd": statement, "frm": frame, "s": secret[1]}
        answer = server.get(f"/fail?{urlencode(query)}")
        assert answer.status == 200
        said = html.unescape(re.sub("<[^>]+>", "", answer.text))
        assert "42" in said or "ZeroDivisionError" in said, said
        assert used(run_cli) == 0
    assert server.get("/ok").status == 200


def test_the_reloader_leaves_nothing_of_the_process_before(
    server: Served, run_cli: Cli, pg_url: str, watched_file: Path
) -> None:
    (first,) = server.visit_all("/ok")
    assert [worker["pid"] for worker in look(run_cli)] == [first]
    before = activity(make_url(pg_url))
    watched_file.write_text("changed")
    server.wait_gone(first)
    wait_until(lambda: server.get("/ok").worker != first)
    (second,) = server.worker_pids()
    assert second != first
    assert [worker["pid"] for worker in look(run_cli)] == [second]
    wait_until(lambda: len(activity(make_url(pg_url))) == 1)
    assert before.keys().isdisjoint(activity(make_url(pg_url)))
