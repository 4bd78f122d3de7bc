"""``app.app_context().push()`` at import, under real servers."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import pytest
from commands import Result
from prefork import Prefork

pytestmark = [pytest.mark.workers, pytest.mark.slow]

Start = Callable[..., Prefork]
Cli = Callable[..., Result]

MESSAGE = "A second request is served inside an application context that was active"
REMEDY = "Remove the 'app.app_context().push()' at import"

#: Whether each request has a context of its own: from Flask 3.2 on.
OWN = tuple(map(int, version("flask").split(".")[:2])) >= (3, 2)


def served(run_cli: Cli) -> list[int | None]:
    """Return how many requests each open session has served, as the command says."""
    found: Any = run_cli(["session-status", "--json"]).check().json
    return [
        session["requests"]
        for worker in found["workers"]
        for session in worker["sessions"]
    ]


def test_a_sync_worker(prefork: Start, run_cli: Cli) -> None:
    """With Flask 3.1 and older, its requests share the context.

    This is reported once, with the remedy, and shown by the command.
    """
    group = prefork(app="pushed_app:app", count=1, worker_class="sync")
    for _ in range(5):
        assert group.get("/ok").status == 200
    if OWN:
        assert MESSAGE not in group.log
        assert served(run_cli) == []
        return
    assert group.log.count(MESSAGE) == 1
    assert group.log.count(REMEDY) == 1
    (requests,) = served(run_cli)
    assert requests is not None
    assert requests >= 5
    shown = run_cli(["session-status"]).check().stdout
    assert "1 session has served several requests: its application context" in shown
    assert f"one of {requests} requests" in shown
    assert "Remove 'app.app_context().push()'" in shown


@pytest.mark.parametrize("worker_class", ["gthread", "gevent"])
def test_other_workers_do_not(prefork: Start, run_cli: Cli, worker_class: str) -> None:
    """Their threads and greenlets begin without the context."""
    if worker_class == "gevent":
        pytest.importorskip("gevent")
    group = prefork(app="pushed_app:app", count=1, worker_class=worker_class)
    for _ in range(5):
        assert group.get("/ok").status == 200
    assert MESSAGE not in group.log
    assert served(run_cli) == []


@pytest.mark.parametrize("worker_class", ["sync", "gthread"])
def test_an_ordinary_application(
    prefork: Start, run_cli: Cli, worker_class: str
) -> None:
    group = prefork(count=1, worker_class=worker_class)
    for _ in range(5):
        assert group.get("/ok").status == 200
    assert MESSAGE not in group.log
    assert served(run_cli) == []
