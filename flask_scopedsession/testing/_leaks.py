"""What a test leaves open: sessions and connections that outlive it.

It looks at all applications of the process, so that it does not matter where a test has
got its own from. Where a session or connection was opened is noted as long as it looks.
"""

from __future__ import annotations

import gc
import threading
import time
import typing as t
import weakref
from collections.abc import Callable
from collections.abc import Hashable
from weakref import WeakSet

from .._application import Application
from .._live.sessions import number_of
from .._live.sessions import slots_of
from .._pools.account import Held
from .._pools.account import PoolAccount
from .._runtime import fork
from .._runtime.places import Places
from .._scopes.context import current_context
from .._scopes.kinds import OfContext
from .._scopes.ledger import Ledger
from .._scopes.scope import described
from .._scopes.scope import Scope
from .._sessions.factory import AppSessionmaker

if t.TYPE_CHECKING:
    from sqlalchemy.orm import Session

#: Seconds for which other threads, such as those of a live server, may go on.
_GRACE = 1.0


class _Open(t.NamedTuple):
    """A session, or a connection that no session uses, which is open."""

    application: Application
    scope: Scope
    name: str | None
    """The name of the bind; empty for a session of ``db.sessionmaker``."""
    session: Session | None
    held: list[Held]
    """The connection; or those that the session uses."""


class Leak(t.NamedTuple):
    """What a test has left open."""

    text: str
    opened: Callable[[], object]
    """Returns the session or connection, or ``None`` once it is freed."""


class Leaks:
    """Finds what one test after another leaves open."""

    def __init__(self, root_path: str) -> None:
        """Note from now on where sessions and connections are opened.

        :param root_path: Lines are named relative to it.
        """
        self._places = Places(root_path)
        self._lines: dict[int, str | None] = {}
        """By the id of a slot, a scope or a session."""
        self._undo = [
            _noted(PoolAccount, "check_out", lambda args, _: self._note(args[1])),
            _noted(Ledger, "enter", lambda _, made: self._note(made)),
            _noted(AppSessionmaker, "__call__", lambda _, made: self._note(made)),
        ]
        self._known: set[Hashable] = set()
        self._contexts: WeakSet[t.Any] = WeakSet()
        """Those that are older than the test, or of fixtures that outlive it."""
        self._threads: WeakSet[threading.Thread] = WeakSet()

    def close(self) -> None:
        """Note nothing any more."""
        for undo in self._undo:
            undo()

    def _note(self, opened: object) -> None:
        self._lines[id(opened)] = self._places.here()

    # -- what is not the test's --------------------------------------------------

    def begin(self) -> None:
        """Begin a test: what is open now is not the test's."""
        self._lines.clear()
        self._known.clear()
        self._contexts.clear()
        self._threads.clear()
        self.keep(None)

    def reading(self) -> tuple[set[Hashable], object]:
        """Return what is open now, and the context that is pushed."""
        keys = {key for each in _opened() for key in _keys(each)}
        for application in fork.watched():
            # One that has not begun yet, too.
            keys.update(map(number_of, application.ledger.unscoped.keys()))
        return keys, current_context(None)

    def keep(self, before: tuple[set[Hashable], object] | None) -> None:
        """Note that what was opened since `before` is not the test's."""
        keys, context = self.reading()
        known, former = before or (set[Hashable](), None)
        self._known |= keys - known
        if context is not None and context is not former:
            self._contexts.add(context)
        self._threads.update(threading.enumerate())

    # -- what is -----------------------------------------------------------------

    def found(self) -> list[Leak]:
        """Return what the test has left open. Nothing of it is found again."""
        left = self._left()
        if not left:
            return []
        del left
        gc.collect()  # an error that was caught keeps the variables of its traceback
        deadline = time.monotonic() + _GRACE
        while (left := self._left()) and time.monotonic() < deadline:
            if all(map(_is_final, left)):
                break
            time.sleep(0.005)
        self._known |= {key for each in left for key in _keys(each)}
        return [Leak(self._described(each), _reference(each)) for each in left]

    @staticmethod
    def lasting(found: list[Leak]) -> list[str]:
        """Describe what nobody has freed since it was found, as a log does an error."""
        gc.collect()
        return [each.text for each in found if each.opened() is not None]

    def _left(self) -> list[_Open]:
        return [
            each
            for each in _opened()
            if not (self._known & _keys(each)) and not self._is_kept(each)
        ]

    def _is_kept(self, found: _Open) -> bool:
        """Whether something that is older than the test will close it."""
        scope = found.scope
        if scope.thread in self._threads and not _is_final(found):
            return True
        if found.session is None or not found.name:
            return False
        by_context = found.application.ledger.kind == OfContext.name
        return (scope() if by_context else current_context(None)) in self._contexts

    def _described(self, found: _Open) -> str:
        application, scope, name, session, held = found
        app = application.ledger.app()
        words = [
            f"a connection of {each.slot.account.settings.name!r}"
            f"{self._whence('checked out', each.slot, each.scope)}"
            for each in held
        ]
        remedy = "Close it."
        if session is not None and name:
            remedy = "Leave its application context, or call db.session.remove()."
            words = [f"a session{self._whence('opened', scope, scope)}", *words]
        elif session is not None:
            opened = self._whence("opened", session, scope)
            words = [f"a session of db.sessionmaker{opened}", *words]
        of_app = "" if app is None else f" (app {app.name!r})"
        return f"{', with '.join(words)}{of_app}. {remedy}"

    def _whence(self, how: str, opened: object, scope: Scope) -> str:
        """Name the line that opened it, and the view, command or other thread."""
        line = self._lines.get(id(opened))
        user = described(scope)
        if scope.thread is threading.current_thread() and user == scope.thread.name:
            user = ""
        at, by = f" at {line}" if line else "", f" by {user}" if user else ""
        return f" {how}{at}{by}" if line or user else ""


def _noted(
    owner: type[t.Any], name: str, note: Callable[[t.Any, t.Any], None]
) -> Callable[[], None]:
    """Call `note` with the arguments and result of a method, until it is undone."""
    original = getattr(owner, name)

    def noted(*args: t.Any, **kwargs: t.Any) -> t.Any:
        result = original(*args, **kwargs)
        note(args, result)
        return result

    setattr(owner, name, noted)
    return lambda: setattr(owner, name, original)


def _opened() -> list[_Open]:
    """Return what is open in all applications; sessions with their connections."""
    found: list[_Open] = []
    for application in fork.watched():
        ledger, accounts = application.ledger, application.accounts.values()
        if not accounts or not (
            ledger.live or ledger.unscoped or any(each.used for each in accounts)
        ):
            continue
        held = {id(each.slot): each for account in accounts for each in account.out()}
        for scope, name, session in application.live.reader.open_sessions():
            slots = (held.pop(id(slot), None) for slot in slots_of(session))
            own = [each for each in slots if each is not None]
            found.append(_Open(application, scope, name, session, own))
        found += [
            _Open(application, each.scope, None, None, [each]) for each in held.values()
        ]
    return found


def _keys(found: _Open) -> set[Hashable]:
    """Return what tells this session or connection from all others."""
    if found.session is not None:
        return {number_of(found.session)}
    return {(id(each.slot), each.slot.number, each.since) for each in found.held}


def _reference(found: _Open) -> Callable[[], object]:
    opened = found.session
    if opened is None:
        opened = found.held[0].slot.proxied()
    return (lambda: found) if opened is None else weakref.ref(opened)


def _is_final(found: _Open) -> bool:
    """Whether nothing goes on that could still close it."""
    scope = found.scope
    return (
        scope.over
        or not scope.thread_alive
        or scope.thread is threading.current_thread()
    )
