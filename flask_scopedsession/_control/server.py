"""The thread that answers: one per process, for all its applications.

It starts at the end of the first request, never by import, by a command, or in
an arbiter. It stops and is joined before a fork, and goes on after it. It logs
nothing: under gevent, logging's lock belongs to the event loop.
"""

from __future__ import annotations

import _socket
import os
import select
import socket
import time
import typing as t
from collections.abc import Callable

from .._native import allocate_lock
from .._native import NativeThread
from .._native import original
from . import directory
from .protocol import DEADLINE
from .protocol import Malformed
from .protocol import pack
from .protocol import peer_credentials
from .protocol import REQUEST
from .protocol import REQUEST_LIMIT
from .protocol import unpack

#: Clients that are served at a time; more wait in the kernel's queue.
_MOST_CLIENTS = 64

#: Seconds for which one snapshot answers everybody who asks.
_FRESH = 0.1

#: Seconds between two looks for trouble, two last snapshots, two sweeps.
_TICK = 2.0
_SNAPSHOT_EVERY = 30.0
_HOUSEKEEPING_EVERY = 60.0

_SNAPSHOT_LIMIT = 64 * 1024


class Source(t.NamedTuple):
    """What an application lets its endpoint say."""

    reply: Callable[[str], dict[str, t.Any]]
    """The whole reply to a request, for the worker of this id."""
    last_snapshot: Callable[[str, int], bytes | None] | None
    """A last snapshot of at most so many bytes if there is trouble, else none."""


class Endpoint:
    """One application's socket in one directory."""

    def __init__(self, path: str, source: Source) -> None:
        self.pid = os.getpid()
        self.id = f"{self.pid}-{os.urandom(4).hex()}"
        self.path = path
        self._source = source
        self._cached: tuple[float, bytes] = (0.0, b"")
        self._next_snapshot = 0.0
        self._next_housekeeping = 0.0
        self._lock = directory.take_lock(path, self.id)
        try:
            self.listener = self._listen()
        except BaseException:
            self.close()
            raise

    def _file(self, kind: str) -> str:
        return os.path.join(self.path, f"{self.id}.{kind}")

    def _listen(self) -> t.Any:
        # The C class: that of the socket module accepts gevent's sockets.
        listener = _socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            listener.setblocking(False)
            listener.bind(self._file("new"))
            # It was made with the umask's mode.
            os.chmod(self._file("new"), 0o600)
            listener.listen(128)
            # Renamed last: whoever sees it finds somebody listening.
            os.rename(self._file("new"), self._file("sock"))
        except BaseException:
            listener.close()
            raise
        return listener

    def answer(self) -> bytes:
        """Return the reply to a request, made afresh if the last one is stale."""
        made, reply = self._cached
        now = time.monotonic()
        if not reply or now - made > _FRESH:
            reply = pack(self._source.reply(self.id))
            self._cached = (now, reply)
        return reply

    def tick(self, now: float) -> None:
        """Write the last snapshot when there is trouble, and keep the house."""
        if self._source.last_snapshot is not None and now >= self._next_snapshot:
            content = self._source.last_snapshot(self.id, _SNAPSHOT_LIMIT)
            if content is not None:
                self._next_snapshot = now + _SNAPSHOT_EVERY
                directory.write_private(self.path, self.id, content)
        if now >= self._next_housekeeping:
            self._next_housekeeping = now + _HOUSEKEEPING_EVERY
            self._keep_house()

    def _keep_house(self) -> None:
        for kind in ("sock", "lock", "json"):
            # Cleaners of temporary directories go by the time of last use.
            if os.path.lexists(self._file(kind)):
                os.utime(self._file(kind), follow_symlinks=False)
        directory.sweep(self.path, SERVER.ids())
        if not os.path.lexists(self._file("sock")):
            # Removed all the same, and the directory maybe with it.
            os.makedirs(self.path, 0o700, exist_ok=True)
            directory.check(self.path, os.geteuid())
            if not os.path.lexists(self._file("lock")):
                os.close(self._lock)
                self._lock = directory.take_lock(self.path, self.id)
            self.listener.close()
            self.listener = self._listen()

    def close(self) -> None:
        """Stop listening; remove the files, unless they are a parent's."""
        listener = getattr(self, "listener", None)
        if listener is not None:
            listener.close()
        if self.pid == os.getpid():
            directory.remove(self._file(kind) for kind in ("sock", "json", "lock"))
        # Locks are not inherited: closing this in a fork frees nothing.
        os.close(self._lock)


class _Client:
    """One conversation: read a request, write a reply."""

    __slots__ = ("deadline", "endpoint", "out", "received", "socket")

    def __init__(self, connection: t.Any, endpoint: Endpoint) -> None:
        self.socket = connection
        self.endpoint = endpoint
        self.deadline = time.monotonic() + DEADLINE
        self.received = bytearray()
        self.out: memoryview | None = None

    def step(self) -> bool:
        """Go on as far as the socket allows; whether there is more to do."""
        if self.out is None:
            chunk = self.socket.recv(REQUEST_LIMIT)
            if not chunk:
                return False
            self.received += chunk
            request = unpack(self.received, REQUEST_LIMIT)
            if request is None:
                return True
            if request != REQUEST:
                self.out = memoryview(pack({"error": "unknown request"}))
            else:
                self.out = memoryview(self.endpoint.answer())
        sent = self.socket.send(self.out)
        self.out = self.out[sent:]
        return bool(self.out)


class Server:
    """This process's control thread and its endpoints."""

    def __init__(self) -> None:
        self._pid = os.getpid()
        self._lock = allocate_lock()
        self._endpoints: list[Endpoint] = []
        self._thread: NativeThread | None = None
        self._stopping = False
        self._wake: tuple[int, int] | None = None
        self.paused = False
        """Stopped for a fork; the next piece of work starts it again."""

    def ids(self) -> frozenset[str]:
        """Return the ids of this process's endpoints."""
        return frozenset(endpoint.id for endpoint in self._endpoints)

    def add(self, endpoint: Endpoint) -> None:
        """Answer for one more application."""
        with self._lock:
            self._stop()
            self._endpoints.append(endpoint)
            self._start()

    def discard(self, endpoint: Endpoint) -> None:
        """Stop answering for an application, and remove its files."""
        with self._lock:
            self._stop()
            if endpoint in self._endpoints:
                self._endpoints.remove(endpoint)
                endpoint.close()
            self._start()

    def close(self) -> None:
        """Stop answering at all."""
        if self._pid != os.getpid():
            return  # a fork that nobody announced: all of this is the parent's
        with self._lock:
            self._stop()
            while self._endpoints:
                self._endpoints.pop().close()

    def resume(self) -> None:
        """Go on after a fork."""
        with self._lock:
            self.paused = False
            self._start()

    # -- forks -----------------------------------------------------------------

    def before_fork(self) -> None:
        """Stop the thread, and keep everybody else from starting it."""
        self._lock.acquire()
        self.paused = self._thread is not None or self.paused
        self._stop()

    def after_fork_in_parent(self) -> None:
        """Let the next piece of work start the thread again.

        Not here: Python looks for threads right after this, and would warn.
        """
        self._lock.release()

    def after_fork_in_child(self) -> None:
        """Drop what belongs to the parent."""
        self._pid = os.getpid()
        self._lock = allocate_lock()
        self.paused = False
        self._thread = None
        self._close_wake()
        while self._endpoints:
            self._endpoints.pop().close()

    # -- the thread ------------------------------------------------------------

    def _start(self) -> None:
        if self._thread is None and self._endpoints and not self.paused:
            self._stopping = False
            self._wake = os.pipe()
            os.set_blocking(self._wake[1], False)
            self._thread = NativeThread(self._run, "scopedsession-control")

    def _stop(self) -> None:
        if self._thread is not None and self._wake is not None:
            self._stopping = True
            os.write(self._wake[1], b".")
            self._thread.join(DEADLINE)
            self._thread = None
            self._close_wake()

    def _close_wake(self) -> None:
        if self._wake is not None:
            for descriptor in self._wake:
                os.close(descriptor)
            self._wake = None

    def _run(self) -> None:
        clients: dict[int, _Client] = {}
        wake = t.cast("tuple[int, int]", self._wake)[0]
        try:
            while not self._stopping:
                self._round(wake, clients)
        finally:
            for client in clients.values():
                client.socket.close()

    def _round(self, wake: int, clients: dict[int, _Client]) -> None:
        listeners = {e.listener.fileno(): e for e in self._endpoints}
        poll = original("select", "poll")()
        poll.register(wake, select.POLLIN)
        if len(clients) < _MOST_CLIENTS:
            for descriptor in listeners:
                poll.register(descriptor, select.POLLIN)
        for descriptor, client in clients.items():
            poll.register(
                descriptor, select.POLLIN if client.out is None else select.POLLOUT
            )
        for descriptor, _ in poll.poll(_TICK * 1000):
            if descriptor in clients:
                self._serve(descriptor, clients)
            elif descriptor in listeners:
                self._accept(listeners[descriptor], clients)
        now = time.monotonic()
        for descriptor in [d for d, c in clients.items() if now > c.deadline]:
            clients.pop(descriptor).socket.close()
        for endpoint in self._endpoints:
            try:
                endpoint.tick(now)
            except Exception:
                continue  # a full disk, or somebody removed the directory

    @staticmethod
    def _accept(endpoint: Endpoint, clients: dict[int, _Client]) -> None:
        try:
            descriptor, _ = endpoint.listener._accept()
        except OSError:
            return  # it gave up while it waited in the queue
        connection = _socket.socket(fileno=descriptor)
        try:
            connection.setblocking(False)
            peer = peer_credentials(connection)
            allowed = peer is not None and peer[1] in (0, os.geteuid())
        except OSError:
            allowed = False
        if allowed:
            clients[descriptor] = _Client(connection, endpoint)
        else:
            connection.close()

    @staticmethod
    def _serve(descriptor: int, clients: dict[int, _Client]) -> None:
        client = clients[descriptor]
        try:
            more = client.step()
        except BlockingIOError:
            more = True
        except (OSError, Malformed):
            more = False
        except Exception as error:
            # The reading failed; say so, rather than look dead.
            client.out = memoryview(pack({"error": type(error).__name__}))
            more = True
        if not more:
            del clients[descriptor]
            client.socket.close()


#: This process's.
SERVER = Server()
