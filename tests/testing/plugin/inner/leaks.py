"""What a test may leave open, and what not: ``test_leak_...`` must fail."""

from __future__ import annotations

import threading
from contextlib import suppress

import pytest
from shop import create_app
from shop import db
from shop import Item
from shop import kept

# Left open


def test_leak_of_a_view(app):
    app.test_client().get("/connection")


def test_leak_of_a_session_of_a_view(app):
    app.test_client().get("/session")


def test_leak_of_the_test_itself(app):
    with app.app_context():
        kept.append(db.engine.connect())


def test_leak_of_a_raw_connection(app):
    with app.app_context():
        kept.append(db.engine.raw_connection())


def test_leak_of_an_application_of_its_own():
    kept.append(create_app("sqlite://"))
    kept[-1].test_client().get("/connection")


def test_leak_of_a_context():
    create_app("sqlite://").app_context().push()
    db.session.add(Item(name="x"))


def test_leak_of_a_session_that_has_only_begun(app):
    with app.app_context():
        kept.append(db.sessionmaker())
        kept[-1].add(Item(name="x"))


def test_leak_of_a_thread_that_has_ended(app):
    def work():
        with app.app_context():
            kept.append(db.engine.connect())

    thread = threading.Thread(target=work, name="worker-1")
    thread.start()
    thread.join()


def test_leak_of_a_thread_that_goes_on(app):
    ready = threading.Event()

    def work():
        with app.app_context(), db.engine.connect():
            ready.set()
            stop.wait(20)

    threading.Thread(target=work, name="worker-2", daemon=True).start()
    ready.wait(10)


stop = threading.Event()


class TestLeakOfClass:
    def test_leak_of_a_method(self, app):
        app.test_client().get("/connection")


def test_leak_of_a_fixture(opened):
    pass


@pytest.fixture
def opened(app):
    with app.app_context():
        kept.append(db.engine.connect())


# Not left open


def test_fine_after_the_leaks(app):
    """What other tests have left is theirs."""
    stop.set()
    app.test_client().get("/items")


def test_fine_variables_of_a_caught_error(app):
    with app.app_context():
        with pytest.raises(ValueError) as caught:  # noqa: PT012
            variable = db.engine.connect()
            variable.begin()
            raise ValueError
        assert caught.value.__traceback__


def test_fine_closed_by_the_fixture(closed):
    assert not closed.closed


@pytest.fixture
def closed(app):
    with app.app_context(), db.engine.connect() as connection:
        yield connection


def test_fine_a_thread_that_is_about_to_end(app):
    asked = threading.Event()

    def work():
        with app.app_context(), db.engine.connect():
            asked.set()
            kept.append(threading.Event().wait(0.1))

    threading.Thread(target=work).start()
    asked.wait(10)


def test_fine_a_client_that_keeps_its_context(app):
    with app.test_client() as client:
        client.get("/items")


def test_fine_variables_of_an_error_that_was_logged(app, monkeypatch):
    monkeypatch.setitem(app.config, "PROPAGATE_EXCEPTIONS", False)
    assert app.test_client().get("/raises").status_code == 500


def test_failed(app):
    with app.app_context():
        variable = db.engine.connect()
        assert variable.closed


@pytest.mark.xfail
def test_failed_as_expected(app):
    with app.app_context():
        variable = db.engine.connect()
        assert variable.closed


def test_fine_after_a_failure(app):
    with app.app_context(), suppress(KeyError):
        db.session.connection()
        raise KeyError
