"""A session never outlives or crosses its scope."""

from __future__ import annotations

import gc
import threading
import weakref

import pytest
from flask import Flask
from sqlalchemy import event
from sqlalchemy import exc as sa_exc
from sqlalchemy import select
from sqlalchemy import text
from sqlalchemy.orm import Session

from flask_scopedsession import ScopedSession
from flask_scopedsession.errors import AppNotInitialized
from flask_scopedsession.errors import OutsideContext
from flask_scopedsession.errors import ScopedSessionError
from flask_scopedsession.errors import SessionRemoved


@pytest.fixture
def db():
    return ScopedSession()


@pytest.fixture
def shop(db, make_app, sqlite_url):
    return make_app(db, SQLALCHEMY_DATABASE_URI=sqlite_url)


@pytest.fixture
def no_collector():
    """Switch the garbage collector off for the test."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def used(db, shop):
    """Return how many connections are out, and how many sessions are open."""
    with shop.app_context():
        snapshot = db.snapshot()
    return snapshot.pools[0].used, len(snapshot.sessions)


def test_no_session_of_another_context(db, shop, no_collector):
    """20,000 contexts in a row never see another one's session.

    Context objects are freed at once, so their ``id()`` is reused all the time.
    """
    ids = set()
    for number in range(20_000):
        with shop.app_context() as context:
            ids.add(id(context))
            session = db.session()
            assert "owner" not in session.info
            session.info["owner"] = number
    assert len(ids) < 1000
    assert used(db, shop) == (0, 0)


def test_contexts_that_are_never_torn_down(db, shop, no_collector):
    """A context that just goes away takes its session along, without a collector."""
    for _ in range(100):
        context = shop.app_context()
        context.push()
        db.session.execute(text("SELECT 1"))
        # What another extension's failing teardown does on Flask 3.1, and an
        # abandoned stream: the context is no longer current, and not torn down.
        skip_teardown(context)
        del context
        assert not db.session.registry.has()
    assert used(db, shop) == (0, 0)


def skip_teardown(context):
    app = context.app
    functions, app.teardown_appcontext_funcs = app.teardown_appcontext_funcs, []
    try:
        context.pop()
    finally:
        app.teardown_appcontext_funcs = functions


def test_a_context_that_somebody_keeps(db, shop):
    """The session ends with the teardown, not when the context object is freed."""
    with shop.app_context() as context:
        session = db.session()
        session.execute(text("SELECT 1"))
    with pytest.raises(SessionRemoved):
        session.execute(text("SELECT 1"))
    assert used(db, shop) == (0, 0)
    assert context is not None


def test_a_teardown_of_another_extension_that_raises(db, make_app, sqlite_url):
    """It may keep ours from running, as it does on Flask 3.1; nothing leaks."""
    app = make_app(db, SQLALCHEMY_DATABASE_URI=sqlite_url)

    @app.teardown_appcontext
    def broken(error):
        raise RuntimeError("another extension")

    with pytest.raises(Exception), app.app_context():  # noqa: B017
        db.session.execute(text("SELECT 1"))
    app.teardown_appcontext_funcs.remove(broken)
    gc.collect()  # the traceback held the context
    assert used(db, app) == (0, 0)


def test_removal_that_survives_close(db, shop, monkeypatch):
    """``remove()`` forgets, and gives the connection back, when close() raises."""
    with shop.app_context():
        session = db.session()
        session.execute(text("SELECT 1"))
        monkeypatch.setattr(session, "close", raising(RuntimeError("no")))
        with pytest.raises(RuntimeError, match="no"):
            db.session.remove()
        assert not db.session.registry.has()
        assert db.snapshot().pools[0].used == 0
        assert db.session() is not session


def raising(error):
    def fail(*args, **kwargs):
        raise error

    return fail


def test_teardown_that_survives_close(db, shop, monkeypatch, caplog):
    """A failing close() is logged in teardown; the request has its answer."""

    @shop.get("/")
    def view():
        db.session.execute(text("SELECT 1"))
        monkeypatch.setattr(db.session(), "close", raising(RuntimeError("no")))
        return "fine"

    assert shop.test_client().get("/").text == "fine"
    assert "close() failed" in caplog.text
    assert used(db, shop) == (0, 0)


def test_one_of_two_binds_fails_to_roll_back(make_app, short_tmp):
    """The other's connection comes back all the same."""
    db = ScopedSession()
    app = make_app(
        db,
        SQLALCHEMY_DATABASE_URI=f"sqlite:///{short_tmp}/a.db",
        SQLALCHEMY_BINDS={"b": f"sqlite:///{short_tmp}/b.db"},
    )
    with app.app_context():
        for engine in db.engines.values():
            db.session.execute(text("SELECT 1"), bind_arguments={"bind": engine})
        broken = raising(sa_exc.OperationalError("ROLLBACK", {}, Exception("gone")))
        for engine in db.engines.values():
            event.listen(engine, "rollback", broken)
        with pytest.raises(sa_exc.OperationalError):
            db.session.remove()
        for engine in db.engines.values():
            event.remove(engine, "rollback", broken)
        assert [pool.used for pool in db.snapshot().pools] == [0, 0]
        assert db.snapshot().sessions == ()


def test_removal_is_idempotent(db, shop):
    """Teardown may run twice, as for streams on Flask 3.1.3."""
    with shop.app_context():
        db.session.execute(text("SELECT 1"))
        shop.do_teardown_appcontext(*teardown_arguments(shop))
        assert not db.session.registry.has()
        db.session.execute(text("SELECT 1"))
    assert used(db, shop) == (0, 0)


def teardown_arguments(app):
    """Flask 3.2 wants the context."""
    from inspect import signature

    from flask.globals import app_ctx

    takes = signature(Flask.do_teardown_appcontext).parameters
    return (app_ctx._get_current_object(),) if "ctx" in takes else ()


def test_a_session_made_after_teardown(db, shop, no_collector):
    """A teardown that runs after ours gets a session, which is closed as well."""
    used_late = []

    with shop.app_context():
        db.session.execute(text("SELECT 1"))
        context_ended = shop.app_context()
        context_ended.push()
        shop.do_teardown_appcontext(*teardown_arguments(shop))
        db.session.execute(text("SELECT 1"))
        used_late.append(db.session())
        skip_teardown(context_ended)
        del context_ended
        with pytest.raises(SessionRemoved):
            used_late[0].execute(text("SELECT 1"))
    assert used(db, shop) == (0, 0)


@pytest.mark.parametrize("how", ["teardown", "remove"])
def test_a_session_touched_after_its_removal(db, shop, how):
    """It raises, and says what to do, instead of taking a connection for good."""
    with shop.app_context():
        session = db.session()
        session.execute(text("SELECT 1"))
        if how == "remove":
            db.session.remove()
    for use in (
        lambda: session.execute(select(1)),
        lambda: session.scalars(select(1)),
        session.connection,
    ):
        with pytest.raises(SessionRemoved, match="'db.session' where the work"):
            use()
    assert issubclass(SessionRemoved, (ScopedSessionError, sa_exc.InvalidRequestError))
    session.close()
    session.rollback()
    assert used(db, shop) == (0, 0)


def test_close_is_not_removal(db, shop):
    """After the user's own close() the scope goes on with the same session."""
    with shop.app_context():
        session = db.session()
        db.session.execute(text("SELECT 1"))
        db.session.close()
        assert db.session.execute(text("SELECT 1")).scalar() == 1
        assert db.session() is session


def test_the_session_dies_with_its_context(db, shop, no_collector):
    """Nothing of ours keeps a removed session, or its context, alive."""
    with shop.app_context() as context:
        db.session.execute(text("SELECT 1"))
        db.session.rollback()
        session = weakref.ref(db.session())
        context = weakref.ref(context)
    assert context() is None
    gc.collect()  # a Session and its transaction refer to each other
    assert session() is None


def test_two_extensions_in_two_apps(make_app, short_tmp):
    """Contexts of two apps with an extension each, one within the other."""
    first, second = ScopedSession(), ScopedSession()
    one = make_app(first, import_name="one")
    two = make_app(second, import_name="two")
    with one.app_context():
        outer = first.session()
        with two.app_context():
            assert second.session() is not outer
            with pytest.raises(AppNotInitialized, match=r"'two'.*init_app"):
                first.session()
        assert first.session() is outer


def test_one_extension_in_two_apps(db, make_app, short_tmp):
    """Each app has its own engines; the innermost context decides."""
    urls = [f"sqlite:///{short_tmp}/{name}.db" for name in ("one", "two")]
    one, two = (make_app(db, SQLALCHEMY_DATABASE_URI=url) for url in urls)
    with one.app_context():
        outer = db.session()
        with two.app_context():
            assert str(db.session().bind.url) == urls[1]
        assert db.session() is outer
        assert str(db.session().bind.url) == urls[0]


def test_a_thread_has_no_context(db, shop):
    """A plain thread gets a clear error, never the request's session."""
    caught = []

    def work():
        try:
            db.session()
        except OutsideContext as error:
            caught.append(error)

    with shop.app_context():
        db.session()
        thread = threading.Thread(target=work)
        thread.start()
        thread.join(10)
    assert len(caught) == 1


# scopefunc="thread"


@pytest.fixture
def threaded(make_app, sqlite_url):
    db = ScopedSession(scopefunc="thread")
    app = make_app(db, SQLALCHEMY_DATABASE_URI=sqlite_url)
    return db, app


def test_thread_scope_is_shared_by_contexts(threaded):
    """In one thread, nested contexts share the session of the outermost user."""
    db, app = threaded
    with app.app_context():
        outer = db.session()
        with app.app_context():
            assert db.session() is outer
        # The inner context did not create it, so its teardown left it alone.
        assert db.session() is outer
        assert outer.execute(text("SELECT 1")).scalar() == 1
    with app.app_context():
        assert db.session() is not outer


def test_thread_scope_is_distinct_per_thread(threaded):
    db, app = threaded
    seen = []
    barrier = threading.Barrier(2, timeout=10)

    def work():
        with app.app_context():
            seen.append(db.session())
            barrier.wait()

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert len({id(session) for session in seen}) == 2
    assert used(db, app) == (0, 0)


def test_thread_scope_is_gone_with_its_thread(threaded, no_collector):
    """Also where no teardown runs: the connection comes back as the thread ends."""
    db, app = threaded
    contexts = []

    def work():
        context = app.app_context()
        contexts.append(context)
        context.push()
        db.session.execute(text("SELECT 1"))
        skip_teardown(context)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(10)
    assert used(db, app) == (0, 0)


def test_thread_scope_is_separate_by_app(make_app, short_tmp):
    """One thread, two apps: two sessions, each of its own app's engine."""
    db = ScopedSession(scopefunc="thread")
    urls = [f"sqlite:///{short_tmp}/{name}.db" for name in ("one", "two")]
    one, two = (make_app(db, SQLALCHEMY_DATABASE_URI=url) for url in urls)
    with one.app_context(), two.app_context():
        inner = db.session()
        assert str(inner.bind.url) == urls[1]
    with one.app_context():
        assert str(db.session().bind.url) == urls[0]


# scopefunc=callable


def test_custom_scope(make_app):
    """The function's value says whose session it is."""
    key = ["a"]
    db = ScopedSession(scopefunc=lambda: key[0])
    with make_app(db).app_context():
        first = db.session()
        key[0] = "b"
        assert db.session() is not first
        key[0] = "a"
        assert db.session() is first


def test_custom_scope_ends_with_the_context_that_made_it(make_app, sqlite_url):
    """A context's teardown removes what it created, whatever the key is then."""
    key = ["a"]
    db = ScopedSession(scopefunc=lambda: key[0])
    app = make_app(db, SQLALCHEMY_DATABASE_URI=sqlite_url)
    with app.app_context():
        outer = db.session()
        with app.app_context():
            assert db.session() is outer
            key[0] = "b"
            inner = db.session()
            inner.execute(text("SELECT 1"))
            key[0] = "c"
        with pytest.raises(SessionRemoved):
            inner.execute(text("SELECT 1"))
        key[0] = "a"
        assert db.session() is outer
        outer.execute(text("SELECT 1"))
    assert used(db, app) == (0, 0)


@pytest.mark.parametrize("scopefunc", ["context", "greenlet", 42])
def test_a_scopefunc_that_is_none(scopefunc):
    with pytest.raises(ScopedSessionError, match="scopefunc"):
        ScopedSession(scopefunc=scopefunc)


# Binds


def test_all_sessions_of_a_scope_end_with_it(make_app, short_tmp):
    db = ScopedSession()
    app = make_app(
        db,
        SQLALCHEMY_DATABASE_URI=f"sqlite:///{short_tmp}/a.db",
        SQLALCHEMY_BINDS={"b": f"sqlite:///{short_tmp}/b.db"},
    )
    with app.app_context():
        sessions = [db.session(), db.get_session("b")]
        for session in sessions:
            session.execute(text("SELECT 1"))
        assert [s.name for s in db.snapshot().sessions] == ["default", "b"]
    for session in sessions:
        with pytest.raises(SessionRemoved):
            session.execute(text("SELECT 1"))
    with app.app_context():
        assert [pool.used for pool in db.snapshot().pools] == [0, 0]


# Without the ledger


def test_without_tracking(make_app, sqlite_url):
    """Everything of the scope holds with SCOPEDSESSION_TRACKING off."""
    db = ScopedSession()
    app = make_app(db, SQLALCHEMY_DATABASE_URI=sqlite_url, SCOPEDSESSION_TRACKING=False)
    with app.app_context():
        session = db.session()
        session.execute(text("SELECT 1"))
        assert db.engine.pool.checkedout() == 1
        assert db.snapshot().pools == ()
        assert db.snapshot().sessions == ()
    with app.app_context():
        assert db.engine.pool.checkedout() == 0
    with pytest.raises(SessionRemoved):
        session.execute(text("SELECT 1"))
    assert isinstance(session, Session)
