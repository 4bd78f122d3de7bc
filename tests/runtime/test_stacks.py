"""Reading the stack of a thread must not keep its frames alive, nor fail."""

from __future__ import annotations

import gc
import sys
import threading
import typing as t
import weakref
from collections.abc import Callable
from collections.abc import Iterator
from pathlib import Path

import greenlet
import pytest

from flask_scopedsession._runtime import stacks as _stacks
from flask_scopedsession._runtime.places import Places
from flask_scopedsession._runtime.stacks import own_stack
from flask_scopedsession._runtime.stacks import stack_of_greenlet
from flask_scopedsession._runtime.stacks import stack_of_thread


def names(stack: _stacks.RawStack) -> list[str]:
    return [code.co_name for code, _ in stack]


class Waiting:
    """A thread that waits inside of nested calls."""

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
    """Its frames, innermost first, each with its current line."""
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


def test_a_thread_that_has_ended() -> None:
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
    """Records the thread that frees it."""

    freed_in: t.ClassVar[set[int]] = set()

    def __del__(self) -> None:
        self.freed_in.add(threading.get_ident())


def test_the_locals_of_a_thread_are_freed_in_that_thread() -> None:
    """Holding a frame would keep its locals alive after its thread has left it."""

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
def test_the_collector_is_off_during_a_reading(enabled: bool) -> None:
    """It runs finalizers, which let other threads run. Afterwards it is on again."""

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


def test_a_stack_that_may_not_be_read_is_empty_and_leaves_the_collector_on() -> None:
    """An audit hook of the application may forbid the reading."""

    def top() -> Iterator[object]:
        yield from ()
        raise RuntimeError("forbidden")

    assert _stacks._read(top()) == ()
    assert gc.isenabled()


def test_an_interrupt_of_a_reading_is_not_swallowed() -> None:
    def top() -> Iterator[object]:
        yield from ()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _stacks._read(top())
    assert gc.isenabled()


# Owners that have ended


def test_the_interpreter_has_the_names_that_stacks_are_read_with() -> None:
    """Without them, the tables would show no lines."""
    assert _stacks._current_frames is sys._current_frames
    assert _stacks.get_frame is sys._getframe


def test_without_those_names_stacks_are_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_stacks, "_current_frames", dict)
    monkeypatch.setattr(_stacks, "get_frame", None)
    assert stack_of_thread(threading.get_ident()) == own_stack() == ()


def test_greenlets_that_have_ended_have_no_stack() -> None:
    """Not started, ended, killed, collected, or left by a thread that has ended."""

    def pause() -> None:
        greenlet.getcurrent().parent.switch()

    never = greenlet.greenlet(pause)
    killed = greenlet.greenlet(pause)
    killed.switch()
    assert names(stack_of_greenlet(killed)) == ["pause"]
    killed.throw()
    left: list[greenlet.greenlet] = []

    def start_and_leave() -> None:
        left.append(greenlet.greenlet(pause))
        left[0].switch()

    thread = threading.Thread(target=start_and_leave)
    thread.start()
    thread.join(10)
    collected = weakref.ref(greenlet.greenlet(pause))
    gc.collect()
    assert collected() is None
    for gone in (never, killed, collected(), object()):
        assert stack_of_greenlet(gone) == ()
    # Its frames are still there until the greenlet is collected.
    assert names(stack_of_greenlet(left[0])) in ([], ["pause"])


def test_a_thread_may_end_at_any_moment_of_a_reading() -> None:
    def work() -> None:
        idents.append(threading.get_ident())

    idents: list[int] = [0]
    done = threading.Event()

    def start_again_and_again() -> None:
        while not done.is_set():
            thread = threading.Thread(target=work)
            thread.start()
            thread.join(10)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    starter = threading.Thread(target=start_again_and_again)
    starter.start()
    try:
        stacks = [stack_of_thread(idents[-1]) for _ in range(5_000)]
    finally:
        sys.setswitchinterval(interval)
        done.set()
        starter.join(10)
    assert () in stacks


def test_a_frame_that_has_ended() -> None:
    """It still has its code, and perhaps a line."""
    frames = [sys._getframe()]

    def leave_a_frame() -> None:
        frames.append(sys._getframe())

    leave_a_frame()
    assert names(_stacks._read(iter(frames[1:])))[0] == "leave_a_frame"
    code = leave_a_frame.__code__
    place = Places(str(Path(__file__).parent)).innermost([(code, None)])
    assert place == f"test_stacks.py:{code.co_firstlineno} leave_a_frame"


@pytest.mark.subprocess
def test_greenlets_of_gevent_that_end_while_their_stacks_are_read(
    run_script: Callable[..., t.Any],
) -> None:
    """The reader is a native thread, as the control thread is."""
    pytest.importorskip("gevent")
    result = run_script("""
        import gevent.monkey
        gevent.monkey.patch_all()
        import sys, weakref
        import gevent
        from flask_scopedsession._runtime.native import NativeThread, original
        from flask_scopedsession._runtime.stacks import stack_of_greenlet

        sys.setswitchinterval(1e-6)
        current, found, failures = [lambda: None], set(), []
        ended = []

        def read():
            try:
                while not ended:
                    found.add(bool(stack_of_greenlet(current[0]())))
            except BaseException as error:
                failures.append(error)

        def live():
            for _ in range(3):
                gevent.sleep(0)

        reader = NativeThread(read, "reader")
        number = 0
        # Until both kinds of moments were met, which a busy machine may delay.
        while number < 3000 or (len(found) < 2 and number < 300_000):
            number += 1
            one = gevent.spawn(live)
            current[0] = weakref.ref(one)
            gevent.sleep(0)
            if number % 3 == 0:
                one.kill()
            else:
                one.join()
            assert stack_of_greenlet(one) == ()
            del one
        ended.append(True)
        assert reader.join(10)
        assert not failures, failures
        assert found == {True, False}, "the test itself: no overlap"
        print("content")
    """)
    assert result.check().stdout == "content\n"
