"""A context that serves request after request, and uses that only look like one."""

from __future__ import annotations

import pytest
from sqlalchemy import text
from threads import in_thread

from flask_scopedsession import ScopedSession


@pytest.fixture
def db():
    return ScopedSession()


@pytest.fixture
def shop(db, make_app, sqlite_url, flask_class):
    shop = make_app(
        db,
        flask_class=flask_class,
        SQLALCHEMY_DATABASE_URI=sqlite_url,
        SCOPEDSESSION_CONTROL=False,
        TESTING=False,
    )

    @shop.get("/")
    def view():
        return str(db.session.scalar(text("SELECT 1")))

    @shop.get("/around")
    def around():
        client = shop.test_client()
        return "".join(client.get("/").text for _ in range(3))

    return shop


@pytest.fixture
def pushed(shop):
    """A context that is active around each test's requests."""
    with shop.app_context():
        yield


def served(db):
    return [session.requests for session in db.snapshot().sessions]


def test_it_is_reported_once(db, shop, pushed, caplog, new):
    """With the second request, and with the remedy."""
    client = shop.test_client()
    client.get("/")
    assert caplog.records == []
    for _ in range(4):
        client.get("/")
    if new:
        assert caplog.records == []
        return
    (record,) = caplog.records
    assert record.scopedsession_event == "shared_context"
    assert "Remove the 'app.app_context().push()' at import" in record.getMessage()
    assert "with app.app_context():" in record.getMessage()
    assert served(db) == [5]


def test_a_test_client_within_a_context(shop, pushed, caplog):
    """Tests do that on purpose."""
    shop.testing = True
    client = shop.test_client()
    for _ in range(3):
        client.get("/")
    assert caplog.records == []


def test_without_such_a_context(db, shop, caplog):
    client = shop.test_client()
    for _ in range(3):
        client.get("/")
    assert caplog.records == []
    with shop.app_context():
        assert served(db) == []


def test_another_thread_begins_without_it(db, shop, pushed, caplog):
    for _ in range(3):
        in_thread(lambda: shop.test_client().get("/"))
    assert caplog.records == []


def test_a_view_that_sends_requests_to_its_own_application(shop, caplog):
    assert shop.test_client().get("/around").text == "111"
    assert caplog.records == []


def test_the_context_of_another_application(shop, make_app, caplog):
    """Each application has contexts of its own."""
    with make_app(TESTING=False, SCOPEDSESSION_CONTROL=False).app_context():
        for _ in range(3):
            shop.test_client().get("/")
    assert caplog.records == []
