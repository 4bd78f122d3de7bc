"""Who is responsible: the request, command or thread behind a piece of work.

An owner is made once per context and kept on it. It holds references only;
names are resolved when somebody asks.
"""

from __future__ import annotations

import os
import sys
import threading
import typing as t
import weakref
from threading import get_ident

import click

from .._runtime.native import current_greenlet
from .._runtime.native import native_thread_id
from .._runtime.stacks import RawStack
from .._runtime.stacks import stack_of_greenlet
from .._runtime.stacks import stack_of_thread
from .context import current_context
from .context import request_or_none

if t.TYPE_CHECKING:
    from flask import Request
    from werkzeug.routing import Rule

KEY = "_scopedsession_owner"

#: Where a thread's innermost line is while it waits for others to do something.
_WAITING = tuple(
    os.path.join(os.path.dirname(threading.__file__), *parts)
    for parts in (
        ("threading.py",),
        ("queue.py",),
        ("selectors.py",),
        ("asyncio", ""),
        ("concurrent", "futures", ""),
    )
)
_GEVENT = f"{os.sep}gevent{os.sep}"


class Owner:
    """The request, command or thread that opened sessions and connections."""

    __slots__ = (
        "_context",
        "_request",
        "command",
        "ended",
        "greenlet",
        "hold",
        "ident",
        "method",
        "native_id",
        "rule",
        "task",
        "thread",
    )

    def __init__(self, context: object | None, current: Request | None) -> None:
        self.ended = False
        self.hold: t.Any = None
        """The last connection that it checked out, if it still has it."""
        self.ident = get_ident()
        self.thread = threading.current_thread()
        self.native_id = self.ident
        self.greenlet: weakref.ref[object] | None = None
        if "gevent.monkey" in sys.modules:
            # Only there do these differ; to ask everywhere costs 0.2 µs per request.
            self.native_id = native_thread_id()
            greenlet = current_greenlet()
            self.greenlet = None if greenlet is None else weakref.ref(greenlet)
        self.task: weakref.ref[t.Any] | None = None
        asyncio = sys.modules.get("asyncio")
        # get_running_loop() raises where there is none, which costs ten times as much.
        if asyncio is not None and asyncio._get_running_loop() is not None:
            task = asyncio.current_task()
            self.task = None if task is None else weakref.ref(task)
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


def current_owner(context: t.Any = None) -> Owner:
    """Return the owner of what the calling thread does right now.

    :param context: The current application context, where the caller has it.
    """
    if context is None:
        context = current_context()
        if context is None:
            return Owner(None, None)
    current = request_or_none()
    owner: Owner | None = context.__dict__.get(KEY)
    if owner is not None and owner.ident == get_ident():
        serves = owner._request
        if (None if serves is None else serves()) is current:
            return owner
    owner = context.__dict__[KEY] = Owner(context, current)
    return owner


class Responsible(t.NamedTuple):
    """Who it was: a view by its endpoint, method and rule, or else a command."""

    endpoint: str | None = None
    method: str | None = None
    rule: str | None = None
    command: str | None = None


def responsible(owner: Owner) -> Responsible:
    """Name the view or the command."""
    rule = owner.url_rule
    if rule is None:
        return Responsible(None, owner.method, None, owner.command)
    return Responsible(rule.endpoint, owner.method, rule.rule, owner.command)


def described(owner: Owner | None) -> str:
    """Name the view, the command or else the thread, for a log record."""
    if owner is None:
        return "a scope"
    rule = owner.url_rule
    if rule is not None:
        return f"{owner.method} {rule.rule} -> {rule.endpoint}"
    return owner.command or owner.thread.name


def stack_of(owner: Owner) -> RawStack:
    """Return where a living owner's thread or greenlet is, innermost first.

    Ask whether it is alive afterwards: an ident is reused once its thread is gone.
    """
    if owner.greenlet is not None:
        suspended = stack_of_greenlet(owner.greenlet())
        if suspended:
            return suspended
    return stack_of_thread(owner.native_id)


def at_work(owner: Owner) -> bool:
    """Whether an owner's thread goes on with what it did, now, as we look.

    Not when it has ended, when its asyncio task has, or when it waits for others: in
    a join, for the result of a future, for an event, or idle in a pool or event loop.
    """
    stack = stack_of(owner)
    if not owner.thread_alive or not stack:
        return False
    task = None if owner.task is None else owner.task()
    if owner.task is not None and (task is None or task.done()):
        return False
    places = (code.co_filename for code, _ in stack)
    innermost = next((each for each in places if _GEVENT not in each), "")
    return not innermost.startswith(_WAITING)


def is_inside(owner: Owner, filename: str) -> bool:
    """Whether an owner's thread is in a call of code in `filename`."""
    stack = stack_of(owner)
    return owner.thread_alive and any(code.co_filename == filename for code, _ in stack)
