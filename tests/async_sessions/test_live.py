"""Async sessions in the live view, with their views and lines."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from flask import Flask
from models import Base
from models import User
from sqlalchemy import text

from flask_scopedsession import ScopedSession

SELECT = text("SELECT 1")


class Here(Flask):
    """An application whose code is this file, so that its lines are shown."""

    def __init__(self, name, **options):
        super().__init__(name, **{**options, "root_path": str(Path(__file__).parent)})


@pytest.fixture
def shop(make, url):
    return make(
        url,
        flask_class=Here,
        SCOPEDSESSION_MANY_STATEMENTS=3,
        SCOPEDSESSION_STACKS=True,
    )


def async_pool(snapshot):
    (pool,) = (each for each in snapshot.pools if each.bind == "async:default")
    return pool


def test_holders_and_sessions(db, shop):
    """A holder is where its task waits, also one in a context of its own."""
    found = []

    def look():
        with shop.app_context():
            found.append(db.snapshot())

    async def task(holds, go_on):
        with shop.app_context():
            await db.async_session.execute(SELECT)
            holds.set()
            await go_on.wait()

    @shop.get("/orders/<int:id>")
    async def orders(id):
        holds, go_on = asyncio.Event(), asyncio.Event()
        other = asyncio.create_task(task(holds, go_on))
        db.async_session.add(User(name="ed"))
        await db.async_session.flush()
        await holds.wait()
        await asyncio.to_thread(look)
        go_on.set()
        await other
        await db.async_session.commit()
        return "fine"

    assert shop.test_client().get("/orders/7").text == "fine"
    pool = async_pool(found[0])
    assert (pool.used, pool.open, pool.pending, pool.unlimited) == (2, 2, 0, True)
    assert pool.pool_class == "NullPool"
    by_name = {holder.at.split()[-1]: holder for holder in pool.holders}
    assert sorted(by_name) == ["orders", "task"]
    for name, holder in by_name.items():
        assert holder.at.startswith("test_live.py:")
        assert holder.at_is == "now"
        assert holder.rule == "/orders/<int:id>"
        assert holder.method == "GET"
        assert not holder.request_over
        assert holder.in_transaction is (name == "orders" or pool.backend_pids != ())
        assert name in holder.stack[0]  # where it was checked out
    assert len(pool.backend_pids) in (0, 2)
    sessions = {each.session: each for each in found[0].sessions}
    assert {each.name for each in sessions.values()} == {"async:default"}
    mine = sessions[by_name["orders"].session]
    assert (mine.state, mine.rule) == ("idle in transaction", "/orders/<int:id>")
    assert mine.statements == 1
    after = async_pool(found[0])
    with shop.app_context():
        after = async_pool(db.snapshot())
        assert db.snapshot().sessions == ()
    assert (after.used, after.open) == (0, 0)
    assert "orders" in {each.endpoint for each in after.views}


@pytest.mark.parametrize("url", ["memory"], indirect=True)
def test_a_leak(db, shop):
    """A connection that outlives its view is shown as such, with its line."""
    kept = []

    @shop.get("/")
    async def view():
        kept.append(await db.async_session.bind.connect())
        await db.async_session.execute(SELECT)
        return "fine"

    @shop.get("/close")
    async def close():
        await kept.pop().invalidate()
        return "fine"

    client = shop.test_client()
    assert client.get("/").text == "fine"
    with shop.app_context():
        (holder,) = async_pool(db.snapshot()).holders
    assert (holder.endpoint, holder.request_over, holder.at_is) == (
        *("view", True),
        "checkout",
    )
    assert holder.at.startswith("test_live.py:")
    assert holder.at.endswith(" view")
    assert client.get("/close").text == "fine"
    with shop.app_context():
        assert async_pool(db.snapshot()).used == 0


def test_statements(db, shop, caplog):
    """They count for the request and for a block, with the line that sends them."""

    @shop.get("/")
    async def view():
        for _ in range(4):
            await db.async_session.execute(SELECT)
        return "fine"

    with db.count_statements() as count:
        assert shop.test_client().get("/").text == "fine"
    (repeated,) = count.repeated
    assert (repeated.text, repeated.times) == ("SELECT 1", 4)
    assert repeated.at.startswith("test_live.py:")
    assert repeated.at.endswith(" view")
    (record,) = caplog.records
    message = record.getMessage()
    assert "GET / -> view sent 4 statements" in message
    assert "4× at test_live.py:" in message


@pytest.mark.parametrize("tracking", [True, False])
def test_without_tracking(make, db, tracking, caplog):
    """Lost work is reported, and no more is known."""
    shop = make("sqlite+aiosqlite://", SCOPEDSESSION_TRACKING=tracking)

    @shop.get("/")
    async def view():
        db.async_session.add(User(name="ed"))
        await db.async_session.flush()
        return "fine"

    assert shop.test_client().get("/").text == "fine"
    assert "(1 User)" in caplog.text
    with shop.app_context():
        assert len(db.snapshot().pools) == (2 if tracking else 0)


def test_names_at_the_server(make, make_app, pg_url):
    """Connections have the names that those of ``db.session`` have."""
    for driver in ("asyncpg", "psycopg"):
        db = ScopedSession(model_class=Base)
        url = pg_url.replace("+psycopg:", f"+{driver}:")
        app = make_app(db, SQLALCHEMY_ASYNC_BINDS={"default": url})

        async def name(db=db):
            return await db.async_session.scalar(text("SHOW application_name"))

        with app.app_context():
            assert app.ensure_sync(name)().startswith("tests_app@")


def test_the_view_of_the_server(make_app, pg_url):
    """A connection that another driver holds on the same server is known."""
    db = ScopedSession()
    app = make_app(
        db,
        SQLALCHEMY_DATABASE_URI=pg_url,
        SQLALCHEMY_ASYNC_BINDS={"default": pg_url.replace("+psycopg:", "+asyncpg:")},
        SCOPEDSESSION_CONTROL=True,
    )
    found = []

    def look(*args):
        runner = app.test_cli_runner()
        result = runner.invoke(args=["pool-status", "--json", *args])
        assert result.exit_code == 0, result.output
        found.append(json.loads(result.output))

    async def work():
        await db.async_session.execute(SELECT)
        await asyncio.to_thread(look, "--server")
        await asyncio.to_thread(look, "--bind", "async:default")

    with app.app_context():
        db.serve_control("job")
        app.ensure_sync(work)()
        db.dispose()
    (server,) = found[0]["servers"]
    assert "async:default" in {each["bind"] for each in server["connections"]}
    assert server["unclaimed"] == []
    (worker,) = found[1]["workers"]
    assert [each["bind"] for each in worker["pools"]] == ["async:default"]
