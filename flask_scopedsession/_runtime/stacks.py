"""Where threads are: their stacks as code and lines, without a frame of theirs.

A frame keeps its locals alive. Were one held here while its thread goes on, they would
be freed here, in another thread than the one that uses them: sqlite3 of Python 3.10
crashes then, and whoever else counts on its own thread is betrayed. Between any two
instructions of a loop in Python that thread may be let go on; within one call of C code
it is not. So a stack is read in one.
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
from itertools import repeat
from itertools import starmap
from itertools import takewhile

#: A frame as it is cheap and safe to keep: resolved to text only when somebody asks.
RawFrame = tuple[types.CodeType, int]
RawStack = tuple[RawFrame, ...]

_MOST = 200
_MOST_OF_OURS = 30
_line: t.Callable[[object], RawFrame] = operator.attrgetter("f_code", "f_lineno")


def own_stack(depth: int = 2) -> RawStack:
    """Return the caller's stack, innermost first."""
    found: list[RawFrame] = []
    frame: types.FrameType | None = sys._getframe(depth)
    while frame is not None and len(found) < _MOST_OF_OURS:
        found.append((frame.f_code, frame.f_lineno))
        frame = frame.f_back
    return tuple(found)


def stack_of_thread(ident: int) -> RawStack:
    """Return where a thread is, innermost first, or nothing where there is no such.

    :param ident: Its key in :func:`sys._current_frames`.
    """
    return _read(map(dict.get, starmap(sys._current_frames, [()]), [ident]))


def stack_of_greenlet(greenlet: object | None) -> RawStack:
    """Return where a suspended greenlet is, or nothing where it runs or is gone."""
    if greenlet is None:
        return ()
    return _read(map(getattr, [greenlet], ["gr_frame"]))


def _read(top: t.Iterator[object]) -> RawStack:
    """Follow what `top` gives to the end of its stack, in one call of C code.

    The collector is off for as long: it would come in between, with finalizers that are
    Python, or let others go on.
    """
    found: collections.deque[RawFrame] = collections.deque()
    collects = gc.isenabled()
    off, on = starmap(gc.disable, [()]), starmap(gc.enable, [()] * collects)
    links: t.Iterator[t.Any] = chain(top, repeat("f_back", _MOST - 1))
    try:
        # As a loop: while frame: found.append(_line(frame)); frame = frame.f_back
        found.extend(
            filter(
                None,
                chain(off, map(_line, takewhile(bool, accumulate(links, getattr))), on),
            )
        )
    except BaseException:
        if collects:
            gc.enable()
        raise
    return tuple(found)
