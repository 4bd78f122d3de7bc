"""The logger ``flask_scopedsession``, and what all of its records have."""

from __future__ import annotations

import logging
import os
import typing as t

if t.TYPE_CHECKING:
    Adapter = logging.LoggerAdapter[logging.Logger]
else:
    Adapter = logging.LoggerAdapter

_LOGGER = logging.getLogger("flask_scopedsession")

#: Never used: it is disabled together with all loggers, and never on its own.
_WITNESS = _LOGGER.getChild("witness")

_formatter = logging.Formatter()


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


log = _Log(_LOGGER, {})


def fields(event: str, **more: object) -> dict[str, t.Any]:
    """Return the fields of a record: what has happened, in which process, and more."""
    found = {"event": event, "pid": os.getpid(), **more}
    return {f"scopedsession_{name}": value for name, value in found.items()}


def _introduce(record: logging.LogRecord) -> bool:
    """Let a record say when and where, if no handler is configured that would.

    Python then writes nothing but the message to stderr.
    """
    if not _LOGGER.hasHandlers():
        record.msg = (
            f"[{_formatter.formatTime(record)}] {record.levelname} in {record.name}"
            f" (process {record.process}): {record.msg}"
        )
    return True


_LOGGER.addFilter(_introduce)
