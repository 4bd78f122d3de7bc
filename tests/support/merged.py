"""The rules announced for Flask 3.2, on older versions of Flask.

As in Flask 3.2, each request has its own context, even if another context is pushed.
A request that is pushed again has the same context. Every teardown function is called,
and their exceptions are raised as a group.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from flask import Flask
from flask.ctx import RequestContext


class _Request(RequestContext):
    def __init__(self, app: Flask, *args: Any, **kwargs: Any) -> None:
        super().__init__(app, *args, **kwargs)
        self._own = app.app_context()

    def push(self) -> None:
        self._own.push()
        super().push()

    def pop(self, *args: Any) -> None:
        exc = args[0] if args else sys.exc_info()[1]
        errors = _errors(super().pop, exc) + _errors(self._own.pop, exc)
        _raise(errors)


class Merged(Flask):
    """A Flask class that pushes and pops contexts as Flask 3.2 does."""

    def request_context(self, environ: Any) -> RequestContext:
        return _Request(self, environ)

    def do_teardown_appcontext(self, exc: Any = None) -> None:
        functions, self.teardown_appcontext_funcs = self.teardown_appcontext_funcs, []
        try:
            errors = _errors(super().do_teardown_appcontext, exc)
            for function in reversed(functions):
                errors += _errors(self.ensure_sync(function), exc)
        finally:
            self.teardown_appcontext_funcs = functions
        _raise(errors)


def _errors(function: Callable[[Any], Any], exc: Any) -> list[BaseException]:
    try:
        function(exc)
    except BaseException as error:  # noqa: BLE001 - raised by the caller
        return [error]
    return []


def _raise(errors: list[BaseException]) -> None:
    if errors and sys.version_info >= (3, 11):
        raise BaseExceptionGroup("teardown", errors)  # noqa: F821 - from 3.11 on
    if errors:
        raise errors[0]
