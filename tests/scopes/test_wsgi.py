"""WSGI: servers and middleware see the application as it is without the extension."""

from __future__ import annotations

import io
from wsgiref.util import FileWrapper

import pytest
from flask import abort
from flask import Flask
from flask import Response
from flask import send_file
from flask import stream_with_context
from sqlalchemy import text
from sqlalchemy.orm import DeclarativeBase
from sqlalchemy.orm import Mapped
from sqlalchemy.orm import mapped_column
from werkzeug.test import EnvironBuilder

from flask_scopedsession import ScopedSession


class Base(DeclarativeBase):
    pass


class User(Base):
    __tablename__ = "user"
    id: Mapped[int] = mapped_column(primary_key=True)


@pytest.fixture
def db():
    return ScopedSession(model_class=Base)


@pytest.fixture
def make(db, make_app, sqlite_url, flask_class):
    def make(flask_class=flask_class, **config):
        app = make_app(
            db,
            flask_class=flask_class,
            SQLALCHEMY_DATABASE_URI=sqlite_url,
            **config,
        )
        with app.app_context():
            db.create_all()

        @app.get("/")
        def view():
            return str(db.session.scalar(text("SELECT 1")))

        return app

    return make


def call(app, path="/", start_response=None, **environ):
    """Call an application as a server does; return the body and what was started."""
    started = []

    def start(status, headers, exc_info=None):
        started.append(status)
        return started.append

    builder = EnvironBuilder(path=path)
    return app({**builder.get_environ(), **environ}, start_response or start), started


def used(db, app):
    with app.app_context():
        return db.snapshot().pools[0].used


# start_response


def by_keyword(inner):
    def middleware(environ, start_response):
        def start(status, headers, exc_info=None):
            return start_response(status, headers, exc_info=exc_info)

        return inner(environ, start)

    return middleware


def by_position(inner):
    def middleware(environ, start_response):
        def start(status, headers, exc_info=None):
            return start_response(status, headers, exc_info)

        return inner(environ, start)

    return middleware


def with_two_arguments(inner):
    def middleware(environ, start_response):
        return inner(environ, lambda status, headers: start_response(status, headers))

    return middleware


def that_writes(inner):
    """As PEP 3333 allows, send a part of the body by what start_response returns."""

    def middleware(environ, start_response):
        def start(status, headers, exc_info=None):
            write = start_response(status, headers, exc_info=exc_info)
            write(b"written")
            return write

        return inner(environ, start)

    return middleware


MIDDLEWARES = [by_keyword, by_position, with_two_arguments, that_writes]


@pytest.mark.parametrize("order", ["before init_app()", "after init_app()"])
@pytest.mark.parametrize("middleware", MIDDLEWARES)
def test_middleware(db, make, flask_class, middleware, order):
    class Wrapped(flask_class):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            if order == "before init_app()":
                self.wsgi_app = middleware(self.wsgi_app)

    app = make(Wrapped)
    if order == "after init_app()":
        app.wsgi_app = middleware(app.wsgi_app)
    body, started = call(app)
    assert b"".join(body) == b"1"
    assert started[0] == "200 OK"
    assert started[1:] == ([b"written"] if middleware is that_writes else [])
    assert used(db, app) == 0


def test_start_response_is_the_servers_own(make):
    """Nothing stands between the application and the server."""
    given = []

    class Plain(Flask):
        def wsgi_app(self, environ, start_response):
            given.append(start_response)
            return super().wsgi_app(environ, start_response)

    app = make(Plain)

    def start(status, headers, exc_info=None):
        return lambda data: None

    call(app, start_response=start)
    assert given == [start]


def test_wsgi_app_is_left_alone_where_requests_have_their_own_context(make, new):
    """It is wrapped for Flask 3.1 and older only."""
    app = make()
    assert ("wsgi_app" in vars(app)) == (not new)


# Bodies


@pytest.mark.parametrize("abandoned", [False, True], ids=["", "after an abandoned one"])
def test_bodies(db, make, abandoned):
    """A file is the server's own wrapper, and a stream is closed exactly once."""
    app = make()
    closed = []

    class File(FileWrapper):
        pass

    @app.get("/file")
    def file():
        return send_file(io.BytesIO(b"content"), "text/plain")

    @app.get("/stream")
    def stream():
        def parts():
            try:
                for _ in range(3):
                    yield str(db.session.scalar(text("SELECT 1")))
            finally:
                closed.append("generator")

        response = Response(stream_with_context(parts()))
        response.call_on_close(lambda: closed.append("response"))
        return response

    first = None
    if abandoned:
        first, _ = call(app, "/stream")
        next(iter(first))
    body, _ = call(app, "/file", **{"wsgi.file_wrapper": File})
    assert type(body) is File
    assert b"".join(body) == b"content"
    body.close()
    body, _ = call(app, REQUEST_METHOD="HEAD")
    assert b"".join(body) == b""
    body, _ = call(app, "/stream")
    assert iter(body) is iter(body)
    assert next(iter(body)) == b"1"
    assert next(iter(body)) == b"1"
    body.close()
    assert sorted(closed) == ["generator", "response"]
    body, _ = call(app, "/stream")
    assert list(body) == [b"1", b"1", b"1"]
    with pytest.raises(StopIteration):
        next(iter(body))
    body.close()
    assert sorted(closed) == ["generator", "generator", "response", "response"]
    if first is not None:
        assert list(first) == [b"1", b"1"]
        first.close()
    assert used(db, app) == 0


def test_a_body_without_close(make, flask_class):
    """What a middleware returns need not have a close method."""

    class Lists(flask_class):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            inner = self.wsgi_app
            self.wsgi_app = lambda environ, start: [b"".join(inner(environ, start))]

    body, _ = call(make(Lists))
    assert body == [b"1"]


def test_an_iterator_without_close_after_an_abandoned_stream(make, flask_class):
    """The same for an iterator, which is read in a context of its own."""

    class Iterators(flask_class):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            inner = self.wsgi_app
            self.wsgi_app = lambda environ, start: (
                inner(environ, start)
                if environ["PATH_INFO"] == "/stream"
                else iter([b"".join(inner(environ, start))])
            )

    app = make(Iterators)

    @app.get("/stream")
    def stream():
        return Response(stream_with_context(iter(["1", "2"])))

    abandoned, _ = call(app, "/stream")
    next(iter(abandoned))
    body, _ = call(app)
    assert list(body) == [b"1"]
    getattr(body, "close", list)()  # as a server does, if there is one
    abandoned.close()


# How a request ended


@pytest.fixture
def shop(db, make):
    app = make()

    @app.get("/lost")
    @app.get("/lost/<int:status>")
    def lost(status=200):
        db.session.add(User())
        return "lost", status

    @app.get("/aborted")
    def aborted():
        db.session.add(User())
        abort(400)

    @app.get("/handled")
    def handled():
        db.session.add(User())
        raise LookupError

    @app.errorhandler(LookupError)
    def found(error):
        return "handled"

    return app


@pytest.mark.parametrize(
    ("path", "is_lost"),
    [
        ("/lost", True),
        ("/lost/302", True),
        ("/lost/404", False),
        ("/lost/500", False),
        ("/aborted", False),
        ("/handled", False),
    ],
)
def test_lost_work_by_the_response(shop, caplog, path, is_lost):
    """Lost only where the request ended well: by its status, without an error."""
    shop.test_client().get(path)
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == is_lost
    assert all("ended without commit()" in message for message in messages)


@pytest.mark.parametrize(("path", "status"), [("/lost", 503), ("/lost/404", 200)])
def test_the_status_is_the_final_one(shop, caplog, path, status):
    """As ``after_request`` functions have left it."""

    @shop.after_request
    def replace(response):
        response.status_code = status
        return response

    assert shop.test_client().get(path).status_code == status
    assert bool(caplog.records) == (status < 400)


def test_an_application_that_overrides_the_same_methods(db, make, flask_class, caplog):
    """Its own methods are called, once each."""
    calls = []

    class Own(flask_class):
        def process_response(self, *args):
            calls.append("response")
            return super().process_response(*args)

        def handle_user_exception(self, *args):
            calls.append("error")
            return super().handle_user_exception(*args)

    app = make(Own)

    @app.get("/fails")
    def fails():
        db.session.add(User())
        abort(404)

    assert app.test_client().get("/fails").status_code == 404
    assert calls == ["error", "response"]
    assert caplog.records == []
