"""W12: the application that gunicorn loads."""

from __future__ import annotations

import json
import os
import typing as t

from flask import Flask

from .apps import build
from .apps import ENGINE
from .contestants import CONTESTANTS
from .contestants import Database

#: The environment variable with the job, as JSON.
JOB = "BENCHMARKS_JOB"


def create_app() -> Flask:
    """Return the application of the contestant that the environment names."""
    job: dict[str, t.Any] = json.loads(os.environ[JOB])
    database = Database(
        job["url"],
        {**ENGINE, "pool_size": 8, "max_overflow": 0},
        {
            "SCOPEDSESSION_CONTROL": True,
            "SCOPEDSESSION_CONTROL_DIR": f"{job['folder']}/c",
        },
    )
    return build(CONTESTANTS[job["contestant"]], database, job["folder"])
