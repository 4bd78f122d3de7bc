"""A fair pool under every interleaving of a few threads, and under random ones.

Threads are switched at each lock, connect and close. The invariants are checked at
every pause at which no thread holds the pool's mutex.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

pytest.importorskip("greenlet")

import sqlalchemy.util.queue
from hypothesis import HealthCheck
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize
from hypothesis.stateful import precondition
from hypothesis.stateful import rule
from hypothesis.stateful import RuleBasedStateMachine
from inside import fair_queue as _fair
from inside import pool_class
from interleaving import Choices
from interleaving import GO
from interleaving import KILL
from interleaving import Killed
from interleaving import Schedule
from interleaving import Task
from interleaving import TIME_OUT
from sqlalchemy import exc as sa_exc
from sqlalchemy.pool import QueuePool

pytestmark = pytest.mark.slow

#: Where a waiting thread can be killed. Elsewhere, SQLAlchemy does not survive it.
WAITING = frozenset({"get", "take", "_wait", "_leave", "serve", "sleep"})

PoolClass: Any = pool_class(QueuePool, fair=True, tracked=True)


class Refused(Exception):
    """The database refuses a connection."""


class World:
    """A pool, the threads that use it, and its invariants."""

    def __init__(self, schedule: Schedule, refuse: int = 0, **options: Any) -> None:
        self.schedule = schedule
        self.refuse = refuse
        self.open = 0
        self.disposed = False
        self.disposing = 0
        self.pool = PoolClass(self.connect, **{"timeout": 1, **options})
        self.line: list[Any] = []

    def connect(self) -> Any:
        self.schedule.pause()
        if self.refuse:
            self.refuse -= 1
            raise Refused
        self.open += 1
        return Connection(self)

    @property
    def most(self) -> int:
        most: int = self.pool.size() + self.pool._max_overflow
        return most

    def check(self) -> None:
        pool, queue = self.pool, self.pool.queue
        if queue.mutex.owner is not None:
            return
        line = list(queue.line)
        # While a thread waits, no connection is available to a thread that comes later.
        assert not (line and queue.queue)
        if not self.disposing:
            assert not (line and pool._overflow < pool._max_overflow)
        # A thread at the front leaves with a connection, any other without one.
        left = [turn for turn in self.line if turn not in line]
        stayed = [turn for turn in self.line if turn in line]
        assert line[: len(stayed)] == stayed
        served = [turn for turn in left if turn.given is not None]
        before = [t for t in self.line if t not in left or t.given is not None]
        assert before[: len(served)] == served
        self.line = line
        assert pool.checkedin() <= pool.size()
        if not self.disposed:
            assert self.open <= self.most
            assert pool.overflow() <= pool._max_overflow

    def check_end(self, expected: tuple[type[BaseException], ...] = ()) -> None:
        """No connection is lost, and no thread left without one for no reason."""
        for task in self.schedule.tasks:
            if isinstance(task.error, sa_exc.TimeoutError):
                assert task.timed_out
            elif isinstance(task.error, Killed):
                assert task.killed
            elif task.error is not None and not isinstance(task.error, expected):
                raise task.error
        if not self.disposed:
            assert self.pool.checkedout() == 0
        assert not self.pool.queue.line


class Connection:
    """A DBAPI connection whose close() lets other threads run."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.is_open = True
        self.detached = False

    def rollback(self) -> None:
        assert self.is_open

    def close(self) -> None:
        assert self.is_open
        self.world.schedule.pause()
        self.is_open = False
        self.world.open -= not self.detached


def patch(monkeypatch: pytest.MonkeyPatch, schedule: Schedule) -> None:
    monkeypatch.setattr(_fair, "threading", schedule)
    monkeypatch.setattr(sqlalchemy.util.queue, "threading", schedule)


# -- every interleaving -----------------------------------------------------------


def visit(world: World) -> None:
    proxied = world.pool.connect()
    world.schedule.pause()
    proxied.close()


def twice(world: World) -> None:
    visit(world)
    visit(world)


def invalidate(world: World) -> None:
    proxied = world.pool.connect()
    proxied.invalidate()


def detach(world: World) -> None:
    proxied = world.pool.connect()
    connection = proxied.dbapi_connection
    # A detached connection no longer counts against the pool's limit.
    connection.detached = True
    world.open -= 1
    proxied.detach()
    proxied.close()


def dispose(world: World) -> None:
    world.disposed = True
    # SQLAlchemy's dispose() frees all slots without the mutex.
    world.disposing += 1
    world.pool.dispose()
    world.disposing -= 1


ONE = {"pool_size": 1, "max_overflow": 0}
SPARE = {"pool_size": 1, "max_overflow": 1}
WORKS: dict[str, tuple[dict[str, Any], list[Callable[[World], None]], int, int]] = {
    # name: options, the work of each thread, switches, faults
    "three": (ONE, [visit, visit, visit], 2, 0),
    "again": (ONE, [twice, twice], 3, 0),
    "overflow": (SPARE, [visit, visit, visit], 2, 0),
    "lifo": ({**SPARE, "use_lifo": True}, [visit, visit, visit], 2, 0),
    "refused": ({**ONE, "refuse": 1}, [visit, visit, visit], 2, 0),
    "twice refused": ({**ONE, "refuse": 2}, [visit, visit, visit], 2, 0),
    "refused overflow": ({**SPARE, "refuse": 1}, [visit, visit, visit], 2, 0),
    "invalidated": (ONE, [invalidate, visit, visit], 2, 0),
    "detached": (SPARE, [detach, visit, visit], 2, 0),
    "two, one fault": (ONE, [visit, visit], 3, 1),
    "one fault": (ONE, [visit, visit, visit], 1, 1),
    "two faults": (ONE, [visit, visit, visit], 0, 2),
    "fault, overflow": (SPARE, [visit, visit, visit], 1, 1),
    "never times out": ({**ONE, "timeout": None}, [visit, visit, visit], 1, 1),
    "disposed": (ONE, [visit, visit, dispose], 2, 0),
    "disposed, one fault": (ONE, [visit, visit, dispose], 1, 1),
}


@pytest.mark.parametrize("name", WORKS)
def test_in_every_order(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """No thread sleeps while a connection is available, and none is lost."""
    options, works, switches, faults = WORKS[name]
    choices, runs = Choices(), 0
    for _ in choices.runs():
        schedule = Schedule(WAITING, "_do_get")
        patch(monkeypatch, schedule)
        world = World(schedule, **options)
        for number, work in enumerate(works):
            schedule.spawn(f"{work.__name__} {number}", partial(work, world))
        try:
            schedule.run(choices, switches=switches, faults=faults, check=world.check)
            world.check_end((Refused,) * bool(options.get("refuse")))
        except BaseException as error:
            raise AssertionError(f"{error!r}: {' | '.join(schedule.log)}") from error
        runs += 1
    assert runs > 100


# -- random interleavings ---------------------------------------------------------


class Machine(RuleBasedStateMachine):
    """Up to six threads that run, time out or are killed at random."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = pytest.MonkeyPatch()
        self.schedule = Schedule(WAITING, "_do_get")
        patch(self.patches, self.schedule)

    @initialize(
        size=st.integers(1, 2),
        overflow=st.integers(0, 2),
        lifo=st.booleans(),
        timeout=st.sampled_from([1, None]),
    )
    def make(self, size: int, overflow: int, lifo: bool, timeout: int | None) -> None:
        options = {"pool_size": size, "max_overflow": overflow, "use_lifo": lifo}
        self.world = World(self.schedule, timeout=timeout, **options)

    @precondition(lambda self: len(self.living()) < 6)
    @rule(work=st.sampled_from([visit, twice, invalidate, detach]))
    def come(self, work: Callable[[World], None]) -> None:
        name = f"{work.__name__} {len(self.schedule.tasks)}"
        self.schedule.spawn(name, partial(work, self.world))

    @rule()
    def refuse_the_next(self) -> None:
        self.world.refuse = 1

    @precondition(lambda self: not self.world.disposed)
    @rule()
    def come_to_dispose(self) -> None:
        self.schedule.spawn("dispose", partial(dispose, self.world))

    def living(self) -> list[Task]:
        return [task for task in self.schedule.tasks if not task.done]

    @precondition(lambda self: self.schedule.options())
    @rule(
        which=st.integers(0, 20),
        action=st.sampled_from([GO] * 8 + [TIME_OUT, KILL]),
        steps=st.integers(1, 6),
    )
    def go_on(self, which: int, action: str, steps: int) -> None:
        options = self.schedule.options()
        task, first = options[which % len(options)]
        action = action if (task, action) in options else first
        for _ in range(steps):
            if (task, action) not in self.schedule.options():
                return
            self.schedule.do(task, action)
            self.world.check()
            action = GO

    def teardown(self) -> None:
        """Let all threads end; none can be blocked."""
        try:
            if hasattr(self, "world"):
                self.world.refuse = 0
                self.schedule.run(
                    self.first_of_all, switches=0, faults=0, check=self.world.check
                )
                self.world.check_end((Refused,))
        finally:
            self.patches.undo()

    class first_of_all:  # noqa: N801
        """Always pick the first thread."""

        @staticmethod
        def pick(count: int) -> int:
            return 0


TestRandomOrders = Machine.TestCase
TestRandomOrders.settings = settings(
    max_examples=150,
    stateful_step_count=60,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
