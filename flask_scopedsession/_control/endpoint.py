"""One application's socket, its lock and its last snapshot in a directory."""

from __future__ import annotations

import _socket
import os
import socket
import time
import typing as t
from collections.abc import Callable
from contextlib import suppress

from ..errors import ControlError
from . import directory
from .protocol import frame
from .protocol import peer_credentials
from .protocol import REPLY_LIMIT

#: Seconds for which one snapshot answers everybody who asks.
_FRESH = 0.1

#: Seconds between two last snapshots, and between two sweeps.
_SNAPSHOT_EVERY = 30.0
_HOUSEKEEPING_EVERY = 60.0


class Source(t.NamedTuple):
    """What an application lets its endpoint say and do."""

    prepare: Callable[[], str]
    """Makes the directory if need be, makes sure it is safe, and returns it."""
    deployment: str
    reply: Callable[[str, int], bytes]
    """The reply of the worker of this id, in at most so many bytes."""
    last_snapshot: Callable[[str, int], bytes | None] | None
    """A last snapshot of at most so many bytes if there is trouble, else none."""
    paused: Callable[[], None]
    """The thread was stopped for a fork: call :meth:`Server.resume` some time."""
    gone: Callable[[], bool] = bool
    """Whether the application was dropped, and nobody disposed of it."""


class Endpoint:
    """One application's socket in one directory."""

    def __init__(self, source: Source) -> None:
        self.pid = os.getpid()
        self.id = f"{self.pid}-{os.urandom(4).hex()}"
        self.source = source
        self.path = ""
        self.keep_last = False
        """Let the last snapshot stay when this ends: the process is being aborted."""
        self._cached: tuple[float, bytes] = (0.0, b"")
        self._next_snapshot = 0.0
        self._next_housekeeping = 0.0
        self._lock: int | None = None
        self._listener: t.Any = None
        self._closed = False
        try:
            self._open()
        except BaseException:
            self.close()
            raise

    def _file(self, kind: str) -> str:
        return directory.file(self.path, self.id, kind)

    def _open(self) -> None:
        """Make the lock and the socket, as far as they are not there."""
        if self._closed:
            return  # by somebody who could not wait for the thread to end
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

    def _listen(self) -> t.Any:
        # The C class: that of the socket module may be gevent's.
        listener = _socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        unfinished = self._file("new")
        directory.remove([unfinished])
        try:
            listener.setblocking(False)
            listener.bind(unfinished)
            # It was made with the umask's mode.
            os.chmod(unfinished, 0o600)
            listener.listen(128)
            # Renamed last: whoever sees it finds somebody listening.
            os.rename(unfinished, self._file("sock"))
        except BaseException:
            listener.close()
            directory.remove([unfinished])
            raise
        return listener

    def fileno(self) -> int:
        """Return the listening socket's descriptor, -1 if there is none."""
        return -1 if self._listener is None else t.cast(int, self._listener.fileno())

    def accept(self) -> t.Any:
        """Return the next connection; ``None`` for one that may not ask.

        :raises OSError: There is none (any more), or no room for it.
        """
        descriptor, _ = self._listener._accept()
        connection = _socket.socket(fileno=descriptor)
        try:
            connection.setblocking(False)
            peer = peer_credentials(connection)
            if peer is not None and peer[1] in (0, os.geteuid()):
                return connection
        except OSError:
            pass  # it is gone already
        connection.close()
        return None

    def answer(self) -> bytes:
        """Return the reply to a request, made afresh if the last one is stale."""
        made, reply = self._cached
        if not reply or time.monotonic() - made > _FRESH:
            reply = frame(self.source.reply(self.id, REPLY_LIMIT))
            self._cached = (time.monotonic(), reply)
        return reply

    def tick(self, now: float, own: t.Collection[str]) -> None:
        """Keep the house, and write the last snapshot when there is trouble.

        :param own: The ids of this process, whose files are not to be swept.
        """
        if now >= self._next_housekeeping:
            self._next_housekeeping = now + _HOUSEKEEPING_EVERY
            self._keep_house(own)
        if self.source.last_snapshot is not None and now >= self._next_snapshot:
            content = self.source.last_snapshot(self.id, directory.LAST_LIMIT)
            if content is not None:
                self._next_snapshot = now + _SNAPSHOT_EVERY
                directory.write_last(self.path, self.id, content)

    def _keep_house(self, own: t.Collection[str]) -> None:
        for kind in ("sock", "lock", "json"):
            # Cleaners of temporary directories go by the time of last use.
            with suppress(FileNotFoundError):
                os.utime(self._file(kind), follow_symlinks=False)
        # Removed all the same, and the directory maybe with it.
        self._open()
        directory.sweep(self.path, own)

    def close(self) -> None:
        """Stop listening; remove the files, unless they are a parent's."""
        self._closed = True
        if self.pid == os.getpid() and self._lock is not None:
            kinds = set(directory.KINDS) - ({"json"} if self.keep_last else set())
            directory.remove(self._file(kind) for kind in kinds)
        if self._listener is not None:
            self._listener.close()
        self._unlock()

    def _unlock(self) -> None:
        # Locks are not inherited: closing this in a fork frees nothing.
        descriptor, self._lock = self._lock, None
        if descriptor is not None:
            with suppress(OSError):
                os.close(descriptor)
