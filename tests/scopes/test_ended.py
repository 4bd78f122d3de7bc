"""How long scopes lasted, and how many statements they sent: each counts once."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
from flask import Flask
from sqlalchemy import text

from flask_scopedsession import ScopedSession

KINDS = [None, "thread", threading.get_ident]


def counted(db: ScopedSession[Any], app: Flask) -> tuple[int, int, float]:
    """Return how many scopes were timed and counted, and their statements."""
    with app.app_context():
        found = db.snapshot()
    assert found.scope_s is not None
    assert found.scope_statements is not None
    return found.scope_s.count, found.scope_statements.count, found.scope_statements.sum


@pytest.mark.parametrize("kind", KINDS, ids=["context", "thread", "custom"])
def test_a_request_counts_once(make_app: Callable[..., Flask], kind: Any) -> None:
    """Whatever scopes it has, and also if it removes its session and goes on."""
    db = ScopedSession(scopefunc=kind)
    app = make_app(db)

    @app.get("/")
    def view() -> str:
        db.session.execute(text("SELECT 1"))
        db.session.remove()
        db.session.execute(text("SELECT 2"))
        return ""

    @app.get("/none")
    def none() -> str:
        return ""

    for path in ("/", "/none", "/"):
        app.test_client().get(path)
    assert counted(db, app) == (2, 2, 4)
