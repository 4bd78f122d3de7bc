"""The environment of the processes that tests start."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

#: The folder of ``live_app.py``.
WORKERS = Path(__file__).resolve().parent.parent / "whole" / "workers"

#: Settings of the user that would change the outcome of the tests.
_FOREIGN = ("FLASK_", "SQLALCHEMY_", "SCOPEDSESSION_", "GUNICORN_", "PG", "PYTEST_")
_FOREIGN_NAMES = frozenset(
    {
        "BUILD_NUMBER",  # as with CI, pytest does not shorten its summary
        "CI",
        "COLUMNS",
        "FORCE_COLOR",
        "LINES",
        "NO_COLOR",
        "PYTHONWARNINGS",
        "TTY_COMPATIBLE",
        "WEB_CONCURRENCY",
    }
)


def child_environ(extra: Mapping[str, str | None] | None = None) -> dict[str, str]:
    """Return a clean environment, in which ``live_app`` can be imported.

    :param extra: Variables to add; ``None`` removes a variable.
    """
    environ = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(_FOREIGN) and name not in _FOREIGN_NAMES
    }
    environ["PYTHONPATH"] = os.pathsep.join(
        filter(None, [str(WORKERS), environ.get("PYTHONPATH")])
    )
    environ["PYTHONUNBUFFERED"] = "1"
    for name, value in (extra or {}).items():
        if value is None:
            environ.pop(name, None)
        else:
            environ[name] = value
    return environ
