"""Greenlets that are killed or time out while they wait for a database.

Each test is a script in a new interpreter that gevent has patched.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("gevent")

pytestmark = pytest.mark.subprocess

HEAD = """
import gevent.monkey
gevent.monkey.patch_all()
import sys
import gevent
from flask import Flask
from sqlalchemy import text
from flask_scopedsession import ScopedSession

db = ScopedSession()
app = Flask("green")
app.config["SQLALCHEMY_DATABASE_URI"] = sys.argv[1]
app.config["SQLALCHEMY_ENGINE_OPTIONS"] = {
    "pool_size": 2, "max_overflow": 0, "pool_timeout": 10
}
db.init_app(app)

@app.get("/sleep")
def sleep():
    db.session.execute(text("SELECT pg_sleep(20)"))
    return ""

@app.get("/hold")
def hold():
    db.session.execute(text("SELECT 1"))
    gevent.sleep(20)
    return ""

def pool():
    with app.app_context():
        return db.snapshot().pools[0]

def wait_for(condition):
    with gevent.Timeout(10):
        while not condition(pool()):
            gevent.sleep(0.01)

def get(path):
    return app.test_client().get(path)

def whole():
    found = pool()
    assert (found.used, found.pending, found.waiters) == (0, 0, ()), found
    with app.app_context():
        assert db.snapshot().sessions == ()
        with db.engine.connect() as one, db.engine.connect() as other:
            assert one.scalar(text("SELECT 1")) == other.scalar(text("SELECT 1")) == 1
    print("whole")
"""


@pytest.fixture
def run(run_script: Callable[..., Any], pg_url: str) -> Callable[[str], None]:
    def run(body: str) -> None:
        result = run_script(HEAD + textwrap.dedent(body), pg_url).check()
        assert result.stdout == "whole\n"

    return run


@pytest.mark.parametrize("path", ["/sleep", "/hold"], ids=["statement", "transaction"])
def test_killed(run: Callable[[str], None], path: str) -> None:
    """In a statement or between two: its connection is available to others."""
    run(f"""
        greenlets = [gevent.spawn(get, {path!r}) for _ in range(2)]
        wait_for(lambda found: found.used == 2)
        gevent.killall(greenlets, timeout=10)
        assert all(greenlet.dead for greenlet in greenlets)
        del greenlets
        whole()
    """)


def test_killed_while_it_waits_for_the_pool(run: Callable[[str], None]) -> None:
    """It stops waiting, and the greenlets behind it are served."""
    run("""
        holders = [gevent.spawn(get, "/hold") for _ in range(2)]
        wait_for(lambda found: found.used == 2)
        waiter, next_one = gevent.spawn(get, "/hold"), gevent.spawn(get, "/hold")
        wait_for(lambda found: found.pending == 2)
        waiter.kill(timeout=10)
        assert pool().pending == 1
        holders[0].kill(timeout=10)
        wait_for(lambda found: found.pending == 0 and found.used == 2)
        gevent.killall([*holders, next_one], timeout=10)
        del holders, waiter, next_one
        whole()
    """)


def test_a_timeout_of_gevent(run: Callable[[str], None]) -> None:
    """``gevent.Timeout`` around a view's statement: the view continues."""
    run("""
        @app.get("/bounded")
        def bounded():
            with gevent.Timeout(0.2, False):
                db.session.execute(text("SELECT pg_sleep(20)"))
            db.session.rollback()
            return str(db.session.scalar(text("SELECT 2")))

        assert get("/bounded").text == "2"
        whole()
    """)
