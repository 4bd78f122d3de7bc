"""The statements of the current application context, for development.

Recorded only with ``SQLALCHEMY_RECORD_QUERIES``.
"""

from __future__ import annotations

import sys
import typing as t
from dataclasses import dataclass
from time import perf_counter

from flask import current_app
from flask import g
from flask import has_app_context
from sqlalchemy import event

if t.TYPE_CHECKING:
    from sqlalchemy import Engine

_RECORDED = "_sqlalchemy_queries"


@dataclass
class _QueryInfo:
    """One statement. Times are those of :func:`time.perf_counter`, in seconds."""

    statement: str | None
    parameters: t.Any
    start_time: float
    end_time: float
    location: str
    """Where the application sent it: ``path:line (function)``."""

    @property
    def duration(self) -> float:
        """Seconds between start and end."""
        return self.end_time - self.start_time


def get_recorded_queries() -> list[_QueryInfo]:
    """Return the statements that the current application context has executed.

    With ``SQLALCHEMY_RECORD_QUERIES``, the slow ones of a request::

        [each.statement for each in get_recorded_queries() if each.duration > 0.1]
    """
    found: list[_QueryInfo] = g.get(_RECORDED, [])
    return found


def listen(engine: Engine) -> None:
    """Begin to record the statements of an engine."""
    event.listen(engine, "before_cursor_execute", _note_start)
    event.listen(engine, "after_cursor_execute", _record)


def _note_start(*args: t.Any, **_: t.Any) -> None:
    args[4]._scopedsession_began = perf_counter()


def _record(
    connection: object,  # noqa: ARG001
    cursor: object,  # noqa: ARG001
    statement: str,
    parameters: object,  # noqa: ARG001
    context: t.Any,
    executemany: bool,  # noqa: ARG001
) -> None:
    if not has_app_context():
        return
    end = perf_counter()
    g.setdefault(_RECORDED, []).append(
        _QueryInfo(
            statement=statement,
            parameters=context.parameters,
            start_time=context._scopedsession_began,
            end_time=end,
            location=_location(current_app.import_name.partition(".")[0]),
        )
    )


def _location(package: str) -> str:
    """Return the innermost place in the code of the application's package."""
    frame = sys._getframe(1)
    found: t.Any = frame
    while found is not None:
        if found.f_globals.get("__name__", "").partition(".")[0] == package:
            code = found.f_code
            return f"{code.co_filename}:{found.f_lineno} ({code.co_name})"
        found = found.f_back
    return "<unknown>"
