"""Who holds each connection, and what each session does, as a snapshot shows it."""

from __future__ import annotations

import contextvars
import gc
import json
import sys
import threading
from collections.abc import Callable
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import FrameType
from typing import Any

import click
import pytest
from flask import current_app
from flask import Flask
from sqlalchemy import exc as sa_exc
from sqlalchemy import insert
from sqlalchemy import select
from sqlalchemy import text
from sqlalchemy.orm import DeclarativeBase
from sqlalchemy.orm import Mapped
from sqlalchemy.orm import mapped_column
from sqlalchemy.orm import Session
from threads import in_thread
from threads import Working
from waiting import wait_until
from werkzeug.routing import Rule

from flask_scopedsession import ScopedSession
from flask_scopedsession._live import lines as _lines
from flask_scopedsession._live import reader as _reader
from flask_scopedsession._live import sessions as _sessions
from flask_scopedsession.snapshot import Holder
from flask_scopedsession.snapshot import SessionSnapshot
from flask_scopedsession.snapshot import WorkerSnapshot

MakeApp = Callable[..., Flask]

HERE = Path(__file__).parent


class Base(DeclarativeBase):
    pass


class Thing(Base):
    __tablename__ = "thing"
    id: Mapped[int] = mapped_column(primary_key=True)


class Make:
    """Makes an app on an SQLite file, whose code is in the folder of this file."""

    def __init__(self, make_app: MakeApp, url: str, pushed: ExitStack) -> None:
        self._make_app = make_app
        self._url = url
        self._pushed = pushed

    def app(
        self, scopefunc: Any = None, session_options: Any = None, **config: Any
    ) -> tuple[Any, Flask]:
        """Return the extension and an app."""
        db: Any = ScopedSession(scopefunc=scopefunc, session_options=session_options)
        config = {"SQLALCHEMY_DATABASE_URI": self._url, **config}
        app = self._make_app(db, flask_options={"root_path": str(HERE)}, **config)
        with app.app_context():
            Base.metadata.create_all(db.engine)
            db.engine.dispose()
        return db, app

    def __call__(self, *args: Any, **config: Any) -> Any:
        """Return the extension, within a context of its app."""
        db, app = self.app(*args, **config)
        self._pushed.enter_context(app.app_context())
        return db


@pytest.fixture
def make(make_app: MakeApp, sqlite_url: str) -> Iterator[Make]:
    with ExitStack() as pushed:
        yield Make(make_app, sqlite_url, pushed)


def this_app() -> Flask:
    return current_app._get_current_object()  # type: ignore[attr-defined,no-any-return]


def holder_of(db: Any) -> Holder:
    (holder,) = db.snapshot().pools[0].holders
    assert isinstance(holder, Holder)
    return holder


def session_of(db: Any) -> SessionSnapshot:
    (session,) = db.snapshot().sessions
    assert isinstance(session, SessionSnapshot)
    return session


class Statement:
    """A statement that runs on a connection until it is released."""

    sql = "SELECT wait()"

    def __init__(self) -> None:
        self.runs = threading.Event()
        self.release = threading.Event()

    def prepare(self, connection: Any) -> None:
        """Let this SQLAlchemy connection execute the statement."""
        driver = connection.connection.driver_connection
        driver.create_function("wait", 0, self._wait)

    def _wait(self) -> int:
        self.runs.set()
        return int(self.release.wait(10))


# Holders


def test_a_holder_of_a_view(make: Make) -> None:
    """Its endpoint, rule, method, thread, session, and the line where it is now."""
    db, app = make.app()
    found: dict[str, Any] = {}

    @app.post("/orders/<int:id>")
    def show(id: int) -> str:
        db.session.add(Thing())
        db.session.flush()
        found["line"] = sys._getframe().f_lineno + 1
        found["snapshot"] = db.snapshot()
        db.session.rollback()
        return ""

    app.test_client().post("/orders/42?token=secret")
    (holder,) = found["snapshot"].pools[0].holders
    (session,) = found["snapshot"].sessions
    for one in (holder, session):
        assert (one.endpoint, one.method) == ("show", "POST")
        assert one.rule == "/orders/<int:id>"
        assert one.thread == threading.current_thread().name
        assert one.thread_alive
        assert one.command is None
    assert holder.at == f"test_reader.py:{found['line']} show"
    assert holder.at_is == "now"
    assert holder.session == session.session
    assert holder.request_over is False
    assert session.connections == (holder.connection,)
    assert session.state == "idle in transaction"
    assert holder.idle_in_transaction_s is not None
    assert holder.sql is None


@pytest.mark.parametrize("stacks", [False, True])
def test_a_holder_whose_request_is_over(make: Make, stacks: bool) -> None:
    """Its line is that of the checkout if known, and else that of the view."""
    db, app = make.app(SCOPEDSESSION_STACKS=stacks)
    kept = []

    def take() -> None:
        kept.append(db.engine.connect())

    @app.get("/leak")
    def leak() -> str:
        take()
        return ""

    app.test_client().get("/leak")
    with app.app_context():
        holder = holder_of(db)
    assert (holder.endpoint, holder.request_over) == ("leak", True)
    if stacks:
        line = take.__code__.co_firstlineno + 1
        assert (holder.at, holder.at_is) == (f"test_reader.py:{line} take", "checkout")
        assert holder.stack is not None
        assert holder.stack[0] == holder.at
        assert holder.stack[1].endswith(" leak")
    else:
        line = leak.__code__.co_firstlineno
        assert (holder.at, holder.at_is) == (f"test_reader.py:{line} leak", "view")
        assert holder.stack is None
    kept.pop().close()


def test_an_endpoint_that_is_no_text(make: Make) -> None:
    """Werkzeug takes any hashable; the JSON has text, and the same one everywhere."""
    db, app = make.app(SCOPEDSESSION_LOST_WORK="warn")
    kept = []

    def leak() -> str:
        db.session.execute(insert(Thing))
        kept.append(db.engine.connect())
        return ""

    endpoint = ("shop", 7)
    app.url_map.add(Rule("/", endpoint=endpoint))  # type: ignore[arg-type]
    app.view_functions[endpoint] = leak  # type: ignore[index]
    assert app.test_client().get("/").status_code == 200
    with app.app_context():
        document = json.dumps(db.snapshot().to_dict())
    worker = WorkerSnapshot.from_dict(json.loads(document))
    (pool,) = worker.pools
    for one in (*pool.holders, *worker.lost_work):
        assert one.endpoint == "('shop', 7)"
    views = {view.endpoint: view.checkouts_total for view in pool.views}
    assert views == {None: 1, "('shop', 7)": 2}
    assert len(worker.lost_work) == 1
    kept.pop().close()


def test_a_holder_of_a_command(make: Make) -> None:
    """It has the command's name, without its arguments."""
    db, app = make.app()
    found = []

    @app.cli.command("nightly")
    @click.argument("secret")
    def nightly(secret: str) -> None:
        db.session.execute(select(1))
        found.append(db.snapshot())

    app.test_cli_runner().invoke(args=["nightly", "canary"], catch_exceptions=False)
    (holder,) = found[0].pools[0].holders
    assert (holder.command, holder.at_is) == ("nightly", "now")
    assert found[0].sessions[0].command == "nightly"
    assert "canary" not in str(found[0].to_dict())


@pytest.mark.parametrize("stacks", [False, True])
def test_a_holder_whose_thread_has_ended(make: Make, stacks: bool) -> None:
    """It is not taken for a new thread that got the same ident."""
    db, app = make.app(SCOPEDSESSION_STACKS=stacks)
    kept: list[Any] = []

    def leak() -> None:
        context = app.app_context()
        context.push()
        kept.append((context, db.engine.connect()))

    thread = threading.Thread(target=leak, name="first")
    thread.start()
    thread.join(10)
    stay = threading.Event()
    others: list[Working] = []
    while thread.ident not in {other.thread.ident for other in others}:
        others.append(Working(lambda: stay.wait(10), "other"))
        assert len(others) < 200, "no thread has got the ident"
    with app.app_context():
        holder = holder_of(db)
    stay.set()
    for other in others:
        other.result()
    assert (holder.thread, holder.thread_alive) == ("first", False)
    line = leak.__code__.co_firstlineno + 3
    assert (holder.at, holder.at_is) == (
        (f"test_reader.py:{line} leak", "checkout") if stacks else (None, None)
    )
    kept.pop()[1].close()


@pytest.mark.parametrize("show", [False, True])
def test_the_text_of_a_statement(make: Make, show: bool) -> None:
    """It is shown if the configuration allows it; its parameters never are."""
    db = make(SCOPEDSESSION_SHOW_SQL=show)
    with db.engine.connect() as connection:
        connection.execute(text("SELECT :secret"), {"secret": "canary"})
        holder = holder_of(db)
    assert holder.sql == ("SELECT ?" if show else None)
    with db.engine.connect():
        assert holder_of(db).sql is None


def test_a_running_statement(make: Make) -> None:
    """Its connection is not idle, and its session is holding."""
    db = make()
    app, statement = this_app(), Statement()

    def work() -> None:
        with app.app_context():
            db.session.add(Thing())
            db.session.flush()
            statement.prepare(db.session.connection())
            db.session.execute(text(statement.sql))

    thread = Working(work, "work")
    assert statement.runs.wait(10)
    holder, session = holder_of(db), session_of(db)
    statement.release.set()
    thread.result()
    assert holder.in_transaction
    assert holder.running_s is not None
    assert holder.running_s > 0
    assert holder.idle_in_transaction_s is None
    assert session.state == "holding"
    assert session.statements == 2  # the INSERT, and the one that runs
    assert db.snapshot().pools[0].holders == ()


# Transactions: the driver's word


def committed_by_text(connection: Any) -> None:
    connection.execute(text("COMMIT"))


def committed_by_driver_sql(connection: Any) -> None:
    connection.exec_driver_sql("commit")


def committed_by_the_driver(connection: Any) -> None:
    connection.connection.driver_connection.commit()


def committed_by_the_proxied_connection(connection: Any) -> None:
    connection.connection.commit()


def committed(connection: Any) -> None:
    connection.commit()


def rolled_back(connection: Any) -> None:
    connection.rollback()


def rolled_back_by_text(connection: Any) -> None:
    connection.execute(text("ROLLBACK"))


#: Ends of a transaction that SQLAlchemy does not notice, and all ends.
UNNOTICED = [
    *(committed_by_text, committed_by_driver_sql, committed_by_the_driver),
    *(committed_by_the_proxied_connection, rolled_back_by_text),
]
ENDS = [committed, rolled_back, *UNNOTICED]


@pytest.mark.parametrize("end", ENDS)
def test_a_transaction_that_was_ended(make: Make, end: Callable[[Any], None]) -> None:
    """However it was: the driver says so."""
    db = make()
    with db.engine.connect() as connection:
        assert holder_of(db).in_transaction is False
        connection.execute(insert(Thing))
        assert holder_of(db).in_transaction is True
        assert holder_of(db).idle_in_transaction_s is not None
        end(connection)
        assert holder_of(db).in_transaction is False
        assert holder_of(db).idle_in_transaction_s is None
        connection.rollback()


@pytest.mark.parametrize("end", UNNOTICED)
def test_a_transaction_of_a_session_that_was_ended(
    make: Make, end: Callable[[Any], None]
) -> None:
    db = make()
    db.session.add(Thing())
    db.session.flush()
    assert session_of(db).state == "idle in transaction"
    end(db.session.connection())
    assert session_of(db).state == "holding"
    assert session_of(db).idle_in_transaction_s is None
    db.session.rollback()


@pytest.mark.parametrize("end", ENDS)
def test_a_transaction_on_postgresql_that_was_ended(
    make: Make, pg_url: str, end: Callable[[Any], None]
) -> None:
    """There a mere SELECT begins one."""
    db = make(SQLALCHEMY_DATABASE_URI=pg_url)
    with db.engine.connect() as connection:
        assert holder_of(db).in_transaction is False
        connection.execute(select(1))
        assert holder_of(db).in_transaction is True
        end(connection)
        assert holder_of(db).in_transaction is False
        connection.rollback()


def test_a_failed_transaction_on_postgresql(make: Make, pg_url: str) -> None:
    """It stays open until it is rolled back."""
    db = make(SQLALCHEMY_DATABASE_URI=pg_url)
    with pytest.raises(sa_exc.ProgrammingError):
        db.session.execute(text("SELECT nothing"))
    assert holder_of(db).in_transaction is True
    assert session_of(db).state == "idle in transaction"
    db.session.rollback()
    assert session_of(db).state == "idle"


@pytest.mark.parametrize("where", ["engine", "connection"])
@pytest.mark.parametrize("server", ["sqlite", "postgresql"])
def test_autocommit_is_no_transaction(
    make: Make, request: pytest.FixtureRequest, server: str, where: str
) -> None:
    level = {"isolation_level": "AUTOCOMMIT"}
    config: dict[str, Any] = {}
    if server == "postgresql":
        config["SQLALCHEMY_DATABASE_URI"] = request.getfixturevalue("pg_url")
    if where == "engine":
        config["SQLALCHEMY_ENGINE_OPTIONS"] = level
    db = make(**config)
    with db.engine.connect() as connection:
        if where == "connection":
            connection.execution_options(**level)
        connection.execute(insert(Thing))
        holder = holder_of(db)
        assert holder.in_transaction is False
        assert holder.idle_in_transaction_s is None


def test_a_select_on_sqlite_is_no_transaction(make: Make) -> None:
    """The driver sends BEGIN only before a statement that writes."""
    db = make()
    db.session.execute(select(1))
    assert holder_of(db).in_transaction is False
    assert session_of(db).state == "holding"
    db.session.rollback()


def test_a_select_on_sqlite_with_a_real_begin(make: Make) -> None:
    db = make(SCOPEDSESSION_SQLITE_BEGIN="DEFERRED")
    db.session.execute(select(1))
    assert holder_of(db).in_transaction is True
    assert session_of(db).state == "idle in transaction"
    db.session.rollback()


def test_a_driver_that_does_not_say(make: Make) -> None:
    """Its transaction is open from the first statement to the end that we see."""
    db = make(SQLALCHEMY_ENGINE_OPTIONS={"pool_size": 1})
    with db.engine.connect() as connection:
        info = connection.connection.info["flask_scopedsession"]
    info.tells = False
    with db.engine.connect() as connection:
        assert holder_of(db).in_transaction is None
        connection.execute(select(1))
        assert holder_of(db).in_transaction is True
        connection.commit()
        assert holder_of(db).in_transaction is False
        connection.execution_options(isolation_level="AUTOCOMMIT")
        connection.execute(select(1))
        assert holder_of(db).in_transaction is False
    with db.engine.connect():
        assert holder_of(db).in_transaction is None


# Sessions


def test_states_of_a_session(make: Make) -> None:
    db = make()
    session = db.session()
    assert session_of(db).state == "idle"
    session.begin()
    assert session_of(db).state == "begun"
    session.add(Thing())
    session.flush()
    assert session_of(db).state == "idle in transaction"
    session.commit()
    assert session_of(db).state == "idle"
    session.execute(select(1))
    session.rollback()
    assert session_of(db).state == "idle"


def test_needs_rollback(make: Make) -> None:
    """After a flush that failed, until the rollback."""
    db = make()
    db.session.execute(insert(Thing).values(id=1))
    db.session.add(Thing(id=1))
    with pytest.raises(sa_exc.IntegrityError):
        db.session.flush()
    assert session_of(db).state == "needs rollback"
    db.session.rollback()
    assert session_of(db).state == "idle"


def test_a_session_of_no_scope(make: Make) -> None:
    """One that ``db.sessionmaker`` made is listed while it is in a transaction."""
    db = make()
    with db.sessionmaker() as session:
        session.add(Thing())
        session.flush()
        found = session_of(db)
        assert (found.scope, found.state) == ("none", "idle in transaction")
        assert found.statements is None
        assert found.connections == (holder_of(db).connection,)
    assert db.snapshot().sessions == ()


def test_objects_of_a_session(make: Make) -> None:
    db = make()
    db.session.add_all([Thing(), Thing(), Thing()])
    db.session.commit()
    things = db.session.scalars(select(Thing)).all()
    db.session.delete(things[0])
    db.session.add(Thing())
    found = session_of(db)
    assert (found.new, found.deleted, found.identity) == (1, 1, 3)
    db.session.rollback()


def test_statements_of_a_session(make: Make) -> None:
    """Those of its scope: also on other connections, and on returned ones."""
    db = make()
    db.session()
    assert session_of(db).statements == 0
    db.session.execute(select(1))
    db.session.execute(select(1))
    assert session_of(db).statements == 2
    db.session.commit()
    assert session_of(db).statements == 2
    with db.engine.connect() as connection:
        connection.execute(select(1))
        assert session_of(db).statements == 3
        connection.exec_driver_sql("SELECT 1")
        with pytest.raises(sa_exc.OperationalError):
            connection.execute(text("SELECT nothing"))
        assert session_of(db).statements == 5
        connection.detach()
    assert session_of(db).statements == 5
    db.session.execute(insert(Thing), [{}, {}])
    assert session_of(db).statements == 6
    db.session.remove()
    db.session()
    assert session_of(db).statements == 6  # the scope is still the same


def test_statements_of_two_scopes(make: Make) -> None:
    """Each counts its own, whichever connection it got."""
    db, app = make.app(SQLALCHEMY_ENGINE_OPTIONS={"pool_size": 1, "max_overflow": 0})

    def sent(count: int) -> int | None:
        with app.app_context():
            db.session()
            for _ in range(count):
                db.session.execute(select(1))
            return session_of(db).statements

    assert [sent(2), sent(0), sent(3)] == [2, 0, 3]


def test_statements_of_another_thread_in_a_context(make: Make) -> None:
    """They count for the context's session, as asyncio's threads share it."""
    db = make()

    def use() -> None:
        with db.engine.connect() as connection:
            connection.execute(select(1))

    db.session.execute(select(1))
    context = contextvars.copy_context()
    in_thread(lambda: context.run(use), "another")
    assert session_of(db).statements == 2


@pytest.mark.parametrize("scopefunc", ["thread", lambda: "all"])
def test_statements_of_a_scope_that_is_no_context(make: Make, scopefunc: Any) -> None:
    """They are not counted: a connection is checked out for a context."""
    db = make(scopefunc)
    db.session.execute(select(1))
    assert session_of(db).statements is None
    db.session.remove()


@pytest.mark.parametrize("scopefunc", [None, "thread", threading.get_ident, "none"])
def test_a_session_that_waits_for_a_connection(make: Make, scopefunc: Any) -> None:
    """Its transaction has begun; it needs no rollback."""
    options = {"pool_size": 1, "max_overflow": 0, "pool_timeout": 10}
    unscoped = scopefunc == "none"
    db = make(None if unscoped else scopefunc, SQLALCHEMY_ENGINE_OPTIONS=options)
    app, sessionmaker = this_app(), db.sessionmaker

    def work() -> None:
        if unscoped:
            with sessionmaker() as session:
                session.execute(select(1))
            return
        with app.app_context():
            db.session.execute(select(1))

    with db.engine.connect():
        thread = Working(work, "work")
        wait_until(lambda: db.snapshot().pools[0].pending)
        session = session_of(db)
    thread.result()
    assert (session.thread, session.state) == ("work", "begun")


def test_requests_of_a_session(make: Make) -> None:
    """A context that was active before shares its session with all requests in it.

    On Flask 3.2 and newer, each request has a context of its own.
    """
    from inside import context

    db, app = make.app()
    found = []

    @app.get("/")
    def view() -> str:
        db.session.execute(select(1))
        found.append(session_of(db))
        return ""

    with app.app_context():
        db.session()
        assert session_of(db).requests is None
        for _ in range(3):
            app.test_client().get("/")
        shared = not context.REQUESTS_OWN_THEIR_CONTEXT
        assert session_of(db).requests == (3 if shared else None)
    app.test_client().get("/")
    assert found[-1].requests is None


# Whatever is read about may be gone at any moment, or fail


def in_context(app: Flask, work: Callable[[], str]) -> str:
    with app.app_context():
        return work()


#: The modules that read.
READING = (_reader.__file__, _lines.__file__, _sessions.__file__)


class AtLine:
    """Does something once, before the given line of the reader is executed."""

    def __init__(self, line: tuple[str, int] | None, do: Callable[[], object]) -> None:
        self.line = line
        self.do = do
        self.seen: set[tuple[str, int]] = set()
        self.done = False

    def __enter__(self) -> AtLine:  # noqa: PYI034
        sys.settrace(self._trace)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(None)

    def _trace(self, frame: FrameType, event: str, _: object) -> Any:
        if frame.f_code.co_filename not in READING:
            return None
        if event == "line":
            here = frame.f_code.co_name, frame.f_lineno
            self.seen.add(here)
            if here == self.line and not self.done:
                self.done = True
                sys.settrace(None)
                self.do()
                return None
        return self._trace


class Doomed:
    """A thread with a session, a connection and a context, until it is told to go."""

    def __init__(self, db: Any, app: Flask, leaks: bool) -> None:
        self._db, self._app, self._leaks = db, app, leaks
        self.leaked: list[Any] = []
        self._ready, self._go = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._work, name="doomed")
        self._thread.start()
        assert self._ready.wait(10)

    def _work(self) -> None:
        context = self._app.app_context()
        context.push()
        self._db.session.add(Thing())
        self._db.session.flush()
        connection = self._db.engine.connect()
        self._ready.set()
        self._go.wait(10)
        if self._leaks:
            self.leaked = [context, connection]
        else:
            connection.close()
            context.pop()

    def end(self) -> None:
        self._go.set()
        self._thread.join(10)
        assert not self._thread.is_alive()
        del self._thread

    def clean_up(self) -> None:
        if self.leaked:
            self.leaked.pop().close()
            app_context = self.leaked.pop()
            with self._app.app_context():
                for session in app_context.__dict__.values():
                    if hasattr(session, "rollback"):
                        session.rollback()


def test_a_thread_that_ends_during_the_reading(make: Make) -> None:
    """With or without its connection, at any line of the reader: a reading survives."""
    db = make(SQLALCHEMY_ENGINE_OPTIONS={"pool_size": 5, "max_overflow": 0})
    app = this_app()
    db.session()
    doomed = Doomed(db, app, leaks=False)
    with AtLine(None, lambda: None) as whole:
        db.snapshot()
    doomed.end()
    assert len(whole.seen) > 100
    for number, line in enumerate(sorted(whole.seen)):
        doomed = Doomed(db, app, leaks=number % 2 == 1)
        with AtLine(line, doomed.end) as moment:
            worker = db.snapshot()
        if not moment.done:  # a line of what was read about before only
            doomed.end()
        for holder in worker.pools[0].holders:
            if holder.thread_alive is False:
                assert holder.at_is != "now"
        assert worker.pools[0].used <= 2
        doomed.clean_up()
        assert db.snapshot().pools[0].used == 0


def test_a_connection_that_goes_on_to_another_thread_during_the_reading(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is left out rather than listed with the wrong thread's line."""
    db = make(SQLALCHEMY_ENGINE_OPTIONS={"pool_size": 1, "max_overflow": 0})
    first = db.engine.connect()
    seconds: list[Any] = []
    stack_of = _lines.stack_of

    def hand_over(scope: Any) -> Any:
        found = stack_of(scope)
        if not seconds:
            first.close()
            engine = db.engine
            seconds.append(in_thread(engine.connect, "second"))
        return found

    monkeypatch.setattr(_lines, "stack_of", hand_over)
    assert db.snapshot().pools[0].holders == ()
    assert holder_of(db).thread == "second"
    seconds[0].close()


def test_a_context_that_is_freed_without_a_teardown(make: Make) -> None:
    """What it leaked is still listed, as held by a request that is over."""
    db, app = make.app()
    kept = []

    def leak() -> None:
        context = app.app_context()
        context.push()
        kept.append(db.engine.connect())

    in_thread(leak, "leaking")
    gc.collect()
    with app.app_context():
        holder = holder_of(db)
    assert (holder.thread, holder.thread_alive) == ("leaking", False)
    assert holder.request_over
    kept.pop().close()


class NamelessThread(threading.Thread):
    """A thread of a class that computes its name, and fails."""

    @property
    def name(self) -> str:
        raise LookupError

    @name.setter
    def name(self, _: str) -> None:
        pass


class Endless:
    """A view that is its own wrapped function, so that unwrapping it never ends."""

    def __init__(self, view: Callable[[], str]) -> None:
        self.__wrapped__ = self
        self._view = view

    def __call__(self) -> str:
        return self._view()


def test_objects_of_the_application_that_fail(make: Make) -> None:
    """What cannot be read of them is null, and all the rest is there."""
    db, app = make.app(SCOPEDSESSION_STACKS=False)
    kept = []

    def leak() -> str:
        kept.append(db.engine.connect())
        db.session()
        return str(db.snapshot().sessions[0].thread)

    app.add_url_rule("/", "leak", Endless(leak))
    assert app.test_client().get("/").text == "MainThread"
    names = []
    thread = NamelessThread(target=lambda: names.append(in_context(app, leak)))
    thread.start()
    thread.join()
    assert names == ["None"]
    with app.app_context():
        viewed, threaded = db.snapshot().pools[0].holders
    assert (viewed.endpoint, viewed.thread, viewed.at) == ("leak", "MainThread", None)
    assert (threaded.endpoint, threaded.thread, threaded.at) == (None, None, None)
    assert viewed.request_over
    assert threaded.request_over
    while kept:
        kept.pop().close()


class Changing(Session):
    """A session that its own thread changes at the moment of each reading."""

    failures = 0

    @property
    def is_active(self) -> bool:
        raise AttributeError  # of a transaction that has just become None

    @property
    def new(self) -> Any:
        self.failures += 1
        if self.failures == 1:
            raise RuntimeError
        return super().new

    @property
    def deleted(self) -> Any:
        raise RuntimeError


def test_a_session_that_changes_during_the_reading(make: Make) -> None:
    """It is counted again, and what cannot be counted is null."""
    db = make(session_options={"class_": Changing})
    db.session.add(Thing())
    session = session_of(db)
    assert (session.state, session.new, session.deleted) == ("begun", 1, None)


@pytest.mark.subprocess
def test_greenlets_that_are_gone(run_script: Callable[..., Any]) -> None:
    """One that leaked a connection and was freed breaks neither reading nor timeout."""
    pytest.importorskip("gevent")
    run_script("""
        from gevent import monkey; monkey.patch_all()
        import gc
        import gevent
        from flask import Flask
        from sqlalchemy import exc
        from flask_scopedsession import ScopedSession

        db = ScopedSession()
        app = Flask("shop")
        app.config["SQLALCHEMY_DATABASE_URI"] = "sqlite:///shop.db"
        app.config["SQLALCHEMY_ENGINE_OPTIONS"] = {
            "pool_size": 2, "max_overflow": 0, "pool_timeout": 0.05
        }
        db.init_app(app)
        kept = []

        def leak():
            with app.app_context():
                kept.append(db.engine.connect())

        greenlets = [gevent.spawn(leak) for _ in range(2)]
        gevent.joinall(greenlets, raise_error=True)
        del greenlets
        gc.collect()
        with app.app_context():
            holders = db.snapshot().pools[0].holders
            assert [each.thread_alive for each in holders] == [False, False], holders
            assert [each.at_is for each in holders] == [None, None], holders
            try:
                db.engine.connect()
            except exc.TimeoutError as error:
                assert len(error.holders) == 2
            else:
                raise AssertionError
            assert len(db.snapshot().pools[0].recent_timeouts) == 1
        for each in kept:
            each.close()
    """).check()
