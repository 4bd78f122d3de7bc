"""The thread that answers: one per process, for all its applications.

It starts at the end of the first request, never by import, by a command, or in an
arbiter. It stops and is joined before a fork, and the next piece of work starts it
again. It logs nothing itself, because under gevent logging's locks belong to the event
loop: it remembers an unexpected error or a lost worker, and the next piece of work logs
it.
"""

from __future__ import annotations

import atexit
import io
import os
import select
import socket
import time
import traceback
import typing as t
from collections import deque
from contextlib import suppress

from .._runtime import fork
from .._runtime.logs import fields
from .._runtime.logs import log
from .._runtime.native import allocate_lock
from .._runtime.native import native_thread_id
from .._runtime.native import NativeThread
from .._runtime.native import original
from ..errors import ControlError
from .directory import Found
from .endpoint import Endpoint
from .endpoint import Source
from .protocol import DEADLINE
from .protocol import Malformed
from .protocol import pack
from .protocol import PROTOCOL
from .protocol import REQUEST
from .protocol import REQUEST_LIMIT
from .protocol import unpack

#: Clients served at a time. More wait in the kernel's queue.
_MOST_CLIENTS = 64

#: Seconds that a conversation may take while others wait for its place.
_CROWDED = 0.5

#: Seconds between two checks for trouble, and at most between two for slow clients.
_TICK = 2.0
_EXPIRE = 0.1

#: Seconds to wait after an error that is likely to happen again.
_PAUSE = 0.5


class _Client:
    """One conversation: read a request, write a reply."""

    def __init__(self, connection: socket.socket, endpoint: Endpoint) -> None:
        self.socket = connection
        self.endpoint = endpoint
        self.began = time.monotonic()
        self.received = bytearray()
        self.reply: memoryview | None = None

    def go_on(self, server: Server) -> bool:
        """Receive or send as much as possible; whether the conversation is over."""
        if self.reply is None:
            chunk = self.socket.recv(REQUEST_LIMIT)
            if not chunk:
                return True
            self.received += chunk
            request = unpack(self.received, REQUEST_LIMIT)
            if request is None:
                return False
            self.reply = memoryview(self._reply_to(request, server))
        self.reply = self.reply[self.socket.send(self.reply) :]
        return not self.reply

    def _reply_to(self, request: dict[str, t.Any], server: Server) -> bytes:
        if any(request.get(key) != value for key, value in REQUEST.items()):
            return pack({"protocol": PROTOCOL, "error": "unknown request"})
        try:
            return self.endpoint.answer()
        except Exception as error:  # noqa: BLE001  # rather than seem unresponsive
            server.failed(error)
            return pack({"protocol": PROTOCOL, "error": type(error).__name__})


class _Loop:
    """One run of the thread.

    Its pipe and its clients are its own, so a run that does not stop in time does no
    harm to the next one.
    """

    def __init__(self, server: Server, endpoints: tuple[Endpoint, ...]) -> None:
        self._server = server
        self._endpoints = endpoints
        self._clients: dict[int, _Client] = {}  # the oldest first
        self._stopping = False
        self._next_tick = 0.0
        stop_reader, stop_writer = os.pipe()
        # A forked process may read what was written, or write until the pipe is full.
        os.set_blocking(stop_reader, False)
        os.set_blocking(stop_writer, False)
        self._stop_reader = io.FileIO(stop_reader)
        self._stop_writer = io.FileIO(stop_writer, "w")
        try:
            self._thread = NativeThread(self._run, "scopedsession-control")
        except BaseException:
            self.abandon()
            raise

    def stop(self) -> None:
        """End the thread, and wait for it."""
        self._stopping = True
        # Both: a forked process may have a copy of the writing end, so that closing
        # this one is not seen, or may have read the byte.
        self.wake()
        self._stop_writer.close()
        self._thread.join(DEADLINE)

    def wake(self) -> None:
        """Let the thread look for endpoints of dropped applications at once."""
        with suppress(OSError, ValueError):
            self._stop_writer.write(b".")

    def abandon(self) -> None:
        """Close everything: at the thread's end, or in a fork, which lacks it."""
        for client in self._clients.values():
            client.socket.close()
        self._clients.clear()
        self._stop_reader.close()
        self._stop_writer.close()

    def _run(self) -> None:
        try:
            while not self._stopping:
                try:
                    self._round()
                except Exception as error:  # noqa: BLE001  # others must be answered
                    # A thread that does not stop in time finds its sockets closed.
                    if not self._stopping:
                        self._server.failed(error)
                        original("time", "sleep")(_PAUSE)
        finally:
            self.abandon()

    def _round(self) -> None:
        poll = original("select", "poll")()
        poll.register(self._stop_reader, select.POLLIN)
        listening: dict[int, Endpoint] = {}
        if len(self._clients) < _MOST_CLIENTS:
            listening = {e.fileno(): e for e in self._endpoints if e.fileno() >= 0}
        for descriptor in listening:
            poll.register(descriptor, select.POLLIN)
        for descriptor, client in self._clients.items():
            wanted = select.POLLIN if client.reply is None else select.POLLOUT
            poll.register(descriptor, wanted)
        wait = max(0.0, self._next_tick - time.monotonic())
        # A little late rather than early, which would be a second wait for nothing.
        wait = min(wait, _EXPIRE) if self._clients else wait + 0.001
        ready = [descriptor for descriptor, _ in poll.poll(wait * 1000)]
        if self._stop_reader.fileno() in ready:
            if self._stop_reader.read(512) == b"":
                self._stopping = True  # closed
            if not self._stopping:
                self._next_tick = 0.0
        for descriptor in self._clients.keys() & ready:
            self._serve(descriptor)
        self._expire()
        self._tick()
        # Last, because this fails while the process has no descriptor to spare.
        for descriptor in listening.keys() & ready:
            self._accept(listening[descriptor])

    def _accept(self, endpoint: Endpoint) -> None:
        if endpoint.fileno() < 0:
            return  # retired a moment ago
        # A client may have given up while it waited in the queue.
        with suppress(BlockingIOError, ConnectionAbortedError):
            connection = endpoint.accept()
            if connection is not None:
                self._clients[connection.fileno()] = _Client(connection, endpoint)

    def _serve(self, descriptor: int) -> None:
        try:
            is_over = self._clients[descriptor].go_on(self._server)
        except BlockingIOError:
            is_over = False
        except (OSError, Malformed):
            is_over = True
        if is_over:
            self._clients.pop(descriptor).socket.close()

    def _expire(self) -> None:
        patience = DEADLINE if len(self._clients) < _MOST_CLIENTS else _CROWDED
        latest = time.monotonic() - patience
        for descriptor, client in list(self._clients.items()):
            if client.began > latest:
                break
            self._clients.pop(descriptor).socket.close()

    def _tick(self) -> None:
        now = time.monotonic()
        if now < self._next_tick:
            return
        self._next_tick = now + _TICK
        gone = [endpoint for endpoint in self._endpoints if endpoint.source.gone()]
        if gone and not self._server.retire(gone):
            self._next_tick = now + _EXPIRE
        elif gone:
            self._endpoints = tuple(e for e in self._endpoints if e not in gone)
            if not self._endpoints:
                self._stopping = True
        own = frozenset(endpoint.id for endpoint in self._endpoints)
        for endpoint in self._endpoints:
            try:
                self._server.lost(endpoint.tick(now, own))
            except (OSError, ControlError):
                pass  # the disk is full, or the directory is another user's now
            except Exception as error:  # noqa: BLE001  # the others are due, too
                self._server.failed(error)


class Server:
    """The control thread of a process, and its endpoints."""

    def __init__(self) -> None:
        self._pid = os.getpid()
        self._lock = allocate_lock()
        self._forking: int | None = None
        self._endpoints: tuple[Endpoint, ...] = ()
        self._loop: _Loop | None = None
        self._failures: deque[str] = deque()
        self._failed: set[type[Exception]] = set()
        self._lost: deque[Found] = deque()
        self.paused = False
        """The next piece of work must call :meth:`resume`."""

    def ids(self) -> frozenset[str]:
        """Return the ids of this process's endpoints."""
        return frozenset(endpoint.id for endpoint in self._endpoints)

    def open(self, source: Source) -> Endpoint:
        """Answer for one more application.

        :raises ControlError: It has no safe directory, or no thread can be started.
        """
        with self._lock:
            # A loop takes no lock, because its endpoints stay the same while it runs.
            self._stop()
            try:
                # Under the lock, so that no fork inherits a half-made one.
                endpoint = Endpoint(source)
                self._endpoints += (endpoint,)
            finally:
                self._start()
            if self._loop is None:
                self._drop([endpoint])
                raise ControlError(
                    f"uid {os.geteuid()} cannot start a thread for {endpoint.path}."
                    " Raise its limit of processes, or set SCOPEDSESSION_CONTROL=0."
                )
            return endpoint

    def discard(self, endpoint: Endpoint) -> None:
        """Stop answering for an application, and remove its files."""
        with self._lock:
            self._stop()
            self._drop([endpoint])
            self._start()

    def retire(self, gone: t.Collection[Endpoint]) -> bool:
        """Drop endpoints on behalf of the thread; whether that was possible now."""
        # Another thread may hold the lock while it waits for this one to end. Waiting
        # for the lock here would be a deadlock until that thread gives up.
        if not self._lock.acquire(False):
            return False
        try:
            self._drop(gone)
            if not self._endpoints:
                self._loop = None
        finally:
            self._lock.release()
        return True

    def wake(self) -> None:
        """Let the thread retire the endpoints of dropped applications at once.

        Takes no lock: the collector may call it inside any code.
        """
        loop = self._loop
        if loop is not None:
            loop.wake()

    def close(self) -> None:
        """Stop answering at all."""
        if self._pid != os.getpid():
            return  # a fork that ran no hook: all of this is the parent's
        with self._lock:
            self._stop()
            self._drop(self._endpoints)
        self._report()

    def resume(self) -> None:
        """Start the thread again after a fork, and log what it has met."""
        with self._lock:
            self._start()
        self._report()

    # -- what is logged --------------------------------------------------------

    def failed(self, error: Exception) -> None:
        """Remember an error that the thread handles, the first of each type."""
        if type(error) not in self._failed:
            self._failed.add(type(error))
            # As text, because a traceback would keep the locals of its frames alive.
            self._failures.append("".join(traceback.format_exception(error)))
            self._ask_to_resume()

    def lost(self, found: t.Collection[Found]) -> None:
        """Remember workers that ended without removing their files."""
        if found:
            self._lost.extend(found)
            self._ask_to_resume()

    def _report(self) -> None:
        while self._failures:
            log.error(
                "the control thread met an unexpected error, so status commands may"
                " not see this process\n%s",
                self._failures.popleft(),
                extra=fields("control_failed"),
            )
        while self._lost:
            lost = self._lost.popleft()
            left = "json" in lost.kinds
            log.warning(
                "worker %s ended without removing its files: it was killed, it crashed,"
                " or it left by os._exit()%s",
                lost.pid,
                ". 'flask pool-status' shows what it held last" if left else "",
                extra=fields(
                    "worker_lost",
                    worker_pid=lost.pid,
                    worker_id=lost.id,
                    state="gone",
                    reason=None,
                    silent=None,
                    last_snapshot=left,
                ),
            )

    def _ask_to_resume(self) -> None:
        self.paused = True
        for endpoint in self._endpoints:
            endpoint.source.paused()

    # -- forks -----------------------------------------------------------------

    def before_fork(self) -> None:
        """Stop the thread, and keep others from starting it."""
        # A signal handler may fork while this thread holds the lock, so the wait has a
        # limit. The child gets a new lock in any case.
        if not self._lock.acquire(True, DEADLINE):
            return
        self._forking = native_thread_id()
        if self._loop is not None:
            self.paused = True
            self._stop()

    def after_fork_in_parent(self) -> None:
        """Let the next piece of work start the thread again, also if fork() failed.

        Not here: Python counts the threads right after this, and would warn.
        """
        if self._forking != native_thread_id():
            return
        self._forking = None
        self._lock.release()
        if self.paused:
            self._ask_to_resume()

    def after_fork_in_child(self) -> None:
        """Drop what belongs to the parent."""
        if self._pid == os.getpid():
            return
        loop, endpoints = self._loop, self._endpoints
        Server.__init__(self)
        if loop is not None:
            loop.abandon()
        for endpoint in endpoints:
            endpoint.close()

    # -- the thread, under the lock --------------------------------------------

    def _start(self) -> None:
        """Start the thread if it is needed; ask for another try if that fails."""
        if self._loop is None and self._endpoints:
            with suppress(OSError, RuntimeError):
                self._loop = _Loop(self, self._endpoints)
        self.paused = self._loop is None and bool(self._endpoints)

    def _stop(self) -> None:
        loop, self._loop = self._loop, None
        if loop is not None:
            loop.stop()

    def _drop(self, dropped: t.Collection[Endpoint]) -> None:
        self._endpoints = tuple(e for e in self._endpoints if e not in dropped)
        for endpoint in dropped:
            endpoint.close()


#: The server of this process.
SERVER = Server()

fork.register(SERVER)
atexit.register(SERVER.close)
