"""What remains when an application or its process ends."""

from __future__ import annotations

import gc
import os
import signal
import threading
import weakref
from contextlib import suppress
from pathlib import Path

import pytest
from flask import Flask
from inside import server
from sqlalchemy import create_engine
from sqlalchemy import event
from sqlalchemy import text
from waiting import wait_until

from flask_scopedsession import ScopedSession


def descriptors():
    return len(list(Path("/proc/self/fd").iterdir()))


def control_files(folder):
    return [name for _, _, names in os.walk(folder) for name in names]


def make_and_use(folder, number, **config):
    """Create an app with a control socket, use it, and drop it."""
    db = ScopedSession()
    app = Flask(f"app{number}", root_path=str(folder))
    app.config.update(
        SQLALCHEMY_DATABASE_URI=f"sqlite:///{folder}/x.db",
        SCOPEDSESSION_CONTROL_DIR=str(folder / "run"),
        **config,
    )
    db.init_app(app)

    @app.get("/")
    def view():
        return str(db.session.scalar(text("SELECT 1")))

    assert app.test_client().get("/").text == "1"
    return db, app


@pytest.mark.soak
def test_a_thousand_apps(short_tmp):
    """No engine, thread, socket, file or descriptor remains."""
    db, app = make_and_use(short_tmp, "warm-up")
    db.dispose(app)
    references = []
    gc.collect()
    before = descriptors(), threading.active_count()
    for number in range(1000):
        db, app = make_and_use(
            short_tmp, number, SCOPEDSESSION_CONTROL=number % 10 == 0
        )
        with app.app_context():
            references += [weakref.ref(app), weakref.ref(db.engine)]
        db.dispose(app)
        if number % 100 == 99:
            del db, app
            # First the apps are freed, then the engines of their finalizers.
            gc.collect()
            gc.collect()
            assert [ref for ref in references if ref() is not None] == []
    assert (descriptors(), threading.active_count()) == before
    assert control_files(short_tmp / "run") == []


def test_dropped_without_dispose(short_tmp):
    """An app that is dropped is collected, and its socket is removed."""
    gc.collect()
    before = descriptors(), threading.active_count()
    db, app = make_and_use(short_tmp, 0)
    with app.app_context():
        references = [weakref.ref(app), weakref.ref(db.engine)]
    assert control_files(short_tmp / "run") != []
    del db, app
    gc.collect()
    assert references[0]() is None
    wait_until(lambda: threading.active_count() == before[1])
    gc.collect()
    assert references[1]() is None
    assert control_files(short_tmp / "run") == []
    assert (descriptors(), threading.active_count()) == before


def test_two_hundred_dropped_apps(short_tmp):
    """Nothing of them waits for the control thread's next check, two seconds later."""
    keeper, kept = make_and_use(short_tmp, "keeper")  # the thread goes on for this one
    gc.collect()
    before = descriptors(), threading.active_count()
    references = []
    for number in range(200):
        db, app = make_and_use(short_tmp, number)
        with app.app_context():
            references += [weakref.ref(app), weakref.ref(db.engine)]
        if number % 20 == 19:
            del db, app
            for _ in range(3):
                gc.collect()
            assert [ref for ref in references if ref() is not None] == []
            wait_until(
                lambda: (descriptors(), threading.active_count()) == before, timeout=1.5
            )
            references.clear()
    assert len({name.split(".")[0] for name in control_files(short_tmp / "run")}) == 1
    assert kept.test_client().get("/").text == "1"
    keeper.dispose(kept)


def test_a_dropped_app_does_not_wait_for_the_next_check(short_tmp, monkeypatch):
    """The control thread removes its files at once, however seldom it checks."""
    monkeypatch.setattr(server, "_TICK", 600)
    db, app = make_and_use(short_tmp, 0)
    wait_until(lambda: server.SERVER._loop._next_tick)  # the first check is over
    del db, app
    gc.collect()
    wait_until(lambda: control_files(short_tmp / "run") == [], timeout=10)


def test_an_engine_that_outlives_its_app(short_tmp):
    """An engine outlives its app, and its pool still keeps connections."""
    db, app = make_and_use(short_tmp, 0)
    reference = weakref.ref(app)
    with app.app_context():
        engine = db.engine
    del db, app
    gc.collect()
    assert reference() is None
    connected = []
    event.listen(engine, "connect", lambda *_: connected.append(1))
    for _ in range(3):
        with engine.connect() as connection:
            assert connection.scalar(text("SELECT 1")) == 1
    assert connected == [1]
    engine.dispose()


def test_dispose(make_app, sqlite_url):
    """``dispose()`` closes idle connections at once, and others on their return."""
    db = ScopedSession()
    app = make_app(db, SQLALCHEMY_DATABASE_URI=sqlite_url)
    with app.app_context():
        held, rested = db.engine.connect(), db.engine.connect()
        rested.close()
        db.dispose()
        pool = db.snapshot().pools[0]
        assert (pool.used, pool.open, pool.idle) == (1, 1, 0)
        held.close()
        assert db.snapshot().pools[0].open == 0
        # The app can still be used, and opens a new connection.
        assert db.session.scalar(text("SELECT 1")) == 1
        db.dispose()


def test_dispose_of_another_app(make_app, sqlite_url):
    """With an app, it needs no context. An unknown app is an error."""
    db = ScopedSession()
    app = make_app(db, SQLALCHEMY_DATABASE_URI=sqlite_url)
    db.dispose(app)
    with pytest.raises(RuntimeError, match="was not initialised"):
        db.dispose(Flask("stranger"))
    with pytest.raises(RuntimeError, match=r"app\.app_context\(\)"):
        db.dispose()


@pytest.mark.subprocess
@pytest.mark.parametrize("how", ["end", "sys.exit", "error", "SIGTERM"])
def test_the_interpreter_exits(run_script, short_tmp, how):
    """It prints nothing, and the control files are removed."""
    endings = {
        "end": "",
        "sys.exit": "sys.exit(0)",
        "error": "raise SystemExit(0)",
        "SIGTERM": "os.kill(os.getpid(), signal.SIGTERM)",
    }
    result = run_script(
        f"""
import os, signal, sys
from flask import Flask
from sqlalchemy import text
from flask_scopedsession import ScopedSession

signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
db = ScopedSession()
app = Flask("ends")
app.config["SQLALCHEMY_DATABASE_URI"] = "sqlite:///{short_tmp}/x.db"
app.config["SCOPEDSESSION_CONTROL_DIR"] = "{short_tmp}/run"
db.init_app(app)

@app.get("/")
def view():
    return str(db.session.scalar(text("SELECT 1")))

assert app.test_client().get("/").text == "1"
assert len(os.listdir("{short_tmp}/run")) == 2
context = app.app_context()
context.push()
db.session.execute(text("SELECT 1"))
kept = db.engine.connect()
{endings[how]}
""",
        python_args=("-W", "error"),
    )
    assert (result.code, result.stderr) == (0, "")
    assert control_files(short_tmp / "run") == []


@pytest.mark.workers
def test_sigterm_with_a_transaction_in_flight(prefork, gates, live_env, pg_url):
    """The graceful timeout ends before the view; the database is clean."""
    live_env["FLASK_SQLALCHEMY_DATABASE_URI"] = pg_url
    group = prefork(count=1, worker_class="gthread", args=["--graceful-timeout", "1"])
    thread = threading.Thread(target=lambda: visit(group, "/block?name=open"))
    thread.start()
    engine = create_engine(pg_url)

    def others():
        with engine.connect() as connection:
            return connection.scalar(
                text(
                    "SELECT count(*) FROM pg_stat_activity WHERE"
                    " datname = current_database() AND pid <> pg_backend_pid()"
                )
            )

    wait_until(lambda: others() == 1)
    group.stop()
    thread.join(20)
    wait_until(lambda: others() == 0)
    engine.dispose()


@pytest.mark.workers
def test_sigterm_and_a_request_that_ends_in_time(prefork, gates, live_env, short_tmp):
    """It is answered, and the worker removes its control files."""

    def ours():
        return [name for name in control_files(short_tmp) if name.endswith(".sock")]

    group = prefork(count=1, worker_class="gthread", args=["--graceful-timeout", "20"])
    group.visit_all("/ok")
    assert len(ours()) == 1
    reply = group.send("/block?name=open")
    gates.wait()
    group.kill(group.pid, signal.SIGTERM)
    gates.open_all()
    assert reply.result(10).status == 200
    wait_until(lambda: group.worker_pids() == [])
    assert ours() == []


def visit(group, path):
    with suppress(OSError):  # the server ends, as expected
        group.get(path)


@pytest.mark.workers
def test_a_sync_worker_that_is_aborted(prefork, run_cli, gates, live_env, short_tmp):
    """Its last snapshot still shows what it waited for."""
    import json

    live_env["FLASK_SQLALCHEMY_ENGINE_OPTIONS"] = json.dumps(
        {"pool_size": 1, "max_overflow": 0, "pool_timeout": 60}
    )
    group = prefork(count=1, worker_class="sync", timeout=5)
    group.get("/leak")
    thread = threading.Thread(target=visit, args=(group, "/ok"))
    thread.start()

    def gone():
        survey = run_cli(["pool-status", "--json"]).json
        return [w for w in survey["workers"] if w["state"] == "gone"]

    wait_until(lambda: list(short_tmp.glob("flask-*/*/*.json")), what="its snapshot")
    (worker,) = wait_until(gone)
    thread.join(20)
    (waiter,) = worker["pools"][0]["waiters"]
    assert waiter["endpoint"] == "ok"
    assert worker["pools"][0]["holders"][0]["endpoint"] == "leak"
