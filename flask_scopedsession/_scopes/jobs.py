"""The Celery task, APScheduler job or Socket.IO event that runs, by name.

Nothing here imports these libraries, and nothing runs for a scope of a request, except
one look at whether Flask-SocketIO is there. What a library does not tell has no name.
"""

from __future__ import annotations

import re
import sys
import typing as t
import weakref
from collections.abc import Iterator
from collections.abc import Mapping
from contextlib import suppress

from .._runtime.stacks import get_frame

_APSCHEDULER = "apscheduler.executors.base"
_SOCKETIO = "flask_socketio"

#: An ID that APScheduler has made up, as the application gave none.
_RANDOM = "[0-9a-f]{32}"


def running_job() -> tuple[str, weakref.ref[t.Any] | None] | None:
    """Name the task or job that the calling thread runs.

    :return: The name, and a weak reference to the run if there is an object for it.
    """
    # A name is not worth an error, whatever is in modules of these names.
    with suppress(Exception):
        task = getattr(sys.modules.get("celery"), "current_task", None)
        if task:
            return f"task {task.name}", weakref.ref(task.request)
        for found in _locals_in(_APSCHEDULER):
            job = found["job"]
            given = not re.fullmatch(_RANDOM, job.id) and job.id != job.name
            return f"job {job.name}" + f" ({job.id})" * given, None
    return None


def event_of(request: t.Any) -> str | None:
    """Name the Socket.IO event for which Flask-SocketIO made a request."""
    event = getattr(request, "event", None)
    name = event.get("message") if isinstance(event, dict) else None
    return f"event {name}" if isinstance(name, str) else None


def is_error_handled() -> bool:
    """Whether an event ends now that raised an error, which a handler was given.

    Flask-SocketIO calls the application's error handlers within the event's context,
    which ends as if nothing was wrong.
    """
    return any(found.get("err_handler") for found in _locals_in(_SOCKETIO))


def _locals_in(module: str) -> Iterator[Mapping[str, t.Any]]:
    """Yield the variables of the functions of a module that the thread is in."""
    names = getattr(sys.modules.get(module), "__dict__", None)
    frame = None if names is None or get_frame is None else get_frame(1)
    while frame is not None:
        if frame.f_globals is names:
            yield frame.f_locals
        frame = frame.f_back
