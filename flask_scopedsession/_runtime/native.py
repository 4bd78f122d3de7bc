"""Threads, locks and sockets of the operating system, also under gevent.

gevent's monkey patching replaces them by cooperative ones. The control thread
must answer when the event loop is stuck, and a lock of the ledger may be taken
by both sides, so these are looked up unpatched, at the moment of use.
"""

from __future__ import annotations

import os
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


def allocate_lock() -> t.Any:
    """Return a new unlocked lock of the operating system."""
    return original("_thread", "allocate_lock")()


def native_thread_id() -> int:
    """Return the key of the calling thread in :func:`sys._current_frames`."""
    return t.cast(int, original("_thread", "get_ident")())


def current_greenlet() -> object | None:
    """Return the running greenlet when gevent serves the threads, else ``None``."""
    monkey = sys.modules.get("gevent.monkey")
    if monkey is None or not monkey.is_module_patched("threading"):
        return None
    return t.cast(object, sys.modules["greenlet"].getcurrent())


class NativeThread:
    """A daemon thread of the operating system, also where gevent patched threads."""

    def __init__(self, target: t.Callable[[], None], name: str) -> None:
        self._target = target
        self._done = allocate_lock()
        self._done.acquire()
        self._id: int | None = None
        self._thread: threading.Thread | None = None
        monkey = sys.modules.get("gevent.monkey")
        if monkey is not None and monkey.is_module_patched("threading"):
            original("_thread", "start_new_thread")(self._run, ())
        else:
            self._thread = threading.Thread(target=self._run, name=name, daemon=True)
            self._thread.start()

    def _run(self) -> None:
        self._id = threading.get_native_id()
        try:
            self._target()
        finally:
            self._done.release()

    def join(self, timeout: float) -> bool:
        """Wait until the thread has ended, for the operating system too."""
        deadline = time.monotonic() + timeout
        if not self._done.acquire(True, timeout):
            return False
        if self._thread is not None:
            self._thread.join(timeout)
        # Python 3.12 and newer warn when a process forks while it has threads,
        # and count them in /proc, where one may stay for a moment after its end.
        while (
            os.path.exists(f"/proc/self/task/{self._id}")
            and time.monotonic() < deadline
        ):
            original("time", "sleep")(0.0005)
        return True
