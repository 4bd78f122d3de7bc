"""The application's default configuration."""

from __future__ import annotations

import os
from typing import Any


def defaults() -> dict[str, Any]:
    """Return a new dict each time: ``from_prefixed_env`` changes nested dicts."""
    return {
        # Relative SQLite files are in the instance folder. For PostgreSQL, set
        # FLASK_SQLALCHEMY_DATABASE_URI and FLASK_SQLALCHEMY_BINDS__audit.
        "SQLALCHEMY_DATABASE_URI": "sqlite:///airports.sqlite3",
        "SQLALCHEMY_BINDS": {"audit": "sqlite:///audit.sqlite3"},
        # Time out well before the web server gives up on the request, so that
        # the error names the cause. (The defaults of gunicorn and of SQLAlchemy
        # are both 30 seconds.)
        "SQLALCHEMY_ENGINE_OPTIONS": {"pool_timeout": 10},
        # Loaded objects stay readable after a commit. `flightlog.writing`
        # depends on this, and explains why.
        "SQLALCHEMY_SESSION_OPTIONS": {"expire_on_commit": False},
        # SQLite's own defaults suit one program with one thread.
        "SCOPEDSESSION_SQLITE_PRAGMAS": {
            # Milliseconds to wait for the write of another worker, instead of
            # failing with "database is locked". This pragma comes first, so
            # that it already applies to the next one.
            "busy_timeout": 5000,
            # Readers and one writer do not block each other. The mode is stored
            # in the file, so the file must be writable.
            "journal_mode": "WAL",
            # With WAL, a power failure can lose the last commits but cannot
            # damage the file, and a commit does not wait for the disk.
            "synchronous": "NORMAL",
            # SQLite checks foreign keys only if this is on. (Turn it off for
            # batch migrations, which drop and copy tables.)
            "foreign_keys": "ON",
        },
        # Python's driver begins a transaction only before the first write. After
        # a real BEGIN, all reads of a request see the same state of the database.
        # DEFERRED is used because IMMEDIATE takes the write lock for reads too,
        # and so allows only one request at a time.
        "SCOPEDSESSION_SQLITE_BEGIN": "DEFERRED",
        # Register the views that misbehave on purpose.
        "EXAMPLE_FAULTS": is_true(os.environ.get("EXAMPLE_FAULTS", "")),
        # Show the admin page, which needs no login.
        "EXAMPLE_ADMIN": is_true(os.environ.get("EXAMPLE_ADMIN", "")),
    }


def is_true(text: str) -> bool:
    """Read an on/off switch from the environment."""
    return text.strip().lower() in {"1", "true", "yes", "on"}
