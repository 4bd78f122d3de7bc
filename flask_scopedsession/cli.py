"""The commands: ask, render, echo."""

from __future__ import annotations

import json
import os
import time
import traceback
import typing as t
from collections.abc import Callable
from dataclasses import replace

import click
from flask.cli import NoAppException
from flask.cli import ScriptInfo

from ._check import check
from ._check import EXIT_CRITICAL
from ._check import EXIT_INTERRUPTED
from ._check import EXIT_OK
from ._options import ADVICE_HELP
from ._options import advice_options
from ._options import PING_HELP
from ._options import POOL_HELP
from ._options import SERVER_OPTION
from ._options import SESSION_HELP
from ._options import status_options
from ._options import WAIT
from .errors import PingError
from .errors import ScopedSessionError

if t.TYPE_CHECKING:
    from flask import Flask

    from ._engines import PingResult
    from ._extension import ScopedSession
    from ._history import History
    from ._server_reading import ServerView
    from .snapshot import Survey

    #: What the servers say; ``None`` if they were not to be asked.
    Servers = tuple[ServerView, ...] | None

__all__ = [
    "COMMANDS",
    "add_commands",
    "db_ping",
    "pool_advise",
    "pool_status",
    "session_status",
]


@click.command(
    "pool-status",
    help=POOL_HELP,
    short_help="Show all database pools, and who holds connections.",
)
@SERVER_OPTION
@status_options
@click.pass_context
def pool_status(ctx: click.Context, /, server: bool, **options: t.Any) -> None:
    """Show every pool of every live worker."""

    def draw(survey: Survey, verbose: bool, history: History | None) -> str:
        from ._render_pools import render_pools

        return render_pools(survey, verbose=verbose, history=history)

    _status(ctx, draw, server=server, **options)


@click.command(
    "session-status",
    help=SESSION_HELP,
    short_help="Show all open database sessions, and whose they are.",
)
@status_options
@click.pass_context
def session_status(ctx: click.Context, /, **options: t.Any) -> None:
    """Show every open session of every live worker."""

    def draw(survey: Survey, verbose: bool, history: History | None) -> str:
        from ._render import render_sessions

        return render_sessions(survey, verbose=verbose, history=history)

    _status(ctx, draw, **options)


def _status(
    ctx: click.Context,
    draw: Callable[[Survey, bool, History | None], str],
    *,
    as_json: bool,
    watch: float | None,
    bind: str | None,
    pid: int | None,
    timeout: float,
    control_dir: str | None,
    verbose: bool,
    checking: bool,
    warn: dict[str, float],
    crit: dict[str, float],
    server: bool = False,
) -> None:
    if checking and watch is not None:
        raise click.UsageError("--check looks once, --watch again and again: use one.")
    if server and control_dir is not None:
        raise click.UsageError(
            "--server needs the application, which knows how to reach its databases;"
            " --control-dir does not load it. Use one."
        )
    from ._history import History
    from ._history import Look

    ask = _inquirer(ctx, timeout, control_dir, bind)
    ask_servers = _server_inquirer(ctx, timeout, bind) if server else None

    def look() -> Look:
        began = time.perf_counter()
        survey = ask()
        return Look(survey, ask_servers(survey, began) if ask_servers else None)

    def show(found: Look, history: History | None = None) -> str:
        everything, servers = found
        survey = narrowed(everything, bind, pid)
        if as_json:
            return _document(survey, servers, 2 if watch is None else None)
        if everything.live and not survey.workers and not survey.silent:
            pids = ", ".join(str(worker.pid) for worker in everything.live)
            return f"No worker of pid {pid} has answered. There are: {pids}.\n"
        return draw(survey, verbose, history) + _drawn(servers, verbose)

    if watch is not None:
        from ._screen import watch as watch_workers

        history = History(lambda survey: narrowed(survey, bind, pid), watch)
        try:
            watch_workers(look, show, history, watch, as_json=as_json)
        except KeyboardInterrupt:
            ctx.exit(EXIT_INTERRUPTED)
    found = look()
    click.echo(show(found), nl=False)
    if checking:
        verdict = check(narrowed(found.survey, bind, pid), warn, crit)
        for reason in verdict.reasons:
            click.echo(reason, err=True)
        ctx.exit(verdict.code)


def _document(survey: Survey, servers: Servers, indent: int | None) -> str:
    document = survey.to_dict()
    if servers is not None:
        document["servers"] = [view.to_dict() for view in servers]
    return json.dumps(document, indent=indent) + "\n"


def _drawn(servers: Servers, verbose: bool) -> str:
    if servers is None:
        return ""
    from ._render_server import render_servers

    return render_servers(servers, verbose=verbose)


def narrowed(survey: Survey, bind: str | None, pid: int | None) -> Survey:
    """Return only one bind's pools and sessions, or one process's, of a survey."""
    workers = survey.workers
    silent = survey.silent
    if pid is not None:
        workers = tuple(w for w in workers if w.pid == pid)
        silent = tuple(s for s in silent if s.pid == pid)
    configured = survey.configured
    if bind is not None:
        workers = tuple(
            replace(
                worker,
                pools=tuple(p for p in worker.pools if p.bind == bind),
                sessions=tuple(s for s in worker.sessions if s.name == bind),
            )
            for worker in workers
        )
        configured = tuple(p for p in configured if p.bind == bind)
    return replace(survey, workers=workers, silent=silent, configured=configured)


# -- the application -----------------------------------------------------------


def _inquirer(
    ctx: click.Context, timeout: float, control_dir: str | None, bind: str | None
) -> Callable[[], Survey]:
    """Return what asks the workers; with a directory, the app is not loaded."""
    if control_dir is not None:
        from ._live import survey_directory

        def ask_directory() -> Survey:
            survey = survey_directory(control_dir, timeout)
            _refuse_unknown(bind, {p.bind for w in survey.workers for p in w.pools})
            return survey

        return ask_directory
    app = _load_app(ctx)
    db = _extension_of(app)
    with app.app_context():
        _refuse_unknown(bind, db.engines)

    def ask() -> Survey:
        with app.app_context():
            return db.workers(timeout)

    return ask


def _server_inquirer(
    ctx: click.Context, timeout: float, bind: str | None
) -> Callable[[Survey, float], Servers]:
    """Return what asks the database servers, after the workers were asked."""
    from ._server_view import view_servers

    app = _load_app(ctx)
    state = _extension_of(app)._state_of(app)

    def ask(survey: Survey, since: float) -> Servers:
        with app.app_context():
            views = view_servers(
                state.engines, state.ledger.pools, survey, timeout=timeout, since=since
            )
        return tuple(view for view in views if bind is None or bind in view.binds)

    return ask


def _refuse_unknown(bind: str | None, known: t.Collection[str]) -> None:
    if bind is not None and known and bind not in known:
        raise click.UsageError(
            f"There is no bind {bind!r}; there are {', '.join(sorted(known))}."
        )


def _load_app(ctx: click.Context) -> Flask:
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
    if ctx.command is db_ping:
        return "db-ping needs the application's configuration."
    from ._control.directory import base_path

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


def _extension_of(app: Flask) -> ScopedSession:
    db = app.extensions.get("scopedsession")
    if db is None:
        raise click.ClickException(
            f"The app {app.name!r} does not use Flask-ScopedSession. Call"
            " db.init_app(app) in its factory."
        )
    return t.cast("ScopedSession", db)


# -- pool-advise ---------------------------------------------------------------


@click.command(
    "pool-advise",
    help=ADVICE_HELP,
    short_help="Say how large each database pool should be, and why.",
)
@advice_options
@click.pass_context
def pool_advise(
    ctx: click.Context,
    /,
    *,
    as_json: bool,
    bind: str | None,
    timeout: float,
    control_dir: str | None,
    wait: float,
    growth: float,
    max_connections: int | None,
    worker_timeout: float | None,
) -> None:
    """Say what the pools of the live workers should be."""
    from ._advice import advise
    from ._advice import Aims

    survey = _inquirer(ctx, timeout, control_dir, bind)()
    aims = Aims(wait, growth, worker_timeout)
    report = advise(survey, aims, lambda _: max_connections, bind)
    if as_json:
        click.echo(json.dumps(report.to_dict(), indent=2))
    else:
        from ._render_advice import render_advice

        click.echo(render_advice(narrowed(survey, bind, None), report), nl=False)


# -- db-ping -------------------------------------------------------------------


@click.command(
    "db-ping",
    help=PING_HELP,
    short_help="Test whether every database answers, and how fast.",
)
@click.option("--bind", metavar="NAME", help="Only this bind.")
@click.option(
    "--timeout",
    type=WAIT,
    default=5.0,
    show_default=True,
    metavar="SECONDS",
    help="How long to wait for each answer.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@click.pass_context
def db_ping(
    ctx: click.Context, /, bind: str | None, timeout: float, as_json: bool
) -> None:
    """Test every database with a connection of its own."""
    app = _load_app(ctx)
    db = _extension_of(app)
    with app.app_context():
        _refuse_unknown(bind, db.engines)
        names = db.engines if bind is None else (bind,)
        results = [_ping(db, name, timeout) for name in names]
    if as_json:
        pings = [{**each._asdict(), "url": each.url.to_dict()} for each in results]
        from .snapshot import SCHEMA

        document = {"schema": SCHEMA, "pings": pings}
        click.echo(json.dumps(document, indent=2))
    else:
        from ._render import render_pings

        click.echo(render_pings(results), nl=False)
    failed = any(each.error is not None for each in results)
    ctx.exit(EXIT_CRITICAL if failed else EXIT_OK)


def _ping(db: ScopedSession, name: str, timeout: float) -> PingResult:
    from ._engines import PingResult
    from ._engines import server_version
    from ._urls import safe_url

    engine = db.get_engine(name)
    url = safe_url(engine.url)
    try:
        latency = db.ping(name, timeout)
    except PingError as error:
        return PingResult(name, url, None, None, str(error))
    return PingResult(name, url, round(latency, 6), server_version(engine), None)


COMMANDS: tuple[click.Command, ...] = (
    *(pool_status, session_status, pool_advise, db_ping),
)


def add_commands(app: Flask) -> None:
    """Let the application's own command group have the commands."""
    for command in COMMANDS:
        app.cli.add_command(command)
