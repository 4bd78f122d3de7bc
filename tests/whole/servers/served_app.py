"""``live_app``, and a view that shows whether requests share anything.

It needs PostgreSQL. Loading this module uses the engine once: with ``--preload``,
and under uWSGI, in the process that forks the workers.
"""

from __future__ import annotations

import os
import time
from typing import Any

from flask import request
from live_app import create_app
from live_app import db
from sqlalchemy import func
from sqlalchemy import literal
from sqlalchemy import select
from sqlalchemy import text

app = create_app()

with app.app_context():
    LOADED_BY = {
        "pid": os.getpid(),
        "backend": db.session.scalar(select(func.pg_backend_pid())),
    }

#: The tokens of the requests that this process serves now.
INSIDE: set[str] = set()


def leave_token(token: str) -> dict[str, Any]:
    """Put a token wherever another request could find it, and look for others."""
    INSIDE.add(token)
    most_inside = 0
    found: set[object] = set(db.session.info.values())
    db.session.info["token"] = token
    # It exists until the transaction ends, which is never committed.
    db.session.execute(text("CREATE TEMPORARY TABLE own (token text)"))
    db.session.execute(text("INSERT INTO own VALUES (:token)"), {"token": token})
    backends = set()
    for _ in range(3):
        most_inside = max(most_inside, len(INSIDE))
        time.sleep(0.02)  # lets other requests interfere
        found.add(db.session.info["token"])
        found.update(db.session.scalars(text("SELECT token FROM own")))
        found.add(db.session.scalar(select(literal(token))))
        backends.add(db.session.scalar(select(func.pg_backend_pid())))
    INSIDE.remove(token)
    return {
        "token": token,
        "found": sorted(map(str, found)),
        "pid": os.getpid(),
        "backends": sorted(backends),
        "most_inside": most_inside,
        "loaded_by": LOADED_BY,
    }


@app.get("/own")
def own() -> dict[str, Any]:
    return leave_token(request.args["token"])
