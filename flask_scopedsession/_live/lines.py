"""The line shown for a holder or waiter: where it is, or what is known instead."""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Mapping

from .._runtime.stacks import RawStack
from .._scopes.ledger import Ledger
from .._scopes.scope import Scope
from .._scopes.scope import stack_of
from ..snapshot._readings import HolderPlace

#: By the id of a scope: where its thread is.
Stacks = Mapping[int, RawStack]


def read_stacks(scopes: Iterable[Scope]) -> Stacks:
    """Return where the threads of scopes are; each thread is read once."""
    found: dict[int, RawStack] = {}
    read: dict[tuple[int, ...], RawStack] = {}
    for scope in scopes:
        # Not the reference itself, which cannot be hashed once its greenlet is gone.
        key = scope.native_id, id(scope.greenlet), id(scope.task)
        if key not in read:
            read[key] = stack_of(scope)
        found[id(scope)] = read[key]
    return found


class Lines:
    """Names the lines of one application's holders and waiters."""

    def __init__(self, ledger: Ledger) -> None:
        self._app = ledger.app
        self._places = ledger.places

    def locate(
        self,
        scope: Scope,
        stacks: Stacks,
        goes_on: bool,
        recorded: RawStack | None = None,
    ) -> tuple[str | None, HolderPlace | None]:
        """Return the line where the scope's thread is, or what is known instead.

        :param goes_on: The scope and its thread had not ended when the stacks were
            read; else the thread's may be that of another.
        :param recorded: Where the connection was checked out, if that is known.
        """
        if goes_on:
            at = self._places.innermost(stacks.get(id(scope), ()))
            return at, None if at is None else "now"
        at = self._places.innermost(recorded or ())
        if at is not None:
            return at, "checkout"
        at = self._view(scope)
        return at, None if at is None else "view"

    def _view(self, scope: Scope) -> str | None:
        """Return where the scope's view is defined, if that can be found out."""
        rule, app = scope.url_rule, self._app()
        if rule is None or app is None:
            return None
        try:
            return self._places.definition(app.view_functions.get(rule.endpoint))
        except Exception:  # noqa: BLE001 - a view may be an object of any class
            return None
