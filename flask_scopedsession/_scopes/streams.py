"""Streams that were abandoned, and contexts that serve for ever; Flask 3.1 and older.

There, a request inside an application context that is already active shares it. A
streamed body that is neither closed nor freed leaves its context active on the thread;
an application that pushes a context at import does so for the whole process.
"""

from __future__ import annotations

import contextvars
import sys
import typing as t
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator

from flask.ctx import AppContext

from .._runtime.logs import fields
from .._runtime.logs import log
from .._settings.values import is_on
from .context import current_context
from .context import current_request_context
from .context import REQUESTS_OWN_THEIR_CONTEXT
from .ledger import Ledger

if t.TYPE_CHECKING:
    from flask import Flask

#: On a context: its request is answered. What is left of it is a streamed body.
ANSWERED = "_scopedsession_answered"

#: On a context: how many requests it has served that did not push it.
SERVED = "_scopedsession_served"

#: Calls from :meth:`AppContext.pop` down to a teardown function, and some to spare.
_POP_DEPTH = 8


def context_torn_down() -> t.Any:
    """Return the context whose teardown functions are being called with an error.

    On Flask 3.1 and older that need not be the current one: an abandoned stream is torn
    down where its generator is freed, maybe within another request, and always with
    an error.
    """
    context = current_context(None)
    if REQUESTS_OWN_THEIR_CONTEXT:
        return context
    frame = sys._getframe(1)
    for _ in range(_POP_DEPTH):
        if frame.f_code is AppContext.pop.__code__:
            return frame.f_locals.get("self", context)
        if frame.f_back is None:
            break
        frame = frame.f_back
    return context


def watch_requests(app: Flask, ledger: Ledger) -> None:
    """Let no request begin inside the context of one that was answered before.

    Each later request on that thread would share it, and nothing that belongs to those
    would ever be torn down.
    """
    if REQUESTS_OWN_THEIR_CONTEXT:
        return
    inner = app.wsgi_app

    def wsgi_app(environ: t.Any, start_response: t.Any) -> Iterable[bytes]:
        before = current_context(None)
        if before is not None:
            if ANSWERED in before.__dict__:
                inside = _without_flask()
                body = inside.run(inner, environ, start_response)
                return _Body(inside, body) if _runs_code(body, environ) else body
            # A view that sends requests to its own application shares on purpose.
            if before.app is app and current_request_context(None) is None:
                _note_shared(ledger, before)
        try:
            return inner(environ, start_response)
        finally:
            left = current_context(None)
            if left is not None and left is not before:
                left.__dict__[ANSWERED] = True

    own: t.Any = app
    own.wsgi_app = wsgi_app


def requests_served(context: t.Any) -> int | None:
    """Return how many requests an active context has served, if it was not theirs."""
    return None if context is None else getattr(context, SERVED, None)


def _note_shared(ledger: Ledger, context: t.Any) -> None:
    """Count a request that shares a context; report the second, outside of tests."""
    served = context.__dict__[SERVED] = context.__dict__.get(SERVED, 0) + 1
    tests = served != 2 or is_on(context.app.config, "TESTING")
    if not tests and ledger.first_report("served"):
        log.warning(
            "A second request is served inside an application context that was active"
            " before it began. All such requests share one db.session, and it is not"
            " removed in between: one may commit what another left uncommitted. Remove"
            " the 'app.app_context().push()' at import, and wrap only the code that"
            " needs a context in 'with app.app_context():'.",
            extra=fields("shared_context"),
        )


def _without_flask() -> contextvars.Context:
    """Return the current context variables, less Flask's.

    Code that leaves the abandoned context cannot end what is active in this one.
    """
    found = contextvars.Context()
    for variable, value in contextvars.copy_context().items():
        if not variable.name.startswith("flask."):
            found.run(variable.set, value)
    return found


def _runs_code(body: Iterable[bytes], environ: t.Any) -> bool:
    """Whether a body is made as it is read.

    Servers send their own file wrapper in a faster way, and know the length of a list.
    """
    wrapper = environ.get("wsgi.file_wrapper")
    is_file = isinstance(wrapper, type) and isinstance(body, wrapper)
    return hasattr(body, "__next__") and not is_file


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
        close: Callable[[], None] | None = getattr(self._body, "close", None)
        if close is not None:
            self._inside.run(close)
