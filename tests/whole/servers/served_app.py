"""``live_app``, and a view that shows whether requests share anything.

It needs PostgreSQL. The engine has been used once when this is loaded: with
``--preload``, and under uWSGI, by the process that forks the workers.
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

#: The tokens of what is being served by this process right now.
INSIDE: set[str] = set()


def leave_token(token: str) -> dict[str, Any]:
    """Leave a token wherever somebody else might find it, and look for others'."""
    INSIDE.add(token)
    most_inside = 0
    found: set[object] = set(db.session.info.values())
    db.session.info["token"] = token
    # Lives as long as the transaction, which is never committed.
    db.session.execute(text("CREATE TEMPORARY TABLE own (token text)"))
    db.session.execute(text("INSERT INTO own VALUES (:token)"), {"token": token})
    backends = set()
    for _ in range(3):
        most_inside = max(most_inside, len(INSIDE))
        time.sleep(0.02)  # for the others to come in between
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
