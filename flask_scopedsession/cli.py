"""The commands: ask, render, echo."""

from __future__ import annotations

import json
import os
import time
import typing as t
from collections.abc import Callable
from dataclasses import replace

import click
from flask.cli import ScriptInfo

from ._check import check
from ._check import CRIT_DEFAULT
from ._check import EXIT_CRITICAL
from ._check import parse_thresholds
from ._check import WARN_DEFAULT
from .errors import PingError
from .snapshot import Survey

if t.TYPE_CHECKING:
    from flask import Flask

    from ._extension import ScopedSession

__all__ = ["COMMANDS", "add_commands", "db_ping", "pool_status", "session_status"]

Renderer = t.Callable[..., None]


class _Thresholds(click.ParamType):
    name = "metric=number,..."

    def convert(
        self,
        value: t.Any,
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> t.Any:
        try:
            return parse_thresholds(value) if isinstance(value, str) else value
        except ValueError as error:
            self.fail(str(error), param, ctx)


def _status_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add what both status commands understand."""
    thresholds = _Thresholds()
    for option in reversed(
        (
            click.option(
                "--json", "as_json", is_flag=True, help="Print one JSON document."
            ),
            click.option(
                "--watch",
                type=click.FloatRange(min=0.1),
                is_flag=False,
                flag_value=2.0,
                default=None,
                metavar="[SECONDS]",
                help="Look again every SECONDS (2) until interrupted; with --json,"
                " one document a line.",
            ),
            click.option("--bind", metavar="NAME", help="Only this bind."),
            click.option("--pid", type=int, help="Only the worker of this process id."),
            click.option(
                "--timeout",
                type=click.FloatRange(min=0, min_open=True),
                default=2.0,
                show_default=True,
                metavar="SECONDS",
                help="How long to wait for each worker.",
            ),
            click.option(
                "--control-dir",
                metavar="DIR",
                help="Look for workers here, and do not load the application.",
            ),
            click.option(
                "--verbose", "-v", is_flag=True, help="Show everything, row by row."
            ),
            click.option(
                "--check",
                "checking",
                is_flag=True,
                help="Say by the exit code whether all is well: 0 yes, 3 warning,"
                " 4 critical, 5 some workers are silent, 69 no worker, 77 no"
                " permission.",
            ),
            click.option(
                "--warn",
                type=thresholds,
                default=WARN_DEFAULT,
                show_default=True,
                help="Warn when a metric reaches its number.",
            ),
            click.option(
                "--crit",
                type=thresholds,
                default=CRIT_DEFAULT,
                show_default=True,
                help="Critical when a metric reaches its number.",
            ),
        )
    ):
        command = option(command)
    return command


@click.command("pool-status")
@_status_options
@click.pass_context
def pool_status(ctx: click.Context, /, **options: t.Any) -> None:
    """Show every database connection pool of every running worker, and who holds
    its connections.

    Asks the live workers on this host; opens no connection of its own.

    \b
    PID      the worker's process id
    STATE    ok; saturated: every connection is in use; wedged: somebody
             waits, and nothing came back for as long; stopped by a signal;
             unresponsive; gone: killed, this is its last snapshot
    BIND     which of the application's databases
    POOL     the pool's class
    USED     connections that are checked out, of at most MAX
    IDLE     connections that are open and free
    WAITING  threads that wait for a connection
    MAXWAIT  how long the first of them has been waiting
    HOLD95   95 % of all checkouts lasted no longer than this
    TIMEOUTS checkouts that gave up, since the worker started

    Below: totals per database, with the most its workers may open; then what
    needs an eye: who holds connections (by view and line) and who waits.
    """
    from ._render import render_pools

    _status(ctx, render_pools, **options)


@click.command("session-status")
@_status_options
@click.pass_context
def session_status(ctx: click.Context, /, **options: t.Any) -> None:
    """Show every open database session of every running worker, and which request,
    command or thread it belongs to.

    Asks the live workers on this host; opens no connection of its own.

    \b
    PID      the worker's process id
    SCOPE    the request (method, rule and endpoint), command or thread
    BIND     the bind the session was opened for
    AGE      how long the session has been open
    STATE    idle; begun: a transaction without a connection yet; holding: a
             connection is at work; idle in transaction; needs rollback
    CONN     the connections it holds, by number
    NEW, DEL objects to be inserted, and to be deleted, at the next flush
    IDENTITY objects it has loaded
    IDLE-TX  how long it has been idle in its transaction
    """
    from ._render import render_sessions

    _status(ctx, render_sessions, **options)


def _status(
    ctx: click.Context,
    render: Renderer,
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
) -> None:
    ask = _inquirer(ctx, timeout, control_dir)

    def look() -> Survey:
        return narrowed(ask(), bind, pid)

    def show(survey: Survey) -> None:
        if as_json:
            indent = None if watch else 2
            click.echo(json.dumps(survey.to_dict(), indent=indent))
        else:
            render(survey, verbose=verbose)

    if watch is not None and not checking:
        _watch(look, show, watch, clear=not as_json)
        return
    survey = look()
    show(survey)
    if checking:
        verdict = check(survey, warn, crit)
        for reason in verdict.reasons:
            click.echo(reason, err=True)
        ctx.exit(verdict.code)


def _watch(
    look: Callable[[], Survey],
    show: Callable[[Survey], None],
    seconds: float,
    *,
    clear: bool,
) -> None:
    try:
        while True:
            survey = look()
            if clear and os.isatty(1):
                click.clear()
            show(survey)
            time.sleep(seconds)
    except KeyboardInterrupt:
        return


def _inquirer(
    ctx: click.Context, timeout: float, control_dir: str | None
) -> Callable[[], Survey]:
    """Return what asks the workers; with a directory, the app is not loaded."""
    from ._live import survey_directory

    if control_dir is not None:
        return lambda: survey_directory(control_dir, timeout)
    app = _load_app(ctx)
    db = _extension_of(app)

    def ask() -> Survey:
        with app.app_context():
            return db.workers(timeout)

    return ask


def _load_app(ctx: click.Context) -> Flask:
    info = ctx.ensure_object(ScriptInfo)
    try:
        return info.load_app()
    except click.ClickException:
        raise
    except Exception as error:
        raise click.ClickException(
            f"The application could not be loaded ({type(error).__name__})."
            " The workers can be asked without it: --control-dir DIR."
        ) from error


def _extension_of(app: Flask) -> ScopedSession:
    db = app.extensions.get("scopedsession")
    if db is None:
        raise click.ClickException(
            f"The app {app.name!r} does not use Flask-ScopedSession. Call"
            " db.init_app(app) in its factory."
        )
    return t.cast("ScopedSession", db)


def narrowed(survey: Survey, bind: str | None, pid: int | None) -> Survey:
    """Return only one bind's pools and sessions, or one process's, of a survey."""
    workers = survey.workers
    silent = survey.silent
    if pid is not None:
        workers = tuple(w for w in workers if w.pid == pid)
        silent = tuple(s for s in silent if s.pid == pid)
    if bind is not None:
        workers = tuple(
            replace(
                worker,
                pools=tuple(p for p in worker.pools if p.bind == bind),
                sessions=tuple(s for s in worker.sessions if s.name == bind),
            )
            for worker in workers
        )
    return replace(survey, workers=workers, silent=silent)


@click.command("db-ping")
@click.option("--bind", metavar="NAME", help="Only this bind.")
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
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
    """Test whether every database answers, with one connection outside the pool.

    \b
    BIND     which of the application's databases
    LATENCY  from connecting to the answer
    VERSION  the server's version

    Exits with 0 when all have answered, else with 4.
    """
    from ._engines import server_version
    from ._reading import safe_url

    app = _load_app(ctx)
    db = _extension_of(app)
    failed = False
    rows = []
    with app.app_context():
        if bind is not None and bind not in db.engines:
            raise click.UsageError(
                f"There is no bind {bind!r}; there are {sorted(db.engines)}."
            )
        for name, engine in db.engines.items():
            if bind not in (None, name):
                continue
            row: dict[str, t.Any] = {"bind": name, "url": safe_url(engine.url)}
            try:
                row["latency_s"] = round(db.ping(name, timeout), 6)
                row["version"] = server_version(engine)
            except PingError as error:
                row["error"] = str(error)
                failed = True
            rows.append(row)
    if as_json:
        click.echo(
            json.dumps([{**row, "url": row["url"].to_dict()} for row in rows], indent=2)
        )
    else:
        from ._render import render_pings

        render_pings(rows)
    ctx.exit(EXIT_CRITICAL if failed else 0)


COMMANDS: tuple[click.Command, ...] = (pool_status, session_status, db_ping)


def add_commands(app: Flask) -> None:
    """Let the application's own command group have the commands."""
    for command in COMMANDS:
        app.cli.add_command(command)
