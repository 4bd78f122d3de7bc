"""Async views and handlers: another thread goes on with the request's session."""

from __future__ import annotations

import asyncio
import gc
import threading

import pytest
from flask import copy_current_request_context
from models import Base
from models import User
from sqlalchemy import select
from sqlalchemy import text
from threads import in_thread
from threads import Working
from waiting import wait_until

from flask_scopedsession import ScopedSession
from flask_scopedsession._scopes import context as _context
from flask_scopedsession.errors import SharedSession

pytest.importorskip("asgiref")

SELECT = text("SELECT 1")


@pytest.fixture
def db():
    return ScopedSession(model_class=Base)


@pytest.fixture(params=["file", "memory"])
def shop(request, db, make_app, sqlite_url, flask_class):
    url = sqlite_url if request.param == "file" else "sqlite:///:memory:"
    shop = make_app(db, flask_class=flask_class, SQLALCHEMY_DATABASE_URI=url)
    with shop.app_context():
        db.create_all()
    return shop


def used(db, app):
    def look():
        with app.app_context():
            snapshot = db.snapshot()
        return snapshot.pools[0].used, len(snapshot.sessions)

    return in_thread(look)


def test_an_async_view(db, shop):
    """It has a session as any view has, in its event loop's thread."""
    threads = []

    @shop.get("/")
    async def view():
        threads.append(threading.current_thread())
        db.session.add(User(name="ed"))
        await asyncio.sleep(0)
        db.session.commit()
        return db.session.scalars(select(User.name)).one()

    assert shop.test_client().get("/").text == "ed"
    assert threads != [threading.current_thread()]
    assert used(db, shop) == (0, 0)


def test_a_request_that_goes_through_threads(db, shop, caplog):
    """One session, one transaction, from hand to hand: nothing is to be reported."""
    seen = []

    def use(*args):
        db.session.execute(SELECT)
        seen.append((db.session(), threading.get_ident()))

    @shop.before_request
    def sync_before():
        use()

    @shop.before_request
    async def async_before():
        use()

    @shop.after_request
    def sync_after(response):
        use()
        return response

    @shop.after_request
    async def async_after(response):
        use()
        return response

    @shop.teardown_request
    async def async_teardown(error):
        use()

    @shop.teardown_request
    def sync_teardown(error):
        use()

    @shop.get("/")
    async def view():
        use()
        await asyncio.to_thread(use)
        use()
        return "fine"

    for _ in range(3):
        seen.clear()
        assert shop.test_client().get("/").text == "fine"
        assert len({session for session, _ in seen}) == 1
        assert len({thread for _, thread in seen}) > 1
        assert used(db, shop) == (0, 0)
    assert caplog.records == []


def test_async_teardowns_of_the_context(db, shop):
    """Before ours and after: what they take goes back."""

    async def use(error):
        db.session.execute(SELECT)

    shop.teardown_appcontext(use)
    shop.teardown_appcontext_funcs.insert(0, use)

    @shop.get("/")
    async def view():
        db.session.execute(SELECT)
        return "fine"

    assert shop.test_client().get("/").text == "fine"
    assert used(db, shop) == (0, 0)
    # The look itself ended a context. With the oldest versions, what async functions
    # ran in is freed by the collector: let it be before the engine is disposed of.
    gc.collect()


def test_an_async_view_that_raises(db, shop, caplog):
    @shop.get("/")
    async def view():
        db.session.add(User(name="x"))
        db.session.flush()
        raise RuntimeError("on purpose")

    caplog.set_level("WARNING", "flask_scopedsession")
    with pytest.raises(RuntimeError, match="on purpose"):
        shop.test_client().get("/")
    assert used(db, shop) == (0, 0)
    assert [r for r in caplog.records if r.name == "flask_scopedsession"] == []


def test_an_async_view_that_forgets_to_commit(db, shop, caplog):
    @shop.get("/")
    async def view():
        db.session.add(User(name="x"))
        return "fine"

    shop.test_client().get("/")
    assert "GET / -> view ended without commit()" in caplog.text


def test_gather(db, shop, caplog):
    """Tasks of one view share its session; a statement is never interrupted.

    They share the transaction as well: what one of them commits is committed for all.
    """
    sessions = []

    async def work(number):
        db.session.add(User(name=f"{number}"))
        await asyncio.sleep(0)
        sessions.append(db.session())
        return db.session.scalar(SELECT)

    @shop.get("/")
    async def view():
        found = await asyncio.gather(*(work(number) for number in range(5)))
        db.session.commit()
        return str(sum(found))

    assert shop.test_client().get("/").text == "5"
    assert len(set(sessions)) == 1
    with shop.app_context():
        assert len(db.session.scalars(select(User)).all()) == 5
    assert used(db, shop) == (0, 0)
    assert caplog.records == []


def test_gather_with_contexts_of_their_own(db, shop):
    """The remedy: a context for each task, and so a session and a transaction."""
    sessions = []

    async def work():
        with shop.app_context():
            session = db.session()
            sessions.append(session)
            await asyncio.sleep(0)
            assert db.session() is session
            db.session.execute(SELECT)

    @shop.get("/")
    async def view():
        mine = db.session()
        await asyncio.gather(*(work() for _ in range(5)))
        assert db.session() is mine
        return "fine"

    assert shop.test_client().get("/").text == "fine"
    assert len(set(sessions)) == 5
    assert used(db, shop) == (0, 0)


@pytest.mark.parametrize("debug", [False, True], ids=["", "debug"])
def test_gather_of_threads(db, shop, caplog, debug):
    """``asyncio.to_thread()`` takes the context along: statements can overlap."""
    shop.debug = debug
    arrived, begun, go_on = threading.Event(), threading.Event(), threading.Event()
    outcomes = []

    def gate():
        arrived.set()
        return int(go_on.wait(10))

    def let_go():
        assert begun.wait(10)
        with shop.app_context():
            # It is noted before the database makes the second statement wait.
            wait_until(lambda: db.snapshot().recent_shared)
        go_on.set()

    def second():
        assert arrived.wait(10)
        begun.set()
        db.session.execute(SELECT)

    @shop.get("/")
    async def view():
        connection = db.session.connection().connection
        connection.dbapi_connection.create_function("gate", 0, gate)
        outcomes.extend(
            await asyncio.gather(
                asyncio.to_thread(db.session.scalar, text("SELECT gate()")),
                asyncio.to_thread(second),
                return_exceptions=True,
            )
        )
        return "fine"

    opener = Working(let_go, "opener")
    assert shop.test_client().get("/").text == "fine"
    opener.result()
    assert outcomes[0] == 1
    assert isinstance(outcomes[1], SharedSession) == debug
    (record,) = caplog.records
    assert "GET / -> view: two threads use one" in record.getMessage()
    assert used(db, shop) == (0, 0)


def test_a_task_that_outlives_its_view(db, shop):
    """asyncio cancels it with the loop; the connection comes back."""

    async def work():
        with shop.app_context():
            db.session.execute(SELECT)
            await asyncio.sleep(60)

    @shop.get("/")
    async def view():
        view.task = asyncio.create_task(work())
        await asyncio.sleep(0)
        return "fine"

    assert shop.test_client().get("/").text == "fine"
    assert view.task.cancelled()
    assert used(db, shop) == (0, 0)


def test_a_copied_request_context_in_tasks(db, shop):
    """It shares the view's context on Flask 3.1, and has its own on 3.2."""
    seen = []

    @shop.get("/")
    async def view():
        mine = db.session()

        @copy_current_request_context
        def work():
            db.session.execute(SELECT)
            seen.append(db.session() is mine)

        work()
        assert db.session() is mine
        return "fine"

    assert shop.test_client().get("/").text == "fine"
    assert seen == [not _context.REQUESTS_OWN_THEIR_CONTEXT]
    assert used(db, shop) == (0, 0)
