"""What makes sessions: SQLAlchemy's ``sessionmaker``, one per application."""

from __future__ import annotations

import inspect
import typing as t
from collections.abc import Callable
from collections.abc import Mapping
from copy import copy

from sqlalchemy.exc import ArgumentError
from sqlalchemy.orm import Session
from sqlalchemy.orm import sessionmaker

from .._scopes.ledger import Ledger
from ..errors import ConfigError


class AppSessionmaker(sessionmaker[t.Any]):
    """``db.sessionmaker``: what it makes belongs to no scope, but can be seen."""

    ledger: Ledger | None = None

    def __call__(self, **local_kw: t.Any) -> t.Any:
        session = super().__call__(**local_kw)
        if self.ledger is not None:
            self.ledger.unscoped[session] = self.ledger.user()
        return session

    def of(
        self, ledger: Ledger, options: Mapping[str, t.Any], class_: type[t.Any]
    ) -> AppSessionmaker:
        """Return one for an application.

        :param class_: This one's class, to which ``event.listen(db.session, ...)``
            listens, or a subclass.
        """
        made = copy(self)
        made.class_ = class_
        made.kw = {**self.kw, **options}
        made.ledger = ledger
        return made

    def make(self, configured: Mapping[str, t.Any]) -> t.Any:
        """Return a session for a scope.

        :param configured: What ``db.session.configure()`` was given.
        """
        if configured:
            return super().__call__(**configured)
        return self.class_(**self.kw)


class Factory(sessionmaker[t.Any]):
    """``db.session.session_factory``: makes sessions of the current application.

    What is configured here applies to every app, from the next session on.
    """

    def __init__(
        self, template: AppSessionmaker, current: Callable[[], AppSessionmaker]
    ) -> None:
        super().__init__()
        self.class_ = template.class_
        self.kw = {}
        self._current = current

    def __call__(self, **local_kw: t.Any) -> t.Any:
        return self._current().make({**self.kw, **local_kw})


def refuse_wrong_options(class_: type[Session], options: Mapping[str, t.Any]) -> None:
    """Refuse what no session of this class takes, rather than at its first use.

    :raises ConfigError: An option is not known, or its value not accepted.
    """
    if not options:
        return
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
        try:
            Session(**{name: options[name]})
        except (TypeError, ValueError, ArgumentError):
            refused = name
        else:
            continue
        raise ConfigError(
            "SQLALCHEMY_SESSION_OPTIONS or session_options: Session refused"
            f" {refused}. See sqlalchemy.orm.Session for what it takes."
        )
