"""``pool-status`` and ``session-status``: ask, render, echo."""

from __future__ import annotations

import json
import time
import typing as t
from collections.abc import Callable
from dataclasses import replace

import click

from .._application import of
from .check import check
from .check import EXIT_INTERRUPTED
from .loading import inquirer
from .loading import load_app
from .options import POOL_HELP
from .options import SERVER_OPTION
from .options import SESSION_HELP
from .options import status_options

if t.TYPE_CHECKING:
    from .._terminal.charts import History
    from ..snapshot import Survey
    from ..snapshot._servers import ServerView

    #: What the servers say; ``None`` if they were not to be asked.
    Servers = tuple[ServerView, ...] | None


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
        from .._terminal.pools import render_pools

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
        from .._terminal.sections import render_sessions

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
    from .._terminal.charts import History
    from .._terminal.charts import Look

    ask = inquirer(ctx, timeout, control_dir, bind)
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
        from .watch import watch as watch_workers

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
    from .._terminal.servers import render_servers

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


def _server_inquirer(
    ctx: click.Context, timeout: float, bind: str | None
) -> Callable[[Survey, float], Servers]:
    """Return what asks the database servers, after the workers were asked."""
    from .._databases.comparison import view_servers

    app = load_app(ctx)
    application = of(app)

    def ask(survey: Survey, since: float) -> Servers:
        with app.app_context():
            views = view_servers(
                *(application.engines, application.accounts, survey),
                timeout=timeout,
                since=since,
            )
        return tuple(view for view in views if bind is None or bind in view.binds)

    return ask
