"""Requests and worker processes under each supported server.

Each server is started once. The pool is smaller than the number of requests that a
process serves at the same time, so some requests wait for a connection.
"""

from __future__ import annotations

import itertools
import sys
import tempfile
from collections.abc import Callable
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextlib import suppress
from dataclasses import dataclass
from dataclasses import field
from functools import partial
from pathlib import Path
from typing import Any

import commands
import pytest
from flask import Flask
from postgres import activity
from postgres import fresh_database
from prefork import Prefork
from serving import Reply
from serving import Served
from sqlalchemy import URL
from waiting import wait_until

from flask_scopedsession import ScopedSession
from flask_scopedsession.snapshot import Survey

pytestmark = [pytest.mark.workers, pytest.mark.slow]

HERE = Path(__file__).parent
REQUESTS = 24
AT_ONCE = 12

POOL = {
    "FLASK_SQLALCHEMY_ENGINE_OPTIONS__pool_size": "2",
    "FLASK_SQLALCHEMY_ENGINE_OPTIONS__max_overflow": "1",
    "FLASK_SQLALCHEMY_ENGINE_OPTIONS__pool_timeout": "10",
}


@dataclass(frozen=True)
class Kind:
    """A server, and the function that starts it."""

    name: str
    make: Callable[..., Served]
    server: str
    """Its name in a snapshot, without the version."""
    concurrent: bool = True
    """Whether one process serves several requests at the same time."""
    loaded_by_parent: bool = False
    """Whether the parent of the workers has used the database, too."""
    forks: bool = True
    """Whether the workers are forks, and so inherit the parent's connection."""
    recycles: bool = False
    """Whether workers are replaced after some requests."""
    options: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.name


def gunicorn(scratch: Path, env: dict[str, str], **options: Any) -> Served:
    return Prefork(scratch, "served_app:app", env=env, cwd=HERE, count=2, **options)


def waitress(scratch: Path, env: dict[str, str]) -> Served:
    return start(
        "waitress",
        scratch,
        env,
        ["-m", "waitress", "--listen=127.0.0.1:0", "--threads=6", "served_app:app"],
        in_children=False,
    )


def granian(scratch: Path, env: dict[str, str]) -> Served:
    options = "--host 127.0.0.1 --port 0 --workers 2 --blocking-threads 4"
    command = ["-m", "granian", "--interface", "wsgi", *options.split()]
    return start("granian", scratch, env, [*command, "served_app:app"], count=2)


def uwsgi(scratch: Path, env: dict[str, str], *more: str) -> Served:
    options = "--master --processes 2 --enable-threads --threads 4 --need-app"
    command = [
        *("-c", "import pyuwsgi; pyuwsgi.run()", "--http-socket", "127.0.0.1:0"),
        *(*options.split(), "--die-on-term", "--worker-reload-mercy", "2"),
        *("--pythonpath", str(HERE), "--module", "served_app:app", *more),
    ]
    return start("uwsgi", scratch, env, command, count=2)


def werkzeug(scratch: Path, env: dict[str, str]) -> Served:
    touched = scratch / "touched"
    touched.touch()
    options = ["--debug", "--port", "0", "--extra-files", str(touched)]
    command = ["-m", "flask", "--app", "served_app:app", "run", *options]
    return start("flask", scratch, {**env, "WERKZEUG_DEBUG_PIN": "off"}, command)


def start(
    name: str, scratch: Path, env: dict[str, str], args: list[str], **options: Any
) -> Served:
    return Served(name, scratch, [sys.executable, *args], env=env, cwd=HERE, **options)


def under_gunicorn(worker_class: str, *words: str) -> Kind:
    return Kind(
        "-".join(("gunicorn", worker_class, *words)),
        gunicorn,
        "gunicorn/",
        concurrent=worker_class != "sync",
        loaded_by_parent="preload" in words,
        recycles="recycled" in words,
        options={
            "worker_class": worker_class,
            "preload": "preload" in words,
            "max_requests": 7 if "recycled" in words else 0,
        },
    )


KINDS = [
    *(
        under_gunicorn(worker_class, *words)
        for worker_class in ("sync", "gthread", "gevent")
        for words in ((), ("preload",), ("preload", "recycled"))
    ),
    Kind("waitress", waitress, "waitress"),
    Kind("granian", granian, "Granian"),
    Kind("uwsgi", uwsgi, "uWSGI/", loaded_by_parent=True),
    Kind("werkzeug", werkzeug, "Werkzeug/", loaded_by_parent=True, forks=False),
]


class Visited:
    """A server that has served many requests at the same time, and its database."""

    def __init__(
        self,
        kind: Kind,
        group: Served,
        backends: Callable[[], dict[int, str]],
        observe: Callable[[], Survey],
    ) -> None:
        self.kind = kind
        self.group = group
        self.backends = backends
        self.observe = observe
        self.answers: list[dict[str, Any]] = []
        self.failures: list[str] = []
        self._tokens = itertools.count()
        with ThreadPoolExecutor(AT_ONCE) as visitors:
            list(visitors.map(lambda _: self._visit(), range(REQUESTS)))
        if not kind.recycles:
            for pid in group.worker_pids():
                self._visit(on=pid)
        else:
            wait_until(self._new_ones_have_served, what="recycling")

    def _visit(self, **kwargs: Any) -> None:
        token = f"token-{next(self._tokens)}"
        try:
            reply = self._get(f"/own?token={token}", timeout=30, **kwargs)
        except OSError as error:
            self.failures.append(repr(error))
            return
        if reply.status == 200:
            self.answers.append({**reply.json, "asked": token})
        else:
            self.failures.append(f"{reply.status}: {reply.text}")

    def _get(self, path: str, **kwargs: Any) -> Reply:
        for _ in range(4):
            # A worker that is about to end can refuse a request that it has not begun.
            with suppress(*([OSError] if self.kind.recycles else [])):
                return self.group.get(path, **kwargs)
        return self.group.get(path, **kwargs)

    def _new_ones_have_served(self) -> bool:
        self._visit()
        served = {answer["pid"] for answer in self.answers}
        return len(served) > self.group.count and bool(self.group.serving_pids())


@contextmanager
def observer(url: str, **config: str) -> Iterator[Callable[[], Survey]]:
    """Ask the workers from this process, which is faster than a command."""
    db = ScopedSession()
    app = Flask("observer")
    app.config.update(SQLALCHEMY_DATABASE_URI=url, **config)
    db.init_app(app)
    with app.app_context():
        yield db.workers
    db.dispose(app)


@pytest.fixture(scope="module", params=KINDS, ids=str)
def visited(
    request: pytest.FixtureRequest, pg_server: URL, short_root: Path
) -> Iterator[Visited]:
    kind: Kind = request.param
    scratch = Path(tempfile.mkdtemp(dir=short_root, prefix=""))
    live = {
        "SCOPEDSESSION_NAME": "served",
        "SCOPEDSESSION_CONTROL_DIR": str(scratch / "run"),
    }
    with fresh_database(pg_server) as address:
        url = address.render_as_string(hide_password=False)
        env = {
            "FLASK_SQLALCHEMY_DATABASE_URI": url,
            "TMPDIR": str(scratch),
            **{f"FLASK_{key}": value for key, value in live.items()},
            **POOL,
        }
        group = kind.make(scratch, env, **kind.options)
        with group, observer(url, **live) as observe:
            group.wait_ready()
            yield Visited(kind, group, partial(activity, address), observe)
            group.stop(timeout=1)


def test_each_request_sees_only_its_own_session_and_answer(visited: Visited) -> None:
    assert visited.failures == [], visited.group.log
    assert len(visited.answers) >= REQUESTS
    for answer in visited.answers:
        assert answer["token"] == answer["asked"]
        assert answer["found"] == [answer["asked"]]
        assert len(answer["backends"]) == 1
    most = max(answer["most_inside"] for answer in visited.answers)
    assert (most > 1) == visited.kind.concurrent, "the test itself: no overlap"


def test_every_connection_is_back_in_its_pool(visited: Visited) -> None:
    """The ledger and the database agree on their number, and all are idle."""
    read: list[Any] = []

    def settled() -> bool:
        pools = [p for worker in visited.observe().workers for p in worker.pools]
        backends = visited.backends()
        read[:] = [*pools, backends]
        return (
            all(pool.used == pool.pending == 0 for pool in pools)
            and all(pool.open == pool.idle for pool in pools)
            and set(backends.values()) <= {"idle"}
            # One belongs to the parent, which serves no requests.
            and len(backends)
            == sum(pool.open for pool in pools) + visited.kind.loaded_by_parent
        )

    wait_until(settled, what=lambda: str(read))


def test_the_live_view_shows_exactly_the_serving_processes(visited: Visited) -> None:
    group, kind = visited.group, visited.kind
    wait_until(lambda: len(group.worker_pids()) == group.count, what="new workers")
    if not kind.recycles:
        assert group.serving_pids() == group.worker_pids()
    found: dict[str, Any] = {}

    def exact() -> bool:
        args = ["pool-status", "--json"]
        result = commands.flask(args, app="served_app:app", env=group.env, cwd=HERE)
        found.update(result.check().json)
        return [w["pid"] for w in found["workers"]] == group.serving_pids()

    # A worker that is about to be recycled can have stopped answering already.
    assert exact() or (kind.recycles and wait_until(exact)), found
    assert found["silent"] == []
    for worker in found["workers"]:
        assert worker["role"] == "web"
        assert worker["source"] == "live"
        assert worker["server"].startswith(kind.server)


def test_no_connection_is_shared_between_processes(visited: Visited) -> None:
    """Nor is the parent's connection, which stays open and idle."""
    owner: dict[int, int] = {}
    for answer in visited.answers:
        (backend,) = answer["backends"]
        assert owner.setdefault(backend, answer["pid"]) == answer["pid"]
    if visited.kind.loaded_by_parent and visited.kind.forks:
        (backend,) = {answer["loaded_by"]["backend"] for answer in visited.answers}
        assert visited.answers[0]["loaded_by"]["pid"] == visited.group.pid
        assert backend not in owner
        assert visited.backends()[backend] == "idle"
