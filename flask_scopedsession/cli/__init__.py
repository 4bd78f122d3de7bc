"""The commands, one module each. ``options`` has their help, ``loading`` the app."""

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
    """Let the application's own command group have the commands."""
    for command in COMMANDS:
        app.cli.add_command(command)
