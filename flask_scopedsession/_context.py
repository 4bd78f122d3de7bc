"""Flask's documented proxies, by the objects behind them."""

from __future__ import annotations

import typing as t
from collections.abc import Callable

from flask.globals import app_ctx
from flask.globals import request

if t.TYPE_CHECKING:
    from flask import Request

#: Return the current application context, on Flask 3.2 that of the request.
#: RuntimeError: there is none.
app_context: Callable[[], t.Any] = t.cast(t.Any, app_ctx)._get_current_object

#: Return the current request. RuntimeError: there is none.
current_request: Callable[[], Request] = t.cast(t.Any, request)._get_current_object


def has_context() -> bool:
    """Whether an application context is active."""
    return bool(t.cast(t.Any, app_ctx))
