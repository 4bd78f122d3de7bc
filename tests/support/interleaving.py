"""Threads that a test switches at each lock, in one order or in every order.

A thread is a greenlet that pauses when it acquires or releases a lock, sleeps, connects
or closes. The test picks the thread that continues. Nothing really waits, so a deadlock
is found at once, and the same picks always give the same run.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from collections.abc import Iterator
from types import FrameType
from typing import Any

from greenlet import greenlet

#: The actions that a schedule can choose for a paused thread.
GO, TIME_OUT, KILL = "go", "time out", "kill"


class Killed(BaseException):
    """Not an ``Exception``, as greenlet's ``GreenletExit`` and gevent's ``Timeout``."""


class Stuck(AssertionError):
    """All unfinished threads are blocked."""


class Choices:
    """All sequences of picks, one per run."""

    def __init__(self) -> None:
        self._trail: list[tuple[int, int]] = []
        self._at = 0

    def pick(self, count: int) -> int:
        """Return a number from 0 to `count` - 1."""
        if self._at == len(self._trail):
            self._trail.append((0, count))
        picked, of = self._trail[self._at]
        assert of == count, "a run differed although the picks were the same"
        self._at += 1
        return picked

    def runs(self) -> Iterator[None]:
        """Yield before each run, until every sequence has been picked."""
        while True:
            self._at = 0
            yield
            while self._trail and self._trail[-1][0] + 1 == self._trail[-1][1]:
                self._trail.pop()
            if not self._trail:
                return
            picked, of = self._trail[-1]
            self._trail[-1] = (picked + 1, of)


class Task:
    """A thread of a schedule."""

    def __init__(self, name: str, work: Callable[[], Any]) -> None:
        self.name = name
        self.work = work
        self.ready: Callable[[], bool] = lambda: True
        self.sleeps = False
        self.may_be_killed = False
        self.killed = self.timed_out = False
        self.result: Any = None
        self.error: BaseException | None = None
        self.let = greenlet(self._run)

    def _run(self) -> None:
        try:
            self.result = self.work()
        except BaseException as error:  # noqa: BLE001 - the test looks at it
            self.error = error

    @property
    def done(self) -> bool:
        return bool(self.let.dead)


class Schedule:
    """The threads of a run, which also replaces the module ``threading`` for them.

    :param interruptible: The functions in which a thread may be killed, once each,
        and not while it handles another exception.
    :param called_by: The function that calls them.
    """

    TIMEOUT_MAX = threading.TIMEOUT_MAX

    def __init__(self, interruptible: frozenset[str], called_by: str) -> None:
        self.tasks: list[Task] = []
        self.current: Task | None = None
        self._last: Task | None = None
        self.log: list[str] = []
        self._interruptible = interruptible
        self._called_by = called_by

    def spawn(self, name: str, work: Callable[[], Any]) -> Task:
        """Add a thread, which starts when it is picked."""
        task = Task(name, work)
        self.tasks.append(task)
        return task

    def pause(
        self, ready: Callable[[], bool] = lambda: True, sleeps: bool = False
    ) -> str:
        """Let other threads run. Outside a thread, do nothing."""
        task = self.current
        if task is None:
            assert ready(), "the test itself would block"
            return GO
        task.ready, task.sleeps = ready, sleeps
        task.may_be_killed = not task.killed and self._in_interruptible_code()
        answer: str = task.let.parent.switch()
        if answer == KILL:
            task.killed = True
            raise Killed
        task.timed_out |= answer == TIME_OUT
        return answer

    def _in_interruptible_code(self) -> bool:
        if sys.exc_info()[0] is not None:
            return False
        frame: FrameType | None = sys._getframe(2)
        while frame is not None and frame.f_code.co_filename == __file__:
            frame = frame.f_back
        while frame is not None and frame.f_code.co_name in self._interruptible:
            frame = frame.f_back
        return frame is not None and frame.f_code.co_name == self._called_by

    def options(self) -> list[tuple[Task, str]]:
        """Return the possible next actions, those of the last thread first."""
        found = []
        for task in sorted(self.tasks, key=lambda task: task is not self._last):
            if not task.done:
                if task.ready():
                    found.append((task, GO))
                if task.sleeps and not task.ready():
                    found.append((task, TIME_OUT))
                if task.may_be_killed:
                    found.append((task, KILL))
        return found

    def do(self, task: Task, action: str = GO) -> None:
        """Let a thread continue until its next pause."""
        self.log.append(f"{task.name}: {action}")
        self._last = self.current = task
        try:
            task.let.switch(*[action] if task.let else [])
        finally:
            self.current = None

    def run(
        self, choices: Choices, *, switches: int, faults: int, check: Callable[[], None]
    ) -> None:
        """Run all threads to their end, as `choices` picks.

        :param switches: How often a thread that could continue is switched away from.
        :param faults: How many times a thread times out or is killed.
        :param check: Called at each pause.
        :raises Stuck: All unfinished threads are blocked.
        """
        while not all(task.done for task in self.tasks):
            last = self._last
            going = last is not None and not last.done and last.ready()
            allowed = [
                (task, action)
                for task, action in self.options()
                if (action == GO and (task is last or not going or switches > 0))
                or (action != GO and faults > 0)
            ]
            if not allowed:
                raise Stuck([task.name for task in self.tasks if not task.done])
            task, action = allowed[choices.pick(len(allowed))]
            switches -= action == GO and going and task is not last
            faults -= action != GO
            self.do(task, action)
            check()

    # -- threading -------------------------------------------------------------

    def RLock(self) -> RLock:  # noqa: N802
        return RLock(self)

    def Lock(self) -> Lock:  # noqa: N802
        return Lock(self)

    def Condition(self, lock: object) -> None:  # noqa: N802
        """Stand in for conditions that are created and never used."""

    def get_ident(self) -> int:
        return id(self.current)


class RLock:
    """A reentrant lock, with a pause before it is acquired and after its release."""

    def __init__(self, schedule: Schedule) -> None:
        self._schedule = schedule
        self.owner: Any = None
        self._depth = 0

    def __enter__(self) -> None:
        me = self._schedule.current or self
        if self.owner is not me:
            self._schedule.pause(lambda: self.owner is None)
            self.owner = me
        self._depth += 1

    def __exit__(self, *_: object) -> None:
        self._depth -= 1
        if not self._depth:
            self.owner = None
            self._schedule.pause()


class Lock:
    """A plain lock, on which a thread can sleep."""

    def __init__(self, schedule: Schedule) -> None:
        self._schedule = schedule
        self._taken = False

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        if self._taken:
            answer = self._schedule.pause(lambda: not self._taken, timeout >= 0)
            if answer == TIME_OUT:
                return False
        self._taken = True
        return True

    def release(self) -> None:
        self._taken = False
