"""Find the application and its extension, and what asks its workers."""

from __future__ import annotations

import os
import re
import traceback
import typing as t
from collections.abc import Callable
from functools import partial

import click
from flask.cli import NoAppException
from flask.cli import ScriptInfo

from .._application import of
from .._format import some
from ..errors import ScopedSessionError
from ..errors import SetupError

if t.TYPE_CHECKING:
    from flask import Flask

    from .._application import Application
    from ..snapshot import Survey


#: Seconds to wait for each worker whose directory is suggested.
_PATIENCE = 0.5

#: The modules whose frames are above the application's own in a traceback.
_LOADING = (__name__, "flask.cli")

_PACKAGE = os.path.dirname(os.path.dirname(__file__)) + os.sep


def inquirer(
    ctx: click.Context, timeout: float, control_dir: str | None, bind: str | None
) -> Callable[[], Survey]:
    """Return what asks the workers; with a directory, the app is not loaded.

    :param timeout: Seconds to wait for each worker.
    :raises click.UsageError: There is no such bind or no application, or the
        directory has no name.
    """
    if control_dir is not None:
        if not control_dir:
            # It would be the working directory, and a shell variable may be unset.
            raise click.UsageError("--control-dir is empty. Name a directory.")
        from .._live.survey import survey_directory

        def ask_directory() -> Survey:
            survey = survey_directory(control_dir, timeout)
            refuse_unknown(bind, {p.bind for w in survey.workers for p in w.pools})
            return survey

        return ask_directory
    application = application_of(load_app(ctx))
    refuse_unknown(bind, application.all_engines)
    return partial(application.live.survey, timeout)


def refuse_unknown(bind: str | None, known: t.Collection[str]) -> None:
    """Raise a usage error for a bind that does not exist."""
    if bind is not None and known and bind not in known:
        raise click.UsageError(
            f"There is no bind {bind!r}. Binds: {', '.join(sorted(known))}."
        )


def load_app(ctx: click.Context) -> Flask:
    """Load the application; an error says why it failed, and how to go on.

    It has the traceback that other commands of Flask show, but no password.
    """
    try:
        return ctx.ensure_object(ScriptInfo).load_app()
    except NoAppException as error:
        # Flask adds the traceback of an import that failed.
        said = _without_passwords(error.format_message()).rstrip()
        raise click.UsageError(f"{said}\n\n{_hint(ctx)}") from None
    except click.ClickException:
        raise
    except ScopedSessionError as error:
        frames = traceback.extract_tb(error.__traceback__)
        # A line of the package would help nobody: name the line that called it.
        frame = [f for f in frames if not f.filename.startswith(_PACKAGE)][-1]
        raise click.ClickException(
            f"The application could not be loaded: {type(error).__name__}: {error}"
            f" (in {frame.filename}, line {frame.lineno})\n{_hint(ctx)}"
        ) from None
    except Exception as error:  # noqa: BLE001  # the application is the user's
        began = error.__traceback__
        while began and began.tb_frame.f_globals.get("__name__") in _LOADING:
            began = began.tb_next
        said = "".join(traceback.format_exception(type(error), error, began))
        raise click.ClickException(
            "The application could not be loaded:\n\n"
            f"{_without_passwords(said)}\n{_hint(ctx)}"
        ) from None


def _without_passwords(text: str) -> str:
    """Mask the passwords in a traceback: of URLs and connection strings."""
    value = r"""(['"]?\s*[=:]\s*)('.*?'|".*?"|[^\s,&;)]+)"""
    text = re.sub(r"://.*@", "://***@", text)
    return re.sub(rf"(?i)(passw\w*|pwd){value}", r"\1\2***", text)


def _hint(ctx: click.Context) -> str:
    """Say how to ask the workers without the application."""
    if ctx.command.name == "db-ping":
        return "db-ping needs the application's configuration."
    from .._control.directory import base_path
    from .._live.survey import survey_directory

    found: list[str] = []
    where = ""
    try:
        base = base_path()
        where = f", below {base}"
        for path in sorted(entry.path for entry in os.scandir(base) if entry.is_dir()):
            survey = survey_directory(path, _PATIENCE)
            pids = [str(worker.pid) for worker in survey.live]
            pids += [str(silent.pid) for silent in survey.silent]
            if pids:  # the directory's own name is a hash
                name = f"{survey.app}, " if survey.app else ""
                found.append(f"\n  {path}  ({name}pid {some(pids)})")
    except (OSError, ScopedSessionError):
        pass  # no worker of this user has ever run here
    place = ", such as" if found else f" (SCOPEDSESSION_CONTROL_DIR{where})"
    command = f"{ctx.command_path} --control-dir DIR"
    how = f"To ask the workers without the application: {command}"
    return how + place + "".join(found)


def application_of(app: Flask) -> Application:
    """Return what an application owns.

    :raises click.ClickException: It does not use this extension.
    """
    try:
        return of(app)
    except SetupError as error:
        raise click.ClickException(str(error)) from None
