"""All scopes of one application in this process, and what they lost or shared."""

from __future__ import annotations

import threading
import time
import typing as t
import weakref
from collections import Counter
from collections import deque
from collections.abc import Callable
from collections.abc import Hashable
from collections.abc import Mapping

from .._runtime.native import allocate_lock
from .._runtime.places import Places
from .context import Context
from .context import current_context
from .ended import EndedScopes
from .scope import Anchor
from .scope import is_user
from .scope import new_scope
from .scope import Responsible
from .scope import SCOPE
from .scope import Scope
from .scope import visitor

if t.TYPE_CHECKING:
    from flask import Flask
    from sqlalchemy.orm import Session

    from .._settings.config import LostWorkPolicy
    from ..snapshot import SharedUse
    from .many_statements import ManyStatements


class Lost:
    """What the scopes of one view have lost since the start."""

    __slots__ = ("last", "objects", "scopes")

    def __init__(self) -> None:
        self.scopes = 0
        self.objects: Counter[str] = Counter()
        self.last = 0.0
        """When, as :func:`time.time` has it."""


class Account(t.Protocol):
    """What the end of a scope needs of a pool's account."""

    def held_here(self) -> list[t.Any]:
        """Return the proxied connections that the calling thread has checked out."""
        ...


class Ledger:
    """One application's scopes.

    Written without a lock, since a context can be freed by the garbage collector
    inside any code: each write is one operation on a set or dict.
    """

    def __init__(
        self,
        app: Flask,
        *,
        kind: str,
        lost_work: LostWorkPolicy,
        model_names: Callable[[], Mapping[str, str]],
        close: Callable[[Ledger, Scope], None],
    ) -> None:
        """Begin with no scope.

        :param kind: What ends a scope: ``"app context"``, ``"thread"``, ``"custom"``.
        :param model_names: Returns the model of a table, by the table's name.
        :param close: Closes the sessions of a scope that was never torn down.
        """
        self.app = weakref.ref(app)
        self.places = Places(app.root_path)
        self.kind = kind
        self.lost_work: LostWorkPolicy = lost_work
        self.model_names = model_names
        self._close = close
        # Kept, because a bound method is made anew each time that it is asked for.
        self._when_freed = self._freed
        self.accounts: list[Account] = []
        """Of the pools; empty if tracking is off."""
        self.many_statements: ManyStatements | None = None
        """Counts what each scope repeats, if that is reported."""
        self.live: set[Scope] = set()
        """Scopes that have not ended."""
        self.keyed: dict[Hashable, Anchor] = {}
        """By the user's key: the scopes of ``scopefunc``."""
        self.local = threading.local()
        """The scopes of ``scopefunc="thread"``."""
        self.unscoped: weakref.WeakKeyDictionary[Session, Scope] = (
            weakref.WeakKeyDictionary()
        )
        """Sessions that ``db.sessionmaker`` made, and the scopes that called it."""
        self.uncommitted: set[t.Any] = set()
        """Slots of connections with changes that are not committed, or savepoints."""
        self.ending: dict[int, Counter[str]] = {}
        """By thread: what the scope that ends there is losing."""
        self.lost: dict[Responsible, Lost] = {}
        self.shared: deque[SharedUse] = deque(maxlen=5)
        self.returned_late: deque[t.Any] = deque(maxlen=100)
        """Connections that were held for long, for the log."""
        self.reset()

    def reset(self) -> None:
        """Begin anew: at the start, and after a fork."""
        for found in (self.live, self.keyed, self.unscoped, self.uncommitted):
            found.clear()
        self.ending.clear()
        self.lost.clear()
        self.shared.clear()
        self.returned_late.clear()
        self.local.__dict__.clear()
        self._reported: set[Hashable] = set()
        self._lock = allocate_lock()
        self.ended = EndedScopes()
        self.started = time.time()

    # -- scopes ----------------------------------------------------------------

    def enter(self, context: Context) -> Scope:
        """Return a context's scope, new if it has none."""
        made = new_scope(context, self._when_freed)
        # Another thread may share the context: one of both records wins.
        scope: Scope = context.__dict__.setdefault(SCOPE, made)
        if scope is made:
            self.live.add(scope)
        return scope

    def user(self) -> Scope:
        """Return the scope that the calling thread works for right now."""
        context = current_context(None)
        if context is None:
            return visitor(None)
        scope: Scope | None = context.__dict__.get(SCOPE)
        if scope is None:
            if context.app is not self.app():
                return visitor(None)
            scope = self.enter(context)
        return scope if is_user(scope) else visitor(scope)

    def anchored(self) -> Anchor:
        """Return an anchor with a new scope, for a thread or a key of the user's."""
        anchor = Anchor()
        anchor.scope = new_scope(anchor, self._when_freed)
        self.live.add(anchor.scope)
        return anchor

    def leave(self, scope: Scope) -> None:
        """Note that a scope has ended."""
        if scope.rule is None:
            scope.url_rule  # noqa: B018 - kept while there is a request to ask
        scope.ended = True
        scope.last = None
        self.live.discard(scope)

    def _freed(self, scope: Scope) -> None:
        """Close what a context or thread left behind that was never torn down."""
        scope.ended = True
        if scope.sessions:
            self._close(self, scope)
        # Last, so that forget_freed() finds the rest if this is interrupted.
        self.live.discard(scope)

    def forget_freed(self) -> None:
        """Drop scopes whose context was freed, if Ctrl-C interrupted :meth:`_freed`.

        Their connections are returned as their sessions are freed.
        """
        for scope in self.live.copy():
            if scope() is None:
                self.live.discard(scope)
                scope.sessions.clear()

    # -- reports ---------------------------------------------------------------

    def first_report(self, about: Hashable) -> bool:
        """Whether `about` was not reported before in this process."""
        if about in self._reported:
            return False
        self._reported.add(about)
        return True

    def count_lost(self, who: Responsible, objects: Counter[str]) -> None:
        """Note that a scope ended well, but with changes that nobody committed."""
        with self._lock:
            lost = self.lost.setdefault(who, Lost())
            lost.scopes += 1
            lost.objects.update(objects)
            lost.last = time.time()
