"""Hand-made snapshots: pools, workers and surveys in any state."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from flask_scopedsession.snapshot import BUCKET_BOUNDS
from flask_scopedsession.snapshot import BusyMinute
from flask_scopedsession.snapshot import DatabaseURL
from flask_scopedsession.snapshot import Histogram
from flask_scopedsession.snapshot import Holder
from flask_scopedsession.snapshot import LostWorkCount
from flask_scopedsession.snapshot import PoolSnapshot
from flask_scopedsession.snapshot import PoolTimeout
from flask_scopedsession.snapshot import SearchedDirectory
from flask_scopedsession.snapshot import SessionSnapshot
from flask_scopedsession.snapshot import SharedUse
from flask_scopedsession.snapshot import Silent
from flask_scopedsession.snapshot import Survey
from flask_scopedsession.snapshot import ThreadPlace
from flask_scopedsession.snapshot import ViewUse
from flask_scopedsession.snapshot import Waiter
from flask_scopedsession.snapshot import WorkerSnapshot

ORDERS = DatabaseURL("postgresql+psycopg", "db.internal", 5432, "orders")
AUDIT = DatabaseURL("sqlite", None, None, "/srv/shop/audit.db")
TIMES = Histogram.of([0] * 5 + [10] + [0] * (len(BUCKET_BOUNDS) - 5), 0.05, 0.004)


def a_holder(held_s: float = 3.0, **changes: Any) -> Holder:
    """Return a holder of a connection."""
    fields: dict[str, Any] = {
        "connection": 3,
        "backend_pid": 9001,
        "endpoint": "orders.show",
        "method": "GET",
        "rule": "/orders/<int:id>",
        "thread": "Thread-1",
        "thread_alive": True,
        "in_transaction": True,
        "at": "shop/views.py:88 show",
        "session": 12,
    }
    return Holder(held_s=held_s, **{**fields, **changes})


def a_waiter(waited_s: float = 1.0, **changes: Any) -> Waiter:
    """Return a waiter for a connection."""
    fields: dict[str, Any] = {
        "endpoint": "orders.index",
        "method": "GET",
        "rule": "/orders",
        "thread": "Thread-2",
        "at": "shop/views.py:12 index",
    }
    return Waiter(waited_s=waited_s, **{**fields, **changes})


def a_timeout(**changes: Any) -> PoolTimeout:
    """Return a checkout that timed out three seconds ago, with the holders then."""
    holders = (
        *(a_holder(44.0 - i) for i in range(14)),
        a_holder(20.0, endpoint="reports.build", at="shop/reports.py:9 build"),
    )
    fields: dict[str, Any] = {
        "at_time": "2026-11-22T10:10:26.123Z",
        "waited_s": 30.0,
        "endpoint": "orders.index",
        "holders": holders,
    }
    return PoolTimeout(**{**fields, **changes})


def a_view_use(endpoint: str | None = "orders.show", **changes: Any) -> ViewUse:
    """Return the use of a pool by the only view that uses it."""
    fields: dict[str, Any] = {
        "method": "GET",
        "rule": "/orders/<int:id>",
        "command": None,
        "checkouts_total": 100,
        "held_s": 0.05,
        "share": 1.0,
        "checkouts_60s": 10,
        "held_60s": 0.05,
        "share_60s": 1.0,
        "statements_total": 250,
        "statements_60s": 25,
    }
    return ViewUse(endpoint=endpoint, **{**fields, **changes})


def lost_work(objects: dict[str, int], **changes: Any) -> LostWorkCount:
    """Return the lost work of one view."""
    fields: dict[str, Any] = {
        "endpoint": "orders.add",
        "method": "POST",
        "rule": "/orders",
        "command": None,
        "scopes_total": 3,
        "last_at": "2026-11-22T10:10:00.000Z",
    }
    return LostWorkCount(objects=objects, **{**fields, **changes})


def a_shared_use(**changes: Any) -> SharedUse:
    """Return two threads that used one session at the same time."""
    fields: dict[str, Any] = {
        "at_time": "2026-11-22T10:10:00.000Z",
        "endpoint": "orders.show",
        "method": "GET",
        "rule": "/orders/<int:id>",
        "command": None,
        "refused": False,
        "threads": (
            ThreadPlace("Thread-1", "shop/views.py:88 show"),
            ThreadPlace("Thread-2"),
        ),
    }
    return SharedUse(**{**fields, **changes})


def a_pool(bind: str = "default", used: int = 1, **changes: Any) -> PoolSnapshot:
    """Return a healthy pool of at most 15 connections."""
    fields: dict[str, Any] = {
        "pool_class": "QueuePool",
        "url": ORDERS,
        "size": 5,
        "max": 15,
        "unlimited": False,
        "pool_timeout": 30.0,
        "open": used + 2,
        "idle": 2,
        "overflow": 0,
        "pending": 0,
        "used_pct": round(used / 15 * 100, 6),
        "max_wait_s": 0.0,
        "held_long": 0,
        "checkouts_total": 100,
        "connects_total": 5,
        "timeouts_total": 0,
        "timeouts_60s": 0,
        "invalidated_total": 0,
        "wait_s": TIMES,
        "hold_s": TIMES,
        "create_s": TIMES,
        "window_s": 65.0,
        "wait_60s": TIMES,
        "hold_60s": TIMES,
        "create_60s": TIMES,
        "invalidated_age_s": TIMES,
        "used_max": used,
        "used_max_60s": used,
        "pending_max": 0,
        "pending_max_60s": 0,
        "busiest": BusyMinute("2026-11-22T09:00:00.000Z", 60.0, 90, 4.5, 0.1, 0),
        "views": (a_view_use(),),
    }
    return PoolSnapshot(bind=bind, used=used, **{**fields, **changes})


def a_full_pool(bind: str = "default", **changes: Any) -> PoolSnapshot:
    """Return a wedged pool: one view holds nearly all connections, and three wait."""
    fields: dict[str, Any] = {
        "idle": 0,
        "pending": 3,
        "max_wait_s": 4.0,
        "held_long": 12,
        "wedged": True,
        "timeouts_total": 7,
        "timeouts_60s": 7,
        "holders": (
            *(a_holder(41.25 - i, idle_in_transaction_s=40.0 - i) for i in range(12)),
            a_holder(20.0, endpoint="reports.build", at="shop/reports.py:9 build"),
        ),
        "waiters": tuple(a_waiter(4.0 - i / 2, self_deadlock=i == 0) for i in range(3)),
        "pending_max": 9,
        "pending_max_60s": 3,
        "recent_timeouts": (a_timeout(),),
    }
    return a_pool(bind, 15, **{**fields, **changes})


def a_session(number: int = 1, **changes: Any) -> SessionSnapshot:
    """Return an open session that is idle in transaction."""
    fields: dict[str, Any] = {
        "name": "default",
        "scope": "context",
        "endpoint": "orders.show",
        "method": "GET",
        "rule": "/orders/<int:id>",
        "thread": "Thread-1",
        "thread_alive": True,
        "age_s": 41.2,
        "state": "idle in transaction",
        "connections": (3,),
        "new": 0,
        "deleted": 0,
        "identity": 12,
        "idle_in_transaction_s": 40.1,
    }
    return SessionSnapshot(session=number, **{**fields, **changes})


def a_worker(
    pid: int = 4711, pools: Iterable[PoolSnapshot] | None = None, **changes: Any
) -> WorkerSnapshot:
    """Return a live worker, by default with one healthy pool."""
    fields: dict[str, Any] = {
        "id": f"{pid}-abcdef01",
        "ppid": 1,
        "role": "web",
        "state": "ok",
        "started_at": "2026-11-22T08:00:00.000Z",
        "age_s": 4000.0,
        "server": "gunicorn",
        "source": "live",
        "snapshot_at": "2026-11-22T10:10:29.000Z",
        "sessions": (),
        "uid": 0,
        "host": "web-1",
    }
    found = (a_pool(),) if pools is None else tuple(pools)
    return WorkerSnapshot(pid=pid, pools=found, **{**fields, **changes})


def a_last_worker(pid: int, state: str, **changes: Any) -> WorkerSnapshot:
    """Return the last snapshot of a worker, three minutes old."""
    at = "2026-11-22T10:07:29.000Z"
    return a_worker(pid, state=state, source="last", snapshot_at=at, **changes)


def a_silent(pid: int, reason: str) -> Silent:
    """Return a worker that did not answer."""
    return Silent(f"{pid}-abcdef01", pid, "web-1", reason)


def a_survey(*workers: WorkerSnapshot, **changes: Any) -> Survey:
    """Return a survey of these workers."""
    fields: dict[str, Any] = {
        "app": "shop",
        "host": "web-1",
        "collected_at": "2026-11-22T10:10:29.123Z",
        "versions": {"flask": "3.1", "sqlalchemy": "2.1", "python": "3.13.0"},
        "searched": (SearchedDirectory("/tmp/flask-scopedsession-0/0123456789ab"),),
    }
    return Survey(workers=workers, **{**fields, **changes})
