"""``db-ping``: test every database with one connection outside the pool."""

from __future__ import annotations

import json
import typing as t

import click

from ..errors import ConfigError
from ..errors import PingError
from ._loading import application_of
from ._loading import load_app
from ._loading import refuse_unknown
from .check import EXIT_CRITICAL
from .check import EXIT_OK
from .options import BIND
from .options import JSON
from .options import PING_HELP
from .options import WAIT

if t.TYPE_CHECKING:
    from .._application import Application
    from .._databases.ping import PingResult


@click.command(
    "db-ping",
    help=PING_HELP,
    short_help="Test whether every database answers, and how fast.",
)
@BIND
@click.option(
    "--timeout",
    type=WAIT,
    default=5.0,
    show_default=True,
    metavar="SECONDS",
    help="How long to wait for each answer.",
)
@JSON
@click.pass_context
def db_ping(
    ctx: click.Context, /, bind: str | None, timeout: float, as_json: bool
) -> None:
    """Test every database with a connection of its own."""
    app = load_app(ctx)
    application = application_of(app)
    try:
        application.check_unchanged()
    except ConfigError as error:
        raise click.ClickException(str(error)) from None
    refuse_unknown(bind, application.engines)
    names = application.engines if bind is None else (bind,)
    with app.app_context():
        results = [_ping(application, name, timeout) for name in names]
    if as_json:
        from ..snapshot import SCHEMA

        pings = [{**each._asdict(), "url": each.url.to_dict()} for each in results]
        click.echo(json.dumps({"schema": SCHEMA, "pings": pings}, indent=2))
    else:
        from .._terminal.ping import render_pings

        click.echo(render_pings(results), nl=False)
    failed = any(each.error is not None for each in results)
    ctx.exit(EXIT_CRITICAL if failed else EXIT_OK)


def _ping(application: Application, name: str, timeout: float) -> PingResult:
    from .._databases.ping import PingResult
    from .._databases.ping import server_version
    from .._settings.urls import safe_url

    engine = application.engines[name]
    url = safe_url(engine.url)
    try:
        latency = application.ping(name, timeout)
    except PingError as error:
        return PingResult(name, url, None, None, str(error))
    return PingResult(name, url, round(latency, 6), server_version(engine), None)
