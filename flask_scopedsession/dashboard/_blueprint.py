"""The routes of the dashboard, and who may see them."""

from __future__ import annotations

import inspect
import os
import typing as t
from collections.abc import Callable
from functools import cache

from flask import abort
from flask import Blueprint
from flask import current_app
from flask import jsonify
from flask import request
from flask import Response
from flask import url_for
from flask.typing import ResponseReturnValue
from jinja2 import Environment
from jinja2 import FileSystemLoader
from jinja2 import StrictUndefined
from werkzeug.exceptions import HTTPException
from werkzeug.local import LocalProxy
from werkzeug.security import safe_join
from werkzeug.wrappers import Response as AnyResponse

from ..errors import SetupError
from ..snapshot._json import clean

if t.TYPE_CHECKING:
    from flask.blueprints import BlueprintSetupState

    from .._extension import ScopedSession
    from ..snapshot import Survey

#: Seconds to wait for each worker, as the commands do.
_TIMEOUT = 2.0

_HERE = os.path.dirname(__file__)
_STATIC = os.path.join(_HERE, "static")

#: Not as the system has it: browsers refuse a script of another type.
_KINDS = {
    ".css": "text/css",
    ".js": "text/javascript",
    ".svg": "image/svg+xml",
    "": "text/plain",
}

#: Nothing inline, and nothing from elsewhere.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self';"
    " connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)

#: Tell what would have to be called, awaited or iterated over for an answer.
_UNFINISHED = (
    inspect.isawaitable,
    inspect.isroutine,
    inspect.isgenerator,
    inspect.isasyncgen,
)

_HEADERS = {
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


def dashboard(
    db: ScopedSession[t.Any], *, authorize: Callable[[], object] | None = None
) -> Blueprint:
    """Return a blueprint with a page that shows the pools and sessions of all workers.

    The page updates itself, and has what ``pool-status``, ``session-status`` and
    ``pool-advise`` print. Below it, ``status.json`` is ``pool-status --json``. Every
    worker gives the same answer, over the control sockets, and takes no connection for
    it.

    :param db: The extension, which the application that registers the blueprint uses.
    :param authorize: Called without arguments in each request of the blueprint. The
        request is served if it returns a true value, and refused with 403 if not. It
        can also call :func:`flask.abort`, or return a response, such as a redirect to
        the login. It can be a coroutine function. Without it, the dashboard is served
        in debug mode only.
    :raises SetupError: `authorize` is not a function; or, when the blueprint is
        registered, it is missing, and the application is not in debug mode.
    """
    if authorize is not None and not callable(authorize):
        raise SetupError(
            f"dashboard(authorize=...) must be a function, not {authorize!r}. It is"
            " called in each request, and returns whether the request is allowed."
        )
    blueprint = Blueprint("scopedsession_dashboard", __name__)

    @blueprint.record
    def registered(state: BlueprintSetupState) -> None:
        if authorize is None and not state.app.debug:
            raise SetupError(
                "dashboard(db) has no 'authorize', and the app"
                f" {state.app.name!r} is not in debug mode: everybody who can reach it"
                " would see its views, databases and workers. Call"
                " dashboard(db, authorize=may_see), where may_see() returns whether the"
                " current request is allowed."
            )

    @blueprint.before_request
    def admit() -> ResponseReturnValue | None:
        if authorize is None:
            return None if current_app.debug else abort(403)
        return _refusal(current_app.ensure_sync(authorize)())

    @blueprint.after_request
    def protect(response: Response) -> Response:
        for name, value in _HEADERS.items():
            response.headers.setdefault(name, value)
        return response

    # A prefix may have variables, which the page's links have as well.
    @blueprint.get("/")
    def index(**_: object) -> Response:
        return _page("page.html", _survey(db))

    @blueprint.get("/content")
    def content(**_: object) -> Response:
        return _page("content.html", _survey(db))

    @blueprint.get("/status.json")
    def status(**_: object) -> Response:
        return jsonify(_survey(db).to_dict())

    @blueprint.get("/assets/<path:filename>")
    def asset(filename: str, **_: object) -> AnyResponse:
        path = safe_join(_STATIC, filename)
        kind = _KINDS.get(os.path.splitext(filename)[1])
        if kind is None or path is None or not os.path.isfile(path):
            abort(404)
        with open(path, "rb") as file:
            response = current_app.response_class(file.read(), mimetype=kind)
        response.headers["Cache-Control"] = "private, no-cache"
        response.add_etag()
        return response.make_conditional(request)

    return blueprint


def _refusal(answer: object) -> ResponseReturnValue | None:
    """Return how `authorize` refuses a request, or ``None`` if it does not."""
    if isinstance(answer, LocalProxy):
        answer = answer._get_current_object()  # a proxy would count as awaitable
    # These are true, and refuse all the same, as in a view.
    if isinstance(answer, HTTPException):
        raise answer
    if isinstance(answer, AnyResponse) or (answer and isinstance(answer, tuple)):
        return current_app.make_response(t.cast("t.Any", answer))
    # Flask-Login's anonymous user is true, too.
    allowed = answer and getattr(answer, "is_authenticated", True)
    if any(
        is_unfinished(answer) or is_unfinished(allowed) for is_unfinished in _UNFINISHED
    ):
        # It is always true, and so would admit everybody.
        raise TypeError(
            f"The function 'authorize' of the dashboard returned {answer!r}, which"
            " nobody has called or awaited. Return whether the request is allowed."
        )
    return None if allowed else abort(403)


def _survey(db: ScopedSession[t.Any]) -> Survey:
    app = current_app._get_current_object()  # type: ignore[attr-defined]
    live = db._application_of(app).live
    # This may be the worker's first request, after which alone it would answer.
    live.begin(app)
    return live.survey(_TIMEOUT)


def _page(template: str, survey: Survey) -> Response:
    from ._content import Content
    from ._drawings import SCALE

    text = (
        _environment()
        .get_template(template)
        .render(content=Content(survey), scale=SCALE, link=_link)
    )
    response = current_app.response_class(text, mimetype="text/html")
    response.headers["Content-Security-Policy"] = _POLICY
    return response


def _link(endpoint: str, **values: t.Any) -> str:
    """Return the URL of a route of this blueprint, as it is registered."""
    return url_for(f".{endpoint}", **{**(request.view_args or {}), **values})


@cache
def _environment() -> Environment:
    """Return an environment of our own.

    The application's may have other settings, and context processors that use a
    database: with Flask-Login, `current_user`.
    """
    return Environment(
        loader=FileSystemLoader(os.path.join(_HERE, "templates")),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_printable,
    )


def _printable(value: object) -> object:
    """Strip what could change the text around it, except from markup."""
    return clean(value) if type(value) is str else value
