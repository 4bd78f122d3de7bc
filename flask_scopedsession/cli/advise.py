"""``pool-advise``: recommend pool sizes from what the workers measured."""

from __future__ import annotations

import json

import click

from ._loading import inquirer
from .options import ADVICE_HELP
from .options import advice_options
from .status import narrowed


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
    """Recommend settings for the pools of the live workers."""
    from .._advice.recommend import advise
    from .._advice.report import Aims

    survey = inquirer(ctx, timeout, control_dir, bind)()
    aims = Aims(wait, growth, worker_timeout)
    report = advise(survey, aims, max_connections, bind)
    if as_json:
        click.echo(json.dumps(report.to_dict(), indent=2))
    else:
        from .._terminal.advice import render_advice

        click.echo(render_advice(narrowed(survey, bind, None), report), nl=False)
