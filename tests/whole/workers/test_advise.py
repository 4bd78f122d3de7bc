"""``pool-advise`` recommends a larger pool, and this pool is large enough."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from commands import Result
from prefork import Prefork

pytestmark = [pytest.mark.workers, pytest.mark.slow]

Start = Callable[..., Prefork]
Cli = Callable[..., Result]

OPTIONS = "FLASK_SQLALCHEMY_ENGINE_OPTIONS__"
THREADS = 6


def loaded(prefork: Start, env: dict[str, str]) -> Prefork:
    """Return one worker with several threads that has served some requests."""
    group = prefork(count=1, threads=THREADS, timeout=30, env=env)
    for reply in group.send_many("/hold?seconds=0.03", 150, timeout=30):
        assert reply.result(30).status == 200
    return group


def advice(run_cli: Cli, *args: str) -> Any:
    (found,) = run_cli(["pool-advise", "--json", *args]).check().json["advice"]
    return found


def test_a_pool_that_is_too_small(prefork: Start, run_cli: Cli) -> None:
    small = {f"{OPTIONS}pool_size": "1", f"{OPTIONS}max_overflow": "0"}
    group = loaded(prefork, small)
    found = advice(run_cli)
    measured, recommended = found["measured"], found["recommended"]
    assert measured["pid"] in group.worker_pids()
    assert measured["full"]
    assert (measured["used_max"], measured["pending_max"]) == (1, THREADS - 1)
    # The connection was always in use, and all threads nearly always wanted it.
    assert 0.3 < measured["load"] <= 1
    assert 1 < measured["load_most"] <= THREADS
    most = recommended["pool_size"] + recommended["max_overflow"]
    assert 1 < most <= 2 * THREADS
    assert "the real demand cannot be seen" in recommended["reasons"][1]
    codes = [warning["code"] for warning in found["warnings"]]
    assert codes == ["pool_timeout"], "gunicorn's timeout is no longer than the pool's"

    # The printed settings; measured a moment later, so they can differ.
    lines = run_cli(["pool-advise"]).check().stdout.split()
    pasted = dict(line.split("=") for line in lines if line.startswith(OPTIONS))
    size, overflow, timeout = map(int, pasted.values())
    assert size + overflow > 1
    group.stop()
    loaded(prefork, pasted)
    after = advice(run_cli)
    assert (after["size"], after["max"]) == (size, size + overflow)
    assert after["pool_timeout"] == timeout
    assert after["warnings"] == []
    assert after["measured"]["pending_max"] <= max(0, THREADS - size - overflow)
    assert after["measured"]["wait_p95_s"] < measured["wait_p95_s"] / 2


def test_a_server_that_accepts_fewer(prefork: Start, run_cli: Cli) -> None:
    """The worst case of all workers; SQLite has no limit, and is not counted."""
    prefork(count=2).visit_all("/ok")
    report = run_cli(["pool-advise", "--json", "--max-connections", "1"]).check().json
    assert report["workers"] == 2
    assert report["servers"] == []
    assert "too little was measured" in report["advice"][0]["problem"]
