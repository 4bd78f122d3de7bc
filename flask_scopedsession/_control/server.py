"""The thread that answers: one per process, for all its applications.

It starts at the end of the first request, never by import, by a command, or in
an arbiter. It stops and is joined before a fork, and goes on after it. It logs
nothing: under gevent, logging's lock belongs to the event loop.
"""

from __future__ import annotations

import _socket
import atexit
import os
import select
import time
import typing as t
from contextlib import suppress

from .._runtime import fork
from .._runtime.native import allocate_lock
from .._runtime.native import native_thread_id
from .._runtime.native import NativeThread
from .._runtime.native import original
from ..errors import ControlError
from .endpoint import Endpoint
from .endpoint import Source
from .protocol import DEADLINE
from .protocol import Malformed
from .protocol import pack
from .protocol import PROTOCOL
from .protocol import REQUEST
from .protocol import REQUEST_LIMIT
from .protocol import unpack

#: Clients that are served at a time; more wait in the kernel's queue.
_MOST_CLIENTS = 64

#: Seconds that a conversation may take while others have to wait for its place.
_CROWDED = 0.5

#: Seconds between two looks for trouble.
_TICK = 2.0

#: Seconds to wait when something failed that will likely fail again.
_PAUSE = 0.5


class _Client:
    """One conversation: read a request, write a reply."""

    __slots__ = ("began", "endpoint", "out", "received", "socket")

    def __init__(self, connection: t.Any, endpoint: Endpoint) -> None:
        self.socket = connection
        self.endpoint = endpoint
        self.began = time.monotonic()
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
            self.out = memoryview(self._reply_to(request))
        self.out = self.out[self.socket.send(self.out) :]
        return bool(self.out)

    def _reply_to(self, request: dict[str, t.Any]) -> bytes:
        if any(request.get(key) != value for key, value in REQUEST.items()):
            return pack({"protocol": PROTOCOL, "error": "unknown request"})
        try:
            return self.endpoint.answer()
        except Exception as error:  # noqa: BLE001  # rather than look dead
            return pack({"protocol": PROTOCOL, "error": type(error).__name__})


class _Loop:
    """One run of the thread.

    What it waits for and whom it serves are its own: one that does not end in time
    does no harm to the next.
    """

    def __init__(self, endpoints: tuple[Endpoint, ...]) -> None:
        self._endpoints = endpoints
        self._clients: dict[int, _Client] = {}  # the oldest first
        self._stopping = False
        self._next_tick = 0.0
        self._deaf_until = 0.0
        self._ear, self._bell = _socket.socketpair()
        try:
            self._thread = NativeThread(self._run, "scopedsession-control")
        except BaseException:
            self.abandon()
            raise

    def stop(self) -> None:
        """End the thread, and wait for it."""
        self._stopping = True
        # Both: a fork may have a copy of the other end, or have emptied it.
        with suppress(OSError):
            self._bell.send(b".")
        self._bell.close()
        self._thread.join(DEADLINE)

    def abandon(self) -> None:
        """Close everything: when the thread ends, and in a fork, where it is not."""
        for client in self._clients.values():
            client.socket.close()
        self._clients.clear()
        self._ear.close()
        self._bell.close()

    def _run(self) -> None:
        try:
            while not self._stopping:
                try:
                    self._round()
                except Exception:  # noqa: BLE001  # who asks next shall be answered
                    original("time", "sleep")(_PAUSE)
        finally:
            self.abandon()

    def _round(self) -> None:
        now = time.monotonic()
        poll = original("select", "poll")()
        poll.register(self._ear, select.POLLIN)
        listening: dict[int, Endpoint] = {}
        if len(self._clients) < _MOST_CLIENTS and now >= self._deaf_until:
            listening = {e.fileno(): e for e in self._endpoints if e.fileno() >= 0}
        for descriptor in listening:
            poll.register(descriptor, select.POLLIN)
        for descriptor, client in self._clients.items():
            wanted = select.POLLIN if client.out is None else select.POLLOUT
            poll.register(descriptor, wanted)
        for descriptor, _ in poll.poll(self._wait_for(now) * 1000):
            if descriptor in self._clients:
                self._serve(descriptor)
            elif descriptor in listening:
                self._accept(listening[descriptor])
            else:
                self._stopping = True  # the bell
        self._expire()
        self._tick()

    def _patience(self) -> float:
        return DEADLINE if len(self._clients) < _MOST_CLIENTS else _CROWDED

    def _wait_for(self, now: float) -> float:
        """Return the seconds until something is due, though nothing happens."""
        due = [self._next_tick - now]
        if self._clients:
            due.append(
                next(iter(self._clients.values())).began + self._patience() - now
            )
        if self._deaf_until > now:
            due.append(self._deaf_until - now)
        # A little late rather than early, which would be a second wait for nothing.
        return max(0.0, min(due)) + 0.001

    def _accept(self, endpoint: Endpoint) -> None:
        try:
            connection = endpoint.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return  # it gave up while it waited in the queue
        except OSError:
            # No descriptor is left for it: it stays in the queue, where poll()
            # would find it at once.
            self._deaf_until = time.monotonic() + _PAUSE
            return
        if connection is not None:
            self._clients[connection.fileno()] = _Client(connection, endpoint)

    def _serve(self, descriptor: int) -> None:
        client = self._clients[descriptor]
        try:
            more = client.step()
        except BlockingIOError:
            more = True
        except (OSError, Malformed):
            more = False
        if not more:
            del self._clients[descriptor]
            client.socket.close()

    def _expire(self) -> None:
        latest = time.monotonic() - self._patience()
        for descriptor, client in list(self._clients.items()):
            if client.began > latest:
                break
            del self._clients[descriptor]
            client.socket.close()

    def _tick(self) -> None:
        now = time.monotonic()
        if now < self._next_tick:
            return
        self._next_tick = now + _TICK
        gone = [endpoint for endpoint in self._endpoints if endpoint.source.gone()]
        if gone and SERVER.retire(gone):
            self._endpoints = tuple(e for e in self._endpoints if e not in gone)
            self._stopping = not self._endpoints
        own = frozenset(endpoint.id for endpoint in self._endpoints)
        for endpoint in self._endpoints:
            # A full disk, or the directory is somebody else's now.
            with suppress(Exception):
                endpoint.tick(now, own)


class Server:
    """The control thread of a process, and its endpoints."""

    def __init__(self) -> None:
        self._pid = os.getpid()
        self._lock = allocate_lock()
        self._forking: int | None = None
        self._endpoints: tuple[Endpoint, ...] = ()
        self._loop: _Loop | None = None
        self.paused = False
        """Stopped for a fork; the next piece of work starts it again."""

    def ids(self) -> frozenset[str]:
        """Return the ids of this process's endpoints."""
        return frozenset(endpoint.id for endpoint in self._endpoints)

    def open(self, source: Source) -> Endpoint:
        """Answer for one more application.

        :raises ControlError: It has no safe directory, or there is no thread left.
        """
        with self._lock:
            self._stop()
            try:
                # Under the lock, so that no fork sees a half-made one.
                endpoint = Endpoint(source)
                self._endpoints += (endpoint,)
            finally:
                self.paused = not self._start()
            if self.paused:
                self._endpoints = self._endpoints[:-1]
                endpoint.close()
                raise ControlError(
                    f"uid {os.geteuid()} cannot start a thread for {endpoint.path}."
                    " Raise its limit of processes, or set SCOPEDSESSION_CONTROL=0."
                )
            return endpoint

    def discard(self, endpoint: Endpoint) -> None:
        """Stop answering for an application, and remove its files."""
        with self._lock:
            self._stop()
            if endpoint in self._endpoints:
                self._endpoints = tuple(e for e in self._endpoints if e is not endpoint)
                endpoint.close()
            self.paused = not self._start()

    def retire(self, gone: t.Collection[Endpoint]) -> bool:
        """Drop endpoints on behalf of the thread; whether that was possible now."""
        if not self._lock.acquire(False):
            return False  # somebody waits for the thread to end
        try:
            self._endpoints = tuple(e for e in self._endpoints if e not in gone)
            if not self._endpoints:
                self._loop = None
            for endpoint in gone:
                endpoint.close()
        finally:
            self._lock.release()
        return True

    def close(self) -> None:
        """Stop answering at all."""
        if self._pid != os.getpid():
            return  # a fork that nobody announced: all of this is the parent's
        with self._lock:
            self._stop()
            self._close_endpoints()

    def resume(self) -> None:
        """Go on after a fork."""
        with self._lock:
            self.paused = not self._start()

    # -- forks -----------------------------------------------------------------

    def before_fork(self) -> None:
        """Stop the thread, and keep everybody else from starting it."""
        # Bounded, for one who forks in the midst of what we do, as a signal's
        # handler might. The child gets a lock of its own in any case.
        if not self._lock.acquire(True, DEADLINE):
            return
        self._forking = native_thread_id()
        if self._loop is not None:
            self.paused = True
            self._stop()

    def after_fork_in_parent(self) -> None:
        """Let the next piece of work start the thread again; also if fork() failed.

        Not here: Python looks for threads right after this, and would warn.
        """
        if self._forking != native_thread_id():
            return
        self._forking = None
        self._lock.release()
        if self.paused:
            for endpoint in self._endpoints:
                endpoint.source.paused()

    def after_fork_in_child(self) -> None:
        """Drop what belongs to the parent."""
        if self._pid == os.getpid():
            return
        self._pid = os.getpid()
        self._lock = allocate_lock()
        self._forking = None
        self.paused = False
        loop, self._loop = self._loop, None
        if loop is not None:
            loop.abandon()
        self._close_endpoints()

    # -- the thread, under the lock --------------------------------------------

    def _start(self) -> bool:
        """Start the thread if it is needed; whether that was possible."""
        if self._loop is None and self._endpoints:
            try:
                self._loop = _Loop(self._endpoints)
            except (OSError, RuntimeError):
                return False
        return True

    def _stop(self) -> None:
        loop, self._loop = self._loop, None
        if loop is not None:
            loop.stop()

    def _close_endpoints(self) -> None:
        endpoints, self._endpoints = self._endpoints, ()
        for endpoint in endpoints:
            endpoint.close()


#: The server of this process.
SERVER = Server()

fork.register(SERVER)
atexit.register(SERVER.close)
