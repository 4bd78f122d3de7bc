"""What gunicorn's workers log, as lines of JSON, with the configuration of the docs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from commands import Result
from prefork import Prefork
from waiting import wait_until

pytestmark = [pytest.mark.workers, pytest.mark.slow]

CONFIGURATION = Path(__file__).parents[3] / "docs" / "logging" / "json_logs.py"

APPLICATION = f"""
import runpy
runpy.run_path({str(CONFIGURATION)!r})
from live_app import create_app
"""

SETTINGS = {
    "SQLALCHEMY_ENGINE_OPTIONS__pool_size": "2",
    "SQLALCHEMY_ENGINE_OPTIONS__max_overflow": "0",
    "SQLALCHEMY_ENGINE_OPTIONS__pool_timeout": "0.2",
    "SCOPEDSESSION_HELD_LONG_AFTER": "0.1",
    "SCOPEDSESSION_MANY_STATEMENTS": "1",
}


def records(group: Prefork) -> dict[str, dict[str, Any]]:
    """Return the first record of each event, without the common prefix."""
    found: dict[str, dict[str, Any]] = {}
    for line in group.log.splitlines():
        if line.startswith("{"):
            record = json.loads(line)
            own = {
                name.removeprefix("scopedsession_"): value
                for name, value in record.items()
            }
            found.setdefault(own["event"], own)
    return found


def test_each_kind_of_trouble(
    prefork: Callable[..., Prefork],
    run_cli: Callable[..., Result],
    live_env: dict[str, str],
    short_tmp: Path,
) -> None:
    """Each leads to one record that names the worker, the bind and the view."""
    (short_tmp / "logged.py").write_text(APPLICATION, encoding="utf-8")
    live_env |= {f"FLASK_{name}": value for name, value in SETTINGS.items()}
    run_cli(["create-tables"]).check()
    group = prefork(
        app="logged:create_app()", count=2, args=["--pythonpath", str(short_tmp)]
    )
    first, second = group.visit_all("/pid")

    def visit_until(event: str, on: int) -> dict[str, Any]:
        wait_until(lambda: group.get("/ok", on=on) and event in records(group))
        return records(group)[event]

    group.get("/forget", on=first)
    group.get("/nested", on=first)
    group.get("/hold?seconds=0.2", on=first)
    found = records(group)
    assert list(found) == ["lost_work", "many_statements", "held_long"]
    lost, many, held = found.values()
    assert lost["pid"] == many["pid"] == held["pid"] == first
    assert lost["levelname"] == "WARNING"
    assert (lost["endpoint"], lost["lost"]) == ("forget", {"Note": 1})
    assert (many["endpoint"], many["statements"]) == ("nested", 2)
    assert (held["endpoint"], held["bind"]) == ("hold", "default")
    assert (held["returned"], held["held_long"]) == (True, 0)
    assert held["held_s"] > 0.2

    group.get("/leak", on=first)
    leak = visit_until("leaked", first)
    assert (leak["endpoint"], leak["bind"], leak["leaked"]) == ("leak", "default", 1)
    assert leak["at"].startswith("live_app.py:")

    group.get("/leak", on=first)
    group.get("/refused", on=first)
    timeout = records(group)["pool_timeout"]
    assert (timeout["levelname"], timeout["endpoint"]) == ("ERROR", "refused")
    assert (timeout["bind"], timeout["used"], timeout["timeouts_60s"]) == (
        *("default", 2),
        1,
    )
    assert timeout["waited_s"] > 0.2
    assert [each["endpoint"] for each in timeout["holders"]] == ["leak", "leak"]

    group.kill(first)
    group.wait_gone(first)
    # The worker that replaces it finds its files.
    wait_until(lambda: len(group.worker_pids()) == 2)
    (third,) = set(group.worker_pids()) - {second}
    gone = visit_until("worker_lost", third)
    assert gone["pid"] in (second, third)
    assert (gone["worker_pid"], gone["state"]) == (first, "gone")
    assert gone["worker_id"].startswith(f"{first}-")
    assert {each["pid"] for each in records(group).values()} <= {first, second, third}
