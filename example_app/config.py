"""The application's default configuration."""

from __future__ import annotations

import os
from typing import Any


def defaults() -> dict[str, Any]:
    """Give a new dict each time: ``from_prefixed_env`` writes into nested ones."""
    return {
        # Relative SQLite files are in the instance folder. For PostgreSQL, set
        # FLASK_SQLALCHEMY_DATABASE_URI and FLASK_SQLALCHEMY_BINDS__audit.
        "SQLALCHEMY_DATABASE_URI": "sqlite:///airports.sqlite3",
        "SQLALCHEMY_BINDS": {"audit": "sqlite:///audit.sqlite3"},
        # Fail well before the web server gives up on the request (gunicorn
        # waits 30 seconds, as SQLAlchemy does), so that the error is ours to
        # explain.
        "SQLALCHEMY_ENGINE_OPTIONS": {"pool_timeout": 10},
        # What was loaded stays readable after a commit. `flightlog.writing`
        # builds on this, and says why.
        "SQLALCHEMY_SESSION_OPTIONS": {"expire_on_commit": False},
        # SQLite's own defaults are made for one program with one thread.
        "SCOPEDSESSION_SQLITE_PRAGMAS": {
            # Wait for another worker's write to end, instead of failing with
            # "database is locked" (milliseconds). First, so that it already
            # helps the next line.
            "busy_timeout": 5000,
            # Readers and one writer do not block each other. It is a property
            # of the file, and it needs a file that may be written.
            "journal_mode": "WAL",
            # With WAL, a power cut can lose the last commits but cannot damage
            # the file, and a commit no longer waits for the disk.
            "synchronous": "NORMAL",
            # SQLite checks foreign keys only where it is told to. (Turn this
            # off for batch migrations, which drop and copy tables.)
            "foreign_keys": "ON",
        },
        # Python's driver begins a transaction only before the first write. With
        # a real BEGIN, all that a request reads comes from one moment.
        # DEFERRED, because IMMEDIATE would take the write lock for reading too
        # and so serve one request at a time.
        "SCOPEDSESSION_SQLITE_BEGIN": "DEFERRED",
        # Register the views that misbehave on purpose.
        "EXAMPLE_FAULTS": is_true(os.environ.get("EXAMPLE_FAULTS", "")),
    }


def is_true(text: str) -> bool:
    """Read an on/off switch from the environment."""
    return text.strip().lower() in {"1", "true", "yes", "on"}
