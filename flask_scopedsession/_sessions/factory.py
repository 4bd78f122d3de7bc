"""The session class: SQLAlchemy's, or the user's, that also notices lost work.

Overrides of public methods and two events. An event on each execution would cost
7 to 8 % of a request; an override of ``execute()`` costs a call.
"""

from __future__ import annotations

import inspect
import logging
import sys
import typing as t
import weakref
from collections import Counter
from collections.abc import Mapping
from functools import wraps
from threading import get_ident

from sqlalchemy import event
from sqlalchemy.exc import ArgumentError
from sqlalchemy.orm import Session
from sqlalchemy.orm import sessionmaker

from .._scopes.context import RAISED
from .._scopes.context import STATUS
from .._scopes.scope import current_owner
from .._scopes.scope import described
from .._scopes.sharing import _USER
from .._scopes.sharing import OneThreadAtATime
from .._settings.values import attempt
from ..errors import ConfigError
from ..errors import SessionRemoved

if t.TYPE_CHECKING:
    from sqlalchemy import Connection
    from sqlalchemy.orm import SessionTransaction
    from sqlalchemy.pool import PoolProxiedConnection

    from .._pools.account import Ledger
    from .._scopes.scope import Owner

log = logging.getLogger("flask_scopedsession")


def _one_call(source: t.Any, name: str, *, executes: bool = False) -> t.Any:
    """Return an override that lets no other thread into the session meanwhile.

    :param source: The class whose method is called.
    :param executes: Takes a statement, which may change something.
    """

    @wraps(getattr(source, name))
    def call(self: WatchedSession, *args: t.Any, **kw: t.Any) -> t.Any:
        # Two of these in a request with one SELECT, of which they take 2 %: so what
        # follows is in line.
        kept = self.__dict__
        mine = (get_ident(),)
        # One step for the interpreter, so that of two threads one is first.
        user: tuple[int] = kept.setdefault(_USER, mine)
        outer = True
        if user is mine:
            by = self._scopedsession_by
            if by is None or by.ident != mine[0]:
                self._scopedsession_handed_over()
        elif user[0] == mine[0]:
            outer = False
        else:
            self._scopedsession_take(user, mine)
        try:
            result = getattr(source, name)(self, *args, **kw)
        finally:
            if outer:
                kept.pop(_USER, None)
                if self._scopedsession_ended:
                    close_session(self)
        if executes:
            statement = args[0] if args else kw["statement"]
            if getattr(statement, "is_dml", False):
                self._scopedsession_note(_target(statement))
        return result

    return call


class WatchedSession(OneThreadAtATime, Session):
    """What a session of ours knows beyond SQLAlchemy's."""

    _scopedsession_ledger: Ledger | None = None
    _scopedsession_taken: tuple[weakref.ref[PoolProxiedConnection], ...] = ()
    """What the last transaction took from pools, in case that its end fails."""
    _scopedsession_sent: tuple[object, Counter[str]] | None = None
    """A transaction, and the changes that it sent to the database, by kind."""

    def bulk_save_objects(
        self, objects: t.Iterable[object], *args: t.Any, **kw: t.Any
    ) -> None:
        objects = list(objects)
        super().bulk_save_objects(objects, *args, **kw)
        for one in objects:
            self._scopedsession_note(type(one).__name__)

    def bulk_insert_mappings(
        self, mapper: t.Any, mappings: t.Iterable[t.Any], *args: t.Any, **kw: t.Any
    ) -> None:
        mappings = list(mappings)
        super().bulk_insert_mappings(mapper, mappings, *args, **kw)
        self._scopedsession_note(_class_name(mapper), len(mappings))

    def bulk_update_mappings(self, mapper: t.Any, mappings: t.Iterable[t.Any]) -> None:
        mappings = list(mappings)
        super().bulk_update_mappings(mapper, mappings)
        self._scopedsession_note(_class_name(mapper), len(mappings))

    def _scopedsession_note(self, kind: str, count: int = 1) -> None:
        transaction = self.get_transaction()
        if count and transaction is not None:
            sent = self._scopedsession_sent
            if sent is None or sent[0] is not transaction:
                # What an earlier one sent is committed or rolled back.
                sent = self._scopedsession_sent = (transaction, Counter())
            sent[1][kind] += count


class AppSessionmaker(sessionmaker[t.Any]):
    """Makes one application's sessions, all of the extension's one class.

    A stable class is what ``event.listen(db.session, ...)`` listens to.
    """

    def __init__(
        self, class_: type[Session], ledger: Ledger | None, **options: t.Any
    ) -> None:
        # As SQLAlchemy's would, but for a subclass of `class_`: it would not be the one
        # that is listened to, and takes 18 µs as an application is made.
        self.kw = options
        self.class_ = class_
        self.ledger = ledger

    def __call__(self, **local_kw: t.Any) -> t.Any:
        # What SQLAlchemy's does, less the merging of nothing.
        session = super().__call__(**local_kw) if local_kw else self.class_(**self.kw)
        session._scopedsession_ledger = self.ledger
        return session


def refuse_wrong_options(class_: type[Session], options: Mapping[str, t.Any]) -> None:
    """Refuse what no session of this class takes, rather than at its first use.

    :raises ConfigError: An option is not known, or its value not accepted.
    """
    if not options:
        return  # signatures take 150 µs, of 2.4 ms in which an application is made
    known: set[str] = set()
    for each in (class_, Session):
        for parameter in inspect.signature(each).parameters.values():
            if parameter.kind is parameter.VAR_KEYWORD:
                return  # the user's own class may take anything
            known.add(parameter.name)
    for name in options:
        if name not in known:
            import difflib

            near = difflib.get_close_matches(name, known, 1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise ConfigError(
                f"SQLALCHEMY_SESSION_OPTIONS or session_options: {name!r} is no option"
                f" of {class_.__name__}.{hint}"
            )
    of_session = inspect.signature(Session).parameters
    for name in options.keys() & of_session.keys():
        if isinstance(_probe(name, options[name]), Exception):
            raise ConfigError(
                "SQLALCHEMY_SESSION_OPTIONS or session_options: Session refused"
                f" {name}. See sqlalchemy.orm.Session for what it takes."
            )


def _probe(name: str, value: t.Any) -> Session | Exception:
    wrong = (TypeError, ValueError, ArgumentError)
    return attempt(lambda: Session(**{name: value}), *wrong)


#: Methods that reach the database, and those of them that take a statement.
_REACHING = ("flush", "connection", "commit", "rollback", "close")
_EXECUTING = ("execute", "scalars", "scalar")
_BULK = ("bulk_save_objects", "bulk_insert_mappings", "bulk_update_mappings")


def watched(class_: type[Session]) -> type[Session]:
    """Return a subclass of `class_` whose sessions feed the ledger."""
    body: dict[str, t.Any] = {
        "__module__": class_.__module__,
        "__doc__": class_.__doc__,
        **{name: _one_call(class_, name) for name in _REACHING},
        **{name: _one_call(class_, name, executes=True) for name in _EXECUTING},
        **{name: _one_call(WatchedSession, name) for name in _BULK},
    }
    if class_.flush is Session.flush:  # else the user's own wants to be called
        body["_autoflush"] = _autoflush
    found = t.cast(
        "type[Session]", type(class_.__name__, (WatchedSession, class_), body)
    )
    event.listen(found, "after_begin", _after_begin)
    event.listen(found, "after_flush", _after_flush)
    return found


def _after_begin(
    session: WatchedSession, transaction: SessionTransaction, connection: Connection
) -> None:
    proxied = connection.connection
    ledger = session._scopedsession_ledger
    if ledger is not None:
        key = id(proxied)
        for account in ledger.pools.values():
            hold = account.holds.get(key)
            if hold is not None:
                if session._scopedsession_entry is None:
                    # Made by db.sessionmaker: nobody's scope, but a connection is out.
                    session._scopedsession_entry = ledger.opened(
                        session, "", "none", current_owner()
                    )
                hold.session = session._scopedsession_entry
    if transaction.parent is None:
        # Not the hold, which would then outlive the connection and hear of its end.
        taken = weakref.ref(proxied)
        before = session._scopedsession_taken
        # Those of earlier transactions go as a later one begins: that is cheaper
        # than to hear of each end.
        session._scopedsession_taken = (
            (*(each for each in before if _is_out(each)), taken) if before else (taken,)
        )


def _is_out(taken: weakref.ref[PoolProxiedConnection]) -> bool:
    proxied = taken()
    return proxied is not None and proxied.is_valid


def _after_flush(session: WatchedSession, _: object) -> None:
    for one in (*session.new, *session.deleted):
        session._scopedsession_note(type(one).__name__)
    for one in session.dirty:
        if session.is_modified(one):
            session._scopedsession_note(type(one).__name__)


def _target(statement: t.Any) -> str:
    """Name what an INSERT, UPDATE or DELETE is about: a model or a table."""
    described = getattr(statement, "entity_description", None) or {}
    return str(described.get("name") or "rows")


def _class_name(mapper: t.Any) -> str:
    return str(getattr(getattr(mapper, "class_", mapper), "__name__", "rows"))


# -- lost work -----------------------------------------------------------------


def ended_well(context: t.Any, error: BaseException | None) -> bool:
    """Whether a context ended without any error, and its response was none either."""
    if error is not None or RAISED in context.__dict__:
        return False
    return context.__dict__.get(STATUS, "")[:1] not in ("4", "5")


#: Never changed.
NOTHING: Counter[str] = Counter()

# Private: whether nothing is new, deleted or modified, in 0.2 µs. By public names that
# makes two sets and a counter, in 1.4 µs, as it does when this one is gone.
_is_clean: t.Callable[[Session], bool] | None = getattr(Session, "_is_clean", None)


def _autoflush(self: t.Any) -> None:
    # Private: what SQLAlchemy calls before each SELECT, to call flush(), which returns
    # at once where nothing is to be flushed. This saves two calls of four, one of them
    # guarded. Were it renamed, nobody would call this one.
    if _is_clean is None or not _is_clean(self):
        t.cast(t.Any, super(WatchedSession, self))._autoflush()


def unsaved_work(session: Session) -> Counter[str]:
    """Count the changes that closing `session` would lose, by model or table."""
    sent = getattr(session, "_scopedsession_sent", None)
    if sent is None and _is_clean is not None and _is_clean(session):
        return NOTHING
    transaction = session.get_transaction()
    if transaction is None:
        return NOTHING  # any change begins one
    found: Counter[str] = Counter()
    if sent is not None and sent[0] is transaction:
        found.update(sent[1])
    if not session.is_active:
        return found  # a flush failed, and somebody handled that
    for one in (*session.new, *session.deleted):
        found[type(one).__name__] += 1
    if session.identity_map.check_modified():
        for one in session.dirty:
            if session.is_modified(one):
                found[type(one).__name__] += 1
    return found


def describe_lost_work(owner: Owner | None, lost: Counter[str]) -> str:
    """Say whose changes were lost, and what to do about it."""
    kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(lost.items()))
    return (
        f"{described(owner)} ended without commit(): unsaved changes were rolled back"
        f" ({kinds}). Call db.session.commit(), or db.session.rollback() if that was"
        " meant."
    )


# -- removal -------------------------------------------------------------------


def close_session(session: Session) -> BaseException | None:
    """Close a session for good, and return what went wrong, if anything.

    Whatever ``close()`` does, its connections go back, and the session is of no
    use afterwards: a connection taken later would have no scope to return it. If
    another thread is in the midst of a call, that is when it is closed.
    """
    failure: BaseException | None = None
    under_way = sys.exc_info()[1]
    session.get_bind = _refuse  # type: ignore[method-assign]
    if isinstance(session, WatchedSession):
        # First, so that a user who leaves between these lines sees it.
        session._scopedsession_ended = True
        mine = (get_ident(),)
        user = session.__dict__.setdefault(_USER, mine)
        if user[0] != mine[0]:
            if session._scopedsession_busy(user):
                return None
            session.__dict__[_USER] = mine
    try:
        session.close()
    except BaseException as error:  # noqa: BLE001 - returned, for the caller to raise
        failure = error
        _discard_connections(session, under_way)
    finally:
        session.__dict__.pop(_USER, None)
        ledger = getattr(session, "_scopedsession_ledger", None)
        if ledger is not None:
            ledger.sessions.pop(id(session), None)
            # Freed here, the entry need not hear of the session's end.
            session._scopedsession_entry = None  # type: ignore[attr-defined]
    return failure


def apart(failure: BaseException, under_way: BaseException | None) -> BaseException:
    """Return an error to log, without what was under way when it was raised.

    That is the application's, and SQLAlchemy writes parameters into it.
    """
    each: BaseException | None = failure
    while under_way is not None and each is not None:
        if each.__context__ is under_way:
            each.__context__ = None
        if each.__cause__ is under_way:
            each.__cause__ = None
        each = each.__cause__ or each.__context__
    return failure


def _discard_connections(session: Session, under_way: BaseException | None) -> None:
    _throw_away(session.invalidate, under_way)
    # close() stops at the first connection that fails; the others are still out.
    for taken in getattr(session, "_scopedsession_taken", ()):
        proxied = taken()
        if proxied is not None and proxied.is_valid:
            _throw_away(proxied.invalidate, under_way)


def _throw_away(
    invalidate: t.Callable[[], None], under_way: BaseException | None
) -> None:
    try:
        invalidate()
    except Exception as error:
        text = "session: cannot throw a connection away"
        log.warning(text, exc_info=apart(error, under_way))


def _refuse(*_: t.Any, **__: t.Any) -> t.NoReturn:
    raise SessionRemoved(
        "This session was removed when its scope ended, or by remove(). Use"
        " 'db.session' where the work is done instead of keeping a session, and"
        " load objects again in the new scope. What runs on after the response, as a"
        " stream or a thread does, opens its own: 'with app.app_context():'."
    )
