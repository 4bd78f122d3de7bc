"""A Celery application whose tasks use the sessions of ``served_app``.

The process that forks the children has used the engine before, and is in a
transaction until it ends.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from celery import Celery
from celery import signals
from live_app import wait_for_gate
from served_app import app
from served_app import db
from served_app import leave_token
from sqlalchemy import text

HOME = Path(os.environ["JOBS_HOME"])

jobs = Celery("jobs", broker="filesystem://")
jobs.conf.update(
    broker_connection_retry_on_startup=True,
    broker_transport_options={
        "data_folder_in": str(HOME / "queue"),
        "data_folder_out": str(HOME / "queue"),
        "control_folder": str(HOME / "exchanges"),
    },
    task_ignore_result=True,
    worker_prefetch_multiplier=1,
)

parents_context = app.app_context()


@signals.worker_init.connect
def begin(**_: object) -> None:
    parents_context.push()
    db.session.execute(text("CREATE TABLE parents (word text)"))
    db.session.execute(text("INSERT INTO parents VALUES ('begun')"))


@signals.worker_process_init.connect
def serve(**_: object) -> None:
    with app.app_context():
        db.serve_control("job")


@signals.worker_shutdown.connect
def end(**_: object) -> None:
    db.session.execute(text("INSERT INTO parents VALUES ('ended')"))
    db.session.commit()
    parents_context.pop()


@jobs.task(name="own")
def own(token: str) -> None:
    with app.app_context():
        answer = leave_token(token)
    unfinished = HOME / token
    unfinished.write_text(json.dumps(answer))
    unfinished.rename(HOME / "answers" / token)


@jobs.task(name="hold")
def hold() -> None:
    with app.test_request_context(), app.app_context():
        leave_token("held")
        wait_for_gate()
