"""``pool-status`` and ``session-status``: ask the workers, print what they say."""

from __future__ import annotations

import json
import time
import typing as t
from collections.abc import Callable
from dataclasses import replace

import click

from ._loading import application_of
from ._loading import inquirer
from ._loading import load_app
from .check import check
from .check import EXIT_INTERRUPTED
from .options import POOL_HELP
from .options import SERVER_OPTION
from .options import SESSION_HELP
from .options import status_options

if t.TYPE_CHECKING:
    from .._terminal.charts import History
    from .._terminal.charts import Refresh
    from ..snapshot import Survey
    from ..snapshot._servers import ServerView


@click.command(
    "pool-status",
    help=POOL_HELP,
    short_help="Show all database pools, and who holds connections.",
)
@SERVER_OPTION
@status_options
@click.pass_context
def pool_status(ctx: click.Context, /, **options: t.Any) -> None:
    """Show every pool of every live worker."""

    def render(survey: Survey, verbose: bool, history: History | None) -> str:
        from .._terminal.pools import render_pools

        # The advice takes too long to compute for every refresh.
        once = options["watch"] is None
        return render_pools(survey, verbose=verbose, history=history, advice=once)

    _status(ctx, render, **options)


@click.command(
    "session-status",
    help=SESSION_HELP,
    short_help="Show all open database sessions, and what each belongs to.",
)
@status_options
@click.pass_context
def session_status(ctx: click.Context, /, **options: t.Any) -> None:
    """Show every open session of every live worker."""

    def render(survey: Survey, verbose: bool, history: History | None) -> str:
        from .._terminal.sessions import render_sessions

        return render_sessions(survey, verbose=verbose, history=history)

    _status(ctx, render, **options)


def _status(
    ctx: click.Context,
    render: Callable[[Survey, bool, History | None], str],
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
        raise click.UsageError("--check and --watch cannot be combined.")
    if server and control_dir is not None:
        raise click.UsageError(
            "--server and --control-dir cannot be combined: --server needs the"
            " application's configuration, and --control-dir does not load it."
        )
    from .._terminal.charts import Refresh

    ask = inquirer(ctx, timeout, control_dir, bind)
    ask_servers = _server_inquirer(ctx, timeout, bind) if server else None

    def refresh() -> Refresh:
        began = time.perf_counter()
        everything = ask()
        servers = ask_servers(everything, began) if ask_servers else None
        pids = tuple(w.pid for w in everything.live if pid not in (None, w.pid))
        return Refresh(narrowed(everything, bind, pid), servers, pids)

    def show(found: Refresh, history: History | None = None) -> str:
        survey, servers, other_pids = found
        if as_json:
            return _document(survey, servers, 2 if watch is None else None)
        if other_pids and not survey.workers and not survey.silent:
            pids = ", ".join(map(str, other_pids))
            return f"No worker with PID {pid} answered. Live workers: {pids}.\n"
        text = render(survey, verbose, history)
        if servers is not None:
            from .._terminal.servers import render_servers

            text += render_servers(servers, verbose=verbose)
        return text

    if watch is not None:
        from .watch import watch as watch_workers

        try:
            watch_workers(refresh, show, watch, as_json=as_json)
        except KeyboardInterrupt:
            ctx.exit(EXIT_INTERRUPTED)
    found = refresh()
    click.echo(show(found), nl=False)
    if checking:
        verdict = check(found.survey, warn, crit)
        for reason in verdict.reasons:
            click.echo(reason, err=True)
        ctx.exit(verdict.code)


def _document(
    survey: Survey, servers: tuple[ServerView, ...] | None, indent: int | None
) -> str:
    document = survey.to_dict()
    if servers is not None:
        document["servers"] = [view.to_dict() for view in servers]
    return json.dumps(document, indent=indent) + "\n"


def narrowed(survey: Survey, bind: str | None, pid: int | None) -> Survey:
    """Return only the pools and sessions of one bind, or of one process."""
    workers, silent, configured = survey.workers, survey.silent, survey.configured
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
        configured = tuple(p for p in configured if p.bind == bind)
    return replace(survey, workers=workers, silent=silent, configured=configured)


def _server_inquirer(
    ctx: click.Context, timeout: float, bind: str | None
) -> Callable[[Survey, float], tuple[ServerView, ...]]:
    """Return what asks the database servers, after the workers were asked."""
    from .._databases.comparison import view_servers

    app = load_app(ctx)
    application = application_of(app)

    def ask(survey: Survey, since: float) -> tuple[ServerView, ...]:
        with app.app_context():
            views = view_servers(
                *(application.engines, application.accounts, survey),
                timeout=timeout,
                since=since,
            )
        return tuple(view for view in views if bind is None or bind in view.binds)

    return ask
