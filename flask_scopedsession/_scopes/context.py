"""The current application context and request, without the cost of Flask's proxies."""

from __future__ import annotations

import typing as t
from collections.abc import Callable
from contextvars import ContextVar
from inspect import signature

from flask import Flask
from flask import globals as flask_globals
from flask import has_app_context
from flask import has_request_context
from flask.globals import app_ctx
from flask.globals import request

if t.TYPE_CHECKING:
    from flask import Request


class Context(t.Protocol):
    """What is used of an application context or a request context."""

    __dict__: dict[str, t.Any]
    app: t.Any


#: Whether each request has an application context of its own (Flask 3.2 and newer).
#: Before, a request inside a pushed context shares that one.
REQUESTS_OWN_THEIR_CONTEXT = "ctx" in signature(Flask.do_teardown_appcontext).parameters


def _proxied_context(default: None) -> t.Any:
    if not has_app_context():
        return default
    return t.cast(t.Any, app_ctx)._get_current_object()


def _request_context_by_proxy(default: None) -> t.Any:
    # The request object stands in for its context: both live equally long.
    if not has_request_context():
        return default
    return t.cast(t.Any, request)._get_current_object()


def _variable(name: str) -> t.Any:
    found = vars(flask_globals).get(name)
    return found if isinstance(found, ContextVar) else None


_app_variable = _variable("_cv_app")
_request_variable = _variable("_cv_request")

#: Return the current application context, or else the argument, which is ``None``. This
#: is ``get()`` of Flask's context variable: a function around it would take longer than
#: the look itself. The variable is private; without it, the documented proxy is asked.
current_context: Callable[[None], t.Any] = (
    _proxied_context if _app_variable is None else _app_variable.get
)


def _no_request_context(default: None) -> None:
    """Each request has a context of its own, so nothing else tells them apart."""
    return default


#: Whether that is a request context; else it is the request itself.
HAS_REQUEST_CONTEXT = _request_variable is not None

#: Return what lives exactly as long as the current request, or ``None``; on Flask 3.2
#: always ``None``, because there the application context does.
current_request_context: Callable[[None], t.Any] = (
    _no_request_context
    if REQUESTS_OWN_THEIR_CONTEXT
    else _request_context_by_proxy
    if _request_variable is None
    else _request_variable.get
)


def current_request() -> Request | None:
    """Return the request that is being handled, or ``None``."""
    if _request_variable is not None:
        context = _request_variable.get(None)
        return None if context is None else t.cast("Request", context.request)
    if not has_request_context():
        return None
    return t.cast("Request", t.cast(t.Any, request)._get_current_object())
