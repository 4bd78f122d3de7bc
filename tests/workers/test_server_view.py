"""What ``pool-status --server`` says of real workers on a real PostgreSQL."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest
from commands import Result
from gates import Gates
from prefork import Prefork
from sqlalchemy import make_url
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


def test_who_waits_for_whose_lock(prefork: Start, run_cli: Cli, gates: Gates) -> None:
    """Both views are named, with worker and line; nobody has prepared anything."""
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
        r" idle in transaction for [\d.]+ m?s \(its statement began .* ago\)",
        line,
    ), line
