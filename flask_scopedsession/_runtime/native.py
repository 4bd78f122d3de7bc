"""Threads, locks and sockets of the operating system, also under gevent.

gevent's monkey patching replaces them by cooperative ones. The control thread must
answer while the event loop is blocked, and both sides may take a lock of the ledger,
so each name is looked up unpatched when it is used.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
import typing as t


def original(module: str, name: str) -> t.Any:
    """Return ``module.name`` as it was before gevent patched it, if it did."""
    monkey = sys.modules.get("gevent.monkey")
    if monkey is not None:
        return monkey.get_original(module, name)
    return getattr(__import__(module), name)


def is_patched(module: str) -> bool:
    """Whether gevent has replaced what is in a module of the standard library."""
    monkey = sys.modules.get("gevent.monkey")
    return monkey is not None and bool(monkey.is_module_patched(module))


def can_accept(listener: socket.socket) -> bool:
    """Whether :func:`accept` works for a listening socket."""
    return not is_patched("socket") or hasattr(listener, "_accept")


def accept(listener: socket.socket) -> socket.socket:
    """Return the next connection of a listening socket, as an unpatched socket.

    :raises OSError: As :meth:`socket.socket.accept`.
    """
    if not is_patched("socket"):
        return listener.accept()[0]
    # The public method would return gevent's socket, which needs an event loop in
    # the calling thread. gevent's own accept() calls this private one, too.
    descriptor, _ = listener._accept()  # type: ignore[attr-defined]
    return t.cast(socket.socket, original("socket", "socket")(fileno=descriptor))


def allocate_lock() -> t.Any:
    """Return a new unlocked lock of the operating system."""
    return original("_thread", "allocate_lock")()


def native_thread_id() -> int:
    """Return the key of the calling thread in :func:`sys._current_frames`."""
    return t.cast(int, original("_thread", "get_ident")())


def current_greenlet() -> object | None:
    """Return the running greenlet when gevent serves the threads, else ``None``."""
    if not is_patched("threading"):
        return None
    return t.cast(object, sys.modules["greenlet"].getcurrent())


class NativeThread:
    """A daemon thread of the operating system, also where gevent patched threads."""

    def __init__(self, target: t.Callable[[], None], name: str) -> None:
        self._target = target
        self._ended = allocate_lock()
        self._ended.acquire()
        self._id: int | None = None
        self._thread: threading.Thread | None = None
        if is_patched("threading"):
            original("_thread", "start_new_thread")(self._run, ())
        else:
            self._thread = threading.Thread(target=self._run, name=name, daemon=True)
            self._thread.start()

    def _run(self) -> None:
        self._id = threading.get_native_id()
        try:
            self._target()
        finally:
            self._ended.release()

    def join(self, timeout: float) -> bool:
        """Wait until the operating system, too, has ended the thread.

        :param timeout: Seconds to wait.
        :return: Whether it has ended.
        """
        deadline = time.monotonic() + timeout
        if not self._ended.acquire(True, timeout):
            return False
        if self._thread is not None:
            self._thread.join(timeout)
        # Python 3.12 and newer warn when a process with threads forks. They count
        # the threads in /proc, where a thread may stay for a moment after its end.
        task = f"/proc/self/task/{self._id}"
        while os.path.exists(task) and time.monotonic() < deadline:
            original("time", "sleep")(0.0005)
        return True
