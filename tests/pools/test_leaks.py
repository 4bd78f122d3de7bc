"""Leaked connections: which line is shown, and how the right one is learnt."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from sqlalchemy import select
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from threads import in_thread

from flask_scopedsession import ScopedSession
from flask_scopedsession.snapshot import Holder

MakeApp = Callable[..., Flask]
View = Callable[[], str]

HINT = "checks connections out; with SCOPEDSESSION_STACKS=True, always."


def logged_in(view: View) -> View:
    """A decorator as many views have one: the leak is not in its line."""

    @functools.wraps(view)
    def checked() -> str:
        return view()

    return checked


class Shop:
    """An application whose view ``/leak`` keeps what `take` returns."""

    def __init__(self, make_app: MakeApp, url: str, **config: Any) -> None:
        self.db = db = ScopedSession()
        self.kept: list[Any] = []
        self.take: Callable[[], Any] = lambda: db.engine.connect()
        options = {"pool_size": 3, "max_overflow": 0, "pool_timeout": 0.05}
        self.app = make_app(
            db,
            flask_options={"root_path": str(Path(__file__).parent)},
            SQLALCHEMY_DATABASE_URI=url,
            SQLALCHEMY_BINDS={"audit": url},
            **{"SQLALCHEMY_ENGINE_OPTIONS": options, **config},
        )

        @self.app.get("/leak")
        @logged_in
        def leak() -> str:
            self.kept.append(self.take())
            return ""

        @self.app.get("/fine")
        def fine() -> str:
            db.session.execute(select(1))
            (holder,) = [h for h in self.holders() if not h.request_over]
            return str(holder.stack)

        #: Where the view begins: at its first decorator.
        inner: Any = leak
        self.line = inner.__wrapped__.__code__.co_firstlineno
        self.defined = f"test_leaks.py:{self.line} leak"

    def get(self, path: str) -> str:
        return in_thread(lambda: self.app.test_client().get(path).text)

    def holders(self) -> list[Holder]:
        """Return all holders, that of the last checkout first."""
        with self.app.app_context():
            found = [h for pool in self.db.snapshot().pools for h in pool.holders]
        return sorted(found, key=lambda holder: holder.held_s)

    def close(self) -> None:
        for each in self.kept:
            each.close()


@pytest.fixture
def make(make_app: MakeApp, sqlite_url: str) -> Any:
    made: list[Shop] = []

    def make(**config: Any) -> Shop:
        made.append(Shop(make_app, sqlite_url, **config))
        return made[-1]

    yield make
    for each in made:
        each.close()


def test_the_second_leak_shows_the_line(make: Callable[..., Shop]) -> None:
    """Nobody has to ask in between: the end of the request notices the first."""
    shop = make()
    shop.get("/leak")
    shop.get("/leak")
    second, first = shop.holders()
    assert (first.at, first.at_is) == (shop.defined, "view")
    assert first.stack is None
    assert second.at_is == "checkout"
    assert second.at is not None
    assert second.at.endswith("<lambda>")  # innermost
    assert second.stack is not None
    assert second.stack[1] == f"test_leaks.py:{shop.line + 3} leak"
    assert "checked" in second.stack[2]


def sessions_of_its_own(shop: Shop) -> Any:
    session = shop.db.sessionmaker()
    session.execute(select(1))
    return session


def another_bind(shop: Shop) -> Any:
    connection = shop.db.get_engine("audit").connect()
    shop.db.session.execute(select(1))
    return connection


def before_its_session(shop: Shop) -> Any:
    connection = shop.db.engine.raw_connection()
    shop.db.session.execute(select(1))
    return connection


@pytest.mark.parametrize(
    "take", [sessions_of_its_own, another_bind, before_its_session]
)
def test_each_kind_of_leak_is_learnt(
    make: Callable[..., Shop], take: Callable[[Shop], Any]
) -> None:
    """A session of the view's, or a connection next to ``db.session``."""
    shop = make()
    shop.take = lambda: take(shop)
    shop.get("/leak")
    (first,) = shop.holders()
    shop.get("/leak")
    assert first.at_is == "view"
    assert shop.holders()[0].at_is == "checkout"
    assert take.__name__ in (shop.holders()[0].at or "")


def test_a_command_is_learnt(make: Callable[..., Shop]) -> None:
    """One that runs for long, with a context for each piece of work."""
    shop = make()

    @shop.app.cli.command("work")
    def work() -> None:
        for _ in range(2):
            with shop.app.app_context():
                shop.kept.append(shop.db.engine.connect())

    shop.app.test_cli_runner().invoke(args=["work"], catch_exceptions=False)
    second, first = shop.holders()
    assert (first.at, first.at_is) == (None, None)
    assert second.at_is == "checkout"
    assert "test_leaks.py" in (second.at or "")


def test_other_views_are_not_recorded(make: Callable[..., Shop]) -> None:
    """That would cost each of their checkouts more than the rest of the account."""
    shop = make()
    shop.get("/leak")
    assert shop.get("/fine") == "None"


def test_what_is_returned_late_is_no_leak(make: Callable[..., Shop]) -> None:
    """Only a connection that is out when its scope has ended counts."""
    shop = make()

    @shop.app.teardown_appcontext
    def late(_: BaseException | None) -> None:
        while shop.kept:
            shop.kept.pop().close()

    shop.get("/leak")
    del shop.app.teardown_appcontext_funcs[-1]
    shop.get("/leak")
    assert [holder.at_is for holder in shop.holders()] == ["view"]


def test_stacks_show_the_first(make: Callable[..., Shop]) -> None:
    """With ``SCOPEDSESSION_STACKS``."""
    shop = make(SCOPEDSESSION_STACKS=True)
    shop.get("/leak")
    assert [holder.at_is for holder in shop.holders()] == ["checkout"]


def test_a_timeout_says_what_each_line_is(
    make: Callable[..., Shop], caplog: pytest.LogCaptureFixture
) -> None:
    """In the log and the error: that the request is over, and how to get the line."""
    shop = make()
    for _ in range(2):
        shop.get("/leak")
    shop.kept.append(in_thread(lambda: checkout(shop)))
    with shop.app.app_context(), pytest.raises(PoolTimeoutError) as caught:
        shop.db.engine.connect()
    error: Any = caught.value
    (record,) = (each for each in caplog.records if each.name == "flask_scopedsession")
    lines = record.getMessage().splitlines()
    assert lines[2].startswith(f"  leak defined at {shop.defined}, held ")
    assert lines[3].startswith("  leak checked out at test_leaks.py:")
    assert all("s, not in transaction, its request is over" in x for x in lines[2:4])
    assert HINT in lines[5]
    assert [holder.at_is for holder in error.holders[:2]] == ["view", "checkout"]


def checkout(shop: Shop) -> Any:
    with shop.app.app_context():
        return shop.db.engine.connect()
