"""Where scopes are kept: on the context, by a key of the user's, or by thread."""

from __future__ import annotations

import typing as t
from abc import ABC
from abc import abstractmethod
from collections.abc import Callable
from collections.abc import Hashable
from collections.abc import MutableMapping

from ..errors import ConfigError
from .context import Context
from .ledger import Ledger
from .scope import Anchor
from .scope import SCOPE
from .scope import Scope

#: On a context: the scopes of keys or threads that were made in it.
_CREATED = "_scopedsession_created"


class Kind(ABC):
    """One way to keep scopes."""

    name: str

    @abstractmethod
    def find(self, ledger: Ledger, context: Context) -> Scope | None:
        """Return the current scope, if there is one."""

    @abstractmethod
    def enter(self, ledger: Ledger, context: Context) -> Scope:
        """Return the current scope. If it is new, `context` ends it."""


class OfContext(Kind):
    """One scope per application context, kept on the context object."""

    name = "app context"

    def find(self, ledger: Ledger, context: Context) -> Scope | None:  # noqa: ARG002
        return context.__dict__.get(SCOPE)

    def enter(self, ledger: Ledger, context: Context) -> Scope:
        return context.__dict__.get(SCOPE) or ledger.enter(context)


class OfKey(Kind):
    """One scope per application and value of the user's function."""

    name = "custom"

    def __init__(self, key: Callable[[], Hashable]) -> None:
        self._key = key

    def _kept(self, ledger: Ledger) -> MutableMapping[t.Any, Anchor]:
        return ledger.keyed

    def find(self, ledger: Ledger, context: Context) -> Scope | None:  # noqa: ARG002
        anchor = self._anchor(ledger)
        return None if anchor is None else anchor.scope

    def _anchor(self, ledger: Ledger) -> Anchor | None:
        key = self._key()
        try:
            anchor = self._kept(ledger).get(key)
        except TypeError:
            kind = type(key).__name__
        else:
            # Another thread may have ended it; it cannot see this thread's scopes.
            return None if anchor is None or anchor.scope.ended else anchor
        raise ConfigError(
            f"scopefunc must return a hashable, such as a str or an int, not a {kind}."
        )

    def enter(self, ledger: Ledger, context: Context) -> Scope:
        anchor = self._anchor(ledger)
        if anchor is None:
            made = ledger.anchored()
            kept, key = self._kept(ledger), self._key()
            ended = kept.get(key)
            if ended is not None and ended.scope.ended:
                del kept[key]
            anchor = kept.setdefault(key, made)
            if anchor is made:
                created = context.__dict__.setdefault(_CREATED, [])
                created.append(made.scope)
            else:
                ledger.leave(made.scope)
        return anchor.scope

    @staticmethod
    def created(context: Context) -> list[Scope]:
        """Return the scopes that `context` made and that have not ended."""
        made: list[Scope] = context.__dict__.pop(_CREATED, [])
        return [scope for scope in made if not scope.ended]

    def forget(self, ledger: Ledger, scope: Scope) -> None:
        """Take an ended scope out of where it is kept."""
        kept = self._kept(ledger)
        for key, anchor in list(kept.items()):
            if anchor.scope is scope:
                del kept[key]


class OfThread(OfKey):
    """One scope per application and thread: SQLAlchemy's thread-local scope."""

    name = "thread"

    def __init__(self) -> None:
        super().__init__(lambda: None)

    def _kept(self, ledger: Ledger) -> MutableMapping[t.Any, Anchor]:
        return t.cast("MutableMapping[t.Any, Anchor]", ledger.local.__dict__)
