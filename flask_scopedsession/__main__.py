"""``python -m flask_scopedsession``: only the commands of this package."""

from __future__ import annotations

import click
from flask.cli import FlaskGroup

from .cli import COMMANDS
from .metrics.command import pool_metrics


class _Commands(FlaskGroup):
    """A group with Flask's options, but without commands of plugins and the app.

    So listing the commands does not load the application.
    """

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        return click.Group.get_command(self, ctx, name)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return click.Group.list_commands(self, ctx)


main: click.Group = _Commands(
    name="flask_scopedsession",
    help="Show what every database pool and session of a Flask application is doing.",
    add_default_commands=False,
)
for _command in (*COMMANDS, pool_metrics):
    main.add_command(_command)

if __name__ == "__main__":
    main(prog_name="python -m flask_scopedsession")
