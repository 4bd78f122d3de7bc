"""Flask's documented proxies, by the objects behind them; and who has left them."""

from __future__ import annotations

import contextvars
import sys
import typing as t
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from contextvars import ContextVar
from functools import partial
from inspect import signature

from flask import Flask
from flask import globals as flask_globals
from flask import has_app_context
from flask import has_request_context
from flask.ctx import AppContext
from flask.globals import app_ctx
from flask.globals import request

if t.TYPE_CHECKING:
    from flask import Request

#: Return the current application context, on Flask 3.2 that of the request.
#: RuntimeError: there is none.
app_context: Callable[[], t.Any] = t.cast(t.Any, app_ctx)._get_current_object

#: Return the current request. RuntimeError: there is none.
current_request: Callable[[], Request] = t.cast(t.Any, request)._get_current_object

#: Whether an application context is active. Costs a sixth of asking the proxy.
has_context: Callable[[], bool] = has_app_context

#: Whether a request is being handled.
has_request: Callable[[], bool] = has_request_context


def _proxied_context() -> t.Any:
    return app_context() if has_context() else None


def _proxied_request() -> Request | None:
    return current_request() if has_request() else None


def _request_of_context() -> Request | None:
    context = _request_variable.get(None)
    return None if context is None else context.request


# Private names of Flask's. Asked in C, a variable answers in 21 ns; has_app_context()
# and the proxy take 128, and a request with one SELECT asks a dozen times: 25,000 of
# its 1,165,000 instructions. Without the names, or if they are something else, the
# proxies do.
_app_variable: t.Any = vars(flask_globals).get("_cv_app")
_request_variable: t.Any = vars(flask_globals).get("_cv_request")

#: Return the current application context, ``None`` if there is none.
current_context: Callable[[], t.Any] = (
    partial(_app_variable.get, None)
    if isinstance(_app_variable, ContextVar)
    else _proxied_context
)

#: Return the request that is being handled, ``None`` if there is none.
request_or_none: Callable[[], Request | None] = (
    _request_of_context
    if isinstance(_request_variable, ContextVar)
    else _proxied_request
)

#: Whether Flask gives each request a context of its own, as from 3.2 on.
REQUESTS_OWN_THEIR_CONTEXT = "ctx" in signature(Flask.do_teardown_appcontext).parameters

#: On a context: its request is answered. What is left of it is a streamed body.
ANSWERED = "_scopedsession_answered"

#: On a context: its response's status; and that a view or another function raised.
STATUS = "_scopedsession_status"
RAISED = "_scopedsession_raised"

#: Calls from :meth:`AppContext.pop` down to a teardown function, and some to spare.
_POP_DEPTH = 8


def context_torn_down() -> t.Any:
    """Return the context whose teardown functions are being called.

    With Flask 3.1 that need not be the current one. An abandoned stream is torn down
    where its generator is freed, in the midst of another request or thread maybe, and
    always with an error.
    """
    context = current_context()
    frame = sys._getframe(1)
    for _ in range(_POP_DEPTH):
        if frame.f_code is AppContext.pop.__code__:
            return frame.f_locals["self"]
        if frame.f_back is None:
            break
        frame = frame.f_back
    return context


# -- a thread that a stream was abandoned on -----------------------------------


def watch_requests(app: Flask, *, lost_work: bool) -> None:
    """Let no request begin inside the context of one that was answered before.

    With Flask 3.1 and older, the body of a streamed response that is neither closed
    nor freed leaves its context active on the thread. Each later request there would
    share it, and nothing that belongs to those would ever be torn down.

    :param lost_work: Remember how each request ends, too: teardown hears neither of
        ``abort(400)`` nor of an error that has a handler. Not by
        ``after_this_request()``, which would cost a request ten times as much.
    """
    inner, handle = app.wsgi_app, app.handle_user_exception

    def wsgi_app(environ: t.Any, start_response: t.Any) -> Iterable[bytes]:
        start = start_response
        if lost_work:

            def start(status: str, *args: t.Any) -> t.Any:
                context = current_context()
                if context is not None:
                    context.__dict__[STATUS] = status
                return start_response(status, *args)

        before = current_context()
        if before is not None and ANSWERED in before.__dict__ and may_be_left:
            inside = _without_flask()
            return _Body(inside, inside.run(inner, environ, start))
        try:
            return inner(environ, start)
        finally:
            left = current_context()
            if left is not None and left is not before and may_be_left:
                left.__dict__[ANSWERED] = True

    def handle_user_exception(*args: t.Any) -> t.Any:
        app_context().__dict__[RAISED] = True
        return handle(*args)

    may_be_left = not REQUESTS_OWN_THEIR_CONTEXT
    own: t.Any = app
    if lost_work or may_be_left:
        own.wsgi_app = wsgi_app
    if lost_work:
        own.handle_user_exception = handle_user_exception


def _without_flask() -> contextvars.Context:
    """Return the current context variables, less Flask's.

    Whoever leaves the abandoned context cannot end what is active in this one.
    """
    found = contextvars.Context()
    for variable, value in contextvars.copy_context().items():
        if not variable.name.startswith("flask."):
            found.run(variable.set, value)
    return found


class _Body:
    """A response's body, iterated in the context variables that it was made in."""

    def __init__(self, inside: contextvars.Context, body: Iterable[bytes]) -> None:
        self._inside = inside
        self._body = body
        self._iterator: Iterator[bytes] = inside.run(iter, body)

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        return self._inside.run(next, self._iterator)

    def close(self) -> None:
        close = getattr(self._body, "close", None)
        if close is not None:
            self._inside.run(close)
