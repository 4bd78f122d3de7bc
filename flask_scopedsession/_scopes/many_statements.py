"""Requests and commands that send many statements, and which one they repeat most.

Often that is an N+1 query: one for a list, and one for each of its rows. Until a scope
has sent too many, little more is done than to count its texts: where a text is sent is
looked up the eighth, sixteenth, ... time. (If the limit is below 100, earlier.)
"""

from __future__ import annotations

from collections import Counter

from .._format import sql_shown
from .._runtime.logs import fields
from .._runtime.logs import log
from .ledger import Ledger
from .scope import described
from .scope import is_of_current_request
from .scope import responsible
from .scope import Scope

#: Texts that are counted per scope, and their most characters.
_MOST_TEXTS, _LONGEST_TEXT = 1000, 5000


class Texts(dict[str, int]):
    """The texts that a scope has sent: how often, and where from."""

    __slots__ = ("lines",)

    lines: dict[str, str | None]


#: Stands for the texts of a scope that is not judged: requests shared its context, or
#: it is no scope.
NOT_JUDGED = Texts()


class ManyStatements:
    """Counts what the scopes of an application repeat."""

    def __init__(self, ledger: Ledger, limit: int) -> None:
        self.limit = limit
        self._often = max(2, limit // 16)
        self._ledger = ledger

    def note(self, scope: Scope, statement: str) -> None:
        """Count a statement, which ``scope.statements`` includes already."""
        texts = scope.texts
        if texts is None:
            texts = Texts()
            texts.lines = {}
            scope.texts = texts  # complete, as another thread may share the scope
        times = texts.get(statement, 0) + 1
        if times == 1:
            if (
                texts is NOT_JUDGED
                or len(texts) >= _MOST_TEXTS
                or len(statement) > _LONGEST_TEXT
            ):
                return
            looks = scope.statements > self.limit
        else:
            looks = times >= self._often and times & (times - 1) == 0
        texts[statement] = times
        if looks or scope.statements == self.limit + 1:
            if not is_of_current_request(scope):
                scope.texts = NOT_JUDGED
            texts.lines[statement] = self._ledger.places.here()

    def report(self, scope: Scope) -> None:
        """Log a scope that has ended, if it is the first of its view or work."""
        who = responsible(scope)
        if scope.texts is NOT_JUDGED or not any(who):
            return
        if not self._ledger.first_report(("many statements", *who)):
            return
        # Texts that differ only by values inside them are one statement.
        totals: Counter[str] = Counter()
        lines: dict[str, tuple[int, str | None]] = {}
        texts = scope.texts or Texts()
        for each, times in texts.copy().items():
            shown = sql_shown(each)
            totals[shown] += times
            line = times, texts.lines.get(each)
            if line[1] and line > lines.get(shown, (0, None)):
                lines[shown] = line
        text, times = (totals.most_common(1) or [("", 0)])[0]
        at = lines.get(text, (0, None))[1]
        name = described(scope) if who.name else f"A {who.method}"
        most = "None of those counted is repeated."
        if times > 1:
            most = f"Most often, {times}×{f' at {at}' if at else ''}: {text}."
            if text.upper().startswith("SELECT"):
                most += (
                    " If rows are loaded one by one, load them with the list, as by"
                    " selectinload()."
                )
        log.warning(
            "%s sent %d statements (SCOPEDSESSION_MANY_STATEMENTS is %d). %s",
            *(name, scope.statements, self.limit, most),
            extra=fields(
                "many_statements",
                endpoint=who.endpoint,
                command=who.command,
                job=who.job,
                statements=scope.statements,
                repeated=times,
                statement=text,
                at=at,
            ),
        )
