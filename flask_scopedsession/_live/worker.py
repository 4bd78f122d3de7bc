"""One application's part in the live view: it answers, and it asks the others."""

from __future__ import annotations

import logging
import os
import platform
import socket
import sys
import time
import typing as t
import weakref
from dataclasses import replace
from functools import partial

from flask import request
from flask import request_tearing_down

from .._control import directory
from .._control.endpoint import Endpoint
from .._control.endpoint import Source
from .._control.protocol import CREDENTIALS
from .._control.protocol import encode
from .._control.protocol import PROTOCOL
from .._control.server import SERVER
from .._runtime.native import allocate_lock
from ..errors import ControlError

if t.TYPE_CHECKING:
    from flask import Flask

    from .._control import client
    from .._pools.account import PoolAccount
    from .._settings.config import Settings
    from ..snapshot import Holder
    from ..snapshot import PoolSnapshot
    from ..snapshot import Survey
    from ..snapshot import WorkerSnapshot
    from ..snapshot._readings import Role
    from ..snapshot._readings import WorkerState
    from .reader import Reader

log = logging.getLogger("flask_scopedsession")

#: Whether this platform has what the control socket is made of.
SUPPORTED = hasattr(socket, "AF_UNIX") and directory.LOCKS and CREDENTIALS


class LiveView:
    """Answers for one application in this process."""

    def __init__(
        self,
        app: Flask,
        settings: Settings,
        make_reader: t.Callable[[], Reader],
        started: float,
        make_own: t.Callable[[], object],
    ) -> None:
        """Answer from the first request on.

        :param make_reader: Makes what reads the ledger. Not before somebody asks, as
            it brings half of the package along, and most processes are not asked.
        :param make_own: Makes what a fork inherited its own, if it is not yet.
        """
        self._make_own = make_own
        self._app = weakref.ref(app)
        self._app_name = app.name
        self._settings = settings
        # As relative SQLite paths: from wherever the process or command is started.
        self._control_dir = settings.control_dir and os.path.join(
            os.path.realpath(app.instance_path), settings.control_dir
        )
        self._deployment = directory.deployment_id(settings.name)
        self._make_reader = make_reader
        self._reader: Reader | None = None
        self._started = started
        self._role: Role = "command"
        self._server: str | None = None
        self._endpoint: Endpoint | None = None
        self._warned = False
        self._lock = allocate_lock()
        self._arm()

    @property
    def reader(self) -> Reader:
        """What reads this process."""
        if self._reader is None:
            self._reader = self._make_reader()
        return self._reader

    def describe(self, account: PoolAccount) -> tuple[Holder, ...]:
        """Return who holds a pool's connections."""
        return self.reader.describe(account)

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
        return None if SUPPORTED else _unsupported()

    def _first_request(self, sender: Flask, **_: t.Any) -> None:
        if self._settings.control is None and sender.testing:
            return
        # Without the hook, a request that used no session has not noticed the fork.
        self._make_own()
        request_tearing_down.disconnect(self._first_request)
        self.start("web", _server_software(request.environ))

    def start(self, role: Role, server: str | None = None) -> None:
        """Answer from now on; a failure is one warning, and the app goes on."""
        problem: Exception | None = None
        # Here, so that the thread that answers imports nothing.
        self.reader  # noqa: B018
        with self._lock:
            if self._endpoint is not None or self.problem() is not None:
                return
            self._role = role
            self._server = server
            try:
                self._endpoint = SERVER.open(self._source())
            except (ControlError, OSError) as error:
                problem = error
        # Outside of the lock: under gevent, logging lets other greenlets run.
        if problem is not None and not self._warned:
            self._warned = True
            log.warning("the live view is off in this process: %s", problem)

    def _source(self) -> Source:
        return Source(
            prepare=partial(directory.prepare, self._control_dir, self._settings.name),
            deployment=self._deployment,
            reply=self.reply,
            last_snapshot=self.last_snapshot if self._settings.snapshot_file else None,
            gone=lambda: self._app() is None,
            paused=self._paused,
        )

    def aborted(self) -> None:
        """Let the last snapshot outlive this process, which is killed in a request.

        gunicorn aborts a sync worker that hangs, at the very moment when the pool's
        timeout would have told why: both are 30 seconds by default.
        """
        if self._endpoint is not None:
            self._endpoint.keep_last = True

    def _paused(self) -> None:
        """Go on at the end of the next request, if no other work comes first."""
        app = self._app()
        if app is not None:
            request_tearing_down.connect(self._next_request, app)

    def _next_request(self, _: Flask, **__: t.Any) -> None:
        request_tearing_down.disconnect(self._next_request)
        SERVER.resume()

    def stop(self) -> None:
        """Stop answering, and remove the socket."""
        request_tearing_down.disconnect(self._first_request)
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
        self._warned = False
        self._arm()

    def worker(self, id: str | None = None) -> WorkerSnapshot:
        """Read this process."""
        from ..snapshot import WorkerSnapshot
        from ..snapshot._json import timestamp
        from .reader import MOST
        from .reader import parent_pid

        pools = self.reader.pools()
        sessions = self.reader.sessions()
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
            lost_work=self.reader.lost_work(),
            recent_shared=self.reader.recent_shared(),
            truncated=len(sessions) >= MOST or any(p.used > MOST for p in pools),
            host=socket.gethostname(),
        )

    def reply(self, id: str, limit: int) -> bytes:
        """Return what goes over the socket, cut down to at most `limit` bytes."""
        worker = self.worker(id)
        return self._envelope(worker, limit) or self._fitting(worker, limit)

    def last_snapshot(self, id: str, limit: int) -> bytes | None:
        """Return what is to survive this process if there is trouble, without SQL."""
        if not self.reader.in_trouble():
            return None
        return self._fitting(self.worker(id), limit)

    def _fitting(self, worker: WorkerSnapshot, limit: int) -> bytes:
        """Return as much as fits of a worker, the longest first."""
        from .reader import MOST

        keep = MOST
        while keep:
            content = self._envelope(_shortened(worker, keep), limit)
            if content is not None:
                return content
            keep //= 2
        return t.cast(bytes, self._envelope(_shortened(worker, 0), sys.maxsize))

    def _envelope(self, worker: WorkerSnapshot, limit: int) -> bytes | None:
        message = {
            "protocol": PROTOCOL,
            "deployment": self._deployment,
            "app": self._app_name,
            "worker": worker.to_dict(),
        }
        content = encode(message)
        return content if len(content) <= limit else None

    # -- asking ----------------------------------------------------------------

    def survey(self, timeout: float) -> Survey:
        """Ask every live worker of this deployment on this host."""
        from .._control import client
        from ..snapshot import SearchedDirectory

        if not SUPPORTED:
            answers = client.Answers(
                searched=[SearchedDirectory("", self.problem() or _unsupported())]
            )
        else:
            try:
                places = _places(self._control_dir, self._settings.name)
            except ControlError as error:
                nowhere = SearchedDirectory("", str(error))
                answers = client.Answers(searched=[nowhere])
            else:
                answers = client.ask(
                    places,
                    timeout,
                    deployment=self._deployment,
                    own=SERVER.ids(),
                    host=socket.gethostname(),
                )
            problem = self.problem()
            if problem is not None and not answers.workers:
                answers.searched.append(SearchedDirectory("", problem))
        configured = () if answers.workers else self.reader.configured()
        return replace(make_survey(self._app_name, answers), configured=configured)


def _unsupported() -> str:
    system = platform.system() or "this system"
    return (
        f"there is no live view on {system}, which lacks what it needs of unix sockets"
    )


def survey_directory(path: str, timeout: float) -> Survey:
    """Ask every worker in a directory, whatever its application."""
    from .._control import client
    from ..snapshot import SearchedDirectory

    host = socket.gethostname()
    if not SUPPORTED:
        where = SearchedDirectory(path, _unsupported())
        return make_survey("", client.Answers(searched=[where]))
    place = directory.Place(os.path.abspath(path), None)
    answers = client.ask([place], timeout, own=SERVER.ids(), host=host)
    return make_survey(", ".join(sorted(answers.apps)), answers)


def _places(control_dir: str | None, name: str) -> list[directory.Place]:
    """Return where a deployment's sockets may be: one's own; for root, everybody's."""
    if control_dir:
        return [directory.Place(control_dir, None)]
    me = os.geteuid()
    places = [directory.Place(directory.default_path(name), me)]
    if me == 0:
        for uid in directory.other_users():
            path = directory.default_path(name, uid)
            if os.path.lexists(path):
                places.append(directory.Place(path, uid))
    return places


def make_survey(app: str, answers: client.Answers) -> Survey:
    """Return the survey of what came back."""
    from ..snapshot import Survey
    from ..snapshot._json import timestamp

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
    from importlib.metadata import PackageNotFoundError
    from importlib.metadata import version

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


def _server_software(environ: t.Mapping[str, t.Any]) -> str | None:
    """Return the name and version of the server that made a WSGI environment."""
    software: str | None = environ.get("SERVER_SOFTWARE")
    if software is None and "uwsgi.version" in environ:
        # uWSGI says who it is in its own way, and in bytes.
        return f"uWSGI/{environ['uwsgi.version'].decode('ascii', 'replace')}"
    return software


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
            views=pool.views[:keep],
            holders=tuple(
                replace(h, sql=None, stack=None) for h in pool.holders[:keep]
            ),
            waiters=pool.waiters[:keep],
            recent_timeouts=tuple(
                replace(timeout, holders=())
                for timeout in pool.recent_timeouts[: min(keep, 5)]
            ),
            backend_pids=pool.backend_pids[:keep],
        )
        for pool in worker.pools
    )
    longest = max((len(p.holders) for p in worker.pools), default=0)
    return replace(
        worker,
        pools=pools,
        sessions=worker.sessions[:keep],
        lost_work=worker.lost_work[:keep],
        truncated=worker.truncated or keep < max(longest, len(worker.sessions)),
    )
