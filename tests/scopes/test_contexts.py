"""Contexts within contexts: what holds on Flask 3.1 and 3.2, and what differs."""

from __future__ import annotations

import gc

import pytest
from flask import copy_current_request_context
from flask import g
from sqlalchemy import text
from threads import in_thread

from flask_scopedsession import ScopedSession
from flask_scopedsession.errors import SessionRemoved

SELECT = text("SELECT 1")


@pytest.fixture
def db():
    return ScopedSession()


@pytest.fixture
def seen():
    return []


@pytest.fixture
def shop(db, make_app, sqlite_url, seen, flask_class):
    shop = make_app(db, flask_class=flask_class, SQLALCHEMY_DATABASE_URI=sqlite_url)

    @shop.get("/")
    def view():
        db.session.execute(SELECT)
        seen.append(db.session())
        return "fine"

    return shop


def used(db, app):
    def look():
        with app.app_context():
            snapshot = db.snapshot()
        return snapshot.pools[0].used, len(snapshot.sessions)

    return in_thread(look)


def test_nested_contexts(db, shop):
    """Each has a session and a connection, which end with it, innermost first."""
    with shop.app_context():
        outer = db.session()
        outer.execute(SELECT)
        with shop.app_context():
            inner = db.session()
            inner.execute(SELECT)
            with shop.app_context():
                assert not db.session.registry.has()
            assert db.session() is inner
            assert used(db, shop) == (2, 2)
        with pytest.raises(SessionRemoved):
            inner.execute(SELECT)
        assert db.session() is outer
        assert used(db, shop) == (1, 1)
    assert used(db, shop) == (0, 0)


def test_a_context_that_is_pushed_twice(db, shop):
    """Its session ends with the last of as many pops."""
    context = shop.app_context()
    with context:
        session = db.session()
        with context:
            assert db.session() is session
        assert db.session() is session
        session.execute(SELECT)
    with pytest.raises(SessionRemoved):
        session.execute(SELECT)
    assert used(db, shop) == (0, 0)


def test_a_context_that_is_used_again(db, shop):
    """It has a new session, and is torn down again."""
    context = shop.app_context()
    sessions = []
    for _ in range(3):
        with context:
            db.session.execute(SELECT)
            sessions.append(db.session())
        assert used(db, shop) == (0, 0)
    assert len({id(session) for session in sessions}) == 3


def test_the_client_within_a_context(db, shop, seen, new):
    """Whose session it is differs; that it goes back with its context does not."""
    with shop.app_context():
        outer = db.session()
        outer.execute(SELECT)
        g.mark = True
        for _ in range(2):
            assert shop.test_client().get("/").text == "fine"
        assert [session is outer for session in seen] == [not new, not new]
        assert used(db, shop) == (1, 1)
        assert db.session() is outer
        assert outer.scalar(SELECT) == 1
    assert used(db, shop) == (0, 0)


def test_what_follows_a_request_in_its_context(db, shop):
    """It is not the request's, which was the first to use the database there."""
    with shop.app_context():
        shop.test_client().get("/")
        db.session.remove()
        with db.engine.connect():
            [holder] = db.snapshot().pools[0].holders
    assert holder.endpoint is None
    assert holder.request_over is False


def test_the_client_within_a_request_context(db, shop, seen, new):
    """As pytest-flask has it."""
    with shop.test_request_context("/"):
        outer = db.session()
        outer.execute(SELECT)
        assert shop.test_client().get("/").text == "fine"
        assert (seen[0] is outer) is (not new)
        assert db.session() is outer
    assert used(db, shop) == (0, 0)


def test_the_client_within_a_view(db, shop, seen):
    """The inner request's end leaves the outer one's session alone."""

    @shop.get("/outer")
    def outer():
        mine = db.session()
        mine.execute(SELECT)
        assert shop.test_client().get("/").text == "fine"
        assert db.session() is mine
        return str(mine.scalar(SELECT))

    assert shop.test_client().get("/outer").text == "1"
    assert used(db, shop) == (0, 0)


def test_a_client_that_keeps_its_context(db, shop, seen):
    """``with client:`` keeps the context, not the session of the request."""
    with shop.test_client() as client:
        client.get("/")
        with pytest.raises(SessionRemoved):
            seen[0].execute(SELECT)
        assert used(db, shop) == (0, 0)
        db.session.execute(SELECT)
        assert db.session() is not seen[0]
        kept = db.session()
        client.get("/")
        assert seen[1] is not kept
        # Another client, while that context is kept.
        shop.test_client().get("/")
        assert len({id(session) for session in (*seen, kept)}) == 4
    assert used(db, shop) == (0, 0)


def test_the_debugger_that_keeps_a_context(db, shop, monkeypatch):
    """It is torn down when the debugger lets go, after it was once before."""
    kept = []

    @shop.get("/boom")
    def boom():
        db.session.execute(SELECT)
        raise RuntimeError("boom")

    shop.config["PROPAGATE_EXCEPTIONS"] = True
    environ = {"werkzeug.debug.preserve_context": kept.append}
    with pytest.raises(RuntimeError, match="boom"):
        shop.test_client().get("/boom", environ_overrides=environ)
    gc.collect()
    assert used(db, shop) == (0, 0)
    assert kept


@pytest.mark.parametrize("how", ["here", "within a context"])
def test_a_copied_request_context(db, shop, how, new):
    """Run where a context is active, it shares that on Flask 3.1, and not on 3.2."""
    found = []

    @shop.get("/copied")
    def copied():
        mine = db.session()
        mine.execute(SELECT)

        @copy_current_request_context
        def work():
            db.session.execute(SELECT)
            return db.session()

        if how == "here":
            found.append((work() is mine) is (not new))
        else:
            with shop.app_context():
                found.append(work() is not mine)
        assert db.session() is mine
        return str(mine.scalar(SELECT))

    assert shop.test_client().get("/copied").text == "1"
    assert found == [True]
    assert used(db, shop) == (0, 0)


def test_a_copied_request_context_after_the_request(db, shop):
    """A thread that starts work when the request is over has a session of its own."""
    work = []

    @shop.get("/later")
    def later():
        db.session.execute(SELECT)

        @copy_current_request_context
        def later():
            return db.session.scalar(SELECT)

        work.append(later)
        return "fine"

    assert shop.test_client().get("/later").text == "fine"
    assert in_thread(work[0]) == 1
    assert in_thread(work[0]) == 1
    assert used(db, shop) == (0, 0)


@pytest.mark.parametrize("first", [True, False], ids=["first", "last"])
def test_another_teardown_that_raises(db, shop, first):
    """Whether it runs before ours or after, and alone or in a group."""

    def broken(error):
        raise RuntimeError("another extension")

    if first:
        shop.teardown_appcontext(broken)
    else:
        shop.teardown_appcontext_funcs.insert(0, broken)
    with pytest.raises(Exception) as caught:
        shop.test_client().get("/")
    found = caught.value
    while hasattr(found, "exceptions"):  # on Flask 3.2, groups of groups
        (found,) = found.exceptions
    assert "another extension" in str(found)
    del caught, found
    gc.collect()
    shop.teardown_appcontext_funcs.remove(broken)
    assert used(db, shop) == (0, 0)


def test_teardowns_of_requests_that_raise(db, shop):
    @shop.teardown_request
    def broken(error):
        raise RuntimeError("a teardown")

    with pytest.raises(Exception):  # noqa: B017 - a group on Flask 3.2
        shop.test_client().get("/")
    gc.collect()
    assert used(db, shop) == (0, 0)


def test_a_session_in_another_teardown(db, shop, seen):
    """Before ours it shares the request's; after ours, it has one that goes back."""

    def use(error):
        db.session.execute(SELECT)
        seen.append(db.session())

    shop.teardown_request(use)
    shop.teardown_appcontext(use)  # before ours, being registered later
    shop.teardown_appcontext_funcs.insert(0, use)  # and after ours
    assert shop.test_client().get("/").text == "fine"
    view, in_request, before, after = seen
    assert view is in_request is before
    assert after is not view
    assert used(db, shop) == (0, 0)
