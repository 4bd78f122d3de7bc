"""What the servers report, joined with what the workers report."""

from __future__ import annotations

import os
from time import perf_counter
from typing import Any

import pytest
from inside import process_name
from inside import safe_url
from inside import ServerConnection
from inside import ServerView
from readings import a_holder
from readings import a_last_worker
from readings import a_pool
from readings import a_survey
from readings import a_worker
from sqlalchemy import create_engine

from flask_scopedsession._databases import comparison as _server_view
from flask_scopedsession._databases.facts import Activity
from flask_scopedsession._databases.facts import Facts
from flask_scopedsession.snapshot import WorkerSnapshot

ENGINE = create_engine("postgresql+psycopg://db/shop")
OURS = process_name("shop", "web-1", os.getpid())


def at_server(pid: int, **changes: Any) -> Activity:
    own = {"here": True, "ours": True, "connected_s": 60.0}
    own.update({name: changes.pop(name) for name in own.keys() & changes.keys()})
    fields: dict[str, Any] = {
        "application_name": f"shop@web-1:{pid}",
        "client": "10.0.0.5",
        "state": "idle",
        "state_s": 60.0,
    }
    return Activity(ServerConnection(pid, **{**fields, **changes}), **own)


def a_member(pid: int, *backends: int, **changes: Any) -> WorkerSnapshot:
    """Return a worker that has these connections open."""
    pool = a_pool(url=safe_url(ENGINE.url), backend_pids=backends, **changes)
    return a_worker(pid, [pool])


def view(
    monkeypatch: pytest.MonkeyPatch,
    activity: list[Activity],
    *workers: WorkerSnapshot,
    **changes: Any,
) -> ServerView:
    """Join, as if asking had taken a second."""
    fields: dict[str, Any] = {
        "identity": "one",
        "own_pid": 1,
        "driver_pid": 1,
        "own_name": OURS,
        "max_connections": 100,
        "reserved": 3,
        "in_use": len(activity),
        "database_limit": None,
        "role_limit": None,
    }
    facts = Facts(activity=tuple(activity), **{**fields, **changes})
    database = _server_view._Database(("default",), ENGINE, facts, None)
    monkeypatch.setattr(_server_view, "_ask", lambda *_: [database])
    since = perf_counter() - 1.0
    (found,) = _server_view.view_servers(
        {"default": ENGINE}, {}, a_survey(*workers), timeout=1.0, since=since
    )
    return found


def unclaimed(found: ServerView) -> dict[str | None, int]:
    return {group.application_name: group.count for group in found.unclaimed}


def test_claimed(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the IDs of holders at the server, and by those of all open connections."""
    holder = a_holder(backend_pid=12)
    found = view(
        monkeypatch,
        [at_server(11), at_server(12), at_server(13)],
        a_member(4711, 11, holders=(holder,)),
    )
    assert {c.backend_pid: (c.pid, c.holder) for c in found.connections} == {
        11: (4711, None),
        12: (4711, holder),
    }
    assert unclaimed(found) == {"shop@web-1:13": 1}


def test_younger_than_the_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker may have opened it after it answered."""
    young = at_server(11, connected_s=0.5)
    assert unclaimed(view(monkeypatch, [young, at_server(12)], a_member(1))) == {
        "shop@web-1:12": 1
    }


def test_last_snapshots_claim_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The connections of a killed worker are not open any more."""
    pool = a_pool(url=safe_url(ENGINE.url), backend_pids=(11,))
    gone = a_last_worker(7, "gone", pools=[pool])
    assert unclaimed(view(monkeypatch, [at_server(11)], gone)) == {"shop@web-1:11": 1}


def test_other_databases_and_names_are_not_ours(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    activity = [
        at_server(11, here=False),
        at_server(12, application_name="shop_too@web-1:12"),
        at_server(13, application_name=None),
        at_server(14, application_name="psql"),
        at_server(15, application_name=OURS),  # this process, asking about another
    ]
    found = view(monkeypatch, activity, a_member(1))
    assert unclaimed(found) == {}
    (limit,) = found.limits
    assert (limit.in_use, limit.others, limit.left) == (4, 4, 93)


@pytest.mark.parametrize("driver_pid", [None, 2])
def test_a_pooler(monkeypatch: pytest.MonkeyPatch, driver_pid: int | None) -> None:
    """The driver's numbers are another server's and claim nothing."""
    found = view(
        monkeypatch, [at_server(11)], a_member(4711, 11), driver_pid=driver_pid
    )
    assert not found.joined
    assert "behind a pooler" in found.notes[0]
    assert found.connections == found.unclaimed == ()


def test_lock_waits_of_others_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    activity = [
        at_server(11, blocked_by=(12,), query_s=1.0),
        at_server(12, application_name="psql", ours=False),
        at_server(13, application_name="psql", blocked_by=(12,), query_s=9.0),
        at_server(14, application_name="psql", blocked_by=(11, 0), query_s=5.0),
    ]
    found = view(monkeypatch, activity, a_member(4711, 11))
    assert [
        (w.waiting.backend_pid, [b.backend_pid for b in w.blockers])
        for w in found.waits
    ] == [(14, [11, 0]), (11, [12])]


def test_no_limit_is_no_number(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sum is unknown if one of the pools has no limit."""
    workers = [a_member(1, max=None, unlimited=True), a_member(2)]
    (limit,) = view(monkeypatch, [], *workers).limits
    assert (limit.workers, limit.may_open, limit.unlimited) == (2, None, True)


def test_nothing_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """Never fewer than none, though others may use what is reserved."""
    (limit,) = view(monkeypatch, [], a_member(1), in_use=99).limits
    assert (limit.others, limit.left) == (99, 0)


def test_without_names_only_clients_are_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    """A parallel worker of the server has the role and the name of its client."""
    activity = [
        at_server(11, application_name=None),
        at_server(12, application_name=None, kind="parallel worker"),
    ]
    found = view(monkeypatch, activity, a_member(1), own_name=None)
    assert unclaimed(found) == {None: 1}
