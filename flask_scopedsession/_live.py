"""One application's part in the live view: it answers, and it asks the others."""

from __future__ import annotations

import json
import logging
import os
import platform
import socket
import sys
import time
import typing as t
import weakref
from dataclasses import replace
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version

from flask import request
from flask import request_tearing_down

from ._control import client
from ._control import directory
from ._control.protocol import PROTOCOL
from ._control.server import Endpoint
from ._control.server import SERVER
from ._control.server import Source
from ._native import allocate_lock
from ._reading import MOST
from ._reading import parent_pid
from ._reading import Reader
from ._reading import timestamp
from .errors import ControlError
from .snapshot import PoolSnapshot
from .snapshot import Role
from .snapshot import SearchedDirectory
from .snapshot import Survey
from .snapshot import WorkerSnapshot
from .snapshot import WorkerState

if t.TYPE_CHECKING:
    from flask import Flask

    from ._config import Settings

log = logging.getLogger("flask_scopedsession")

#: Whether this platform has what the control socket is made of.
SUPPORTED = hasattr(socket, "AF_UNIX") and directory.fcntl is not None

ROLES: tuple[Role, ...] = t.get_args(Role)


class LiveView:
    """Answers for one application in this process."""

    def __init__(
        self, app: Flask, settings: Settings, reader: Reader, started: float
    ) -> None:
        self._app = weakref.ref(app)
        self._app_name = app.name
        self._settings = settings
        self._reader = reader
        self._started = started
        self._role: Role = "command"
        self._server: str | None = None
        self._endpoint: Endpoint | None = None
        self._lock = allocate_lock()
        self._arm()

    # -- answering -------------------------------------------------------------

    def _arm(self) -> None:
        """Start at the end of the first request that this process serves."""
        app = self._app()
        if app is not None and self.problem() is None:
            request_tearing_down.connect(self._first_request, app)

    def problem(self) -> str | None:
        """Return why this process does not answer, as far as configuration says."""
        if not self._settings.tracking:
            return "SCOPEDSESSION_TRACKING is off"
        if self._settings.control is False:
            return "SCOPEDSESSION_CONTROL is off"
        if not SUPPORTED:
            return f"there are no unix sockets on {platform.system() or 'this system'}"
        return None

    def _first_request(self, sender: Flask, **_: t.Any) -> None:
        if self._settings.control is None and sender.testing:
            return
        request_tearing_down.disconnect(self._first_request, sender)
        self.start("web", request.environ.get("SERVER_SOFTWARE"))

    def start(self, role: Role, server: str | None = None) -> None:
        """Answer from now on; a failure is one warning, and the app goes on."""
        with self._lock:
            if self._endpoint is not None or self.problem() is not None:
                return
            self._role = role
            self._server = server
            try:
                path = directory.prepare(
                    self._settings.control_dir, self._settings.name
                )
                wanted = self._settings.snapshot_file
                source = Source(self.reply, self.last_snapshot if wanted else None)
                self._endpoint = Endpoint(path, source)
                SERVER.add(self._endpoint)
            except (ControlError, OSError) as error:
                log.warning("the live view is off in this process: %s", error)

    def stop(self) -> None:
        """Stop answering, and remove the socket."""
        app = self._app()
        if app is not None:
            request_tearing_down.disconnect(self._first_request, app)
        with self._lock:
            endpoint, self._endpoint = self._endpoint, None
            if endpoint is not None:
                SERVER.discard(endpoint)

    def after_fork(self) -> None:
        """Wait for the child's own first request."""
        self._lock = allocate_lock()
        self._endpoint = None
        self._started = time.time()
        self._role = "command"
        self._arm()

    def worker(self, id: str | None = None) -> WorkerSnapshot:
        """Read this process."""
        pools = self._reader.pools()
        sessions = self._reader.sessions()
        now = time.time()
        return WorkerSnapshot(
            id=id or (self._endpoint.id if self._endpoint else str(os.getpid())),
            pid=os.getpid(),
            ppid=parent_pid(),
            role=self._role,
            state=_worker_state(pools),
            started_at=timestamp(self._started),
            age_s=max(0.0, now - self._started),
            server=self._server,
            source="live",
            snapshot_at=timestamp(now),
            pools=pools,
            sessions=sessions,
            truncated=len(sessions) >= MOST or any(p.used > MOST for p in pools),
            host=socket.gethostname(),
        )

    def reply(self, id: str) -> dict[str, t.Any]:
        """Return what goes over the socket."""
        return self._envelope(self.worker(id))

    def _envelope(self, worker: WorkerSnapshot) -> dict[str, t.Any]:
        return {
            "protocol": PROTOCOL,
            "deployment": directory.deployment_id(self._settings.name),
            "app": self._app_name,
            "worker": worker.to_dict(),
        }

    def last_snapshot(self, id: str, limit: int) -> bytes | None:
        """Return what is to survive this process if there is trouble, without SQL."""
        if not self._reader.in_trouble():
            return None
        worker = self.worker(id)
        keep = MOST
        while True:
            content = json.dumps(self._envelope(_shortened(worker, keep))).encode()
            if len(content) <= limit or keep == 0:
                return content if len(content) <= limit else None
            keep //= 2

    # -- asking ----------------------------------------------------------------

    def survey(self, timeout: float, control_dir: str | None = None) -> Survey:
        """Ask every live worker of this deployment on this host."""
        if not SUPPORTED:
            where = SearchedDirectory("", self.problem())
            return self._survey(client.Answers(searched=[where]))
        name = self._settings.name
        chosen = control_dir or self._settings.control_dir
        answers = client.ask(
            [os.path.abspath(chosen)] if chosen else default_directories(name),
            timeout,
            deployment=None if control_dir else directory.deployment_id(name),
            own=SERVER.ids(),
            host=socket.gethostname(),
        )
        return self._survey(answers)

    def _survey(self, answers: client.Answers) -> Survey:
        configured = () if answers.workers else self._reader.configured()
        return replace(make_survey(self._app_name, answers), configured=configured)


def survey_directory(path: str, timeout: float) -> Survey:
    """Ask every worker in a directory, whatever its application."""
    host = socket.gethostname()
    if not SUPPORTED:
        where = SearchedDirectory(path, "there are no unix sockets on this system")
        return make_survey("", client.Answers(searched=[where]))
    answers = client.ask([os.path.abspath(path)], timeout, own=SERVER.ids(), host=host)
    return make_survey(", ".join(sorted(answers.apps)), answers)


def default_directories(name: str) -> list[str]:
    """Return where a deployment's sockets may be: one's own; for root, everybody's."""
    found = [directory.default_path(name)]
    if os.geteuid() == 0:
        base = os.path.dirname(directory.base_path())
        prefix = os.path.basename(directory.base_path(0))[:-1]
        for entry in sorted(os.listdir(base)):
            uid = entry.removeprefix(prefix)
            if entry.startswith(prefix) and uid.isdigit() and uid != "0":
                path = directory.default_path(name, int(uid))
                if _is_of(os.path.dirname(path), int(uid)) and os.path.lexists(path):
                    found.append(path)
    return found


def _is_of(path: str, uid: int) -> bool:
    try:
        directory.check(path, uid)
    except (OSError, ControlError):
        return False
    return True


def make_survey(app: str, answers: client.Answers) -> Survey:
    """Return the survey of what came back."""
    return Survey(
        app=app,
        host=socket.gethostname(),
        collected_at=timestamp(),
        versions=versions(),
        searched=tuple(answers.searched),
        workers=tuple(sorted(answers.workers, key=lambda w: (w.uid or 0, w.pid))),
        silent=tuple(sorted(answers.silent, key=lambda s: s.pid)),
    )


def versions() -> dict[str, str]:
    """Return the versions of what takes part."""
    found = {}
    for name, package in (
        ("flask_scopedsession", "Flask-ScopedSession"),
        ("sqlalchemy", "SQLAlchemy"),
        ("flask", "Flask"),
    ):
        try:
            found[name] = version(package)
        except PackageNotFoundError:
            found[name] = "unknown"
    found["python"] = ".".join(str(part) for part in sys.version_info[:3])
    return found


def _worker_state(pools: tuple[PoolSnapshot, ...]) -> WorkerState:
    if any(pool.wedged for pool in pools):
        return "wedged"
    if any(pool.max is not None and pool.used >= pool.max for pool in pools):
        return "saturated"
    return "ok"


def _shortened(worker: WorkerSnapshot, keep: int) -> WorkerSnapshot:
    """Keep the `keep` longest of everything, without SQL and stacks."""
    pools = tuple(
        replace(
            pool,
            holders=tuple(
                replace(h, sql=None, stack=None) for h in pool.holders[:keep]
            ),
            waiters=pool.waiters[:keep],
            recent_timeouts=tuple(
                replace(timeout, holders=())
                for timeout in pool.recent_timeouts[: min(keep, 5)]
            ),
        )
        for pool in worker.pools
    )
    longest = max(
        (len(p.holders) for p in worker.pools), default=0
    )
    return replace(
        worker,
        pools=pools,
        sessions=worker.sessions[:keep],
        truncated=worker.truncated or keep < max(longest, len(worker.sessions)),
    )
