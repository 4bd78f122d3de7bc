"""Flask-SocketIO's events have a session each, and are shown and reported by name."""

from __future__ import annotations

import pytest
from clients import Client
from flask import request
from flask.sessions import SecureCookieSessionInterface
from flask_socketio import emit
from flask_socketio import Namespace
from flask_socketio import SocketIO
from sqlalchemy import select
from sqlalchemy.orm import DeclarativeBase
from sqlalchemy.orm import Mapped
from sqlalchemy.orm import mapped_column

from flask_scopedsession import ScopedSession

CLIENT = Client(
    name="Flask-SocketIO",
    url="https://flask-socketio.readthedocs.io/",
    works="as it is",
    does="writes and reads in events, each with its own session, and names the event",
)


class Base(DeclarativeBase):
    pass


class Message(Base):
    __tablename__ = "message"
    id: Mapped[int] = mapped_column(primary_key=True)
    text: Mapped[str]


db = ScopedSession(model_class=Base)


def who():
    """Say who has the session, and who holds the connection."""
    found = db.snapshot()
    (session,), (holder,) = found.sessions, found.pools[0].holders
    origins = {
        (one.endpoint, one.method, one.rule, one.job) for one in (session, holder)
    }
    ((endpoint, method, rule, job),) = origins
    assert (endpoint, method, rule) == (None, None, None)
    return job


@pytest.fixture
def shop(make_app, sqlite_url):
    app = make_app(db, SQLALCHEMY_DATABASE_URI=sqlite_url, SECRET_KEY="test")

    # As for a single-page application. It matches the path of Socket.IO, too.
    @app.get("/<path:path>")
    def page(path):
        db.session.scalars(select(Message)).all()
        return path

    with app.app_context():
        db.create_all()
    return app


@pytest.fixture
def io(shop):
    io = SocketIO(shop, async_mode="threading", manage_session=False)

    @io.on("say")
    def say(text):
        db.session.add(Message(text=text))
        db.session.flush()
        job = who()
        db.session.commit()
        emit("said", [job, db.session().hash_key])

    @io.on("list")
    def read():
        emit("texts", db.session.scalars(select(Message.text)).all())

    @io.on("forget")
    def forget():
        db.session.add(Message(text="lost"))
        db.session.flush()

    @io.on("fail")
    def fail():
        db.session.add(Message(text="lost"))
        db.session.flush()
        raise OSError

    return io


def received(client):
    return [(each["name"], each["args"][0]) for each in client.get_received()]


def test_events(shop, io):
    """Each has a session of its own, which ends with it."""
    client = io.test_client(shop)
    client.emit("say", "one")
    client.emit("say", "two")
    (_, (first, one)), (_, (second, two)) = received(client)
    assert first == second == "event say"
    assert one != two
    client.emit("list")
    assert received(client) == [("texts", ["one", "two"])]
    with shop.app_context():
        assert db.snapshot().sessions == ()


def test_an_event_that_does_not_commit(shop, io, caplog):
    """It is named, also where a route of the application matches the handshake."""
    client = io.test_client(shop)
    client.emit("forget")
    (said,) = caplog.messages
    assert said.startswith("event forget ended without commit()")
    assert shop.test_client().get("/page").text == "page"
    with shop.app_context():
        found = db.snapshot()
    assert [lost.job for lost in found.lost_work] == ["event forget"]
    assert {(each.job, each.endpoint) for each in found.pools[0].views} >= {
        ("event forget", None),
        (None, "page"),
    }


def test_an_event_that_fails(shop, io, caplog):
    """It has lost its work on purpose, whoever handles the error."""
    client = io.test_client(shop)
    with pytest.raises(OSError):
        client.emit("fail")
    handled = []
    io.on_error_default(handled.append)
    client.emit("fail")
    assert [type(error) for error in handled] == [OSError]
    assert caplog.messages == []
    client.emit("forget")
    assert len(caplog.messages) == 1


def test_a_session_of_flask_that_is_in_the_database(shop, io, caplog):
    """It is read before Flask-SocketIO says which event it has."""

    class InDatabase(SecureCookieSessionInterface):
        def open_session(self, app, request):
            db.session.scalar(select(Message.id))
            return super().open_session(app, request)

    shop.session_interface = InDatabase()
    client = io.test_client(shop)
    client.emit("say", "one")
    assert received(client)[0][1][0] == "event say"
    client.emit("forget")
    assert caplog.messages[0].startswith("event forget ended without commit()")


def test_other_events(shop, io):
    """Connecting, a class of events, and an event that has no handler of its own."""
    seen = []

    @io.on("connect")
    @io.on("disconnect")
    @io.on("*")
    def any_event(*_):
        db.session.scalar(select(Message.id))
        seen.append((who(), request.event["message"]))

    class Admin(Namespace):
        def on_refresh(self):
            db.session.scalar(select(Message.id))
            seen.append((who(), request.namespace))

    io.on_namespace(Admin("/admin"))
    client = io.test_client(shop)
    client.emit("unheard")
    client.disconnect()
    admin = io.test_client(shop, namespace="/admin")
    admin.emit("refresh", namespace="/admin")
    assert seen == [
        ("event connect", "connect"),
        ("event *", "*"),
        ("event disconnect", "disconnect"),
        ("event refresh", "/admin"),
    ]
