"""A streamed body, on every generation of Flask: read, left half-way, or forgotten.

What differs between the generations is named in ``docs/scope.md``; here is what holds
on all of them.
"""

from __future__ import annotations

import gc
import sys
from contextlib import suppress
from contextvars import ContextVar

import pytest
from flask import Response
from flask import stream_with_context
from models import Base
from models import User
from sqlalchemy import select
from sqlalchemy import text
from sqlalchemy.orm.exc import DetachedInstanceError
from threads import in_thread
from werkzeug.test import EnvironBuilder

from flask_scopedsession import ScopedSession
from flask_scopedsession._scopes.context import REQUESTS_OWN_THEIR_CONTEXT
from flask_scopedsession.errors import OutsideContext
from flask_scopedsession.errors import SessionRemoved


@pytest.fixture
def db():
    return ScopedSession(model_class=Base)


@pytest.fixture
def nobody_keeps_errors(monkeypatch):
    """Forget what is raised where nobody can catch it; pytest keeps the traceback."""
    monkeypatch.setattr(sys, "unraisablehook", lambda _: None)


@pytest.fixture
def seen():
    """The sessions that views and generators have used."""
    return []


@pytest.fixture
def shop(db, make_app, sqlite_url, seen):
    """Streams that use the session in the view, in the generator, or in both."""
    shop = make_app(
        db,
        SQLALCHEMY_DATABASE_URI=sqlite_url,
        SQLALCHEMY_ENGINE_OPTIONS={
            "pool_size": 2,
            "max_overflow": 0,
            "pool_timeout": 0.2,
        },
    )
    with shop.app_context():
        db.create_all()
        db.session.add(User(name="ed"))
        db.session.commit()

    def use():
        seen.append(db.session())
        return db.session.scalar(text("SELECT 1"))

    def rows():
        for _ in range(3):
            yield f"{use()}\n"

    @shop.get("/generator")
    def generator():
        return Response(stream_with_context(rows()))

    @shop.get("/both")
    def both():
        use()
        return Response(stream_with_context(rows()))

    @shop.get("/view")
    def view():
        use()
        return Response(stream_with_context(iter(["1\n", "1\n", "1\n"])))

    @shop.get("/plain")
    def plain():
        seen.append(db.session())
        return str(db.session.scalar(text("SELECT 1")))

    @shop.get("/lost")
    def lost():
        db.session.add(User(name="lost"))
        return "fine"

    @shop.get("/none")
    def none():
        return "fine"

    return shop


STREAMS = ["generator", "both", "view"]


class Request:
    """One request, as a server makes it: nothing is read or closed by itself."""

    def __init__(self, app, path):
        environ = EnvironBuilder(path=path).get_environ()
        self.body = app(environ, self._start)
        self.parts = iter(self.body)

    def _start(self, status, headers, exc_info=None):
        self.status = status

    def read(self):
        return b"".join(self.parts)

    def close(self):
        close = getattr(self.body, "close", None)
        if close is not None:
            close()


def get(app, path):
    """Make a whole request, and return its body."""
    request = Request(app, path)
    try:
        return request.read()
    finally:
        request.close()


def used(db, shop):
    """Return how many connections are out, and how many sessions are open."""

    def look():
        with shop.app_context():
            snapshot = db.snapshot()
        return snapshot.pools[0].used, len(snapshot.sessions)

    # As seen from elsewhere: this thread may be in an abandoned context.
    return in_thread(look)


@pytest.mark.parametrize("path", STREAMS)
def test_a_stream_that_is_read_to_its_end(db, shop, path):
    """Everything is back, without help of the garbage collector."""
    gc.disable()
    try:
        assert get(shop, f"/{path}") == b"1\n1\n1\n"
        assert used(db, shop) == (0, 0)
    finally:
        gc.enable()


@pytest.mark.parametrize("path", STREAMS)
def test_a_client_that_goes_away(db, shop, path):
    """The server closes a body that was read in part: everything is back."""

    def visit():
        gone = Request(shop, f"/{path}")
        next(gone.parts)
        gone.close()
        return used(db, shop)

    gc.disable()
    try:
        assert in_thread(visit) == (0, 0)
    finally:
        gc.enable()


@pytest.mark.parametrize("read", [0, 1])
@pytest.mark.parametrize("path", STREAMS)
def test_a_body_that_is_never_closed(db, shop, path, read):
    """The connection is back as soon as the abandoned body is freed."""

    def visit():
        abandoned = Request(shop, f"/{path}")
        for _ in range(read):
            next(abandoned.parts)
        # Flask 3.1 complains, as the generator is freed, about the order of contexts.
        del abandoned

    gc.disable()
    try:
        in_thread(visit)
        assert used(db, shop) == (0, 0)
    finally:
        gc.enable()


@pytest.mark.parametrize("read", [0, 1])
@pytest.mark.parametrize("path", STREAMS)
def test_later_requests_on_the_thread_of_an_abandoned_stream(
    db, shop, seen, path, read, caplog
):
    """They have sessions of their own, torn down with them, and lose no report.

    The abandoned body is alive all the time; its own connection stays out.
    """
    caplog.set_level("WARNING", "flask_scopedsession")

    def visit():
        abandoned = Request(shop, f"/{path}")
        for _ in range(read):
            next(abandoned.parts)
        before = used(db, shop)
        theirs = list(seen)
        seen.clear()
        for _ in range(5):
            assert get(shop, "/plain") == b"1"
            assert used(db, shop) == before
        assert len({id(session) for session in seen}) == 5
        assert not any(mine is other for mine in seen for other in theirs)
        assert get(shop, "/lost") == b"fine"
        assert get(shop, "/generator") == b"1\n1\n1\n"
        assert used(db, shop) == before
        # And it can still be read to its end.
        assert abandoned.read() == b"1\n" * (3 - read)
        abandoned.close()

    in_thread(visit)
    assert used(db, shop) == (0, 0)
    assert [r.getMessage().split(" ended ")[0] for r in caplog.records] == [
        "GET /lost -> lost"
    ]


@pytest.mark.skipif(
    REQUESTS_OWN_THEIR_CONTEXT, reason="Flask 3.2 leaves the abandoned context active"
)
def test_a_generator_without_a_context_after_an_abandoned_stream(db, shop):
    """It is outside of a context, as on any other thread."""
    late = []

    @shop.get("/without")
    def without():
        def rows():
            try:
                with pytest.raises(OutsideContext):
                    db.session()
                yield "outside"
            finally:
                late.append(db.session.registry.has())

        return Response(rows())

    def visit():
        abandoned = Request(shop, "/generator")
        next(abandoned.parts)
        request = Request(shop, "/without")
        assert next(request.parts) == b"outside"
        request.close()
        abandoned.close()

    in_thread(visit)
    assert late == [False]
    assert used(db, shop) == (0, 0)


@pytest.mark.parametrize("abandoned", [False, True], ids=["", "after an abandoned one"])
def test_a_context_variable_of_the_view(shop, abandoned):
    """The generator sees it, and so does what runs at the end, as in plain Flask."""
    variable = ContextVar("variable", default="unset")
    late = []

    @shop.get("/variable")
    def sets():
        variable.set("of the view")
        response = Response(variable.get() for _ in range(2))
        response.call_on_close(lambda: late.append(variable.get()))
        return response

    def visit():
        first = Request(shop, "/generator" if abandoned else "/plain")
        next(first.parts)
        assert get(shop, "/variable") == b"of the view" * 2
        first.close()

    in_thread(visit)
    assert late == ["of the view"]


@pytest.mark.parametrize("where", ["here", "elsewhere"])
def test_an_abandoned_stream_that_is_freed_during_another_request(
    db, shop, where, seen, nobody_keeps_errors
):
    """It takes its own session along, never that of the request it happens in."""
    kept = {}

    @shop.get("/frees")
    def frees():
        session = db.session()
        session.execute(text("SELECT 1"))
        kept.clear()
        assert db.session() is session
        return str(session.scalar(text("SELECT 1")))

    def abandon():
        kept["it"] = Request(shop, "/both")
        next(kept["it"].parts)

    def both():
        abandon()
        return get(shop, "/frees")

    if where == "here":
        assert in_thread(both) == b"1"
    else:
        in_thread(abandon)
        assert in_thread(lambda: get(shop, "/frees")) == b"1"
    gc.collect()
    assert used(db, shop) == (0, 0)


def test_which_session_a_generator_sees(db, shop, seen):
    """One for the whole generator, and never a removed one.

    The view's on Flask 3.1.1 and older and on 3.2; a fresh one on 3.1.2 and 3.1.3.
    """
    assert get(shop, "/both") == b"1\n1\n1\n"
    assert len({id(session) for session in seen[1:]}) == 1
    for session in seen:
        with pytest.raises(SessionRemoved):
            session.execute(text("SELECT 1"))


def test_what_the_view_loaded(db, shop):
    """Loaded values can be read; the rest is loaded again in the generator."""

    @shop.get("/loaded")
    def loaded():
        ed = db.session.scalars(select(User)).one()

        def rows():
            yield ed.name
            yield db.session.get(User, ed.id).name

        return Response(stream_with_context(rows()))

    assert get(shop, "/loaded") == b"eded"
    assert used(db, shop) == (0, 0)


def test_what_the_view_loaded_and_expired(db, shop):
    """It is loaded where the view's session goes on, else SQLAlchemy's error tells."""
    outcome = []

    @shop.get("/expired")
    def expired():
        ed = db.session.scalars(select(User)).one()
        view = db.session()
        db.session.commit()

        def rows():
            same = db.session() is view
            try:
                outcome.append((same, ed.name))
            except DetachedInstanceError:
                outcome.append((same, "detached"))
            yield "done"

        return Response(stream_with_context(rows()))

    assert get(shop, "/expired") == b"done"
    assert outcome in ([(True, "ed")], [(False, "detached")])
    assert used(db, shop) == (0, 0)


def test_the_views_session_kept_by_a_generator(db, shop):
    """A removed session says what to do in a stream."""

    @shop.get("/kept")
    def kept():
        session = db.session()

        def rows():
            try:
                session.execute(text("SELECT 1"))
            except SessionRemoved as error:
                yield str(error)

        return Response(rows())

    assert b"stream" in get(shop, "/kept")
    assert b"with app.app_context()" in get(shop, "/kept")


def test_a_context_of_its_own_in_a_generator(db, shop, seen):
    """What the documentation recommends: the same on every Flask."""

    @shop.get("/own")
    def own():
        def rows():
            for _ in range(3):
                with shop.app_context():
                    seen.append(db.session())
                    found = db.session.scalar(text("SELECT 1"))
                assert used(db, shop) == (0, 0)
                yield f"{found}\n"

        return Response(rows())

    assert get(shop, "/own") == b"1\n1\n1\n"
    assert len({id(session) for session in seen}) == 3


def test_an_error_in_the_middle_of_a_stream(db, shop, caplog):
    """The session is removed, and its unsaved work is no lost work."""

    @shop.get("/breaks")
    def breaks():
        def rows():
            db.session.add(User(name="x"))
            db.session.flush()
            yield "1"
            raise RuntimeError("in the middle")

        return Response(stream_with_context(rows()))

    caplog.set_level("WARNING", "flask_scopedsession")

    def visit():
        request = Request(shop, "/breaks")
        with pytest.raises(RuntimeError, match="in the middle"):
            request.read()
        request.close()

    in_thread(visit)
    assert used(db, shop) == (0, 0)
    assert caplog.records == []


def test_work_that_a_stream_forgets_to_commit(db, shop, caplog):
    """It is reported as that of a view is."""

    @shop.get("/forgets")
    def forgets():
        def rows():
            yield "1"
            db.session.add(User(name="x"))

        return Response(stream_with_context(rows()))

    caplog.set_level("WARNING", "flask_scopedsession")
    assert in_thread(lambda: get(shop, "/forgets")) == b"1"
    assert "GET /forgets -> forgets ended without commit()" in caplog.text


def test_two_streams_that_are_read_by_turns(db, shop, nobody_keeps_errors):
    """Flask itself refuses contexts that end in the wrong order; nothing leaks."""

    def visit():
        first, second = Request(shop, "/generator"), Request(shop, "/generator")
        assert [next(first.parts), next(second.parts)] == [b"1\n", b"1\n"]
        for each in (first, second):
            with suppress(AssertionError, RuntimeError, LookupError):
                each.read()
            each.close()

    in_thread(visit)
    gc.collect()  # the errors' tracebacks
    assert used(db, shop) == (0, 0)
