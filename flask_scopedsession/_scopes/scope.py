"""The scope record: the user of sessions and connections, and its open sessions.

One record per application context, made when the context first needs a session or a
connection. It keeps references only; names are resolved when somebody asks.
"""

from __future__ import annotations

import sys
import threading
import typing as t
import weakref
from collections import Counter
from contextlib import suppress
from threading import get_ident
from time import perf_counter

import click

from .._runtime.native import current_greenlet
from .._runtime.native import native_thread_id
from .._runtime.stacks import RawStack
from .._runtime.stacks import stack_of_greenlet
from .._runtime.stacks import stack_of_task
from .._runtime.stacks import stack_of_thread
from .context import current_request
from .context import current_request_context
from .context import HAS_REQUEST_CONTEXT
from .context import REQUESTS_OWN_THEIR_CONTEXT
from .jobs import event_of
from .jobs import running_job

if t.TYPE_CHECKING:
    from sqlalchemy.orm import Session
    from werkzeug.routing import Rule

    from .many_statements import Texts

_modules = sys.modules

#: Where a context, and on Flask 3.1 and older a request context, keeps its scope.
SCOPE = "_scopedsession_scope"


class Responsible(t.NamedTuple):
    """A view by its endpoint, method and rule, or else a command or a job."""

    endpoint: str | None = None
    method: str | None = None
    rule: str | None = None
    command: str | None = None
    job: str | None = None

    @property
    def name(self) -> str | None:
        """The view, the job or the command."""
        return self.endpoint or self.job or self.command


class Scope(weakref.ref[t.Any]):
    """A weak reference to what the scope lasts as long as, and all that it owns.

    That is an application context, or for other kinds of scopes an :class:`Anchor`.
    If it is freed without a teardown, the reference's callback closes the sessions.
    """

    __slots__ = (
        "ended",
        "greenlet",
        "ident",
        "last",
        "lost",
        "method",
        "native_id",
        "parent",
        "request",
        "rule",
        "run",
        "sessions",
        "since",
        "statements",
        "task",
        "texts",
        "thread",
        "work",
    )

    sessions: dict[str, Session]
    """By the name of the bind."""
    since: float
    """When the scope began, as :func:`time.perf_counter` has it."""
    ident: int
    """Of the thread, or under gevent of the greenlet, that began it."""
    native_id: int
    """The thread's key in :func:`sys._current_frames`."""
    thread: threading.Thread
    greenlet: weakref.ref[object] | None
    task: weakref.ref[object] | None
    """The task of asyncio, for what async sessions use."""
    request: t.Any
    """A weak reference to the request context, where that is not the context."""
    rule: Rule | None
    method: str | None
    work: Responsible | None
    """The command, the job or the event; else it is the request's view, if any."""
    run: weakref.ref[t.Any] | None
    """A weak reference to what lives as long as the task runs that `work` names."""
    ended: bool
    statements: int
    """How many it has sent."""
    texts: Texts | None
    """Those that it has sent, if they are counted one by one."""
    lost: Counter[str] | None
    """What its async sessions have lost, by model or table."""
    last: t.Any
    """The slot of the connection that was checked out last."""
    parent: Scope | None
    """The context's own scope, where this one is of another thread or request that
    uses the context. That one has the sessions."""

    @property
    def over(self) -> bool:
        """Whether its context or request has ended, also without a teardown."""
        return (
            self.ended
            or self() is None
            or (self.request is not None and self.request() is None)
        )

    @property
    def thread_alive(self) -> bool:
        """Whether the thread, or the greenlet where they serve as such, still runs."""
        if self.greenlet is None:
            return self.thread.is_alive()
        greenlet: t.Any = self.greenlet()
        return greenlet is not None and not greenlet.dead

    @property
    def url_rule(self) -> Rule | None:
        """The matched rule. A request may open its session before it is matched."""
        if self.rule is None and self.request is not None and not self.ended:
            context = self.request()
            if context is not None:
                request = context.request if HAS_REQUEST_CONTEXT else context
                self.rule = request.url_rule
        return self.rule


class Anchor:
    """What a thread or the user's key holds, so that a scope ends with it."""

    __slots__ = ("__weakref__", "scope")

    scope: Scope


class _Endless:
    """What a scope refers to that lasts until nobody has it any more."""

    __slots__ = ("__weakref__",)


#: Not the thread, which the scope itself keeps: Python 3.11 crashes if the last
#: reference to an object is in an attribute of a weak reference to that object.
_ENDLESS = _Endless()


def new_scope(anchor: object, gone: t.Callable[[t.Any], None] | None = None) -> Scope:
    """Return a record of what the calling thread does now.

    :param gone: Called when `anchor` is freed.
    """
    scope = Scope(anchor, gone)
    scope.since = perf_counter()
    scope.sessions = {}
    scope.ident = scope.native_id = get_ident()
    scope.thread = threading.current_thread()
    scope.greenlet = scope.parent = scope.last = scope.texts = scope.run = None
    scope.task = scope.lost = None
    scope.ended = False
    scope.statements = 0
    scope.request = scope.work = scope.rule = scope.method = None
    if "gevent.monkey" in _modules:
        scope.native_id = native_thread_id()
        greenlet = current_greenlet()
        scope.greenlet = None if greenlet is None else weakref.ref(greenlet)
    current = current_request_context(None)
    if current is None:
        request = current_request() if REQUESTS_OWN_THEIR_CONTEXT else None
    else:
        scope.request = weakref.ref(current)
        request = current.request if HAS_REQUEST_CONTEXT else current
    if request is None:
        name_job(scope)
        if scope.work is None:
            scope.work = _command()
    else:
        rule = scope.rule = request.url_rule
        scope.method = request.method
        if "flask_socketio" in _modules:
            name_event(scope, request)
        if rule is None:
            name_job(scope)
    return scope


def name_event(scope: Scope, request: t.Any) -> None:
    """Name the Socket.IO event, if the request is not one of HTTP."""
    event = event_of(request)
    if event is not None:
        scope.work = Responsible(job=event)


def name_job(scope: Scope) -> None:
    """Name the task or job that the calling thread runs, if the scope has no name."""
    job = running_job() if scope.work is None else None
    if job is not None:
        scope.work, scope.run = Responsible(job=job[0]), job[1]


def _command() -> Responsible | None:
    command = click.get_current_context(silent=True)
    # The whole path without the program: "db upgrade", never arguments.
    path = "" if command is None else command.command_path.partition(" ")[2]
    return Responsible(command=path) if path else None


def is_user(scope: Scope) -> bool:
    """Whether a context's scope is that of the calling thread and request."""
    return scope.ident == get_ident() and is_of_current_request(scope)


def is_of_current_request(scope: Scope) -> bool:
    """Whether a scope is that of the current request, or of none if there is none."""
    request = scope.request
    # It is of none once that has ended: what follows in the context is not its doing.
    own = None if request is None else request() or scope
    return own is current_request_context(None)


def visitor(parent: Scope | None) -> Scope:
    """Return a record of the calling thread where no context's scope fits.

    There is no context, or another thread or request uses that of `parent`.
    """
    if parent is None:
        return new_scope(_ENDLESS)
    # A request on Flask 3.1 or older inside a context that was pushed before.
    request = current_request_context(None)
    kept: dict[str, t.Any] = {} if request is None else request.__dict__
    known: Scope | None = kept.get(SCOPE)
    if known is not None and is_user(known):
        return known
    scope = new_scope(_ENDLESS if request is None else request)
    scope.parent = parent
    kept[SCOPE] = scope
    return scope


def responsible(scope: Scope) -> Responsible:
    """Name the view, the command or the job."""
    if scope.work is None and not scope.ended and "flask_socketio" in _modules:
        # Flask's own session, opened before the event is known, may have used ours.
        context = scope() if scope.request is None else scope.request()
        with suppress(RuntimeError):  # Flask 3.2: a context without a request
            name_event(scope, getattr(context, "request", context))
    if scope.work is not None:
        # A context that outlasts the task that used it first is that of others, too.
        lasts = scope.run is None or scope.ended or scope.run() is not None
        return scope.work if lasts else Responsible()
    rule = scope.url_rule
    if rule is None:
        return Responsible(None, scope.method)
    # Werkzeug takes any hashable for an endpoint, such as a tuple.
    return Responsible(str(rule.endpoint), scope.method, rule.rule)


def described(scope: Scope) -> str:
    """Name the view, the command, the job or else the thread, for a log record."""
    who = responsible(scope)
    if who.endpoint is not None:
        return f"{who.method} {who.rule} -> {who.endpoint}"
    return who.name or scope.thread.name


def stack_of(scope: Scope) -> RawStack:
    """Return where a living scope's task, greenlet or thread is, innermost first.

    Ask whether it is alive afterwards: an ident is reused once its thread is gone.
    """
    if scope.task is not None:
        return stack_of_task(scope.task(), scope.native_id)
    if scope.greenlet is not None:
        suspended = stack_of_greenlet(scope.greenlet())
        if suspended:
            return suspended
    return stack_of_thread(scope.native_id)
