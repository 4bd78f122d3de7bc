"""``count_statements()``: what a piece of code sends to the databases.

While any code counts, and only then, methods of the dialects are replaced. So it also
works where connections are not tracked, and costs nothing elsewhere.
"""

from __future__ import annotations

import typing as t
from collections import Counter
from collections.abc import Iterable
from contextvars import ContextVar
from time import perf_counter
from weakref import WeakKeyDictionary

from .._format import count
from .._format import sql_shown
from .._runtime.native import allocate_lock
from .._runtime.places import Places
from ..errors import TooManyStatements
from .slot import info_of
from .writes import CONTROL

if t.TYPE_CHECKING:
    from sqlalchemy import Engine

#: An engine, and the root path of its application.
Located = tuple["Engine", str]

#: Statements that an error names.
_MOST = 5


class Statement(t.NamedTuple):
    """One statement that was sent."""

    text: str
    """As the driver got it, without its parameters."""
    duration: float
    """Seconds until the driver had executed it."""
    at: str | None
    """The line of the application's code that sent it."""


class Repeated(t.NamedTuple):
    """A statement that was sent more than once."""

    text: str
    times: int
    at: str | None
    """The line that sent it, or sent it most often."""


class StatementCount:
    """The statements that the code in a block sends.

    That is the code in the block's thread, what it awaits, and async views that it
    requests; not that of threads that it starts. Statements that control transactions
    and savepoints do not count, nor what SQLAlchemy asks on an engine's first
    connection.
    """

    def __init__(
        self, owner: object, engines: Iterable[Located], at_most: int | None
    ) -> None:
        """Count nothing yet.

        :param owner: The extension that has the engines.
        """
        self.statements: list[Statement] = []
        """All, in their order."""
        self.owner = owner
        self._engines = list(engines)
        self._at_most = at_most

    def add(self, engine: Located) -> None:
        """Count the statements of one more engine."""
        self._engines.append(engine)
        _watch(*engine)

    def __enter__(self) -> StatementCount:  # noqa: PYI034
        for engine in self._engines:
            _watch(*engine)
        _counting.set((*_counting.get(), self))
        return self

    def __exit__(self, kind: object, error: object, traceback: object) -> None:
        __tracebackhide__ = True  # pytest then shows the block
        _counting.set(tuple(each for each in _counting.get() if each is not self))
        for engine, _ in self._engines:
            _unwatch(engine)
        if error is None and self._at_most is not None and len(self) > self._at_most:
            raise TooManyStatements(self._problem())

    def __len__(self) -> int:
        return len(self.statements)

    def __bool__(self) -> bool:
        return True

    @property
    def repeated(self) -> tuple[Repeated, ...]:
        """Those whose text was sent more than once, the most frequent first."""
        lines: dict[str, Counter[str | None]] = {}
        for each in self.statements:
            lines.setdefault(each.text, Counter())[each.at] += 1
        found = [
            Repeated(text, total, at.most_common(1)[0][0])
            for text, at in lines.items()
            if (total := sum(at.values())) > 1
        ]
        return tuple(sorted(found, key=lambda each: -each.times))

    def _problem(self) -> str:
        shown = [
            *((each.times, each.at, each.text) for each in self.repeated),
            *((1, each.at, each.text) for each in self.statements),
        ]
        known: dict[str, str] = {}
        for times, at, text in shown:
            where = f" at {at}" if at else ""
            known.setdefault(text, f"  {times}×{where}: {sql_shown(text)}")
        lines = list(known.values())[:_MOST]
        if len(known) > _MOST:
            lines.append(f"  and {len(known) - _MOST} more")
        sent = count(len(self), "statement")
        return "\n".join((f"{sent} sent, at most {self._at_most} allowed:", *lines))


#: What counts in the current context: those that the code is in, outermost first.
_counting: ContextVar[tuple[StatementCount, ...]] = ContextVar(
    "flask_scopedsession_counting", default=()
)

_METHODS = ("do_execute", "do_executemany", "do_execute_no_params")
_lock = allocate_lock()

#: By dialect: how many blocks watch it, and what its own methods were.
_watched: WeakKeyDictionary[t.Any, tuple[int, dict[str, t.Any]]] = WeakKeyDictionary()


def count_also(owner: object, engines: Iterable[Located]) -> None:
    """Let the blocks that the code is in count the statements of new engines, too."""
    for engine in engines:
        for each in _counting.get():
            if each.owner is owner:
                each.add(engine)


def _watch(engine: Engine, root_path: str) -> None:
    dialect: t.Any = engine.dialect
    with _lock:
        users, before = _watched.get(dialect, (0, {}))
        if not users:
            before = {name: dialect.__dict__.get(name) for name in _METHODS}
            places = Places(root_path)
            for name in _METHODS:
                setattr(dialect, name, _timed(getattr(dialect, name), places))
        _watched[dialect] = users + 1, before


def _unwatch(engine: Engine) -> None:
    dialect: t.Any = engine.dialect
    with _lock:
        users, before = _watched.pop(dialect)
        if users > 1:
            _watched[dialect] = users - 1, before
            return
        for name, method in before.items():
            if method is None:
                delattr(dialect, name)
            else:
                setattr(dialect, name, method)


def _timed(original: t.Any, places: Places) -> t.Callable[..., None]:
    def execute(cursor: t.Any, statement: str, *args: t.Any, **kwargs: t.Any) -> None:
        counting = _counting.get()
        context = kwargs.get("context", args[-1] if args else None)
        if not counting or not _counts(context, statement):
            original(cursor, statement, *args, **kwargs)
            return
        began = perf_counter()
        try:
            original(cursor, statement, *args, **kwargs)
        finally:
            sent = Statement(statement, perf_counter() - began, places.here())
            for each in counting:
                each.statements.append(sent)

    return execute


def _counts(context: t.Any, statement: str) -> bool:
    connection = getattr(context, "root_connection", None)
    if connection is None or statement.startswith(CONTROL):
        return False
    return info_of(connection.connection) is not None
