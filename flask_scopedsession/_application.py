"""Everything that one Flask application owns, in one record."""

from __future__ import annotations

import os
import threading
import typing as t
from collections.abc import Hashable
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from dataclasses import field

if t.TYPE_CHECKING:
    from sqlalchemy import Engine

    from ._live.worker import LiveView
    from ._pools.account import Ledger
    from ._sessions.factory import AppSessionmaker
    from ._sessions.registry import Scope
    from ._settings.config import Settings

#: What a fork inherited. Kept, so that nothing of it is ever closed there: the
#: sockets are still the parent's.
_inherited: list[object] = []


def _keep_for_ever() -> None:
    """Let what is inherited outlive the interpreter, too.

    Else it is freed in the end, and some drivers then say goodbye to the server.
    """
    with suppress(ImportError, AttributeError):
        import ctypes

        ctypes.pythonapi.Py_IncRef(ctypes.py_object(_inherited))


@dataclass(eq=False, repr=False)  # an engine's shows its URL
class AppState:
    """One application's settings, engines, sessions and ledger."""

    settings: Settings
    engines: Mapping[str, Engine]
    sessionmaker: AppSessionmaker
    ledger: Ledger
    live: LiveView
    forget: t.Callable[[t.Any], None]
    """Drops the sessions of a context that a fork inherited."""
    scopes: dict[Hashable, Scope] = field(default_factory=dict)
    local: threading.local = field(default_factory=threading.local)
    _reported: set[str] = field(default_factory=set)
    pid: int = field(default_factory=os.getpid)
    """The process that the state is of. Another is a fork that has not yet made it its
    own."""
    _begun: int = field(default_factory=os.getpid)

    def first_report(self, about: str) -> bool:
        """Whether `about` was not reported before in this process."""
        if about in self._reported:
            return False
        self._reported.add(about)
        return True

    def after_fork(self) -> None:
        """Make this state the child's own, without touching the parent's sockets."""
        pid = os.getpid()
        if self._begun == pid:
            return  # done, or asked for by what we do below
        self._begun = pid
        try:
            self._leave_to_parent()
        finally:
            # Last, as it is what tells other threads that they need not wait.
            self.pid = pid

    def _leave_to_parent(self) -> None:
        if not _inherited:
            _keep_for_ever()
        for entry in list(self.ledger.sessions.values()):
            session = entry()
            context = None if entry.context is None else entry.context()
            _inherited.append(session)
            if context is not None:
                self.forget(context)
        for scope in (*self.scopes.values(), *self.local.__dict__.values()):
            _inherited.extend(scope.sessions.values())
            scope.sessions.clear()
        self.scopes.clear()
        self.local.__dict__.clear()
        for account in self.ledger.pools.values():
            _inherited.extend(hold() for hold in account.holds.values())
        for engine in self.engines.values():
            # The parent still uses these sockets. Forget them without closing,
            # or its transactions end with ours.
            _inherited.append(engine.pool)
            engine.dispose(close=False)
        self.ledger.reset()
        self._reported.clear()
        self.live.after_fork()
