"""One application's socket, its lock and its last snapshot in a directory."""

from __future__ import annotations

import os
import platform
import socket
import time
import typing as t
from collections.abc import Callable
from contextlib import suppress

from .._runtime import native
from ..errors import ControlError
from . import directory
from .protocol import CREDENTIALS
from .protocol import frame
from .protocol import peer_credentials
from .protocol import REPLY_LIMIT

#: Seconds for which one snapshot answers all clients.
_FRESH = 0.1

#: Seconds between two last snapshots, and between two sweeps.
_SNAPSHOT_EVERY = 30.0
_HOUSEKEEPING_EVERY = 60.0


def unsupported() -> str | None:
    """Return why this platform has no control sockets, ``None`` if it has them."""
    if hasattr(socket, "AF_UNIX") and directory.LOCKS and CREDENTIALS:
        return None
    system = platform.system() or "this system"
    return f"there is no live view on {system}, which lacks the Unix sockets for it"


class Source(t.NamedTuple):
    """What an application provides for its endpoint."""

    prepare: Callable[[], str]
    """Creates the directory if need be, checks that it is safe, and returns it."""
    deployment: str
    reply: Callable[[str, int], bytes | None]
    """Returns the reply of the worker with this id, of at most so many bytes; ``None``
    if the application is gone."""
    last_snapshot: Callable[[str, int], bytes | None] | None
    """Returns a last snapshot of at most so many bytes if there is trouble."""
    paused: Callable[[], None]
    """Asks the application to call :meth:`Server.resume` soon."""
    gone: Callable[[], bool] = bool
    """Whether the application was dropped without being disposed of."""


class Endpoint:
    """One application's socket in one directory."""

    def __init__(self, source: Source) -> None:
        self.pid = os.getpid()
        self.id = f"{self.pid}-{os.urandom(4).hex()}"
        self.source = source
        self.path = ""
        self.keep_last = False
        """Leave the last snapshot on the disk: the process is being aborted."""
        self._cached: tuple[float, bytes] = (0.0, b"")
        self._next_snapshot = 0.0
        self._next_housekeeping = 0.0
        self._lock: int | None = None
        self._listener: socket.socket | None = None
        self._closed = False
        try:
            self._open()
        except BaseException:
            self.close()
            raise

    def _file(self, kind: str) -> str:
        return directory.file(self.path, self.id, kind)

    def _open(self) -> None:
        """Make the lock and the socket, unless they are there."""
        if self._closed:
            return  # by a thread that gave up waiting for the control thread to end
        self.path = self.source.prepare()
        try:
            if self._lock is None or not os.path.lexists(self._file("lock")):
                self._unlock()
                self._lock = directory.take_lock(
                    self.path, self.id, self.source.deployment
                )
            if self.fileno() < 0 or not os.path.lexists(self._file("sock")):
                listener, self._listener = self._listener, self._listen()
                if listener is not None:
                    listener.close()
        except OSError as error:
            raise ControlError(
                f"uid {os.geteuid()} cannot put a socket in {self.path}"
                f" ({error.strerror or error}). Set SCOPEDSESSION_CONTROL_DIR to a"
                " directory that it owns and may write to."
            ) from None

    def _listen(self) -> socket.socket:
        listener: socket.socket = native.original("socket", "socket")(
            socket.AF_UNIX, socket.SOCK_STREAM
        )
        unfinished = self._file("new")
        directory.remove([unfinished])
        try:
            if not native.can_accept(listener):
                raise ControlError(
                    "This version of Python offers no sockets beside gevent's."
                    " Set SCOPEDSESSION_CONTROL=0, and report it to the project."
                )
            listener.setblocking(False)
            listener.bind(unfinished)
            os.chmod(unfinished, 0o600)  # bind() has applied the umask
            listener.listen(128)
            # Renamed last, so that a client that sees the file can connect to it.
            os.rename(unfinished, self._file("sock"))
        except BaseException:
            listener.close()
            directory.remove([unfinished])
            raise
        return listener

    def fileno(self) -> int:
        """Return the listening socket's descriptor, -1 if there is none."""
        return -1 if self._listener is None else self._listener.fileno()

    def accept(self) -> socket.socket | None:
        """Return the next connection, ``None`` if its peer may not ask.

        :raises OSError: There is no connection, or no descriptor for it.
        """
        connection = native.accept(t.cast(socket.socket, self._listener))
        try:
            connection.setblocking(False)
            peer = peer_credentials(connection)
            if peer is not None and peer[1] in (0, os.geteuid()):
                return connection
        except OSError:
            pass  # the client has hung up
        connection.close()
        return None

    def answer(self) -> bytes:
        """Return the reply to a request, read afresh if the last one is stale.

        It is empty if the application is gone, as of a worker that has just ended.
        """
        made, reply = self._cached
        if not reply or time.monotonic() - made > _FRESH:
            content = self.source.reply(self.id, REPLY_LIMIT)
            reply = b"" if content is None else frame(content)
            self._cached = (time.monotonic(), reply)
        return reply

    def tick(self, now: float, own: t.Collection[str]) -> t.Collection[directory.Found]:
        """Do the housekeeping, and write the last snapshot while there is trouble.

        :param now: :func:`time.monotonic`, in seconds.
        :param own: The ids of this process's endpoints.
        :return: The workers that were lost.
        """
        lost: t.Collection[directory.Found] = ()
        if now >= self._next_housekeeping:
            self._next_housekeeping = now + _HOUSEKEEPING_EVERY
            for kind in ("sock", "lock", "json"):
                # Cleaners of temporary directories go by the time of last use.
                with suppress(FileNotFoundError):
                    os.utime(self._file(kind), follow_symlinks=False)
            # A cleaner may have removed them all the same, or the whole directory.
            self._open()
            lost = directory.sweep(self.path, self.id, own)
        if self.source.last_snapshot is not None and now >= self._next_snapshot:
            content = self.source.last_snapshot(self.id, directory.LAST_LIMIT)
            if content is not None:
                self._next_snapshot = now + _SNAPSHOT_EVERY
                directory.write_last(self.path, self.id, content)
            elif self._next_snapshot:
                # The trouble is over. After a kill, the snapshot would name connections
                # that had been returned long before.
                self._next_snapshot = 0.0
                directory.remove([self._file("json")])
        return lost

    def close(self) -> None:
        """Stop listening; remove the files, unless they are a parent process's."""
        self._closed = True
        if self.pid == os.getpid() and self._lock is not None:
            kept = {"json"} if self.keep_last else set()
            directory.remove(self._file(k) for k in directory.KINDS if k not in kept)
        if self._listener is not None:
            self._listener.close()
        self._unlock()

    def _unlock(self) -> None:
        # A fork does not inherit locks, so closing its copy frees nothing.
        descriptor, self._lock = self._lock, None
        if descriptor is not None:
            with suppress(OSError):
                os.close(descriptor)
