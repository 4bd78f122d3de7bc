"""What is logged about connections that are held for long, or leaked."""

from __future__ import annotations

import gc
import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from sqlalchemy import create_engine
from sqlalchemy import select
from sqlalchemy import text
from threads import Working
from waiting import wait_until

from flask_scopedsession import ScopedSession
from flask_scopedsession._pools import watch

MakeApp = Callable[..., Flask]

#: The least that can be configured, in seconds.
LONG = 0.1


class Shop:
    """An application in which connections are held for as long as a test likes."""

    def __init__(self, make_app: MakeApp, url: str, **config: Any) -> None:
        self.db = db = ScopedSession()
        self.kept: list[Any] = []
        self.holding, self.go_on = threading.Event(), threading.Event()
        self.app = make_app(
            db,
            flask_options={"root_path": str(Path(__file__).parent)},
            **{
                "SQLALCHEMY_DATABASE_URI": url,
                "SCOPEDSESSION_HELD_LONG_AFTER": LONG,
                **config,
            },
        )

        @self.app.get("/hold")
        def hold() -> str:
            db.session.execute(select(1))
            self.holding.set()
            self.go_on.wait(30)
            return ""

        @self.app.get("/keep")
        def keep() -> str:
            self.kept.append(db.engine.connect())
            return ""

        @self.app.get("/fine")
        def fine() -> str:
            db.session.execute(text("SELECT 1"), {"secret": 1})
            return ""

    def get(self, path: str) -> None:
        assert self.app.test_client().get(path).status_code == 200

    def hold_long(self, meanwhile: Callable[[], None] = lambda: None) -> None:
        """Hold a connection in another thread for longer than :data:`LONG`."""
        self.holding.clear()
        self.go_on.clear()
        other = Working(lambda: self.get("/hold"), "holder")
        self.holding.wait(30)
        began = time.monotonic()
        wait_until(lambda: time.monotonic() > began + LONG)
        meanwhile()
        self.go_on.set()
        other.result()

    def visit_until(self, done: Callable[[], object]) -> None:
        wait_until(lambda: self.get("/fine") or done())


@pytest.fixture
def shop(make_app: MakeApp, sqlite_url: str) -> Any:
    shop = Shop(make_app, sqlite_url)
    yield shop
    shop.go_on.set()
    for each in shop.kept:
        each.close()


def events(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [each.scopedsession_event for each in caplog.records]  # type: ignore[attr-defined]


def test_a_connection_that_is_still_held(
    shop: Shop, caplog: pytest.LogCaptureFixture
) -> None:
    """Another request's checkout notices it, and it is reported once."""
    other = Working(lambda: shop.get("/hold"), "holder")
    shop.holding.wait(30)
    shop.visit_until(lambda: caplog.records)
    deadline = time.monotonic() + 3 * LONG
    shop.visit_until(lambda: time.monotonic() > deadline)
    (record,) = caplog.records
    found = vars(record)
    assert found["scopedsession_event"] == "held_long"
    assert found["scopedsession_bind"] == "default"
    assert found["scopedsession_endpoint"] == "hold"
    assert found["scopedsession_held_s"] > LONG
    assert found["scopedsession_returned"] is False
    assert found["scopedsession_held_long"] == 1
    assert found["scopedsession_at"].startswith("test_watch.py:")
    assert found["scopedsession_at"].endswith(" hold")
    assert found["scopedsession_at_is"] == "now"
    assert "Bind 'default': hold at " in record.getMessage()
    assert "1 connection is checked out for longer than 0.1 s" in record.getMessage()
    shop.go_on.set()
    other.result()


@pytest.mark.parametrize("pool", ["own", "ready-made"])
def test_a_connection_that_was_held_long(
    make_app: MakeApp,
    sqlite_url: str,
    caplog: pytest.LogCaptureFixture,
    pool: str,
) -> None:
    """It is reported at the end of its request, before any other begins."""
    options = {}
    if pool == "ready-made":
        options["pool"] = create_engine(sqlite_url).pool
    shop = Shop(make_app, sqlite_url, SQLALCHEMY_ENGINE_OPTIONS=options)
    at_first: list[Any] = []
    shop.hold_long(lambda: at_first.extend(caplog.records))
    assert at_first == []
    (record,) = caplog.records
    assert vars(record)["scopedsession_endpoint"] == "hold"
    assert vars(record)["scopedsession_returned"] is True
    assert vars(record)["scopedsession_held_long"] == 0
    assert "GET /hold -> hold held a connection for" in record.getMessage()
    shop.hold_long()  # within ten seconds
    assert events(caplog) == ["held_long"]
    if pool == "ready-made":
        options["pool"].dispose()  # type: ignore[attr-defined]


def test_a_connection_is_reported_later_if_there_was_a_record_just_now(
    shop: Shop, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be held for ever, so its record must not be left out."""
    monkeypatch.setattr(watch, "_EVERY", 5 * LONG)
    shop.hold_long()
    shop.hold_long(lambda: shop.visit_until(lambda: len(caplog.records) == 2))
    returned = [vars(each)["scopedsession_returned"] for each in caplog.records]
    assert returned[:2] == [True, False]


def test_short_holds_are_not_reported(
    shop: Shop, caplog: pytest.LogCaptureFixture
) -> None:
    deadline = time.monotonic() + 3 * LONG
    shop.visit_until(lambda: time.monotonic() > deadline)
    assert caplog.records == []


def test_a_leak(shop: Shop, caplog: pytest.LogCaptureFixture) -> None:
    """Where the view is defined at first, then the line; each is reported once."""
    shop.get("/keep")
    shop.visit_until(lambda: events(caplog) == ["leaked"])
    found = vars(caplog.records[0])
    assert found["scopedsession_endpoint"] == "keep"
    assert found["scopedsession_leaked"] == 1
    assert found["scopedsession_request_over"] is True
    assert found["scopedsession_thread_alive"] is True
    shop.get("/keep")
    shop.get("/keep")
    deadline = time.monotonic() + 5 * LONG
    shop.visit_until(lambda: time.monotonic() > deadline)
    assert events(caplog) == ["leaked", "leaked"]
    places = [vars(each)["scopedsession_at_is"] for each in caplog.records]
    assert places == ["view", "checkout"]


def test_what_an_error_keeps_for_a_moment_is_no_leak(
    shop: Shop, caplog: pytest.LogCaptureFixture
) -> None:
    """One look at the holders is not enough: its traceback may be freed soon."""
    shop.get("/keep")
    began = time.monotonic()
    wait_until(lambda: time.monotonic() > began + LONG)
    shop.get("/fine")  # looks for the first time
    shop.kept.pop().close()
    deadline = time.monotonic() + 3 * LONG
    shop.visit_until(lambda: time.monotonic() > deadline)
    assert "leaked" not in events(caplog)


def test_a_return_by_the_garbage_collector_logs_nothing_itself(
    shop: Shop, caplog: pytest.LogCaptureFixture
) -> None:
    """It can run inside any code; the next checkout logs it."""
    with shop.app.app_context():
        connection: Any = shop.db.engine.raw_connection()
        began = time.monotonic()
        wait_until(lambda: time.monotonic() > began + LONG)
        connection = [connection]
        connection.append(connection)
        del connection
        gc.collect()
        (pool,) = shop.db.snapshot().pools
        assert pool.used == 0
        assert caplog.records == []
        shop.db.session.execute(select(1))
        assert events(caplog) == ["held_long"]


def test_a_handler_that_uses_the_pool(shop: Shop) -> None:
    """A record that is written to the database does not lead to another."""
    seen: list[str] = []

    class Writing(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            with shop.db.engine.connect() as connection:
                connection.execute(select(1))
            seen.append(record.getMessage())

    logger = logging.getLogger("flask_scopedsession")
    handler = Writing()
    logger.addHandler(handler)
    try:
        shop.get("/keep")
        shop.visit_until(lambda: seen)
    finally:
        logger.removeHandler(handler)
    assert len(seen) == 1


@pytest.mark.parametrize("pool", ["own", "ready-made"])
def test_the_time_that_a_handler_takes(
    make_app: MakeApp, sqlite_url: str, pool: str
) -> None:
    """It does not count as a wait for the connection, nor as its use."""
    options: dict[str, Any] = {}
    if pool == "ready-made":
        options["pool"] = create_engine(sqlite_url).pool
    shop = Shop(make_app, sqlite_url, SQLALCHEMY_ENGINE_OPTIONS=options)
    ended: list[float] = []

    class Slow(logging.Handler):
        def emit(self, _: logging.LogRecord) -> None:
            began = time.monotonic()
            wait_until(lambda: time.monotonic() > began + LONG)
            ended.append(time.perf_counter())

    logger = logging.getLogger("flask_scopedsession")
    handler = Slow()
    logger.addHandler(handler)
    try:
        shop.get("/keep")
        while not ended:
            with shop.app.app_context():
                shop.db.session.execute(select(1))
                (found,) = shop.db.snapshot().pools
                most = time.perf_counter() - ended[0] if ended else 0.0
    finally:
        logger.removeHandler(handler)
        shop.kept.pop().close()
    (held,) = (each.held_s for each in found.holders if not each.is_leaked)
    assert held <= most
    if pool == "ready-made":
        options["pool"].dispose()
