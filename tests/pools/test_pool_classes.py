"""The account of every pool class, whatever happens to its connections."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from collections.abc import Iterator
from contextlib import contextmanager
from contextlib import suppress
from pathlib import Path
from typing import Any
from typing import ClassVar

import pytest
import sqlalchemy
from flask import Flask
from hypothesis import given
from hypothesis import HealthCheck
from hypothesis import settings
from hypothesis import strategies as st
from sqlalchemy import create_engine
from sqlalchemy import exc as sa_exc
from sqlalchemy.pool import AssertionPool
from sqlalchemy.pool import NullPool
from sqlalchemy.pool import QueuePool
from sqlalchemy.pool import SingletonThreadPool
from sqlalchemy.pool import StaticPool

from flask_scopedsession import ScopedSession
from flask_scopedsession._pools.tracked_pool import base_class
from flask_scopedsession.snapshot import PoolSnapshot

#: Several users may share a connection of these.
SHARED = (StaticPool, SingletonThreadPool)


#: SQLAlchemy 2.0.0 itself fails in the finalizer of a shared connection whose
#: record is gone, which Python prints and ignores.
LATE_FINALIZER = (
    [
        pytest.mark.filterwarnings(
            "ignore:.*_ConnectionRecord.checkout:pytest.PytestUnraisableExceptionWarning"
        )
    ]
    if sqlalchemy.__version__ == "2.0.0"
    else []
)


class Counted(sqlite3.Connection):
    """A connection of which it is known whether it is open."""

    open: ClassVar[set[Counted]] = set()

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.open.add(self)

    def close(self) -> None:
        self.open.discard(self)
        super().close()


class Story:
    """An app with a pool, and the connections that are checked out of it."""

    def __init__(self, db: Any) -> None:
        self.db = db
        self.out: list[Any] = []
        self.detached: list[Any] = []
        self.taken = 0

    @property
    def pool(self) -> PoolSnapshot:
        (pool,) = self.db.snapshot().pools
        assert isinstance(pool, PoolSnapshot)
        return pool

    def take(self, _: int) -> None:
        with suppress(AssertionError, sa_exc.TimeoutError):
            self.out.append(self.db.engine.raw_connection())
            self.taken += 1

    def give_back(self, number: int) -> None:
        # AssertionPool refuses a connection that was out when it was disposed of.
        with suppress(AssertionError):
            self.out.pop(number).close()

    def write(self, number: int) -> None:
        with suppress(sqlite3.Error):  # a table in use; closed by dispose()
            self.out[number].cursor().execute("CREATE TABLE item (id INTEGER)")

    def _forget(self, number: int) -> Any:
        """Return a proxied connection, which a thread may have several times."""
        raw = self.out[number]
        self.out = [each for each in self.out if each is not raw]
        return raw

    def invalidate(self, number: int) -> None:
        with suppress(AssertionError):
            self._forget(number).invalidate()

    def invalidate_softly(self, number: int) -> None:
        # StaticPool forgets such a connection without closing it.
        if base_class(self.db.engine.pool) is not StaticPool:
            self.out[number].invalidate(soft=True)

    def detach(self, number: int) -> None:
        raw = self._forget(number)
        self.detached.append(raw)
        with suppress(AssertionError):
            raw.detach()

    def lose(self, number: int) -> None:
        """Let a connection be freed."""
        # AssertionPool may raise then, which would be lost.
        if base_class(self.db.engine.pool) is not AssertionPool:
            del self.out[number]

    def dispose(self, _: int) -> None:
        self.db.engine.dispose()

    def check(self, *, shared: bool) -> None:
        pool = self.pool
        detached = [each.dbapi_connection for each in self.detached]
        opened = [each for each in Counted.open if each not in detached]
        assert pool.open == len(opened)
        assert 0 <= pool.used <= pool.open
        assert pool.used + pool.idle == pool.open
        if not shared:
            held = {id(each.dbapi_connection) for each in self.out}
            still_open = len(held & {id(each) for each in opened})
            assert pool.used == len(pool.holders) == still_open
            assert pool.checkouts_total == self.taken
            assert pool.hold_s.count == self.taken - still_open
        if not self.out:
            assert pool.used == 0


STEPS: list[Callable[[Story, int], None]] = [
    *(Story.take, Story.give_back, Story.write, Story.invalidate),
    *(Story.invalidate_softly, Story.detach, Story.lose, Story.dispose),
]


@contextmanager
def a_story(base: Any, ready_made: bool, folder: Path) -> Iterator[Story]:
    path = folder / "x.db"
    url = f"sqlite:///{path}"
    options: dict[str, Any] = {
        "poolclass": base,
        "connect_args": {"factory": Counted, "check_same_thread": False},
    }
    if base is QueuePool:
        options.update(pool_size=2, max_overflow=1, pool_timeout=0)
    if ready_made:
        options = {"pool": create_engine(url, **options).pool}
    app = Flask("shop", root_path=str(folder), static_folder=None)
    app.config["SQLALCHEMY_DATABASE_URI"] = url
    app.config["SQLALCHEMY_ENGINE_OPTIONS"] = options
    db: Any = ScopedSession()
    db.init_app(app)
    with app.app_context():
        story = Story(db)
        try:
            yield story
        finally:
            story.out.clear()
            db.dispose()
            for each in list(Counted.open):
                each.close()
            path.unlink(missing_ok=True)


@pytest.mark.parametrize("ready_made", [False, True])
@pytest.mark.parametrize(
    "base",
    [
        QueuePool,
        NullPool,
        AssertionPool,
        *(pytest.param(base, marks=LATE_FINALIZER) for base in SHARED),
    ],
)
@settings(
    deadline=None,
    max_examples=60,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    steps=st.lists(
        st.tuples(st.sampled_from(STEPS), st.integers(0, 5)), min_size=1, max_size=12
    )
)
def test_any_story(
    base: Any, ready_made: bool, steps: list[Any], short_tmp: Path
) -> None:
    """After each step, open and used are what the driver and the test know."""
    with a_story(base, ready_made, short_tmp) as story:
        for step, number in [(Story.take, 0), *steps]:
            if step in (Story.take, Story.dispose):
                step(story, number)
            elif story.out:
                step(story, number % len(story.out))
            story.check(shared=base in SHARED)
        while story.out:
            story.give_back(0)
            story.check(shared=base in SHARED)
