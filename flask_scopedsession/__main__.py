"""``python -m flask_scopedsession``: the commands, without Flask's others."""

from __future__ import annotations

from flask.cli import FlaskGroup

from .cli import COMMANDS

main = FlaskGroup(
    name="flask_scopedsession",
    help="Show what every database pool and session of a Flask application does.",
    add_default_commands=False,
)
for command in COMMANDS:
    main.add_command(command)

if __name__ == "__main__":
    main(prog_name="python -m flask_scopedsession")
