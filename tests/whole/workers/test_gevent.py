"""gunicorn's gevent worker: many requests in one thread, each in a greenlet."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from commands import Result
from gates import Gates
from prefork import Prefork

pytest.importorskip("gevent")

pytestmark = [pytest.mark.workers, pytest.mark.slow]

Start = Callable[..., Prefork]
Cli = Callable[..., Result]

POOL = "FLASK_SQLALCHEMY_ENGINE_OPTIONS__"


@pytest.fixture
def group(prefork: Start, live_env: dict[str, str]) -> Prefork:
    """One worker with three connections at most, which a checkout waits for shortly."""
    live_env |= {
        f"{POOL}pool_size": "3",
        f"{POOL}max_overflow": "0",
        f"{POOL}pool_timeout": "0.3",
        "FLASK_SCOPEDSESSION_SQLITE_BEGIN": "DEFERRED",
    }
    return prefork(count=1, worker_class="gevent")


def the_pool(run_cli: Cli) -> dict[str, Any]:
    """Return the pool of the only worker, as the command shows it from outside."""
    found = run_cli(["pool-status", "--json"]).check().json
    assert found["silent"] == []
    (worker,) = found["workers"]
    (pool,) = worker["pools"]
    return dict(pool)


def test_a_connection_whose_greenlet_has_ended(
    group: Prefork, run_cli: Cli, gates: Gates
) -> None:
    """It is a holder beside those of the greenlets that are alive, with its view."""
    assert group.get("/leak").json["kept"] == 1
    blocked = group.send_many("/block", 2)
    gates.wait(count=2)
    pool = the_pool(run_cli)
    assert (pool["used"], pool["max"], pool["pending"]) == (3, 3, 0)
    leaked, *others = pool["holders"]
    assert (leaked["endpoint"], leaked["rule"]) == ("leak", "/leak")
    assert leaked["request_over"]
    assert not leaked["thread_alive"]
    assert leaked["in_transaction"]
    assert leaked["at_is"] == "view"
    for holder in others:
        assert holder["endpoint"] == "block"
        assert not holder["request_over"]
        assert holder["thread_alive"]
        assert holder["at"].endswith(" wait_for_gate")
    refused = group.get("/refused").json
    assert refused["error"] == "sqlalchemy.exc.TimeoutError"
    assert refused["holders"] == ["block", "block", "leak"]
    gates.open()
    for each in blocked:
        assert each.result(20).status == 200
    assert [each["endpoint"] for each in the_pool(run_cli)["holders"]] == ["leak"]
    group.get("/unleak")
    assert the_pool(run_cli)["used"] == 0
