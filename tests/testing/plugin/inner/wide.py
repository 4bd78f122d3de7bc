"""What fixtures of modules and more hold on purpose, and tests only use."""

from __future__ import annotations

import threading

import pytest
from shop import create_app
from shop import db
from shop import Item
from shop import kept
from sqlalchemy import select


@pytest.fixture(scope="session")
def wide_app(tmp_path_factory):
    app = create_app(f"sqlite:///{tmp_path_factory.mktemp('db')}/test.db")
    with app.app_context():
        db.create_all()
    yield app
    db.dispose(app)


@pytest.fixture(scope="module")
def context(wide_app):
    with wide_app.app_context():
        yield


@pytest.fixture(scope="module")
def session_of_its_own(wide_app):
    with wide_app.app_context():
        session = db.sessionmaker()
    yield session
    session.close()


@pytest.fixture(scope="class")
def connection(wide_app):
    with wide_app.app_context(), db.engine.connect() as connection:
        connection.execute(select(1))
        yield connection


@pytest.fixture(scope="module")
def thread(wide_app):
    """Has a context of its own, and uses the database whenever it is asked."""
    asked, done, stop = threading.Event(), threading.Event(), threading.Event()

    def work():
        with wide_app.app_context():
            while not stop.is_set():
                if asked.wait(0.01):
                    asked.clear()
                    db.session.scalars(select(Item)).all()
                    done.set()

    thread = threading.Thread(target=work)
    thread.start()
    yield lambda: (done.clear(), asked.set(), done.wait(10))
    stop.set()
    thread.join()


def test_fine_uses_a_thread(thread):
    thread()


class TestConnection:
    @pytest.mark.parametrize("time", range(2))
    def test_fine_uses_a_connection(self, connection, time):
        assert connection.scalar(select(1)) == 1


@pytest.mark.parametrize("time", range(2))
def test_fine_uses_a_session(session_of_its_own, time):
    session_of_its_own.scalars(select(Item)).all()


@pytest.mark.parametrize("time", range(2))
def test_fine_uses_the_context(context, time):
    db.session.scalars(select(Item)).all()
    assert db.session().in_transaction()


def test_fine_removes_the_session_of_the_context(context):
    db.session.remove()
    db.session.scalars(select(Item)).all()


def test_leak_in_the_context(context):
    kept.append(db.engine.connect())


def test_leak_of_a_request_in_the_context(context, wide_app):
    wide_app.test_client().get("/connection")


def test_fine_fixture_asked_for_later(request):
    request.getfixturevalue("late")
    db.session.scalars(select(Item)).all()


@pytest.fixture(scope="module")
def late(wide_app):
    context = wide_app.app_context()
    context.push()
    yield
    context.pop()
