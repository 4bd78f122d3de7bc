"""Requests and commands that send many statements, and which one they repeat most.

Often that is an N+1 query: one for a list, and one for each of its rows. Until a scope
has sent too many, little more is done than to count its texts: where a text is sent is
looked up the second, fourth, eighth ... time.
"""

from __future__ import annotations

import typing as t

from .._format import sql_shown
from .._runtime.logs import fields
from .._runtime.logs import log
from .._runtime.places import Places
from .ledger import Ledger
from .scope import described
from .scope import is_of_current_request
from .scope import responsible
from .scope import Scope

#: Texts that are counted per scope, and their most characters.
_MOST_TEXTS, _LONGEST_TEXT = 1000, 5000

#: Stands for the texts of a scope that is not judged: requests shared its context, or
#: it is no scope.
NOT_JUDGED: dict[str, list[t.Any]] = {}


class ManyStatements:
    """Counts what the scopes of an application repeat."""

    def __init__(self, ledger: Ledger, limit: int) -> None:
        self.limit = limit
        self._ledger = ledger
        app = ledger.app()
        self._places = Places("" if app is None else app.root_path)

    def note(self, scope: Scope, statement: str) -> None:
        """Count a statement, which ``scope.statements`` includes already."""
        texts = scope.texts
        if texts is None:
            texts = scope.texts = {}
        elif texts is NOT_JUDGED:
            return
        # The number of times, and the line that sent it.
        known = texts.get(statement)
        if known is None:
            if len(texts) < _MOST_TEXTS and len(statement) <= _LONGEST_TEXT:
                at = self._at(scope) if scope.statements > self.limit else None
                texts[statement] = [1, at]
            return
        known[0] = times = known[0] + 1
        if times & (times - 1) == 0 or scope.statements == self.limit + 1:
            known[1] = self._at(scope)

    def _at(self, scope: Scope) -> str | None:
        if not is_of_current_request(scope):
            scope.texts = NOT_JUDGED
        return self._places.here()

    def report(self, scope: Scope) -> None:
        """Log a scope that has ended, if it is the first of its view or command."""
        who = responsible(scope)
        if scope.texts is NOT_JUDGED or not any(who):
            return
        if not self._ledger.first_report(("many statements", *who)):
            return
        # Texts that differ only by values inside them are one statement.
        groups: dict[str, list[list[t.Any]]] = {}
        for text, known in (scope.texts or {}).copy().items():
            groups.setdefault(sql_shown(text), []).append(known)
        times, text, at = 0, "", None
        for shown, group in groups.items():
            total = sum(each for each, _ in group)
            if total > times:
                places = [each for each in group if each[1] is not None]
                times, text = total, shown
                at = max(places)[1] if places else None
        name = described(scope) if who.endpoint or who.command else f"A {who.method}"
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
                statements=scope.statements,
                repeated=times,
                statement=text,
                at=at,
            ),
        )
