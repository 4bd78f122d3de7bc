"""Flask-Sock's routes work through ``db``, over real websockets."""

from __future__ import annotations

import threading

import pytest
import simple_websocket
from clients import Client
from clients import recipe
from flask_sock import Sock
from sqlalchemy import func
from sqlalchemy import select
from sqlalchemy.orm import DeclarativeBase
from sqlalchemy.orm import Mapped
from sqlalchemy.orm import mapped_column
from waiting import wait_until
from werkzeug.serving import make_server

from flask_scopedsession import ScopedSession

CLIENT = Client(
    name="Flask-Sock",
    url="https://flask-sock.readthedocs.io/",
    works="recipe",
    does="writes for each message, and holds no connection while it waits for the next",
)


class Base(DeclarativeBase):
    pass


class Order(Base):
    __tablename__ = "order"
    id: Mapped[int] = mapped_column(primary_key=True)
    text: Mapped[str]


db = ScopedSession(model_class=Base)


@pytest.fixture
def shop(make_app, sqlite_url):
    app = make_app(db, SQLALCHEMY_DATABASE_URI=sqlite_url)
    with app.app_context():
        db.create_all()
    return app


@pytest.fixture
def connect(shop):
    """Connect a websocket to a route of the application, in a real server."""
    server = make_server("127.0.0.1", 0, shop, threaded=True)
    serving = threading.Thread(target=server.serve_forever, daemon=True)
    serving.start()
    sockets = []

    def connect(path):
        url = f"ws://127.0.0.1:{server.server_port}{path}"
        sockets.append(simple_websocket.Client(url))
        return sockets[-1]

    yield connect
    for each in sockets:
        if each.connected:
            each.close()
    server.shutdown()
    serving.join()
    server.server_close()


def holders(shop):
    with shop.app_context():
        return db.snapshot().pools[0].holders


def test_a_context_for_each_message(shop, connect):
    """No connection is held between messages, and each has its own session."""
    recipe("Flask-Sock", db=db, Order=Order)["sock"].init_app(shop)
    socket = connect("/orders")
    for number, text in enumerate(["tea", "milk"], 1):
        socket.send(text)
        assert socket.receive(10) == f"Order {number}: {text}"
        assert holders(shop) == ()
    with shop.app_context():
        assert db.session.scalar(select(func.count(Order.id))) == 2


def test_without_one(shop, connect):
    """The connection is held while the route waits, and the route is named."""
    sock = Sock(shop)

    @sock.route("/count")
    def count(ws):
        while True:
            ws.receive()
            ws.send(str(db.session.scalar(select(func.count(Order.id)))))

    socket = connect("/count")
    socket.send("?")
    assert socket.receive(10) == "0"
    (holder,) = holders(shop)
    assert (holder.endpoint, holder.rule) == ("count", "/count")
    socket.close()
    wait_until(lambda: holders(shop) == ())


def test_a_message_that_is_not_committed(shop, connect, caplog):
    """The route is named, although the request goes on."""
    sock = Sock(shop)

    @sock.route("/forget")
    def forget(ws):
        with shop.app_context():
            db.session.add(Order(text=ws.receive()))
            db.session.flush()
        ws.send("done")
        ws.receive()

    socket = connect("/forget")
    socket.send("tea")
    assert socket.receive(10) == "done"
    (said,) = (text for text in caplog.messages if "commit()" in text)
    assert said.startswith("GET /forget -> forget ended without commit()")
