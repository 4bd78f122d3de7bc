"""Find the application and its extension, and what asks its workers."""

from __future__ import annotations

import os
import traceback
import typing as t
from collections.abc import Callable

import click
from flask.cli import NoAppException
from flask.cli import ScriptInfo

from ..errors import ScopedSessionError

if t.TYPE_CHECKING:
    from flask import Flask

    from .._extension import ScopedSession
    from ..snapshot import Survey


def inquirer(
    ctx: click.Context, timeout: float, control_dir: str | None, bind: str | None
) -> Callable[[], Survey]:
    """Return what asks the workers; with a directory, the app is not loaded."""
    if control_dir is not None:
        from .._live.survey import survey_directory

        def ask_directory() -> Survey:
            survey = survey_directory(control_dir, timeout)
            refuse_unknown(bind, {p.bind for w in survey.workers for p in w.pools})
            return survey

        return ask_directory
    app = load_app(ctx)
    db = extension_of(app)
    with app.app_context():
        refuse_unknown(bind, db.engines)

    def ask() -> Survey:
        with app.app_context():
            return db.workers(timeout)

    return ask


def refuse_unknown(bind: str | None, known: t.Collection[str]) -> None:
    """Refuse a bind that does not exist."""
    if bind is not None and known and bind not in known:
        raise click.UsageError(
            f"There is no bind {bind!r}; there are {', '.join(sorted(known))}."
        )


def load_app(ctx: click.Context) -> Flask:
    """Load the application; an error is one line, with the way out."""
    try:
        return ctx.ensure_object(ScriptInfo).load_app()
    except NoAppException as error:
        # Flask adds the traceback of an import that failed.
        problem = error.format_message().partition("\n")[0].rstrip(":")
        raise click.UsageError(f"{problem}\n{_way_out(ctx)}") from None
    except click.ClickException:
        raise
    except Exception as error:  # noqa: BLE001  # the factory is the user's
        # The text of an error may hold a URL, unless it is one of ours.
        said = f": {error}" if isinstance(error, ScopedSessionError) else ""
        frame = traceback.extract_tb(error.__traceback__)[-1]
        raise click.ClickException(
            f"The application could not be loaded: {type(error).__name__}{said}"
            f" (in {frame.filename}, line {frame.lineno})\n{_way_out(ctx)}"
        ) from None


def _way_out(ctx: click.Context) -> str:
    """Say how to ask the workers without the application."""
    if ctx.command.name == "db-ping":
        return "db-ping needs the application's configuration."
    from .._control.directory import base_path

    found: list[str] = []
    where = ""
    try:
        base = base_path()
        where = f", below {base}"
        found = sorted(entry.path for entry in os.scandir(base) if entry.is_dir())
    except (OSError, ScopedSessionError):
        pass  # there is none
    if found:
        where = f", such as {' or '.join(found[:3])}"
    return (
        f"The workers can be asked without it: {ctx.command_path} --control-dir DIR"
        f" (SCOPEDSESSION_CONTROL_DIR{where})"
    )


def extension_of(app: Flask) -> ScopedSession:
    """Return the extension of an application."""
    db = app.extensions.get("scopedsession")
    if db is None:
        raise click.ClickException(
            f"The app {app.name!r} does not use Flask-ScopedSession. Call"
            " db.init_app(app) in its factory."
        )
    return t.cast("ScopedSession", db)
