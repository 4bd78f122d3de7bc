"""Where threads are: their stacks as code and lines, without holding their frames.

Holding a frame of another thread keeps its locals alive. If that thread leaves the
frame meanwhile, they are destroyed in *this* thread, which crashes sqlite3 on Python
3.10. A loop in Python may release the GIL between any two bytecodes, so the walk is
composed of C iterators and runs in one call.
"""

from __future__ import annotations

import collections
import gc
import operator
import sys
import types
import typing as t
from itertools import accumulate
from itertools import chain
from itertools import islice
from itertools import repeat
from itertools import starmap
from itertools import takewhile

#: A frame's code and line: cheap and safe to keep. Made text only on request.
RawFrame = tuple[types.CodeType, int | None]
RawStack = tuple[RawFrame, ...]

#: Most frames of another thread's stack, and of the calling thread's.
_MOST = 200
_MOST_OF_OURS = 30

# CPython's. Without them, no lines are reported.
_current_frames: t.Any = getattr(sys, "_current_frames", dict)
get_frame: t.Any = getattr(sys, "_getframe", None)
_line: t.Callable[[object], RawFrame] = operator.attrgetter("f_code", "f_lineno")
_line_of_coroutine: t.Callable[[object], RawFrame] = operator.attrgetter(
    "cr_frame.f_code", "cr_frame.f_lineno"
)


def own_stack(depth: int = 2) -> RawStack:
    """Return the calling thread's stack, innermost first.

    :param depth: How many frames to leave out; 1 leaves out this function's.
    """
    frame = None if get_frame is None else get_frame(depth)
    return tuple(
        (each.f_code, each.f_lineno)
        for each in islice(own_frames(frame), _MOST_OF_OURS)
    )


def own_frames(frame: t.Any) -> t.Iterator[t.Any]:
    """Yield a frame of the calling thread, and those that it was called from.

    SQLAlchemy runs the synchronous code of an async session in a greenlet, whose
    outermost frame does not know what it was called from.
    """
    while frame is not None:
        yield frame
        frame = frame.f_back
    greenlet = sys.modules.get("greenlet")
    parent = None if greenlet is None else greenlet.getcurrent().parent
    frame = getattr(parent, "gr_frame", None)
    while frame is not None:
        yield frame
        frame = frame.f_back


def stack_of_thread(ident: int) -> RawStack:
    """Return where a thread is, innermost first; nothing if it has ended.

    :param ident: Its key in :func:`sys._current_frames`.
    """
    return _read(map(dict.get, starmap(_current_frames, [()]), [ident]))


def stack_of_greenlet(greenlet: object | None) -> RawStack:
    """Return where a suspended greenlet is; nothing if it runs or has ended."""
    return _read(map(getattr, [greenlet], ["gr_frame"], [None]))


def stack_of_task(task: t.Any, ident: int) -> RawStack:
    """Return where a task of asyncio is, innermost first; nothing if it has ended.

    One that waits is where its coroutine awaits another, and so on, down to what is
    none.

    :param ident: The thread of its event loop, a key in :func:`sys._current_frames`.
    """
    coroutine = None if task is None else task.get_coro()
    if getattr(coroutine, "cr_running", False):
        return stack_of_thread(ident)
    inwards = _read(iter([coroutine]), "cr_await", _line_of_coroutine)
    return inwards[::-1]


def _read(
    top: t.Iterator[object],
    link: str = "f_back",
    line: t.Callable[[object], RawFrame] = _line,
) -> RawStack:
    """Follow what `top` yields to the end of its stack, in one call of C code.

    The collector is off meanwhile: it would run finalizers in Python, and so let
    other threads run. Returns nothing if the stack cannot be read, as when an audit
    hook of the application forbids it.
    """
    found: collections.deque[RawFrame] = collections.deque()
    collects = gc.isenabled()
    off, on = starmap(gc.disable, [()]), starmap(gc.enable, [()] * collects)
    links: t.Iterator[t.Any] = chain(top, repeat(link, _MOST - 1))
    frames = takewhile(bool, accumulate(links, getattr))
    try:
        # As a loop: while frame: found.append(line(frame)); frame = frame.f_back
        found.extend(filter(None, chain(off, map(line, frames), on)))
    except BaseException as error:
        if collects:
            gc.enable()
        if isinstance(error, AttributeError):
            return tuple(found)  # a coroutine awaits what is none
        if not isinstance(error, Exception):
            raise
        return ()
    return tuple(found)
