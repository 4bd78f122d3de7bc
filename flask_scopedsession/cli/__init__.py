"""The commands, one module each.

A worker imports this package together with the extension. So a command imports what
asks and what draws only when it runs.
"""

from __future__ import annotations

import typing as t

import click

from .advise import pool_advise
from .ping import db_ping
from .status import pool_status
from .status import session_status

if t.TYPE_CHECKING:
    from flask import Flask

__all__ = [
    "COMMANDS",
    "add_commands",
    "db_ping",
    "pool_advise",
    "pool_status",
    "session_status",
]

COMMANDS: tuple[click.Command, ...] = (
    *(pool_status, session_status, pool_advise, db_ping),
)


def add_commands(app: Flask) -> None:
    """Add the commands to the application's own group, ``app.cli``."""
    for command in COMMANDS:
        app.cli.add_command(command)
