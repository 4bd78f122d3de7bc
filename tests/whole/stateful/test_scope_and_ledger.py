"""Random interleavings of everything that opens, moves and ends, against a model.

The model knows which context has which session, and which connections are checked out.
Contexts form a stack, as in a thread. Each has at most one session, and a session has a
connection from its first statement to the end of its transaction.
"""

from __future__ import annotations

import gc
from contextlib import nullcontext
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from flask import Flask
from hypothesis import HealthCheck
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize
from hypothesis.stateful import invariant
from hypothesis.stateful import precondition
from hypothesis.stateful import rule
from hypothesis.stateful import RuleBasedStateMachine
from sqlalchemy import text
from sqlalchemy.pool import NullPool
from sqlalchemy.pool import QueuePool

from flask_scopedsession import ScopedSession
from flask_scopedsession.errors import SessionRemoved

pytestmark = pytest.mark.slow

SELECT = text("SELECT 1")


@dataclass
class Context:
    """The model's record of a pushed context."""

    real: Any
    session: Any = None
    holding: bool = False


@dataclass
class Out:
    """A connection checked out without a session."""

    real: Any
    counted: bool = True


class Machine(RuleBasedStateMachine):
    """One application in one thread."""

    pool_class: Any = QueuePool

    def __init__(self) -> None:
        super().__init__()
        self.folder = TemporaryDirectory()
        self.db = ScopedSession()
        self.app = Flask("stateful", root_path=self.folder.name)
        options: dict[str, Any] = {"poolclass": self.pool_class}
        if self.pool_class is QueuePool:
            # More than are ever checked out, so no checkout waits.
            options.update(pool_size=3, max_overflow=60)
        self.app.config.update(
            TESTING=True,
            SQLALCHEMY_DATABASE_URI=f"sqlite:///{Path(self.folder.name)}/x.db",
            SQLALCHEMY_ENGINE_OPTIONS=options,
            SCOPEDSESSION_LOST_WORK="ignore",
        )
        self.db.init_app(self.app)
        self.contexts: list[Context] = []
        self.out: list[Out] = []
        self.removed: list[Any] = []
        self.raising = [False]

        @self.app.teardown_appcontext
        def another_extension(error: BaseException | None) -> None:
            if self.raising[0]:
                self.raising[0] = False
                raise RuntimeError("another extension's teardown")

    @initialize()
    def begin(self) -> None:
        gc.disable()

    def teardown(self) -> None:
        gc.enable()
        while self.contexts:
            self.pop()
        for one in self.out:
            one.real.close()
        self.out.clear()
        gc.collect()
        self.as_the_model_says()
        self.db.dispose(self.app)
        self.folder.cleanup()

    # -- contexts --------------------------------------------------------------

    @precondition(lambda self: len(self.contexts) < 6)
    @rule()
    def push(self) -> None:
        context = self.app.app_context()
        context.push()
        self.contexts.append(Context(context))
        assert not self.db.session.registry.has()

    @precondition(lambda self: self.contexts)
    @rule(raises=st.booleans())
    def pop(self, raises: bool = False) -> None:
        context = self.contexts.pop()
        self.raising[0] = raises
        # pytest.raises() would keep the traceback, and so the context.
        with suppress(Exception) if raises else nullcontext():
            context.real.pop()
        self.raising[0] = False
        self.end(context)

    def end(self, context: Context) -> None:
        # Another teardown can raise before ours runs. The context is freed here,
        # and its session with it.
        context.real = None
        if context.session is not None:
            self.removed.append(context.session)
            del self.removed[:-5]

    # -- sessions --------------------------------------------------------------

    @precondition(lambda self: self.contexts)
    @rule()
    def use(self) -> None:
        top = self.contexts[-1]
        session = self.db.session()
        if top.session is None:
            assert all(session is not each.session for each in self.contexts)
            assert "owner" not in session.info
            session.info["owner"] = id(top)
            top.session = session
        assert session is top.session
        assert session.info["owner"] == id(top)

    @precondition(lambda self: self.contexts)
    @rule()
    def execute(self) -> None:
        self.use()
        self.contexts[-1].session.execute(SELECT)
        self.contexts[-1].holding = True

    @precondition(lambda self: self.contexts and self.contexts[-1].session)
    @rule(how=st.sampled_from(["commit", "rollback", "close", "invalidate"]))
    def end_transaction(self, how: str) -> None:
        getattr(self.contexts[-1].session, how)()
        self.contexts[-1].holding = False

    @precondition(lambda self: self.contexts and self.contexts[-1].holding)
    @rule()
    def fail(self) -> None:
        """After a database error and a rollback, the session can be used again."""
        session = self.contexts[-1].session
        with pytest.raises(Exception):  # noqa: B017
            session.execute(text("SELECT nonsense"))

    @precondition(lambda self: self.contexts)
    @rule(raises=st.booleans())
    def remove(self, raises: bool) -> None:
        top = self.contexts[-1]
        if raises and top.session is not None:

            def close() -> None:
                raise RuntimeError("close")

            top.session.close = close
            with pytest.raises(RuntimeError, match="close"):
                self.db.session.remove()
            del top.session.close
        else:
            self.db.session.remove()
        if top.session is not None:
            self.removed.append(top.session)
            del self.removed[:-5]
        top.session, top.holding = None, False
        assert not self.db.session.registry.has()

    @precondition(lambda self: self.removed)
    @rule(data=st.data())
    def touch_a_removed_one(self, data: st.DataObject) -> None:
        session = data.draw(st.sampled_from(self.removed))
        with pytest.raises(SessionRemoved):
            session.execute(SELECT)

    # -- connections -----------------------------------------------------------

    @property
    def engine(self) -> Any:
        return self.db._application_of(self.app).engines["default"]

    @precondition(lambda self: len(self.out) < 10)
    @rule()
    def check_out(self) -> None:
        connection = self.engine.raw_connection()
        self.out.append(Out(connection))

    @precondition(lambda self: self.out)
    @rule(
        data=st.data(), how=st.sampled_from(["close", "detach", "invalidate", "drop"])
    )
    def let_go(self, data: st.DataObject, how: str) -> None:
        one = data.draw(st.sampled_from(self.out))
        if how == "drop" and one.counted:
            # In a reference cycle, so only the garbage collector can return it.
            one.real.cycle = one.real
            self.out.remove(one)
            del one
            gc.collect()
        elif how == "detach" and one.counted:
            one.real.detach()
            one.counted = False
        elif how == "invalidate" and one.counted:
            one.real.invalidate()
            self.out.remove(one)
        else:
            one.real.close()
            self.out.remove(one)

    @rule()
    def dispose(self) -> None:
        self.engine.dispose()

    @rule()
    def collect(self) -> None:
        gc.collect()

    # -- what must hold --------------------------------------------------------

    @invariant()
    def as_the_model_says(self) -> None:
        worker = self.db._application_of(self.app).live.worker()
        (pool,) = worker.pools
        holding = sum(context.holding for context in self.contexts)
        assert pool.used == holding + sum(one.counted for one in self.out)
        assert len(pool.holders) == pool.used
        assert len(worker.sessions) == sum(
            context.session is not None for context in self.contexts
        )
        assert pool.pending == 0
        assert pool.open == pool.used + pool.idle
        assert pool.hold_s.count + pool.used == pool.checkouts_total
        assert pool.idle == self.really_idle()

    def really_idle(self) -> int:
        """Count the idle connections in the pool, without the ledger."""
        if self.pool_class is NullPool:
            return 0
        records = self.engine.pool._pool.queue
        return sum(record.dbapi_connection is not None for record in records)


class NullMachine(Machine):
    """The same without a pool."""

    pool_class = NullPool


SETTINGS = settings(
    max_examples=25,
    stateful_step_count=40,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)

TestQueuePool = Machine.TestCase
TestQueuePool.settings = SETTINGS
TestNullPool = NullMachine.TestCase
TestNullPool.settings = SETTINGS
