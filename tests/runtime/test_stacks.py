"""Reading where threads are must not touch what they hold."""

from __future__ import annotations

import gc
import sys
import threading
import typing as t
from collections.abc import Iterator

import greenlet
import pytest

from flask_scopedsession._runtime import stacks as _stacks
from flask_scopedsession._runtime.stacks import own_stack
from flask_scopedsession._runtime.stacks import stack_of_greenlet
from flask_scopedsession._runtime.stacks import stack_of_thread


def names(stack: _stacks.RawStack) -> list[str]:
    return [code.co_name for code, _ in stack]


class Waiting:
    """A thread that waits, some calls deep."""

    def __init__(self, depth: int = 0) -> None:
        self.there, self.go = threading.Event(), threading.Event()
        self.thread = threading.Thread(target=self.dive, args=(depth,))
        self.thread.start()
        assert self.there.wait(10)

    def dive(self, depth: int) -> None:
        if depth:
            return self.dive(depth - 1)
        self.there.set()
        self.go.wait(10)
        return None

    def __enter__(self) -> int:
        assert self.thread.ident is not None
        return self.thread.ident

    def __exit__(self, *_: object) -> None:
        self.go.set()
        self.thread.join(10)


def test_a_thread() -> None:
    """Its frames, innermost first, each with the line that it is at."""
    with Waiting() as ident:
        stack = stack_of_thread(ident)
    assert names(stack)[-4:] == ["dive", "run", "_bootstrap_inner", "_bootstrap"]
    code, line = next(each for each in stack if each[0].co_name == "dive")
    assert line == code.co_firstlineno + 4


def test_a_deep_stack_is_cut() -> None:
    with Waiting(depth=300) as ident:
        stack = stack_of_thread(ident)
    assert len(stack) == 200
    assert "wait" in names(stack)[:3]


def test_the_calling_thread() -> None:
    assert names(stack_of_thread(threading.get_ident()))[:3] == [
        "_read",
        "stack_of_thread",
        "test_the_calling_thread",
    ]
    assert names(own_stack(1))[0] == "test_the_calling_thread"


def test_a_thread_that_is_gone() -> None:
    with Waiting() as ident:
        pass
    assert stack_of_thread(ident) == ()


def test_greenlets() -> None:
    """A suspended one has a stack; one that runs or has ended has none."""
    main = greenlet.getcurrent()

    def body() -> None:
        seen.append(stack_of_greenlet(one))
        main.switch()

    seen: list[_stacks.RawStack] = []
    one = greenlet.greenlet(body)
    one.switch()
    assert seen == [()]
    assert names(stack_of_greenlet(one)) == ["body"]
    one.switch()
    assert stack_of_greenlet(one) == ()
    assert stack_of_greenlet(None) == ()


class Mine:
    """Tells which thread frees it."""

    freed_in: t.ClassVar[set[int]] = set()

    def __del__(self) -> None:
        self.freed_in.add(threading.get_ident())


def test_what_a_thread_holds_is_freed_by_that_thread() -> None:
    """A frame that is held while its thread goes on takes its locals along."""

    def innermost() -> None:
        mine = Mine()  # noqa: F841 - freed with the frame

    def work() -> None:
        while not done.is_set():
            innermost()

    done = threading.Event()
    Mine.freed_in.clear()
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    thread = threading.Thread(target=work)
    thread.start()
    try:
        assert thread.ident is not None
        for _ in range(30_000):
            stack_of_thread(thread.ident)
    finally:
        sys.setswitchinterval(interval)
        done.set()
        thread.join(10)
    assert Mine.freed_in == {thread.ident}


@pytest.mark.parametrize("enabled", [True, False])
def test_the_collector_does_not_come_in_between(enabled: bool) -> None:
    """It runs finalizers, which let others go on. Afterwards it is as it was."""

    def top() -> Iterator[object]:
        seen.append(gc.isenabled())
        yield sys._getframe()

    seen: list[bool] = []
    assert gc.isenabled()
    if not enabled:
        gc.disable()
    try:
        assert names(_stacks._read(top()))[0] == "top"
        assert gc.isenabled() is enabled
    finally:
        gc.enable()
    assert seen == [False]


def test_a_reading_that_fails_leaves_the_collector_on() -> None:
    """As when an audit hook of the application forbids it."""

    def top() -> Iterator[object]:
        yield from ()
        raise RuntimeError("forbidden")

    with pytest.raises(RuntimeError):
        _stacks._read(top())
    assert gc.isenabled()
