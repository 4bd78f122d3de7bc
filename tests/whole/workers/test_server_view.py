"""``pool-status --server`` with real workers on a real PostgreSQL."""

from __future__ import annotations

import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from commands import Result
from gates import Gates
from prefork import Prefork
from waiting import wait_until

pytestmark = [pytest.mark.workers, pytest.mark.slow]

Start = Callable[..., Prefork]
Cli = Callable[..., Result]

APP = Path(__file__).with_name("live_app.py")
LINES = APP.read_text(encoding="utf-8").splitlines()


@pytest.fixture
def live_env(pg_url: str, gates: Gates) -> dict[str, str]:
    return {"FLASK_SQLALCHEMY_DATABASE_URI": pg_url, **gates.env}


def line_in(function: str) -> int:
    """Return the first line of a function of live_app."""
    return LINES.index(f"def {function}() -> None:") + 2


def servers(run_cli: Cli, *args: str) -> Any:
    return run_cli(["pool-status", "--server", "--json", *args]).check().json["servers"]


def test_lock_waits_name_both_views(prefork: Start, run_cli: Cli, gates: Gates) -> None:
    """Both views are named, with worker and line, without any preparation."""
    run_cli(["create-tables"]).check()
    group = prefork(count=2)
    holding, waiting = group.visit_all("/ok")
    assert group.get("/write").status == 200
    group.send("/lock", on=holding)
    gates.wait()
    group.send("/want", on=waiting)
    wait_until(lambda: servers(run_cli)[0]["waits"], what="a lock wait")
    result = run_cli(["pool-status", "--server"]).check()
    (line,) = [x for x in result.stdout.splitlines() if "waits for a lock" in x]
    assert re.match(
        rf"  pid {waiting} want live_app.py:{line_in('take_row')} take_row"
        rf" \(backend \d+\) waits for a lock held by"
        rf" pid {holding} lock live_app.py:\d+ wait_for_gate \(backend \d+\),"
        r" idle in transaction for [\d.]+ m?s \(the waiting statement began .* ago\)",
        line,
    ), line


def test_what_no_worker_admits_to(prefork: Start, run_cli: Cli) -> None:
    """A stopped worker does not answer, but its connections carry its name."""
    group = prefork(count=2)
    stopped, well = group.visit_all("/ok")
    (server,) = servers(run_cli)
    assert server["unclaimed"] == []
    assert {c["pid"] for c in server["connections"]} == {stopped, well}
    group.kill(stopped, signal.SIGSTOP)
    try:
        (server,) = servers(run_cli, "--timeout", "0.5")
    finally:
        group.kill(stopped, signal.SIGCONT)
    assert {c["pid"] for c in server["connections"]} == {well}
    (found,) = server["unclaimed"]
    assert found["application_name"].endswith(f":{stopped}")
    assert (found["count"], found["state"]) == (1, "idle")


def test_too_many_workers_for_the_server(
    prefork: Start, run_cli: Cli, live_env: dict[str, str]
) -> None:
    """Their total limit is compared with the connections that the server has left."""
    prefix = "FLASK_SQLALCHEMY_ENGINE_OPTIONS__"
    live_env |= {f"{prefix}pool_size": "20", f"{prefix}max_overflow": "15"}
    group = prefork(count=3)
    group.visit_all("/ok")
    ((limit,),) = (server["limits"] for server in servers(run_cli))
    assert (limit["workers"], limit["may_open"]) == (3, 105)
    assert limit["in_use"] - limit["others"] == 3
    left = limit["limit"] - limit["reserved"] - limit["others"]
    assert limit["left"] == left < 105
    shown = run_cli(["pool-status", "--server"]).check().stdout
    assert (
        f"3 workers may open 105; {left} of the server's"
        f" {limit['limit'] - limit['reserved']} connections are left"
        f" ({limit['others']} used by others): lower pool_size,"
        f" max_overflow or the number of workers (at most {left // 3} for each worker"
        " fit)"
    ) in shown
