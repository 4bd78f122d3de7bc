"""What a fork means for us. Without the hook, each checkout compares the pid."""

from __future__ import annotations

import atexit
import logging
import os
import threading
import typing as t
import weakref

from ._control.server import SERVER

log = logging.getLogger("flask_scopedsession")

#: Called in a child, once per application.
_callbacks: weakref.WeakSet[t.Any] = weakref.WeakSet()

#: By process: one of a parent's may be held by a thread that is not here.
_turns: dict[int, t.Any] = {}


def watch(owner: t.Any) -> None:
    """Call ``owner.after_fork()`` in every child, as long as `owner` lives."""
    _callbacks.add(owner)


def after_fork_in_child() -> None:
    """Make everything in this process its own.

    Without the hook, several threads may notice at once: one does it, and the others
    wait, or they would take the parent's connections for theirs.
    """
    # Not before it is needed: then gevent has patched it, if it does.
    with _turns.setdefault(os.getpid(), threading.RLock()):
        SERVER.after_fork_in_child()
        for owner in list(_callbacks):
            try:
                owner.after_fork()
            except Exception:
                log.warning("%r: not ready after the fork", owner, exc_info=True)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=SERVER.before_fork,
        after_in_parent=SERVER.after_fork_in_parent,
        after_in_child=after_fork_in_child,
    )
atexit.register(SERVER.close)
