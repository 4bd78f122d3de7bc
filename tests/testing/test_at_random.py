"""Random users of one database inside isolate(), which is afterwards as before."""

from __future__ import annotations

import tempfile
import threading
from contextlib import ExitStack
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from flask import Flask
from hypothesis import HealthCheck
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize
from hypothesis.stateful import invariant
from hypothesis.stateful import rule
from hypothesis.stateful import RuleBasedStateMachine
from hypothesis.stateful import run_state_machine_as_test
from items import Base
from items import INSERT
from items import Item
from sqlalchemy.exc import DBAPIError

from flask_scopedsession import ScopedSession
from flask_scopedsession.errors import IsolationError
from flask_scopedsession.testing import isolate

USERS = st.sampled_from(["session", "own session", "connection", "raw"])
NAMES = sa.text("SELECT name FROM item")


class Users(RuleBasedStateMachine):
    """One user at a time can have uncommitted changes; the others are refused.

    ``layers`` has what is committed in each block, the innermost last.
    """

    url: Any = None
    """``None``: a new SQLite file each time."""

    def __init__(self) -> None:
        super().__init__()
        self.stack = ExitStack()
        self.numbers = iter(range(10_000))
        self.layers: list[set[str]] = []
        self.uncommitted: set[str] = set()
        self.writer: str | None = None
        self.users: dict[str, Any] = {}

    @initialize(begin=st.sampled_from([None, "DEFERRED"]))
    def start(self, begin: str | None) -> None:
        folder = self.stack.enter_context(tempfile.TemporaryDirectory())
        self.path = Path(folder, "test.db")
        self.db = ScopedSession(model_class=Base)
        self.app = Flask("tests_app", root_path=folder, instance_path=folder)
        self.app.config.update(
            TESTING=True,
            SQLALCHEMY_DATABASE_URI=self.url or f"sqlite:///{self.path}",
            SQLALCHEMY_ENGINE_OPTIONS={"pool_timeout": 0.01},
            SCOPEDSESSION_SQLITE_BEGIN=begin,
        )
        self.db.init_app(self.app)
        self.stack.callback(self.db.dispose, self.app)
        with self.app.app_context():
            self.db.drop_all()
            self.db.create_all()
            with self.db.engine.begin() as connection:
                connection.execute(sa.text(INSERT.format("kept")))
        self.before = self.content()
        self.contexts = self.stack.enter_context(ExitStack())
        self.contexts.enter_context(self.app.app_context())
        self.blocks: list[Any] = []
        self.layers.append({"kept"})
        self.enter()

    def content(self) -> bytes:
        return b"" if self.url else self.path.read_bytes()

    # -- what users do -----------------------------------------------------------

    def user(self, name: str) -> Any:
        if name not in self.users:
            makers = {
                "session": lambda: self.db.session,
                "own session": self.db.sessionmaker,
                "connection": self.db.engine.connect,
                "raw": self.db.engine.raw_connection,
            }
            self.users[name] = makers[name]()
        return self.users[name]

    def execute(self, name: str, text: str) -> list[Any]:
        user = self.user(name)
        if name != "raw":
            result = user.execute(sa.text(text))
            return result.scalars().all() if result.returns_rows else []
        cursor = user.cursor()
        try:
            cursor.execute(text)
            rows = cursor.fetchall() if cursor.description else []
            return [row[0] for row in rows]
        finally:
            cursor.close()

    def is_refused(self, name: str, text: str) -> bool:
        """Execute a statement, which is refused if another user has written."""
        refused = False
        try:
            self.execute(name, text)
        except IsolationError:
            refused = True
        assert refused == (self.writer not in (None, name))
        return refused

    @rule(name=USERS)
    def write(self, name: str) -> None:
        row = f"{name} {next(self.numbers)}"
        if not self.is_refused(name, INSERT.format(row)):
            self.writer = name
            self.uncommitted.add(row)

    @rule(name=USERS)
    def read(self, name: str) -> None:
        if not self.is_refused(name, "SELECT 1"):
            found = self.execute(name, "SELECT name FROM item")
            assert sorted(found) == sorted(self.layers[-1] | self.uncommitted)

    @rule(name=USERS, keeps=st.booleans())
    def savepoint(self, name: str, keeps: bool) -> None:
        row = f"{name} {next(self.numbers)}"
        if self.is_refused(name, "SAVEPOINT own"):
            return
        self.writer = name
        self.execute(name, INSERT.format(row))
        if keeps:
            self.uncommitted.add(row)
        else:
            self.execute(name, "ROLLBACK TO SAVEPOINT own")
        self.execute(name, "RELEASE SAVEPOINT own")

    @rule(name=USERS)
    def fail(self, name: str) -> None:
        """A statement that fails has no effect, and its transaction goes on."""
        if self.is_refused(name, "SELECT 1"):
            return
        for text in ("INSERT INTO item (name) VALUES (NULL)", "SELECT nothing"):
            self.execute(name, "SAVEPOINT own")
            with suppress(DBAPIError, self.db.engine.dialect.loaded_dbapi.Error):
                self.execute(name, text)
                raise AssertionError
            self.execute(name, "ROLLBACK TO SAVEPOINT own")
        self.writer = name

    @rule(name=USERS)
    def commit(self, name: str) -> None:
        self.user(name).commit()
        if self.writer == name:
            self.layers[-1] |= self.uncommitted
            self.ended()

    @rule(name=USERS)
    def rollback(self, name: str) -> None:
        self.user(name).rollback()
        if self.writer == name:
            self.ended()

    @rule(name=USERS)
    def close(self, name: str) -> None:
        self.user(name).close()
        if name != "session":
            del self.users[name]
        if self.writer == name:
            self.ended()

    @rule()
    def flush_objects(self) -> None:
        """The unit of work, which uses savepoints and RETURNING."""
        if self.writer not in (None, "session"):
            return
        row = f"object {next(self.numbers)}"
        self.user("session").add(Item(name=row))
        self.db.session.flush()
        self.writer = "session"
        self.uncommitted.add(row)

    @rule(commits=st.booleans())
    def work_in_a_thread(self, commits: bool) -> None:
        row = f"thread {next(self.numbers)}"
        refused = []

        def work() -> None:
            with self.app.app_context():
                try:
                    self.db.session.add(Item(name=row))
                    self.db.session.flush()
                except IsolationError as error:
                    refused.append(error)
                if commits and not refused:
                    self.db.session.commit()

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        assert bool(refused) == (self.writer is not None)
        if commits and not refused:
            self.layers[-1].add(row)

    def ended(self) -> None:
        self.writer = None
        self.uncommitted = set()

    # -- blocks --------------------------------------------------------------------

    @rule()
    def enter(self) -> None:
        if self.writer is None:
            block = isolate(self.app)
            block.__enter__()
            self.blocks.append(block)
            self.layers.append(set(self.layers[-1]))

    @rule()
    def leave(self) -> None:
        if len(self.blocks) > 1:
            self._leave()

    def _leave(self) -> None:
        self.blocks.pop().__exit__(None, None, None)
        self.layers.pop()
        self.ended()
        for name in set(self.users) - {"session"}:
            self.users.pop(name).close()

    @invariant()
    def only_users_have_connections(self) -> None:
        if self.blocks:
            (pool,) = self.db.snapshot().pools
            assert pool.used <= len(self.users)

    def teardown(self) -> None:
        with self.stack:
            while getattr(self, "blocks", ()):
                self._leave()
            if self.layers:
                (pool,) = self.db.snapshot().pools
                assert pool.used == 0
                found = self.db.session.scalars(NAMES).all()
                assert found == ["kept"]
                self.db.session.remove()
                assert self.content() == self.before


@pytest.mark.databases("sqlite", "postgresql", "mariadb")
def test_users_at_random(db_name, database):
    users: Any = Users
    if db_name != "sqlite":
        users = type("Users", (Users,), {"url": database.url})
    run_state_machine_as_test(
        users,
        settings=settings(
            max_examples=25 if db_name == "sqlite" else 10,
            stateful_step_count=30,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
