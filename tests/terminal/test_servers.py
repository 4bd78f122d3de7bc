"""What ``pool-status --server`` prints on a terminal and in a pipe."""

from __future__ import annotations

from typing import Any

import pytest
from inside import ConnectionLimit
from inside import LockWait
from inside import ServerConnection
from inside import ServerView
from inside import Unclaimed
from readings import a_holder
from readings import AUDIT
from readings import ORDERS

from flask_scopedsession._terminal.servers import render_servers
from flask_scopedsession.snapshot import DatabaseURL


def a_connection(backend_pid: int = 9001, **changes: Any) -> ServerConnection:
    """Return a connection that a view holds, idle in transaction."""
    fields: dict[str, Any] = {
        "pid": 124,
        "bind": "default",
        "holder": a_holder(12.0, endpoint="orders.report", at="shop/views.py:40 total"),
        "application_name": "shop@web-1:124",
        "client": "10.0.0.5",
        "state": "idle in transaction",
        "wait_event": "Client:ClientRead",
        "transaction_s": 14.0,
        "state_s": 12.0,
    }
    return ServerConnection(backend_pid, **{**fields, **changes})


WAITING = a_connection(
    9002,
    pid=123,
    holder=a_holder(3.0, endpoint="orders.pay", at="shop/views.py:88 pay"),
    state="active",
    wait_event="Lock:transactionid",
    blocked_by=(9001,),
    transaction_s=3.5,
    query_s=3.0,
    state_s=3.0,
)
STRANGER = ServerConnection(
    77, application_name="psql", client="10.0.0.7", state="active", query_s=600.0
)


def a_limit(**changes: Any) -> ConnectionLimit:
    fields: dict[str, Any] = {
        "scope": "server",
        "limit": 100,
        "reserved": 3,
        "in_use": 30,
        "others": 12,
        "left": 85,
        "workers": 3,
        "may_open": 96,
        "unlimited": False,
    }
    return ConnectionLimit(**{**fields, **changes})


def a_view(**changes: Any) -> ServerView:
    fields: dict[str, Any] = {
        "binds": ("default",),
        "url": ORDERS,
        "version": "18.4",
        "joined": True,
    }
    return ServerView(**{**fields, **changes})


def render(*views: ServerView, verbose: bool = False) -> str:
    return render_servers(views, verbose=verbose)


def lines(view: ServerView) -> list[str]:
    return [line.strip() for line in render(view).splitlines()]


def test_a_lock_wait_names_both_views() -> None:
    """Last, in one sentence, with what the blocker is doing."""
    view = a_view(
        waits=(LockWait(WAITING, (a_connection(),)),),
        connections=(a_connection(), WAITING),
        limits=(a_limit(),),
    )
    assert lines(view)[-1] == (
        "pid 123 orders.pay shop/views.py:88 pay (backend 9002) waits for a lock held"
        " by pid 124 orders.report shop/views.py:40 total (backend 9001), idle in"
        " transaction for 12 s (the waiting statement began 3.0 s ago)"
    )


@pytest.mark.parametrize(
    ("blocker", "said"),
    [
        (STRANGER, "psql from 10.0.0.7 (backend 77), active for 10 min"),
        (ServerConnection(0), "a prepared transaction"),
        (ServerConnection(5), "an unnamed connection (backend 5)"),
        (
            ServerConnection(6, kind="autovacuum worker", state="active", query_s=2.0),
            "autovacuum worker (backend 6), active for 2.0 s",
        ),
        (
            a_connection(7, holder=None, state="idle", state_s=1.0),
            "pid 124 in its pool (backend 7), idle for 1.0 s",
        ),
        (
            a_connection(8, blocked_by=(9,), holder=a_holder(endpoint="a.b", at=None)),
            "pid 124 a.b (backend 8), which is waiting itself",
        ),
    ],
)
def test_how_a_blocker_is_named(blocker: ServerConnection, said: str) -> None:
    """By the most precise name that is known."""
    (line,) = [
        line
        for line in lines(a_view(waits=(LockWait(WAITING, (blocker,)),)))
        if "held by" in line
    ]
    assert f"held by {said} (the waiting statement" in line


def test_several_blockers() -> None:
    wait = LockWait(WAITING, (a_connection(), STRANGER))
    text = render(a_view(waits=(wait,)))
    assert "idle in transaction for 12 s, and by psql from 10.0.0.7" in text


def test_limits() -> None:
    """Too many connections come with a remedy; otherwise it is one plain line."""
    assert lines(a_view(limits=(a_limit(),)))[-1] == (
        "3 workers may open 96; 85 of the server's 97 connections are left"
        " (12 used by others): lower pool_size, max_overflow or the number of workers"
        " (at most 28 for each worker fit)"
    )
    assert lines(a_view(limits=(a_limit(may_open=85),)))[-1] == (
        "3 workers may open 85; 85 of the server's 97 connections are left"
        " (12 used by others)"
    )
    text = render(a_view(limits=(a_limit(may_open=None, unlimited=True),)))
    assert "3 workers may open any number;" in text
    assert "lower pool_size" in text
    role = a_limit(scope="role", reserved=0, limit=20, others=0, left=20, may_open=1)
    text = render(a_view(limits=(a_limit(workers=0, may_open=0), role)))
    assert "0 workers may open 0; 85 of the server" in text
    assert "20 of the role's CONNECTION LIMIT of 20 are left (0 used by others)" in text
    pooled = a_limit(others=None, left=None)
    text = render(a_view(joined=False, notes=("behind a pooler",), limits=(pooled,)))
    assert "30 of the server's 97 connections are in use" in text
    assert "behind a pooler" in text


def test_idle_connections_are_counted() -> None:
    """One that is idle in its pool has a row only if it is not idle at the server."""
    idle = a_connection(1, holder=None, state="idle")
    odd = a_connection(2, holder=None, state="idle in transaction")
    view = a_view(connections=(idle, a_connection(), odd))
    text = render(view)
    assert "1 connection checked out and 2 idle in the pools" in text
    assert [row.split()[:2] for row in text.splitlines() if "in the pool" in row][
        1:
    ] == [["124", "2"]]
    assert text.count("orders.report") == 1
    assert render(view, verbose=True).count("in the pool ") == 2


def test_unclaimed() -> None:
    found = Unclaimed("shop@web-2:9", "10.0.0.6", 4, 41.2, "idle in transaction")
    nameless = Unclaimed(None, None, 1, None, None)
    text = render(a_view(unclaimed=(found, nameless)))
    assert (
        "  4× shop@web-2:9 from 10.0.0.6, longest 41 s, idle in transaction\n"
    ) in text
    assert "1× unnamed from a hidden address, longest" in text
    many = tuple(
        Unclaimed(f"shop@web-2:{pid}", "10.0.0.6", 2, 1.0, "idle") for pid in range(14)
    )
    text = render(a_view(unclaimed=many))
    assert text.count("shop@web-2") == 10
    assert "and 8 more; --verbose lists them" in text
    assert render(a_view(unclaimed=many), verbose=True).count("shop@web-2") == 14


def test_no_answer() -> None:
    """Each error is one line, and the other servers are shown."""
    down = a_view(version=None, joined=False, error="no answer within 2 s")
    file = ServerView(("audit",), AUDIT, error="no server: SQLite has none")
    text = render(down, file, a_view(limits=(a_limit(),)))
    assert "Server of postgresql+psycopg://db.internal:5432/orders · bind default" in (
        text
    )
    assert "  no answer within 2 s\n" in text
    assert "  no server: SQLite has none\n" in text
    assert "are left" in text


@pytest.mark.parametrize(
    ("url", "error", "is_red"),
    [
        (ORDERS, "no answer within 2 s", True),
        (ORDERS, "not allowed", True),
        (AUDIT, "no server: SQLite has none", False),
        (DatabaseURL("oracle", "db.internal", 1521, "x"), "not asked", False),
    ],
)
def test_the_colour_of_an_error(
    monkeypatch: pytest.MonkeyPatch, url: DatabaseURL, error: str, is_red: bool
) -> None:
    """A server that did not answer is a problem; to have no server to ask is not."""
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    text = render(a_view(url=url, version=None, joined=False, error=error))
    assert (f"\x1b[31m  {error}" in text) is is_red
    assert error in text


def test_nothing_steers_the_terminal() -> None:
    """Names at the server may contain anything."""
    evil = ServerConnection(
        3, application_name="\x1b[31m[bold]x[/]\u202e", state="idle"
    )
    text = render(a_view(waits=(LockWait(WAITING, (evil,)),)))
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert "[31m[bold]x[/]" in text


@pytest.mark.parametrize("columns", [80, 120])
def test_a_terminal(monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    """No line is wider than the terminal, and no place is cut."""
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("COLUMNS", str(columns))
    text = render(
        a_view(
            waits=(LockWait(WAITING, (a_connection(), STRANGER)),),
            connections=(a_connection(4194303, pid=4194302), WAITING),
            unclaimed=(Unclaimed("shop@web-2:9", "10.0.0.6", 4, 41.2, "idle"),),
            limits=(a_limit(),),
        )
    )
    assert max(map(len, text.splitlines())) <= columns
    for place in ("shop/views.py:88 pay", "shop/views.py:40 total", "BLOCKED BY"):
        assert place in text


def test_json_both_ways() -> None:
    """JSON can be read back."""
    view = a_view(
        waits=(LockWait(WAITING, (STRANGER,)),),
        connections=(a_connection(),),
        unclaimed=(Unclaimed("shop@web-2:9", None, 4, 41.2, "idle"),),
        limits=(a_limit(),),
        notes=("a note",),
    )
    assert ServerView.from_dict(view.to_dict()) == view
