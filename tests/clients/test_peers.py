"""What the README's table says of other extensions, run with them."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from flask import Flask
from sqlalchemy import orm

OURS = "flask_scopedsession"
BY_HAND = "by hand"
HELPERS = {
    OURS: {
        *("paginate", "paginate_keyset", "get_or_404", "transaction", "snapshot"),
        "async_session",
    },
    "flask_sqlalchemy": {"paginate", "get_or_404"},
    "flask_sqlalchemy_lite": {"get_or_abort", "async_session", "test_isolation"},
    "alchemical.flask": set[str](),
    BY_HAND: set[str](),
}


class Peer:
    """An application with one extension, a session, and an empty table.

    :param kind: The extension's module, or ``BY_HAND``.
    """

    def __init__(self, kind: str, url: str) -> None:
        self.app = app = Flask("peer")
        app.testing = True
        if kind == "flask_sqlalchemy_lite":
            app.config["SQLALCHEMY_ENGINES"] = {"default": url}
        app.config["SQLALCHEMY_DATABASE_URI"] = url
        app.config["ALCHEMICAL_DATABASE_URL"] = url
        self.db: Any = None
        if kind == BY_HAND:
            engine = sa.create_engine(url)
            session = orm.scoped_session(orm.sessionmaker(engine))
            app.teardown_appcontext(lambda _: session.remove())
            self._session: Callable[[], Any] = lambda: session
        else:
            module = importlib.import_module(kind)
            names = ("ScopedSession", "SQLAlchemy", "Alchemical")
            self.db = next(
                vars(module)[name]() for name in names if name in vars(module)
            )
            self.db.init_app(app)
            self._session = lambda: self.db.session
        with app.app_context():
            self.engine: sa.Engine = self.session().get_bind()
        with self.engine.begin() as connection:
            connection.execute(sa.text("CREATE TABLE user (name VARCHAR)"))

    def session(self) -> orm.Session:
        """Return the session of the current context, and no proxy for it."""
        found = self._session()
        session: orm.Session = found() if callable(found) else found
        return session

    @property
    def checked_out(self) -> int:
        pool: Any = self.engine.pool
        count: int = pool.checkedout()
        return count


@pytest.fixture(params=HELPERS)
def kind(request: pytest.FixtureRequest) -> str:
    given: str = request.param
    return given


@pytest.fixture
def peer(kind: str, short_tmp: Path) -> Any:
    peer = Peer(kind, f"sqlite:///{short_tmp}/peer.db")
    yield peer
    if kind == OURS:
        peer.db.dispose(peer.app)
    peer.engine.dispose()


def test_a_session_that_is_used_after_its_context(kind: str, peer: Peer) -> None:
    """With all others it checks out a connection, which nobody returns."""
    with peer.app.app_context():
        kept = peer.session()
    with peer.app.app_context():
        if kind == OURS:
            errors = importlib.import_module("flask_scopedsession.errors")
            with pytest.raises(errors.SessionRemoved):
                kept.execute(sa.text("SELECT 1"))
        else:
            kept.execute(sa.text("SELECT 1"))
    assert peer.checked_out == (kind != OURS)
    kept.close()


@pytest.mark.skipif(version("flask") >= "3.2", reason="it calls all teardowns")
def test_a_teardown_of_another_extension_that_raises(kind: str, peer: Peer) -> None:
    @peer.app.teardown_appcontext
    def fail(_: BaseException | None) -> None:
        raise RuntimeError("teardown")

    kept = []

    def work() -> None:
        with peer.app.app_context():
            kept.append(peer.session())
            kept[0].execute(sa.text("SELECT 1"))

    with pytest.raises(RuntimeError, match="teardown"):
        work()
    assert peer.checked_out == (kind != OURS)
    kept[0].close()


@pytest.mark.parametrize("autocommit", [False, True])
def test_work_that_a_view_does_not_commit(
    kind: str, peer: Peer, autocommit: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Alchemical can commit it. Otherwise it is lost, and only we say so."""
    peer.app.config["ALCHEMICAL_AUTOCOMMIT"] = autocommit

    @peer.app.route("/")
    def view() -> str:
        peer.session().execute(sa.text("INSERT INTO user VALUES ('lost')"))
        return ""

    peer.app.test_client().get("/")
    with peer.engine.connect() as connection:
        kept = connection.scalar(sa.text("SELECT count(*) FROM user"))
    assert kept == (kind == "alchemical.flask" and autocommit)
    assert bool(caplog.messages) == (kind == OURS)


def test_helpers(kind: str, peer: Peer) -> None:
    module = vars(importlib.import_module(kind)) if kind != BY_HAND else {}
    every = set().union(*HELPERS.values())
    found = {each for each in every if hasattr(type(peer.db), each) or each in module}
    assert found == HELPERS[kind]
