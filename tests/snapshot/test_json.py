"""The JSON of schema 1: which keys, of which types, and both ways."""

from __future__ import annotations

import ast
import inspect
import json
import re
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
from flask import Flask
from readings import a_full_pool
from readings import a_holder
from readings import a_last_worker
from readings import a_pool
from readings import a_session
from readings import a_shared_use
from readings import a_silent
from readings import a_survey
from readings import a_worker
from readings import AUDIT
from readings import lost_work
from readings import ORDERS
from sqlalchemy import text

from flask_scopedsession import ScopedSession
from flask_scopedsession.snapshot import _histogram
from flask_scopedsession.snapshot import _readings
from flask_scopedsession.snapshot import _servers
from flask_scopedsession.snapshot import ConfiguredPool
from flask_scopedsession.snapshot import DatabaseURL
from flask_scopedsession.snapshot import Histogram
from flask_scopedsession.snapshot import PoolTimeout
from flask_scopedsession.snapshot import SearchedDirectory
from flask_scopedsession.snapshot import Survey
from flask_scopedsession.snapshot import WorkerSnapshot

Keys = dict[str, Any]

NUMBER = (int, float)
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)")

# What each object of the document has: a key, and the type of its value. A type
# with None may be null; a list holds objects of that kind.
URL: Keys = {
    "drivername": str,
    "host": (str, None),
    "port": (int, None),
    "database": (str, None),
}
HISTOGRAM: Keys = {
    "count": int,
    "sum": NUMBER,
    "p50": (*NUMBER, None),
    "p95": (*NUMBER, None),
    "max": (*NUMBER, None),
    "buckets": [int],
}
WHO: Keys = {
    "endpoint": (str, None),
    "method": (str, None),
    "rule": (str, None),
    "command": (str, None),
    "job": (str, None),
}
HOLDER: Keys = {
    "connection": (int, None),
    "backend_pid": (int, None),
    "held_s": NUMBER,
    **WHO,
    "thread": (str, None),
    "thread_alive": (bool, None),
    "request_over": (bool, None),
    "in_transaction": (bool, None),
    "idle_in_transaction_s": (*NUMBER, None),
    "running_s": (*NUMBER, None),
    "at": (str, None),
    "at_is": ("now", "checkout", "view", None),
    "stack": (list, None),
    "session": (int, None),
    "sql": (str, None),
}
WAITER: Keys = {
    "waited_s": NUMBER,
    **WHO,
    "thread": (str, None),
    "at": (str, None),
    "self_deadlock": bool,
    "holds_from": (str, None),
}
TIMEOUT: Keys = {
    "at_time": TIME,
    "waited_s": NUMBER,
    "endpoint": (str, None),
    "holders": [HOLDER],
}
VIEW: Keys = {
    **WHO,
    "checkouts_total": int,
    "held_s": NUMBER,
    "share": (*NUMBER, None),
    "checkouts_60s": int,
    "held_60s": NUMBER,
    "share_60s": (*NUMBER, None),
    "statements_total": (int, None),
    "statements_60s": (int, None),
}
BUSIEST: Keys = {
    "at": TIME,
    "span_s": NUMBER,
    "checkouts": int,
    "held_s": NUMBER,
    "waited_s": NUMBER,
    "timeouts": int,
}
CONFIGURED: Keys = {
    "bind": str,
    "pool_class": str,
    "url": URL,
    "size": (int, None),
    "max": (int, None),
    "unlimited": (bool, None),
    "pool_timeout": (*NUMBER, None),
}
POOL: Keys = {
    **CONFIGURED,
    "open": int,
    "used": int,
    "idle": (int, None),
    "overflow": (int, None),
    "pending": (int, None),
    "used_pct": (*NUMBER, None),
    "max_wait_s": (*NUMBER, None),
    "held_long": int,
    "checkouts_total": int,
    "connects_total": int,
    "timeouts_total": (int, None),
    "timeouts_60s": (int, None),
    "invalidated_total": int,
    "wait_s": HISTOGRAM,
    "hold_s": HISTOGRAM,
    "create_s": HISTOGRAM,
    "holders": [HOLDER],
    "waiters": [WAITER],
    "recent_timeouts": [TIMEOUT],
    # Beyond the first list of the contract.
    "window_s": NUMBER,
    "wait_60s": HISTOGRAM,
    "hold_60s": HISTOGRAM,
    "create_60s": HISTOGRAM,
    "invalidated_60s": int,
    "invalidated_age_s": HISTOGRAM,
    "used_max": int,
    "used_max_60s": int,
    "pending_max": (int, None),
    "pending_max_60s": (int, None),
    "busiest": (BUSIEST, None),
    "views": [VIEW],
    "wedged": bool,
    "backend_pids": [int],
    "leaked": (int, None),
}
SESSION: Keys = {
    "session": int,
    "name": str,
    "scope": str,
    **WHO,
    "thread": (str, None),
    "thread_alive": (bool, None),
    "age_s": NUMBER,
    "state": ("idle", "begun", "holding", "idle in transaction", "needs rollback"),
    "statements": (int, None),
    "connections": [int],
    "new": (int, None),
    "deleted": (int, None),
    "identity": (int, None),
    "idle_in_transaction_s": (*NUMBER, None),
    "requests": (int, None),
}
WORKER: Keys = {
    "id": str,
    "pid": int,
    "ppid": int,
    "role": ("web", "job", "shell", "command", "test"),
    "state": ("ok", "saturated", "wedged", "stopped", "unresponsive", "gone"),
    "started_at": TIME,
    "age_s": NUMBER,
    "server": (str, None),
    "source": ("live", "last"),
    "snapshot_at": TIME,
    "pools": [POOL],
    "sessions": [SESSION],
    "truncated": bool,
    # Beyond the first list of the contract.
    "sessions_open": (int, None),
    "lost_work_total": (int, None),
    "scope_s": (HISTOGRAM, None),
    "scope_statements": (HISTOGRAM, None),
    "lost_work": [
        {**WHO, "scopes_total": int, "objects": {"Item": int}, "last_at": TIME}
    ],
    "recent_shared": [
        {
            **WHO,
            "at_time": TIME,
            "refused": bool,
            "threads": [{"thread": str, "at": (str, None)}],
        }
    ],
    "uid": (int, None),
    "host": str,
}
SURVEY: Keys = {
    "schema": int,
    "app": str,
    "host": str,
    "collected_at": TIME,
    "versions": {
        "flask_scopedsession": str,
        "sqlalchemy": str,
        "flask": str,
        "python": str,
    },
    # "denied" is beyond the first list of the contract.
    "searched": [{"dir": str, "error": (str, None), "denied": bool}],
    "workers": [WORKER],
    "silent": [{"id": str, "pid": int, "host": str, "reason": str}],
    "totals": [
        {
            "url": URL,
            "workers": int,
            "open": int,
            "used": int,
            "idle": (int, None),
            "pending": (int, None),
            "max": (int, None),
        }
    ],
    "configured": [CONFIGURED],
}


def conforms(kind: Any, value: Any, where: str = "$") -> None:
    """Fail unless a JSON value has exactly the keys and types of `kind`."""
    if isinstance(kind, dict):
        assert isinstance(value, dict), where
        assert value.keys() == kind.keys(), where
        for key, inner in kind.items():
            conforms(inner, value[key], f"{where}.{key}")
    elif isinstance(kind, list):
        assert isinstance(value, list), where
        for item in value:
            conforms(kind[0], item, f"{where}[]")
    elif isinstance(kind, re.Pattern):
        assert kind.fullmatch(value), where
    elif isinstance(kind, tuple) and isinstance(kind[0], str):
        assert value in kind, where
    elif isinstance(kind, tuple) and isinstance(kind[0], dict):
        if value is not None:
            conforms(kind[0], value, where)
    else:
        kinds = kind if isinstance(kind, tuple) else (kind,)
        if value is None:
            assert None in kinds, where
        else:
            assert type(value) in kinds, where


def full_survey() -> Survey:
    timeout = PoolTimeout(
        "2026-11-22T10:00:00.000Z", 30.0, "orders.show", (a_holder(),)
    )
    pools = [
        a_full_pool(recent_timeouts=(timeout,)),
        a_pool("audit", url=AUDIT, max=None, unlimited=True, pending=None),
    ]
    versions = dict.fromkeys(SURVEY["versions"], "1.0")
    return a_survey(
        a_worker(
            1,
            pools,
            state="wedged",
            sessions=(a_session(),),
            lost_work=(lost_work({"Item": 4}),),
            recent_shared=(a_shared_use(),),
        ),
        a_last_worker(2, "gone", server=None, truncated=True),
        versions=versions,
        silent=(a_silent(3, "stopped"),),
        configured=(
            ConfiguredPool("default", "NullPool", AUDIT, None, None, True, None),
        ),
        searched=(SearchedDirectory("/x", "does not exist", False),),
    )


def document(survey: Survey) -> Any:
    return json.loads(json.dumps(survey.to_dict()))


# From readings made by hand


def test_every_key_of_the_schema() -> None:
    """Each field of the contract is there, and nothing that it does not name."""
    conforms(SURVEY, document(full_survey()))


def test_schema_comes_first() -> None:
    """A reader sees it before anything else, and it is 1."""
    assert next(iter(full_survey().to_dict().items())) == ("schema", 1)


def test_an_empty_survey() -> None:
    """Keys are there also when there is nothing to tell."""
    conforms(
        SURVEY, document(a_survey(versions=dict.fromkeys(SURVEY["versions"], "1")))
    )


def test_round_trip() -> None:
    """What is read back is what was written."""
    survey = full_survey()
    assert Survey.from_dict(document(survey)).to_dict() == survey.to_dict()
    for worker in survey.workers:
        assert (
            WorkerSnapshot.from_dict(json.loads(json.dumps(worker.to_dict()))) == worker
        )


def test_unknown_keys_are_ignored() -> None:
    """A newer worker may say more, at every level."""

    def with_more(value: Any) -> Any:
        if isinstance(value, dict):
            return {"later": 1, **{key: with_more(item) for key, item in value.items()}}
        if isinstance(value, list):
            return [with_more(item) for item in value]
        return value

    survey = full_survey()
    data = with_more(document(survey))
    data["versions"].pop("later")
    for worker in data["workers"]:
        for lost in worker["lost_work"]:
            lost["objects"].pop("later")
    assert Survey.from_dict(data) == survey


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("pid",), "12"),
        (("pid",), True),
        (("pid",), None),
        (("state",), "fine"),
        (("role",), "[red]"),
        (("age_s",), "long"),
        (("pools",), {}),
        (("pools",), [1]),
        (("pools", 0, "used"), 1.5),
        (("pools", 0, "url"), "postgresql://u:p@h/d"),
        (("pools", 0, "hold_s", "buckets"), ["x"]),
        (("sessions", 0, "state"), "tired"),
        (("sessions", 0, "statements"), "many"),
        (("pools", 0, "holders", 0, "at_is"), "somewhere"),
        (("lost_work", 0, "objects"), {"Item": "many"}),
        (("recent_shared", 0, "threads"), "both"),
        (("truncated",), 1),
    ],
)
def test_another_type_is_refused(path: tuple[Any, ...], value: Any) -> None:
    """A worker's answer is checked before anything is made of it."""
    data: Any = json.loads(json.dumps(full_survey().workers[0].to_dict()))
    place = data
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    with pytest.raises(ValueError, match=r"^\w+(\.\w+)? is not "):
        WorkerSnapshot.from_dict(data)


def test_a_missing_field_is_refused() -> None:
    """Unless it has a default, as those that came later."""
    data = full_survey().workers[0].to_dict()
    del data["host"], data["truncated"]
    assert WorkerSnapshot.from_dict(data).host == ""
    del data["pid"]
    with pytest.raises(ValueError, match=r"WorkerSnapshot\.pid is missing"):
        WorkerSnapshot.from_dict(data)


@pytest.mark.parametrize("data", [None, [], "x", 1])
def test_no_object(data: object) -> None:
    """Anything else than an object is refused, by the same kind of error."""
    with pytest.raises(ValueError, match="WorkerSnapshot is not an object"):
        WorkerSnapshot.from_dict(data)


def test_totals_are_per_database_and_of_the_living() -> None:
    """Unknown as soon as one part is; never across databases."""
    null = a_pool("b", 2, url=AUDIT, idle=None, max=None)
    survey = a_survey(
        a_worker(1, [a_pool("a", 1), null]),
        a_worker(2, [a_pool("a", 3, pending=2), a_pool("b", 4, url=AUDIT)]),
        a_last_worker(3, "gone", pools=[a_pool("a", 9)]),
    )
    assert [total.to_dict() for total in survey.totals] == [
        {"url": ORDERS.to_dict(), "workers": 2, "open": 8, "used": 4, "idle": 4,
         "pending": 2, "max": 30},
        {"url": AUDIT.to_dict(), "workers": 2, "open": 10, "used": 6, "idle": None,
         "pending": 0, "max": None},
    ]  # fmt: skip


def test_two_binds_of_one_database_count_a_worker_once() -> None:
    """Its pools add up, the worker does not."""
    survey = a_survey(a_worker(1, [a_pool("a"), a_pool("b")]))
    (total,) = survey.totals
    assert (total.workers, total.used, total.max) == (1, 2, 30)


def test_control_characters_are_stripped() -> None:
    """On the way out and on the way in."""
    evil = "a\x1b[31m\x00\x9b\u202eb\n"
    url = DatabaseURL(evil, evil, None, evil)
    assert url.to_dict()["drivername"] == "a[31mb"
    assert DatabaseURL.from_dict({"drivername": evil}).drivername == "a[31mb"


def test_a_histogram_of_nothing() -> None:
    """What was never measured is null, not 0."""
    empty = Histogram.of([0] * 20, 0.0, 0.0)
    assert (empty.count, empty.p50, empty.p95, empty.max) == (0, None, None, None)
    conforms(HISTOGRAM, json.loads(json.dumps(empty.to_dict())))


def test_histogram() -> None:
    """Quantiles lie within their bucket, and never above the highest."""
    found = Histogram.of([0, 0, 0, 98, 1, 0, 1] + [0] * 13, 0.2, 0.008)
    assert found.count == 100
    assert found.p50 is not None
    assert found.p95 is not None
    assert 0.0005 < found.p50 < found.p95 <= 0.001
    assert found.max == 0.008


@pytest.mark.parametrize("module", [_histogram, _readings, _servers])
def test_every_field_is_documented(module: ModuleType) -> None:
    """The page on the API explains each field; a string after it is what it shows."""
    classes = [c for c in ast.parse(inspect.getsource(module)).body
               if isinstance(c, ast.ClassDef)]  # fmt: skip
    fields = 0
    for each in classes:
        for line, after in zip(each.body, [*each.body[1:], None], strict=True):
            if isinstance(line, ast.AnnAssign):
                fields += 1
                assert isinstance(after, ast.Expr), f"{each.name}.{ast.unparse(line)}"
    assert fields > 5


# From a process that really holds something


def test_a_real_snapshot(make_app: Callable[..., Flask]) -> None:
    """The keys and types are those of what the process says, not only of samples."""
    db = ScopedSession()
    app = make_app(
        db,
        SQLALCHEMY_DATABASE_URI="sqlite:///app.db",
        SQLALCHEMY_BINDS={
            "memory": "sqlite://",
            "null": {"url": "sqlite:///n.db", "poolclass": "NullPool"},
        },
        SCOPEDSESSION_STACKS=True,
        SCOPEDSESSION_SHOW_SQL=True,
    )
    with app.app_context():
        db.session.execute(text("SELECT 1"))
        db.get_session("null").execute(text("SELECT 1"))
        snapshot = db.snapshot()
        conforms(WORKER, json.loads(json.dumps(snapshot.to_dict())))
        assert [pool.bind for pool in snapshot.pools] == ["default", "memory", "null"]
        assert [len(pool.holders) for pool in snapshot.pools] == [1, 0, 1]
        null = snapshot.pools[2]
        assert (null.size, null.max, null.used_pct, null.overflow) == (None,) * 4
        assert null.unlimited is True
        survey = db.workers(timeout=0.1)
    conforms(SURVEY, document(survey))
    assert [pool.bind for pool in survey.configured] == ["default", "memory", "null"]
