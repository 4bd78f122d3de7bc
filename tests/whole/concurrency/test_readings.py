"""Snapshots while everything that they describe comes and goes.

A reading takes no lock of its own, so any thread, greenlet, task, context, session or
engine may be gone at any moment of it. Each test is a script in a new interpreter that
switches threads and collects garbage far more often than usual.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from typing import Any

import pytest

pytestmark = [pytest.mark.subprocess, pytest.mark.slow]

Run = Callable[..., Any]

HEAD = """
import asyncio, gc, logging, sys, threading, time, traceback
from flask import Flask
from sqlalchemy import select, text
from flask_scopedsession import ScopedSession
from flask_scopedsession._runtime.native import original

logging.disable(logging.CRITICAL)
db = ScopedSession()
app = Flask("readings")
app.config.update(
    SQLALCHEMY_DATABASE_URI="sqlite:///" + sys.argv[1],
    SQLALCHEMY_ENGINE_OPTIONS={
        "pool_size": 2, "max_overflow": 4, "pool_timeout": 0.05,
        "connect_args": {"timeout": 30},
    },
    SCOPEDSESSION_STACKS=True,
    SCOPEDSESSION_SHOW_SQL=True,
    SCOPEDSESSION_CONTROL=False,
)
db.init_app(app)

@app.get("/")
def view():
    return str(db.session.scalar(select(1)))

live = db._application_of(app).live
failures, readings, readers, ended = [], [], [], []
over = False

def read():
    while not over:
        try:
            worker = live.worker()
            live.reader.in_trouble()
            worker.to_dict()
            readings.append(len(worker.pools[0].holders))
        except BaseException:
            failures.append(traceback.format_exc())
            break
    ended.append(True)

def visit():
    app.test_client().get("/")

def abandon_a_context():
    # It is never popped, and the session in it is freed by the collector.
    context = app.app_context()
    context.push()
    db.session.execute(text("SELECT 1"))
    cycle = [context]
    cycle.append(cycle)

def leave_a_connection():
    with app.app_context():
        connection = db.engine.connect()
        connection.execute(text("SELECT 1"))
        cycle = [connection]
        cycle.append(cycle)

def detach_and_invalidate():
    with app.app_context():
        first, second = db.engine.connect(), db.engine.connect()
        first.execute(text("SELECT 1"))
        first.detach()
        second.invalidate()
        first.close()
        second.close()

def make_sessions():
    with app.app_context():
        session = db.sessionmaker()
        session.execute(text("SELECT 1"))
        del session
        with db.sessionmaker() as session:
            session.begin_nested()
            session.execute(text("SELECT 1"))
        db.session.execute(text("SELECT 1"))
        db.session.remove()
        db.session.execute(text("SELECT 1"))

def run_tasks():
    async def work():
        with app.app_context():
            db.session.execute(text("SELECT 1"))
            await asyncio.sleep(0)
    async def main():
        tasks = [asyncio.create_task(work()) for _ in range(3)]
        await asyncio.sleep(0)
        tasks[0].cancel()
    asyncio.run(main())

def dispose():
    with app.app_context():
        db.engine.dispose()

def end():
    global over
    over = True
    # What a reading looks at, it keeps alive; and while its thread collects garbage,
    # gc.collect() does nothing here.
    while len(ended) < len(readers):
        time.sleep(0.01)
    assert not failures, failures[0]
    assert len(readings) > 100, len(readings)
    assert any(readings)
    for _ in range(3):
        gc.collect()
    (pool,) = live.worker().pools
    assert (pool.used, pool.pending, pool.holders) == (0, 0, ()), pool
    assert live.worker().sessions == ()
    print("content")
"""


@pytest.fixture
def run(run_script: Run, short_tmp: Any) -> Callable[..., None]:
    def run(source: str, first: str = "") -> None:
        script = first + HEAD + textwrap.dedent(source)
        result = run_script(script, str(short_tmp / "x.db"), timeout=60).check()
        assert "Traceback" not in result.stderr, result.stderr
        assert result.stdout == "content\n"

    return run


def test_threads_contexts_tasks_and_sessions(run: Callable[..., None]) -> None:
    run("""
        sys.setswitchinterval(1e-5)
        gc.set_threshold(50, 5, 5)
        readers = [threading.Thread(target=read) for _ in range(2)]
        for thread in readers:
            thread.start()
        works = [visit, abandon_a_context, leave_a_connection, detach_and_invalidate,
                 make_sessions, run_tasks, dispose]
        errors = []

        def work(one):
            from sqlalchemy.exc import TimeoutError
            try:
                one()
            except TimeoutError:
                pass  # the pool is small, so that some time out
            except BaseException:
                errors.append(traceback.format_exc())

        deadline = time.monotonic() + 4
        while time.monotonic() < deadline and not failures and not errors:
            threads = [threading.Thread(target=work, args=(one,)) for one in works]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(20)
        assert not errors, errors[0]
        end()
    """)


def test_engines_and_applications(run: Callable[..., None]) -> None:
    """An application that is dropped meanwhile, or disposes of its engines."""
    run("""
        sys.setswitchinterval(1e-5)
        gc.set_threshold(50, 5, 5)
        def follow(other):
            try:
                while True:
                    reader = other()
                    if reader is None:
                        return
                    reader.worker().to_dict()
                    del reader
                    time.sleep(0.001)
            except BaseException:
                failures.append(traceback.format_exc())

        import weakref
        for number in range(40):
            another_db = ScopedSession()
            another = Flask("another")
            another.config.update(app.config)
            another_db.init_app(another)
            with another.app_context():
                another_db.session.execute(text("SELECT 1"))
            reference = weakref.ref(another_db._application_of(another).live)
            thread = threading.Thread(target=follow, args=(reference,))
            thread.start()
            with another.app_context():
                another_db.session.execute(text("SELECT 1"))
                if number % 2:
                    another_db.dispose()
            del another, another_db
            while thread.is_alive() and not failures:
                gc.collect()
            thread.join(20)
        readers = [threading.Thread(target=read)]
        readers[0].start()
        while len(readings) <= 100 and not failures:
            visit()
        readings.append(1)
        end()
    """)


def test_greenlets(run: Callable[..., None]) -> None:
    """Greenlets that end, are killed, or leave a connection behind."""
    pytest.importorskip("gevent")
    run(
        """
        import gevent, random
        sys.setswitchinterval(1e-5)
        gc.set_threshold(50, 5, 5)
        readers = [original("_thread", "start_new_thread")(read, ())]
        chance = random.Random(7)
        works = [visit, abandon_a_context, leave_a_connection, detach_and_invalidate,
                 make_sessions, dispose]

        def hold():
            with app.app_context():
                db.session.execute(text("SELECT 1"))
                gevent.sleep(chance.random() / 100)

        def work(one):
            from sqlalchemy.exc import TimeoutError
            try:
                one()
            except TimeoutError:
                pass

        deadline = time.monotonic() + 4
        while time.monotonic() < deadline and not failures:
            started = [gevent.spawn(work, one) for one in works]
            started += [gevent.spawn(work, hold) for _ in range(6)]
            gevent.sleep(chance.random() / 100)
            gevent.killall(started[::3])
            gevent.joinall(started, timeout=20, raise_error=True)
        started.clear()  # a greenlet keeps its context variables
        end()
        """,
        first="import gevent.monkey\ngevent.monkey.patch_all()\n",
    )
