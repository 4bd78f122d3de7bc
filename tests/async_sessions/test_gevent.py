"""Async sessions where gevent has replaced threads."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.subprocess

HEAD = """
import gevent.monkey
gevent.monkey.patch_all()
import asyncio, contextvars, sys
import gevent
from gevent.pool import Pool
from flask import Flask
from sqlalchemy import text
from flask_scopedsession import ScopedSession

app = Flask("green")
app.testing = True
app.config["SQLALCHEMY_DATABASE_URI"] = "sqlite://"
app.config["SQLALCHEMY_ASYNC_BINDS"] = {"default": sys.argv[1]}

def left():
    with app.app_context():
        found = db.snapshot()
    return [(pool.used, pool.open) for pool in found.pools], found.sessions

"""

VIEW = """
@app.get("/")
async def view():
    await db.async_session.execute(text("SELECT 1"))
    await asyncio.sleep(0.01)
    await db.async_session.commit()
    return "fine"

def get(_):
    try:
        return app.test_client().get("/").text
    except RuntimeError as error:
        return "RuntimeError"

"""


def test_one_after_the_other(run_script, pg_url):
    """Flask's own way: one event loop at a time, as gevent has one thread."""
    script = f"""{HEAD}
import warnings
warnings.simplefilter("ignore")
db = ScopedSession(app)
{VIEW}
assert [get(0) for _ in range(5)] == ["fine"] * 5
found = Pool(4).map(get, range(8))
print(sorted(set(found)), left())
"""
    url = pg_url.replace("+psycopg:", "+asyncpg:")
    found = run_script(script, url, python_args=()).stdout.strip()
    assert found == "['RuntimeError', 'fine'] ([(0, 0), (0, 0)], ())"


@pytest.mark.parametrize("driver", ["aiosqlite", "asyncpg", "psycopg"])
def test_in_threads_of_their_own(run_script, pg_url, driver):
    """The recipe of the documentation: event loops in gevent's native threads."""
    script = f"""{HEAD}
def async_to_sync(function):
    def call(*args, **kwargs):
        def run():
            return asyncio.run(function(*args, **kwargs))
        context = contextvars.copy_context()
        return gevent.get_hub().threadpool.apply(context.run, (run,))
    return call

app.async_to_sync = async_to_sync
db = ScopedSession(app)
{VIEW}
found = Pool(8).map(get, range(200))
assert found == ["fine"] * 200, set(found)
print(left())
"""
    url = "sqlite+aiosqlite://"
    if driver != "aiosqlite":
        url = pg_url.replace("+psycopg:", f"+{driver}:")
    result = run_script(script, url, python_args=("-W", "error"))
    assert result.stdout.strip() == "([(0, 0), (0, 0)], ())", result.stderr
