"""``transaction()``, ``transactional()`` and ``release()``."""

from __future__ import annotations

import inspect
import random
import time
import typing as t
from collections import Counter
from collections.abc import Callable
from collections.abc import Generator
from collections.abc import Mapping
from contextlib import contextmanager
from contextlib import nullcontext
from functools import wraps

from sqlalchemy.orm import Session
from sqlalchemy.orm import SessionTransactionOrigin

from .._format import amounts
from .._pools.drivers import is_conflict
from .._scopes.lost_work import by_model
from .._scopes.teardown import connections_of
from .._settings.config import DEFAULT_BIND
from .._settings.values import integer
from ..errors import ConfigError
from ..errors import TransactionError
from ..errors import UnsavedWork
from .unsaved import unsaved

S = t.TypeVar("S", bound=Session)
P = t.ParamSpec("P")
R = t.TypeVar("R")

#: In ``session.info``: the outermost block that is open.
_BLOCK = "flask_scopedsession.transaction"

#: Seconds before the first repetition, and at most before each.
_FIRST_WAIT, _LONGEST_WAIT = 0.1, 3.0


class Block:
    """The outermost ``transaction()`` of a session."""

    __slots__ = ("failure", "is_undone")

    def __init__(self) -> None:
        self.failure: BaseException | None = None
        """What the first inner block that failed has raised."""
        self.is_undone = False
        """It failed, and nothing of its work was committed."""


@contextmanager
def transaction(
    current: Callable[[], S],
    is_current: Callable[[Session], bool],
    block: Block | None = None,
) -> Generator[S, None, None]:
    """Commit at the end of the outermost block, or roll back.

    :param current: Returns the scope's session.
    :param is_current: Whether a session has not been removed.
    :param block: Used if this is the outermost one.
    """
    session = current()
    outer: Block | None = session.info.get(_BLOCK)
    if outer is not None:
        try:
            yield session
        except BaseException as error:
            outer.failure = outer.failure or error
            raise
        return
    begun = session.get_transaction()
    # As a context manager, it refuses whatever follows a commit inside the block. One
    # that is begun may be one already.
    guard = nullcontext(begun) if begun is not None else session.begin()
    if begun is not None and begun.origin is SessionTransactionOrigin.AUTOBEGIN:
        guard = begun
    session.info[_BLOCK] = block = block or Block()
    is_atomic = True
    try:
        with guard as begun:
            try:
                yield session
                _refuse_commit(block, session, is_current)
                is_atomic = len(connections_of(session.get_transaction())) < 2
                if session.in_transaction():
                    session.commit()
            except BaseException:
                block.is_undone = is_atomic and session.get_transaction() is begun
                session.rollback()
                raise
    finally:
        session.info.pop(_BLOCK, None)
        block.failure = None  # else the error's traceback keeps itself alive


def _refuse_commit(
    block: Block, session: Session, is_current: Callable[[Session], bool]
) -> None:
    if block.failure is not None:
        raise TransactionError(
            "The transaction was rolled back: a db.transaction() inside it failed, and"
            " its error was handled. Let that error reach the outermost block, or use"
            " 'with db.session.begin_nested():' for work that may fail on its own."
        ) from block.failure
    if not session.in_transaction() and not is_current(session):
        raise TransactionError(
            "db.session was removed inside db.transaction(), which rolled back the"
            " work of the block. Call db.session.remove() after the block."
        )


def transactional(
    current: Callable[[], Session],
    is_current: Callable[[Session], bool],
    retries: int,
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Return a decorator that runs a function in a transaction.

    :param current: Returns the scope's session.
    """
    if callable(retries):
        raise ConfigError(
            "transactional needs parentheses: write '@db.transactional()'."
        )
    retries = integer("transactional(retries=...)", retries, least=0)

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(
            function
        ):
            raise ConfigError(
                f"transactional() cannot decorate the generator {function.__name__}(),"
                " whose code runs after the call. Use 'with db.transaction():' in it."
            )
        if inspect.iscoroutinefunction(function):

            @wraps(function)
            async def run_async(*args: P.args, **kwargs: P.kwargs) -> t.Any:
                from asyncio import sleep

                attempts = _Attempts(current, is_current, retries)
                while True:
                    with attempts, attempts.transaction():
                        return await function(*args, **kwargs)
                    await sleep(attempts.wait)

            return t.cast("Callable[P, R]", run_async)

        @wraps(function)
        def run(*args: P.args, **kwargs: P.kwargs) -> R:
            attempts = _Attempts(current, is_current, retries)
            while True:
                with attempts, attempts.transaction():
                    return function(*args, **kwargs)
                time.sleep(attempts.wait)

        return run

    return decorate


class _Attempts:
    """The attempts of one call; each suppresses the error if another may follow."""

    def __init__(
        self,
        current: Callable[[], Session],
        is_current: Callable[[Session], bool],
        retries: int,
    ) -> None:
        self._current = current
        self._is_current = is_current
        self._left = retries
        self._longest = _FIRST_WAIT
        self.wait = 0.0
        """Seconds before the next one."""

    def transaction(self) -> t.ContextManager[Session]:
        return transaction(self._current, self._is_current, self._block)

    def __enter__(self) -> None:
        self._session, self._block = self._current(), Block()
        if self._left and not self._may_repeat(self._session):
            self._left = 0

    @staticmethod
    def _may_repeat(session: Session) -> bool:
        """Whether a rollback would undo nothing but the function's own work."""
        begun = session.get_transaction()
        return begun is None or (
            _BLOCK not in session.info
            and begun.origin is SessionTransactionOrigin.AUTOBEGIN
            and unsaved(session) == Counter()
        )

    def __exit__(self, _: object, error: BaseException | None, __: object) -> bool:
        if not (self._left and self._block.is_undone and is_conflict(error)):
            return False
        self._left -= 1
        # Random, so that those who met do not meet again.
        self.wait = random.uniform(self._longest / 2, self._longest)  # noqa: S311
        self._longest = min(self._longest * 2, _LONGEST_WAIT)
        return True


#: Stands for the bind of a session that has no scope.
SESSIONMAKER = "a session of db.sessionmaker()"


def release(
    sessions: Mapping[str, Session],
    names: Mapping[str, str],
    caller: str = "db.release()",
) -> None:
    """Give the connections of sessions back, if nothing is lost by that.

    :param sessions: By the name of the bind.
    :param names: The model of a table, by the table's name.
    :param caller: What an error names.
    """
    begun = {name: each for name, each in sessions.items() if each.in_transaction()}
    for name, session in begun.items():
        _refuse_release(name, session, names, caller)
    for session in begun.values():
        # A commit keeps, too, what nobody can see that a statement has written. With
        # the option, it would expire the loaded objects.
        expires, session.expire_on_commit = session.expire_on_commit, False
        try:
            session.commit()
        except BaseException:
            session.rollback()
            raise
        finally:
            session.expire_on_commit = expires


def _refuse_release(
    name: str, session: Session, names: Mapping[str, str], caller: str
) -> None:
    shown = {DEFAULT_BIND: "db.session", SESSIONMAKER: SESSIONMAKER}.get(name)
    shown = shown or f"db.get_session({name!r})"
    if not session.is_active:
        raise TransactionError(
            f"{caller} found that the transaction of {shown} has failed or is"
            f" prepared. Call rollback() or commit() on it first."
        )
    if _BLOCK in session.info or session.in_nested_transaction():
        raise TransactionError(
            f"{caller} was called inside a transaction() or begin_nested() of"
            f" {shown}, which it would end. Call it after that block."
        )
    changes = unsaved(session)
    if changes is None:
        raise UnsavedWork(
            f"{caller} cannot tell whether {shown} has changes, because"
            " SCOPEDSESSION_TRACKING is off and SCOPEDSESSION_LOST_WORK is 'ignore'."
            " Call its commit() or rollback() instead, or set one of the two."
        )
    if changes:
        listed = amounts(by_model(changes, names))
        raise UnsavedWork(
            f"{caller} would end the transaction of {shown}, which has unsaved"
            f" changes ({listed}). Call its commit() or rollback() first."
        )
