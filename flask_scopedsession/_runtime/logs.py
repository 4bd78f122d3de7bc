"""The logger ``flask_scopedsession``, whose reports outlive a change of logging."""

from __future__ import annotations

import logging
import typing as t

if t.TYPE_CHECKING:
    Adapter = logging.LoggerAdapter[logging.Logger]
else:
    Adapter = logging.LoggerAdapter

_NAME = "flask_scopedsession"

#: Never used: it is disabled together with all loggers, and never on its own.
_WITNESS = logging.getLogger(f"{_NAME}._witness")


class _Log(Adapter):
    """Undo what ``disable_existing_loggers`` has done to the logger.

    ``logging.config`` does so by default, and Alembic's ``env.py`` calls it in the
    middle of a process that migrates its database. A logger that was disabled by
    itself stays so.
    """

    def isEnabledFor(self, level: int) -> bool:  # noqa: N802
        if self.logger.disabled and _WITNESS.disabled:
            self.logger.disabled = _WITNESS.disabled = False
        return self.logger.isEnabledFor(level)

    def process(
        self, msg: t.Any, kwargs: t.MutableMapping[str, t.Any]
    ) -> tuple[t.Any, t.MutableMapping[str, t.Any]]:
        return msg, kwargs  # each record has fields of its own


log = _Log(logging.getLogger(_NAME), {})
