"""Calls what a child process must reset after a fork.

``Application.after_fork()`` resets an application, ``Server.after_fork_in_child()`` the
control thread.

``os.register_at_fork`` runs :func:`after_fork_in_child`. Some servers (uWSGI) fork
without running Python's hooks, so each checkout and each new session also compares
the process ID, and calls it.
"""

from __future__ import annotations

import os
import threading
import typing as t
import weakref

from .logs import fields
from .logs import log


class ForkAware(t.Protocol):
    """What all applications of a process share, such as the control thread."""

    def before_fork(self) -> None:
        """Prepare, in the process that is about to fork."""

    def after_fork_in_parent(self) -> None:
        """Continue in the parent, also after a fork that failed."""

    def after_fork_in_child(self) -> None:
        """Forget what belongs to the parent."""


#: One per application; ``after_fork()`` of each is called in a child.
_applications: weakref.WeakSet[t.Any] = weakref.WeakSet()

#: Reset in a child before the applications are.
_process_wide: list[ForkAware] = []

#: By process ID. A lock inherited from the parent may be held by a thread that does
#: not exist in the child.
_locks: dict[int, t.Any] = {}


def watch(application: t.Any) -> None:
    """Call ``application.after_fork()`` in every child while `application` lives."""
    _applications.add(application)


def watched() -> list[t.Any]:
    """Return the applications of this process."""
    return list(_applications)


def register(resource: ForkAware) -> None:
    """Call the methods of `resource` around every fork of this process."""
    _process_wide.append(resource)
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(
            before=resource.before_fork,
            after_in_parent=resource.after_fork_in_parent,
        )


def process_lock() -> t.Any:
    """Return a reentrant lock of this process; a fork has another."""
    # Created on first use, so that gevent has patched it by then, if it does.
    return _locks.setdefault(os.getpid(), threading.RLock())


def after_fork_in_child() -> None:
    """Reset everything that belongs to the parent process.

    Without the hook, several threads may notice the fork at once. One of them does the
    work and the others wait: otherwise they would use the parent's connections.
    """
    with process_lock():
        for resource in _process_wide:
            resource.after_fork_in_child()
        for application in list(_applications):
            try:
                application.after_fork()
            except Exception:
                log.warning(
                    "%r: reset after fork failed",
                    application,
                    exc_info=True,
                    extra=fields("fork_failed"),
                )


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=after_fork_in_child)
