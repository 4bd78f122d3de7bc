"""Who is responsible: the request, command or thread behind a piece of work.

An owner is made once per context and kept on it. It holds references only;
names are resolved when somebody asks.
"""

from __future__ import annotations

import threading
import types
import typing as t
import weakref
from contextlib import suppress

import click

from ._context import app_context
from ._context import current_request
from ._native import current_greenlet
from ._native import native_thread_id

if t.TYPE_CHECKING:
    from flask import Request
    from werkzeug.routing import Rule

KEY = "_scopedsession_owner"


class Owner:
    """The request, command or thread that opened sessions and connections."""

    __slots__ = (
        "_context",
        "_request",
        "command",
        "ended",
        "greenlet",
        "ident",
        "method",
        "native_id",
        "rule",
        "thread",
    )

    def __init__(self, context: object | None, current: Request | None) -> None:
        self.ended = False
        self.ident = threading.get_ident()
        self.thread = threading.current_thread()
        self.native_id = native_thread_id()
        greenlet = current_greenlet()
        self.greenlet = None if greenlet is None else weakref.ref(greenlet)
        self._context = None if context is None else weakref.ref(context)
        self._request = None if current is None else weakref.ref(current)
        self.rule: Rule | None = None
        self.method: str | None = None
        self.command: str | None = None
        if current is not None:
            self.rule = current.url_rule
            self.method = current.method
        else:
            command = click.get_current_context(silent=True)
            if command is not None:
                # The whole path, less the program: "db upgrade", never arguments.
                self.command = command.command_path.partition(" ")[2] or None

    @property
    def url_rule(self) -> Rule | None:
        """The matched rule; a request may open its session before it is matched."""
        if self.rule is None and self._request is not None:
            current = self._request()
            if current is not None:
                self.rule = current.url_rule
        return self.rule

    @property
    def over(self) -> bool:
        """Whether the request or context has ended, also if nobody tore it down."""
        return (
            self.ended
            or (self._context is not None and self._context() is None)
            or (self._request is not None and self._request() is None)
        )

    @property
    def thread_alive(self) -> bool:
        """Whether the thread, or the greenlet where they serve as such, still runs."""
        if self.greenlet is not None:
            greenlet = self.greenlet()
            return greenlet is not None and not t.cast(t.Any, greenlet).dead
        return self.thread.is_alive()

    def serves(self, current: Request | None) -> bool:
        """Whether this is still the owner of what the calling thread does."""
        mine = None if self._request is None else self._request()
        return mine is current and self.ident == threading.get_ident()


def current_owner() -> Owner:
    """Return the owner of what the calling thread does right now."""
    try:
        context = app_context()
    except RuntimeError:
        return Owner(None, None)
    current: Request | None = None
    with suppress(RuntimeError):
        current = current_request()
    owner = context.__dict__.get(KEY)
    if owner is None or not owner.serves(current):
        owner = context.__dict__[KEY] = Owner(context, current)
    return t.cast(Owner, owner)


def end_owner(context: t.Any) -> None:
    """Note that the context's work is over; what it still holds, it leaked."""
    owner = context.__dict__.pop(KEY, None)
    if owner is not None:
        owner.ended = True


def frame_of(
    owner: Owner, frames: t.Mapping[int, types.FrameType]
) -> types.FrameType | None:
    """Return the innermost frame of a living owner's thread or greenlet.

    :param frames: :func:`sys._current_frames`, from before the owner was found to be
        alive: an ident is reused once its thread is gone.
    """
    if owner.greenlet is not None:
        # None for one that runs this very instant: then the thread's is its frame.
        suspended: types.FrameType | None = getattr(owner.greenlet(), "gr_frame", None)
        if suspended is not None:
            return suspended
    return frames.get(owner.native_id)
