"""What this process answers, and when it starts to answer.

The modules that read the ledger and ask other workers are imported on first use. They
bring half of the package along, and most processes neither answer nor ask.
"""

from __future__ import annotations

import os
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
from .._control.endpoint import unsupported
from .._control.protocol import encode
from .._control.protocol import PROTOCOL
from .._control.server import SERVER
from .._runtime import fork
from .._runtime.logs import fields
from .._runtime.logs import log
from .._runtime.native import allocate_lock
from .._settings.values import is_on
from ..errors import ControlError

if t.TYPE_CHECKING:
    from flask import Flask
    from sqlalchemy import Engine

    from .._pools.account import PoolAccount
    from .._scopes.ledger import Ledger
    from .._settings.config import Settings
    from ..snapshot import Holder
    from ..snapshot import PoolSnapshot
    from ..snapshot import Survey
    from ..snapshot import WorkerSnapshot
    from ..snapshot._readings import Role
    from ..snapshot._readings import WorkerState
    from .reader import Reader


class LiveView:
    """Answers for one application in this process."""

    def __init__(
        self,
        app: Flask,
        settings: Settings,
        *,
        ledger: Ledger,
        accounts: t.Mapping[str, PoolAccount],
        engines: t.Mapping[str, Engine],
    ) -> None:
        """Answer from the end of the first request on.

        :param accounts: Of the pools; empty if tracking is off.
        :param engines: Those of async binds, too.
        """
        self._app = weakref.ref(app)
        self._app_name = app.name
        self._settings = settings
        # Relative to the instance folder, as the paths of SQLite files are, so that
        # the working directory does not matter.
        self._control_dir = settings.control_dir and os.path.join(
            os.path.realpath(app.instance_path), settings.control_dir
        )
        self._ledger = ledger
        self._accounts = accounts
        self._engines = engines
        self._reader: Reader | None = None
        self._role: Role = "command"
        self._server: str | None = None
        self._endpoint: Endpoint | None = None
        self._warned = False
        self._lock = allocate_lock()
        self._arm()

    @property
    def reader(self) -> Reader:
        """The reader of this process's ledger."""
        if self._reader is None:
            from .reader import Reader

            self._reader = Reader(
                *(self._ledger, self._accounts, self._engines),
                self._settings.held_long_after,
            )
        return self._reader

    def describe(self, account: PoolAccount) -> tuple[Holder, ...]:
        """Return the holders of a pool's connections."""
        return self.reader.describe(account)

    # -- answering -------------------------------------------------------------

    def _arm(self) -> None:
        """Start at the end of the first request that this process serves."""
        app = self._app()
        if app is not None and self.problem() is None:
            request_tearing_down.connect(self.begin, app)

    @property
    def answers(self) -> bool:
        """Whether this process answers."""
        return self._endpoint is not None

    def directory(self) -> str:
        """Return the directory of the sockets; it is created if need be.

        :raises ControlError: It cannot be created, is not safe, or not supported.
        """
        problem = self.problem()
        if problem is not None:
            raise ControlError(f"There are no control sockets: {problem}.")
        return directory.prepare(self._control_dir, self._settings.name)

    def problem(self) -> str | None:
        """Return why this process is never going to answer, ``None`` if it may."""
        if not self._settings.tracking:
            return "SCOPEDSESSION_TRACKING is off"
        if self._settings.control is False:
            return "SCOPEDSESSION_CONTROL is off"
        return unsupported()

    def begin(self, sender: Flask, **_: t.Any) -> None:
        """Answer from now on, in the first request, unless that is off."""
        if self._settings.control is None and is_on(sender.config, "TESTING"):
            return
        # Where the server forks without Python's hooks (uWSGI), a request that used no
        # session has not noticed the fork.
        fork.after_fork_in_child()
        request_tearing_down.disconnect(self.begin)
        self.start("web", _server_software(request.environ))

    def start(self, role: Role, server: str | None = None) -> None:
        """Answer from now on; a failure is one warning, and the app serves on."""
        problem: Exception | None = None
        self.reader  # noqa: B018  # so that the control thread imports nothing
        with self._lock:
            if self._endpoint is not None or self.problem() is not None:
                return
            self._role = role
            self._server = server
            try:
                self._endpoint = SERVER.open(self._source())
                app = self._app()
                if app is not None:
                    weakref.finalize(app, SERVER.wake).atexit = False
            except (ControlError, OSError) as error:
                problem = error
        # After the lock is released: under gevent, logging lets other greenlets run,
        # and one that waits for this lock would block all of them.
        if problem is not None and not self._warned:
            self._warned = True
            log.warning(
                "the live view is off in this process: %s",
                problem,
                extra=fields("live_view_off"),
            )

    def _source(self) -> Source:
        # The control thread must not keep a dropped application's engines.
        view, app = weakref.ref(self), self._app

        def reply(id: str, limit: int) -> bytes | None:
            live = view()
            return None if live is None else live.reply(id, limit)

        def last_snapshot(id: str, limit: int) -> bytes | None:
            live = view()
            return None if live is None else live.last_snapshot(id, limit)

        def paused() -> None:
            live = view()
            if live is not None:
                live._paused()

        return Source(
            prepare=partial(directory.prepare, self._control_dir, self._settings.name),
            deployment=directory.deployment_id(self._settings.name),
            reply=reply,
            last_snapshot=last_snapshot if self._settings.snapshot_file else None,
            gone=lambda: app() is None,
            paused=paused,
        )

    def aborted(self) -> None:
        """Leave the last snapshot on the disk: the server ends this process.

        gunicorn aborts a sync worker that hangs just when the pool's timeout would
        have named the holders: both are 30 seconds by default.
        """
        if self._endpoint is not None:
            self._endpoint.keep_last = True

    def _paused(self) -> None:
        """Resume at the end of the next request, unless a session is created first."""
        app = self._app()
        if app is not None:
            request_tearing_down.connect(self._next_request, app)

    def _next_request(self, _: Flask, **__: t.Any) -> None:
        request_tearing_down.disconnect(self._next_request)
        SERVER.resume()

    def stop(self) -> None:
        """Stop answering, and remove the socket."""
        request_tearing_down.disconnect(self.begin)
        with self._lock:
            endpoint, self._endpoint = self._endpoint, None
            if endpoint is not None:
                SERVER.discard(endpoint)

    def after_fork(self) -> None:
        """Wait for the first request of the child process."""
        self._lock = allocate_lock()
        self._endpoint = None
        self._role = "command"
        self._warned = False
        self._arm()

    def worker(self, id: str | None = None) -> WorkerSnapshot:
        """Take a snapshot of this process.

        :param id: The endpoint's id, if the caller knows it.
        """
        from ..snapshot import WorkerSnapshot
        from ..snapshot._json import timestamp
        from .reader import MOST

        pools = self.reader.pools()
        sessions = self.reader.sessions()
        durations, statements = self.reader.ended_scopes() or (None, None)
        now, started = time.time(), self._ledger.started
        return WorkerSnapshot(
            id=id or (self._endpoint.id if self._endpoint else str(os.getpid())),
            pid=os.getpid(),
            ppid=os.getppid() if hasattr(os, "getppid") else 0,
            role=self._role,
            state=_worker_state(pools),
            started_at=timestamp(started),
            age_s=max(0.0, now - started),
            server=self._server,
            source="live",
            snapshot_at=timestamp(now),
            pools=pools,
            sessions=sessions[:MOST],
            sessions_open=self.reader.sessions_open(),
            lost_work=self.reader.lost_work(),
            lost_work_total=self.reader.lost_work_total(),
            scope_s=durations,
            scope_statements=statements,
            recent_shared=self.reader.recent_shared(),
            truncated=len(sessions) > MOST
            or any(max(p.used, p.pending or 0) > MOST for p in pools),
            host=socket.gethostname(),
        )

    def reply(self, id: str, limit: int) -> bytes:
        """Return the reply to a request, cut down to at most `limit` bytes."""
        worker = self.worker(id)
        return self._envelope(worker, limit) or self._fitting(worker, limit)

    def last_snapshot(self, id: str, limit: int) -> bytes | None:
        """Return a snapshot without SQL, to outlive this process, if in trouble."""
        if not self.reader.in_trouble():
            return None
        return self._fitting(self.worker(id), limit)

    def _fitting(self, worker: WorkerSnapshot, limit: int) -> bytes:
        """Return as much of a snapshot as fits; the longest holds come first."""
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
            "deployment": directory.deployment_id(self._settings.name),
            "app": self._app_name,
            "worker": worker.to_dict(),
        }
        content = encode(message)
        return content if len(content) <= limit else None

    # -- the other workers -----------------------------------------------------

    def survey(self, timeout: float) -> Survey:
        """Ask every live worker of this deployment on this host.

        :param timeout: Seconds to wait for each worker.
        """
        from .survey import survey_deployment

        found = survey_deployment(
            self._app_name,
            self._settings.name,
            self._control_dir,
            timeout,
            self.problem(),
        )
        configured = () if found.live else self.reader.configured()
        return replace(found, configured=configured)


def _server_software(environ: t.Mapping[str, t.Any]) -> str | None:
    """Return the name and version of the server, from a WSGI environment."""
    software: str | None = environ.get("SERVER_SOFTWARE")
    if software is None and "uwsgi.version" in environ:
        # uWSGI has a key of its own, whose value is in bytes.
        return f"uWSGI/{environ['uwsgi.version'].decode('ascii', 'replace')}"
    return software


def _worker_state(pools: tuple[PoolSnapshot, ...]) -> WorkerState:
    if any(pool.wedged for pool in pools):
        return "wedged"
    if any(pool.max is not None and pool.used >= pool.max for pool in pools):
        return "saturated"
    return "ok"


def _shortened(worker: WorkerSnapshot, keep: int) -> WorkerSnapshot:
    """Keep the `keep` longest of everything, without SQL and stacks.

    The pool in most trouble stays in any case.
    """
    worst = sorted(worker.pools, key=_trouble, reverse=True)
    binds = {pool.bind for pool in worst[: max(1, keep)]}
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
        if pool.bind in binds
    )
    listed = [len(each) for p in worker.pools for each in (p.holders, p.waiters)]
    return replace(
        worker,
        pools=pools,
        sessions=worker.sessions[:keep],
        lost_work=worker.lost_work[:keep],
        recent_shared=worker.recent_shared if keep else (),
        truncated=worker.truncated
        or keep < max(len(worker.pools), len(worker.sessions), *listed),
    )


def _trouble(pool: PoolSnapshot) -> tuple[int, ...]:
    """Return a key by which pools in more trouble are greater."""
    return pool.pending or 0, pool.timeouts_60s or 0, pool.held_long, pool.used
