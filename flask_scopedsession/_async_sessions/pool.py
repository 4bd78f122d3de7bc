"""The pool of an async engine, which keeps no connection: none can change its loop."""

from __future__ import annotations

import asyncio
import typing as t

from sqlalchemy import pool as sa_pool
from sqlalchemy import util

from .._runtime.native import allocate_lock

if t.TYPE_CHECKING:
    from sqlalchemy.pool import PoolProxiedConnection

# The old name is deprecated from SQLAlchemy 2.2 on.
_wait: t.Callable[[t.Any], t.Any] = getattr(util, "await_", None) or util.await_only


class NullPool(sa_pool.NullPool):
    """Opens its first connection alone, also where other event loops ask for theirs.

    SQLAlchemy sets the dialect up meanwhile, and lets others wait at a lock of asyncio,
    which belongs to one loop: in another, it raises.
    """

    _is_set_up = False

    def __init__(self, *args: t.Any, **kwargs: t.Any) -> None:
        super().__init__(*args, **kwargs)
        self._first = allocate_lock()

    def connect(self) -> PoolProxiedConnection:
        if self._is_set_up:
            return super().connect()
        # The lock may be held by a task of this loop, so the thread must not wait.
        while not self._first.acquire(False):
            _wait(asyncio.sleep(0.001))
        try:
            connection = super().connect()
            self._is_set_up = True
            return connection
        finally:
            self._first.release()
