"""How a request was answered, which teardown functions do not learn.

They are passed neither ``abort(400)`` nor an error that has a handler.
"""

from __future__ import annotations

import typing as t

from .context import current_context

if t.TYPE_CHECKING:
    from flask import Flask

#: On a context: the HTTP status of the last response.
STATUS = "_scopedsession_status"

#: On a context: an error handler answered the request.
HANDLED = "_scopedsession_handled"


def note_responses(app: Flask) -> None:
    """Keep each response's status on its context, and note that an error was handled.

    Both methods are documented as ones to override. Flask 3.2 gives them the context,
    too.
    """
    process, handle = app.process_response, app.handle_user_exception

    def process_response(*args: t.Any) -> t.Any:
        response = process(*args)
        context = current_context(None)
        if context is not None:
            setattr(context, STATUS, response.status_code)
        return response

    def handle_user_exception(*args: t.Any) -> t.Any:
        context = current_context(None)
        if context is not None:
            context.__dict__[HANDLED] = True
        return handle(*args)

    own: t.Any = app
    own.process_response = process_response
    own.handle_user_exception = handle_user_exception
