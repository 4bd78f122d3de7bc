"""``db.async_session`` in async views, with each driver: like ``db.session``."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest
from flask import abort
from models import User
from sqlalchemy import event
from sqlalchemy import func
from sqlalchemy import select
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.util import await_only as waits
from waiting import wait_until

from flask_scopedsession import ScopedSession
from flask_scopedsession.errors import LostWork
from flask_scopedsession.errors import OutsideContext
from flask_scopedsession.errors import SessionRemoved
from flask_scopedsession.errors import UnknownBind

SELECT = text("SELECT 1")


def held(db, app):
    """Return what the async pools have checked out and open, and the sessions."""
    with app.app_context():
        found = db.snapshot()
    pools = [pool for pool in found.pools if pool.bind.startswith("async:")]
    return [(pool.used, pool.open) for pool in pools], len(found.sessions)


NOTHING = [(0, 0)], 0


def names(db, app):
    """Return what is in the table, as another async function sees it."""

    async def look():
        return sorted(await db.async_session.scalars(select(User.name)))

    with app.app_context():
        return app.ensure_sync(look)()


def test_a_view(db, shop):
    """One session in the view and in what it awaits; objects keep their values."""
    seen = []

    async def deeper():
        seen.append(db.async_session())

    @shop.get("/")
    async def view():
        seen.append(db.async_session())
        await deeper()
        assert isinstance(seen[0], AsyncSession)
        user = User(name="ed")
        db.async_session.add(user)
        await db.async_session.commit()
        return {"id": user.id, "name": user.name}

    assert shop.test_client().get("/").json == {"id": 1, "name": "ed"}
    assert seen[0] is seen[1]
    assert names(db, shop) == ["ed"]
    assert held(db, shop) == NOTHING


def test_a_request_counts_once(db, shop):
    """Its async sessions have no time and no statements of their own."""

    @shop.get("/")
    async def view():
        await db.async_session.execute(SELECT)
        return ""

    def counted():
        with shop.app_context():
            found = db.snapshot()
        return found.scope_s.count, found.scope_statements.sum

    scopes, statements = counted()
    shop.test_client().get("/")
    assert counted() == (scopes + 1, statements + 1)


def test_each_function_has_its_own(db, shop):
    """Each runs in an event loop of its own, so that no connection can go along."""
    seen = []

    async def use(*args):
        await db.async_session.execute(SELECT)
        seen.append(db.async_session())

    async def use_after(response):
        await use()
        return response

    shop.before_request(use)
    shop.after_request(use_after)
    shop.teardown_request(use)
    shop.teardown_appcontext(use)
    shop.teardown_appcontext_funcs.insert(0, use)

    @shop.get("/")
    async def view():
        await use()
        return "fine"

    assert shop.test_client().get("/").text == "fine"
    assert len(set(seen)) == 6
    assert held(db, shop) == NOTHING


@pytest.mark.parametrize("ends", ["well", "badly", "by abort", "with an error status"])
def test_what_is_not_committed(db, shop, ends, caplog):
    """It is rolled back, and reported if the request ends well, as any other."""

    @shop.get("/")
    async def view():
        db.async_session.add(User(name="ed"))
        await db.async_session.flush()
        db.async_session.add(User(name="jo"))
        if ends == "badly":
            raise KeyError("on purpose")
        if ends == "by abort":
            abort(409)
        return "", 400 if ends == "with an error status" else 200

    shop.config["PROPAGATE_EXCEPTIONS"] = False
    shop.test_client().get("/")
    assert names(db, shop) == []
    ours = [each for each in caplog.records if each.name == "flask_scopedsession"]
    assert bool(ours) == (ends == "well")
    if ours:
        message = ours[0].getMessage()
        assert "GET / -> view ended without commit()" in message
        assert "(2 User). Call db.async_session.commit(), or" in message
        with shop.app_context():
            assert db.snapshot().lost_work[0].objects == {"User": 2}
    assert held(db, shop) == NOTHING


def test_lost_work_can_raise(db, make, caplog):
    """Also together with that of ``db.session``; the context ends all the same."""
    shop = make("sqlite+aiosqlite://", SCOPEDSESSION_LOST_WORK="raise")
    with shop.app_context():
        db.create_all()

    @shop.get("/")
    async def view():
        db.session.add(User(name="x"))
        db.async_session.add(User(name="ed"))
        return ""

    with pytest.raises(LostWork, match=r"\(2 User\)"):
        shop.test_client().get("/")
    assert held(db, shop) == NOTHING


def test_a_session_that_was_kept(db, shop):
    """It is refused, rather than to open a connection in another loop."""
    kept = []

    @shop.get("/")
    async def view():
        if not kept:
            kept.append(db.async_session())
            await db.async_session.execute(SELECT)
        else:
            with pytest.raises(SessionRemoved, match=r"db\.async_session"):
                await kept[0].execute(SELECT)
        return "fine"

    assert [shop.test_client().get("/").text for _ in range(2)] == ["fine"] * 2
    assert held(db, shop) == NOTHING


def test_remove(db, shop):
    """The next use makes a new session, and the first cannot be used."""

    @shop.get("/")
    async def view():
        first = db.async_session()
        db.async_session.add(User(name="ed"))
        await db.async_session.flush()
        await db.async_session.remove()
        await db.async_session.remove()
        assert held(db, shop) == NOTHING
        with pytest.raises(SessionRemoved):
            await first.execute(SELECT)
        assert db.async_session() is not first
        assert not (await db.async_session.scalars(select(User))).all()
        return "fine"

    assert shop.test_client().get("/").text == "fine"
    assert held(db, shop) == NOTHING


def test_what_is_configured_for_a_session(db, shop):
    """``db.async_session(...)`` and ``configure()`` are those of SQLAlchemy."""

    @shop.get("/")
    async def view():
        assert not db.async_session.registry.has()
        session = db.async_session(autoflush=False)
        assert db.async_session() is session
        assert db.async_session.autoflush is False
        await db.async_session.execute(SELECT)
        db.async_session.registry.clear()
        assert db.async_session.autoflush is True
        await db.async_session.execute(SELECT)
        return "fine"

    @shop.get("/configured")
    async def configured():
        return str(db.async_session.autoflush)

    assert shop.test_client().get("/").text == "fine"
    db.async_session.configure(autoflush=False)
    assert shop.test_client().get("/configured").text == "False"
    assert held(db, shop) == NOTHING


# Tasks


def test_gather(db, shop):
    """Tasks that push contexts have sessions of their own, closed with those."""
    seen = []

    async def task(number):
        with shop.app_context():
            db.async_session.add(User(name=f"{number}"))
            await db.async_session.commit()
            seen.append(db.async_session())

    @shop.get("/")
    async def view():
        mine = db.async_session()
        await asyncio.gather(*(task(number) for number in range(5)))
        for _ in range(500):
            if held(db, shop) == ([(0, 0)], 1):
                break
            await asyncio.sleep(0.01)
        assert held(db, shop) == ([(0, 0)], 1)
        with pytest.raises(SessionRemoved):
            await seen[0].execute(SELECT)
        assert db.async_session() is mine
        return "fine"

    assert shop.test_client().get("/").text == "fine"
    assert len(set(seen)) == 5
    assert names(db, shop) == list("01234")
    assert held(db, shop) == NOTHING


def test_a_pushed_context_loses_work(db, shop, caplog):
    """It is reported with that context."""

    @shop.get("/")
    async def view():
        with shop.app_context():
            db.async_session.add(User(name="ed"))
        return "fine"

    assert shop.test_client().get("/").text == "fine"
    assert "ended without commit(): unsaved changes" in caplog.text
    assert "(1 User)" in caplog.text
    assert names(db, shop) == []


def test_a_task_that_outlives_its_view(db, shop, caplog):
    """asyncio cancels it with the loop; nothing stays open, and new use is refused."""
    shop.testing = False
    done = []

    async def work():
        try:
            while True:
                await db.async_session.execute(SELECT)
        except SessionRemoved as error:
            done.append(error)
            raise
        finally:
            done.append(None)

    @shop.get("/")
    async def view():
        view.task = asyncio.create_task(work())
        await asyncio.sleep(0.01)
        return "fine"

    assert shop.test_client().get("/").text == "fine"
    assert done[-1] is None
    assert held(db, shop) == NOTHING
    view.task.cancelled() or view.task.exception()


def test_a_task_that_is_connecting_as_its_view_ends(db, shop):
    """The connection is awaited, and closed."""
    connecting, tasks = [], []

    async def connect():
        await asyncio.sleep(0.05)

    def slowly(*_):
        connecting.append(None)
        waits(connect())

    engines = []

    @shop.get("/")
    async def view():
        engine = db.async_session().bind.sync_engine
        if not engines:
            engines.append(engine)
            event.listen(engine, "do_connect", slowly)
        tasks.append(asyncio.create_task(db.async_session.execute(SELECT)))
        while len(connecting) < len(tasks):  # noqa: ASYNC110
            await asyncio.sleep(0)
        return "fine"

    for _ in range(3):
        assert shop.test_client().get("/").text == "fine"
        assert held(db, shop) == NOTHING
    assert all(task.done() for task in tasks)
    for task in tasks:
        task.cancelled() or task.exception()


@pytest.mark.parametrize("how", ["itself", "timeout", "at the end"])
def test_cancelled(db, shop, how):
    """Its sessions are closed all the same, also if that is cancelled in turn."""

    async def close_slowly(close):
        task = asyncio.current_task()
        for delay in (0.01, 0.02):
            asyncio.get_running_loop().call_later(delay, view.task.cancel)
        await asyncio.sleep(0.05)
        return await close(task)

    @shop.get("/")
    async def view():
        view.task = asyncio.current_task()
        session = db.async_session()
        db.async_session.add(User(name="ed"))
        await db.async_session.flush()
        if how == "timeout":
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(asyncio.sleep(10), 0.01)
            return "fine"
        if how == "itself":
            view.task.cancel()
            await db.async_session.execute(SELECT)
        close = session.close
        session.close = lambda: close_slowly(lambda _: close())
        return "fine"

    client = shop.test_client()
    if how == "timeout":
        assert client.get("/").text == "fine"
    else:
        with pytest.raises(asyncio.CancelledError):
            client.get("/")
    assert held(db, shop) == NOTHING
    assert names(db, shop) == []


@pytest.mark.parametrize("url", ["aiosqlite", "memory", "asyncpg"], indirect=True)
def test_first_requests_at_the_same_time(make_app, url):
    """With the first connection, SQLAlchemy holds a lock that belongs to one loop."""
    db = ScopedSession()
    app = make_app(db, SQLALCHEMY_ASYNC_BINDS={"default": url})

    async def one():
        with app.app_context():
            await db.async_session.execute(SELECT)

    @app.get("/")
    async def view():
        await asyncio.gather(db.async_session.execute(SELECT), one())
        return "fine"

    together = threading.Barrier(8)

    def get(_):
        together.wait(10)
        return app.test_client().get("/").text

    with ThreadPoolExecutor(8) as executor:
        assert list(executor.map(get, range(8))) == ["fine"] * 8
    assert held(db, app) == NOTHING


# Elsewhere


def test_outside(db, shop):
    """The error says what to do, and following it works."""
    with pytest.raises(OutsideContext, match=r"app\.app_context"):
        db.async_session()
    with shop.app_context():
        with pytest.raises(OutsideContext, match=r"app\.ensure_sync\(function\)\(\)"):
            db.async_session()
        assert not db.async_session.registry.has()
    asyncio.run(db.async_session.remove())

    async def work():
        return await db.async_session.scalar(SELECT)

    @shop.cli.command("work")
    def command():
        print(shop.ensure_sync(work)())

    assert shop.test_cli_runner().invoke(args=["work"]).output == "1\n"
    assert held(db, shop) == NOTHING


def test_a_call_within_a_call(db, shop):
    """Synchronous code of an async view can run an async function, in its loop."""
    from asgiref.sync import sync_to_async

    sessions = []

    async def inner():
        await db.async_session.execute(SELECT)
        sessions.append(db.async_session())

    @shop.get("/")
    async def view():
        sessions.append(db.async_session())
        await sync_to_async(lambda: shop.ensure_sync(inner)())()
        with pytest.raises(SessionRemoved):
            await sessions[1].execute(SELECT)
        assert db.async_session() is sessions[0]
        return "fine"

    assert shop.test_client().get("/").text == "fine"
    assert sessions[0] is not sessions[1]
    assert held(db, shop) == NOTHING


def test_another_loop(db, shop):
    """A thread of the view has no use of its connections."""

    def elsewhere():
        with pytest.raises(OutsideContext, match="another event loop or thread"):
            db.async_session()

        async def work():
            db.async_session()

        with pytest.raises(OutsideContext, match="another event loop or thread"):
            asyncio.run(work())

    @shop.get("/")
    async def view():
        await db.async_session.execute(SELECT)
        await asyncio.to_thread(elsewhere)
        return "fine"

    assert shop.test_client().get("/").text == "fine"
    assert held(db, shop) == NOTHING


def test_without_binds(make_app):
    """The error names the key."""
    db = ScopedSession()
    app = make_app(db)

    async def work():
        db.async_session()

    with app.app_context(), pytest.raises(OutsideContext):
        db.async_session()
    with app.app_context(), pytest.raises(OutsideContext):
        app.ensure_sync(work)()
    other = make_app(db, SQLALCHEMY_ASYNC_BINDS={"logs": "sqlite+aiosqlite://"})

    async def named():
        with app.app_context(), pytest.raises(UnknownBind, match="ASYNC_BINDS is not"):
            db.async_session()
        with pytest.raises(UnknownBind, match=r"no async bind 'x'.*\['logs'\]"):
            db.get_async_session("x")
        assert await db.get_async_session("logs").scalar(SELECT) == 1

    with other.app_context():
        other.ensure_sync(named)()


@pytest.mark.parametrize(
    ("url", "lasting", "count"),
    [
        *itertools.product(
            ("aiosqlite", "memory", "asyncpg", "psycopg"), (False, True), (60,)
        ),
        pytest.param("asyncpg", False, 996, marks=pytest.mark.soak),
    ],
    indirect=["url"],
)
def test_many_requests(  # noqa: C901
    db, shop, url, lasting, count, caplog
):
    """Errors, cancellations, lost work: no loop meets another, and nothing is left.

    With an ASGI server, all run in one event loop, which lasts.
    """
    kinds = ["keep"] * 6 + ["forget", "error", "sql", "timeout", "cancel", "outlive"]
    sleeps = url.startswith("postgresql")
    slow = text("SELECT pg_sleep(0.05)") if sleeps else SELECT
    kept = []

    async def execute_slowly():
        await db.async_session.execute(slow)
        await asyncio.sleep(0.05)

    @shop.before_request
    async def before():
        await db.async_session.execute(SELECT)

    @shop.get("/<kind>/<number>")
    async def view(kind, number):
        await db.async_session.execute(SELECT)
        if kind in ("keep", "forget", "error"):
            db.async_session.add(User(name=number))
            await db.async_session.flush()
        if kind == "keep":
            await db.async_session.commit()
        elif kind == "error":
            raise KeyError("on purpose")
        elif kind == "sql":
            await db.async_session.execute(text("SELECT nothing"))
        elif kind == "timeout":
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(execute_slowly(), 0.005)
        elif kind == "cancel":
            task = asyncio.current_task()
            asyncio.get_running_loop().call_later(0.005, task.cancel)
            await execute_slowly()
        elif kind == "outlive":
            kept.append(asyncio.create_task(execute_slowly()))
            await asyncio.sleep(0)
        return "fine"

    def get(number):
        kind = kinds[number % len(kinds)]
        try:
            return kind, shop.test_client().get(f"/{kind}/{number:03}").text
        except BaseException as error:  # noqa: BLE001
            return kind, type(error).__name__

    if lasting:
        from asgiref.sync import sync_to_async

        async def serve():
            with ThreadPoolExecutor(8) as executor:
                one = sync_to_async(get, thread_sensitive=False, executor=executor)
                return await asyncio.gather(*map(one, range(count)))

        found = Counter(asyncio.run(serve()))
    else:
        with ThreadPoolExecutor(8) as executor:
            found = Counter(executor.map(get, range(count)))
    each = count // len(kinds)
    error = "ProgrammingError" if sleeps else "OperationalError"
    assert found == {
        ("keep", "fine"): 6 * each,
        ("forget", "fine"): each,
        ("error", "KeyError"): each,
        ("sql", error): each,
        ("timeout", "fine"): each,
        ("cancel", "CancelledError"): each,
        ("outlive", "fine"): each,
    }
    for task in kept:
        task.cancelled() or task.exception()
    assert len(names(db, shop)) == 6 * each
    assert held(db, shop) == NOTHING
    assert [t.name for t in threading.enumerate() if "aiosqlite" in t.name] == []
    if sleeps:

        async def left():
            query = select(func.count()).select_from(text("pg_stat_activity"))
            query = query.where(
                text("datname = current_database() AND pid <> pg_backend_pid()")
            )
            return await db.async_session.scalar(query)

        with shop.app_context():
            # The server notices a closed connection a little later.
            wait_until(lambda: shop.ensure_sync(left)() == 0)
