"""The private names of other packages that are used, and life without them.

If one of these tests fails, a new version of that package has changed the name. The
table in ``docs/design.md`` says what still works, and what is slower.
"""

from __future__ import annotations

import ast
import re
import socket
import threading
from collections.abc import Callable
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import flask.globals
import pytest
from flask import current_app
from flask import Flask
from inside import application_of
from inside import context as _context
from inside import fair_queue
from inside import limits
from inside import lost_work
from inside import pool_class
from inside import returns_are_seen
from inside import teardown
from sqlalchemy import create_engine
from sqlalchemy import text
from sqlalchemy.orm import scoped_session
from sqlalchemy.orm import Session
from sqlalchemy.orm import sessionmaker
from sqlalchemy.pool import Pool
from sqlalchemy.pool import QueuePool

import flask_scopedsession
from flask_scopedsession import ScopedSession
from flask_scopedsession._runtime import native
from flask_scopedsession.errors import SessionRemoved

PACKAGE = Path(flask_scopedsession.__file__).parent
SDK = PACKAGE / "metrics" / "_sdk.py"
DESIGN = Path(__file__).parents[2] / "docs" / "design.md"

PRIVATE = re.compile(r"_[a-z]\w*")

#: Names with an underscore that are documented.
DOCUMENTED = {
    *("_asdict", "_replace", "_fields", "_make"),
    *("_current_frames", "_getframe", "_get_current_object"),
}


# -- the list --------------------------------------------------------------------


def listed() -> list[tuple[str, str]]:
    """Return each name of the table with its test."""
    section = (
        DESIGN.read_text().partition("## Private names\n")[2].partition("\n## ")[0]
    )
    return re.findall(r"^\| `(_\w+)` \|.*\| `(test_\w+)` \|$", section, re.MULTILINE)


def underscored(tree: ast.AST) -> Iterator[str]:
    """Yield the private names that a module reads from objects."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, ast.Call):
            # getattr(found, "_name"), vars(found).get("_name"), _variable("_name")
            yield from (
                each.value
                for each in node.args
                if isinstance(each, ast.Constant) and isinstance(each.value, str)
            )


def defined(tree: ast.AST) -> Iterator[str]:
    """Yield the private names that a module itself defines."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif (
            isinstance(node, ast.Attribute)
            and isinstance(node.ctx, ast.Store)
            and isinstance(node.value, ast.Name)
            and node.value.id in ("self", "cls")
        ):
            yield node.attr


def test_the_list_is_complete() -> None:
    """Every private name of another package is in the table, and nothing else."""
    modules = [each for each in PACKAGE.rglob("*.py") if each != SDK]
    trees = [ast.parse(each.read_text()) for each in modules]
    read = {name for tree in trees for name in underscored(tree)}
    own = {name for tree in trees for name in defined(tree)}
    foreign = {name for name in read - own - DOCUMENTED if PRIVATE.fullmatch(name)}
    # What the name of an entry in another's dict begins with.
    foreign = {name for name in foreign if not name.startswith("_scopedsession")}
    foreign -= {"_thread"}  # a documented module
    names = {name for name, _ in listed()}
    assert foreign <= names
    assert {name for name in names if name.startswith("_")} <= read | own


def test_the_list_of_opentelemetry_is_complete() -> None:
    """In the paragraph below the table; ``metrics/test_sdk.py`` tests each name."""
    tree = ast.parse(SDK.read_text())
    foreign = {*filter(PRIVATE.fullmatch, underscored(tree))} - {*defined(tree)}
    paragraph = DESIGN.read_text().partition("The optional metrics")[2]
    paragraph = paragraph.partition("\n\n")[0]
    assert foreign == set(re.findall(r"`(_\w+)`", paragraph))


def test_the_list_is_short_and_each_name_has_a_test() -> None:
    assert 1 <= len(listed()) <= 15
    for name, test in listed():
        assert test in globals(), name


# -- Flask -----------------------------------------------------------------------


def test_flasks_context_variables() -> None:
    """They hold the very objects that the proxies give."""
    app = Flask("names")
    assert isinstance(_context._app_variable, ContextVar)
    if _context.REQUESTS_OWN_THEIR_CONTEXT:
        assert not hasattr(flask.globals, "_cv_request")
    else:
        assert isinstance(_context._request_variable, ContextVar)
    assert _context.current_context(None) is None
    assert _context.current_request_context(None) is None
    with app.test_request_context():
        current = flask.globals.app_ctx._get_current_object()  # type: ignore[attr-defined]
        assert _context.current_context(None) is current
        assert current.app is app
        request = flask.request._get_current_object()  # type: ignore[attr-defined]
        assert _context.current_request() is request
        found = _context.current_request_context(None)
        assert found is None or found.request is request


def test_without_the_context_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    """The proxies give the same context, and one object for one request."""
    app = Flask("names")
    assert _context._proxied_context(None) is None
    assert _context._request_context_by_proxy(None) is None
    monkeypatch.setattr(_context, "_request_variable", None)
    assert _context.current_request() is None
    with app.app_context() as current:
        assert _context._proxied_context(None) is current
        assert _context.current_context(None) is current
        assert _context._request_context_by_proxy(None) is None
    with app.test_request_context():
        assert _context._proxied_context(None) is _context.current_context(None)
        found = _context._request_context_by_proxy(None)
        assert found is _context._request_context_by_proxy(None) is not None
        assert _context.current_request() is found


# -- SQLAlchemy's sessions -----------------------------------------------------------


def test_proxied() -> None:
    """The methods and attributes of a scoped_session ask it."""
    session = Session()

    class Sessions(scoped_session[Session]):
        _proxied = session  # type: ignore[assignment]

    assert isinstance(vars(scoped_session)["_proxied"], property)
    sessions = Sessions(sessionmaker())
    sessions.info["met"] = True
    sessions.add_all([])
    assert session.info == {"met": True}
    assert not sessions.registry.has()


Make = Callable[..., Flask]


def removed(db: ScopedSession[Any], app: Flask) -> Session:
    with app.app_context():
        session: Session = db.session()
        session.execute(text("SELECT 1"))
    return session


def test_connection_for_bind(make_app: Make, sqlite_url: str) -> None:
    """Every use of a connection goes through it."""
    assert "_connection_for_bind" in vars(Session)
    db: ScopedSession[Any] = ScopedSession()
    app = make_app(db, SQLALCHEMY_DATABASE_URI=sqlite_url)
    session = removed(db, app)
    with app.app_context():
        engine = db.engine
    for use in (
        lambda: session.execute(text("SELECT 1")),
        lambda: session.execute(text("SELECT 1"), bind_arguments={"bind": engine}),
        lambda: session.connection(bind_arguments={"bind": engine}),
    ):
        with pytest.raises(SessionRemoved):
            use()


def test_without_connection_for_bind(
    make_app: Make, sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every use that does not name an engine is refused all the same."""
    monkeypatch.setattr(teardown, "_HAS_ONE_WAY", False)
    db: ScopedSession[Any] = ScopedSession()
    session = removed(db, make_app(db, SQLALCHEMY_DATABASE_URI=sqlite_url))
    for use in (session.connection, lambda: session.execute(text("SELECT 1"))):
        with pytest.raises(SessionRemoved):
            use()


def test_clean_sessions() -> None:
    """It tells whether a session has anything to flush."""
    session: Any = Session()
    assert lost_work.is_clean is Session._is_clean
    assert session._is_clean() is True
    session.__dict__["_new"] = {1: object()}
    assert session._is_clean() is False


def test_without_clean_sessions(
    make_app: Make, sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A session that only reads is not taken for one with changes."""
    monkeypatch.setattr(teardown, "is_clean", None)
    db: ScopedSession[Any] = ScopedSession()
    app = make_app(db, SQLALCHEMY_DATABASE_URI=sqlite_url)
    with app.app_context():
        db.session.execute(text("SELECT 1"))
    with app.app_context():
        assert db.snapshot().lost_work == ()


def test_the_proxied_connection_of_an_entry(make_app: Make, sqlite_url: str) -> None:
    """A pool's entry refers weakly to the connection that is checked out of it."""
    db: ScopedSession[Any] = ScopedSession()
    with make_app(db, SQLALCHEMY_DATABASE_URI=sqlite_url).app_context():
        connection = db.engine.raw_connection()
        (entry,) = application_of(current_app).accounts["default"].open
        assert entry.fairy_ref() is connection  # type: ignore[attr-defined]
        connection.close()


def test_connections_of_a_transaction() -> None:
    """Its values begin with the connection, whatever the keys are."""
    engine = create_engine("sqlite://")
    with Session(engine) as session:
        connection = session.connection()
        transaction: Any = session.get_transaction()
        first = {id(each[0]) for each in transaction._connections.values()}
        assert first == {id(connection)}
    engine.dispose()


def test_without_connections_of_a_transaction(
    make_app: Make, sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Holders are listed without their session."""
    db: ScopedSession[Any] = ScopedSession()
    app = make_app(db, SQLALCHEMY_DATABASE_URI=sqlite_url)
    with app.app_context():
        db.session.execute(text("SELECT 1"))
        assert [each.session for each in db.snapshot().pools[0].holders] != [None]
        monkeypatch.setattr(Session, "get_transaction", lambda _: object())
        (holder,) = db.snapshot().pools[0].holders
        assert holder.session is None
        monkeypatch.undo()


# -- SQLAlchemy's pools ----------------------------------------------------------------


class Connection:
    """A driver's connection."""

    def rollback(self) -> None:
        pass

    def close(self) -> None:
        pass


def test_returned_connections() -> None:
    """Each return of each pool goes through it, once."""
    returned: list[object] = []

    class Pools(QueuePool):
        def _do_return_conn(self, record: Any) -> None:
            returned.append(record)
            super()._do_return_conn(record)

    assert returns_are_seen(Pool)
    pool = Pools(Connection)
    for end in ("close", "invalidate", "detach"):
        getattr(pool.connect(), end)()
    assert len(returned) == 3


def test_the_limit_of_a_pool() -> None:
    assert limits(QueuePool(Connection, pool_size=2, max_overflow=3)).max == 5
    assert limits(QueuePool(Connection, pool_size=2, max_overflow=-1)).unlimited


def test_without_the_limit_of_a_pool() -> None:
    """It is unknown, and not 0."""
    pool = QueuePool(Connection, pool_size=2, max_overflow=3)
    del pool._max_overflow
    assert limits(pool)[:2] == (2, None)


def test_the_fair_queue() -> None:
    """SQLAlchemy's pool still works as the fair queue expects."""
    assert fair_queue._drill()
    made = pool_class(QueuePool, fair=True, tracked=False)
    assert issubclass(made, fair_queue.FairPool)


@pytest.mark.parametrize("name", ["_overflow_lock", "_overflow"])
def test_without_a_name_of_the_fair_queue(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SQLAlchemy's own queue is used. ``pools/test_fair_queue.py`` has the others."""
    original = QueuePool.__init__

    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        delattr(self, name)

    monkeypatch.setattr(QueuePool, "__init__", init)
    assert not fair_queue.understood.__wrapped__()


def test_the_lock_of_the_slots() -> None:
    """SQLAlchemy changes the number of slots under this lock and no other."""
    taken: list[str] = []

    class Lock:
        def __enter__(self) -> None:
            taken.append("taken")

        def __exit__(self, *_: object) -> None:
            taken.append("released")

    pool: Any = QueuePool(Connection, pool_size=1, max_overflow=1)
    assert isinstance(pool._overflow_lock, type(threading.Lock()))
    pool._overflow_lock = Lock()
    first, second = pool.connect(), pool.connect()
    assert taken == ["taken", "released"] * 2
    first.close()
    second.close()
    assert taken == ["taken", "released"] * 3


# -- Python ----------------------------------------------------------------------


def test_accept() -> None:
    """It returns a descriptor and an address, and makes no socket."""
    with socket.socket() as listener, socket.socket() as client:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        client.connect(listener.getsockname())
        descriptor, address = listener._accept()  # type: ignore[attr-defined]
        with socket.socket(fileno=descriptor) as accepted:
            assert accepted.getpeername() == address == client.getsockname()


def test_without_accept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Under gevent, the endpoint is told before it relies on it."""
    monkeypatch.setattr(native, "is_patched", lambda _: True)

    class Listener:
        pass

    assert not native.can_accept(Listener())  # type: ignore[arg-type]
    with socket.socket() as listener:
        assert native.can_accept(listener)
