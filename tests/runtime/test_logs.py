"""The logger: its reports outlive what ``logging.config`` does to those that exist."""

from __future__ import annotations

import logging
import logging.config
from collections.abc import Callable
from collections.abc import Iterator

import pytest
from flask import Flask
from models import Base
from models import User

from flask_scopedsession import ScopedSession

LOGGER = logging.getLogger("flask_scopedsession")

#: As the file that Alembic makes.
ALEMBIC = """
[loggers]
keys = root,alembic
[handlers]
keys = console
[formatters]
keys = generic
[logger_root]
level = WARNING
handlers = console
[logger_alembic]
level = INFO
handlers =
qualname = alembic
[handler_console]
class = StreamHandler
args = (sys.stderr,)
formatter = generic
[formatter_generic]
format = %(levelname)-5.5s [%(name)s] %(message)s
"""


@pytest.fixture(autouse=True)
def logging_restored() -> Iterator[None]:
    """Undo what a test has configured, for the loggers of other packages, too."""
    found = logging.Logger.manager.loggerDict.values()
    disabled = {
        each: each.disabled for each in found if isinstance(each, logging.Logger)
    }
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    for each, before in disabled.items():
        each.disabled = before


def report(make_app: Callable[..., Flask]) -> None:
    """Lose work in a request, which is reported."""
    db = ScopedSession(model_class=Base)
    app = make_app(db)
    app.add_url_rule("/", view_func=lambda: db.session.add(User(name="x")) or "fine")
    assert app.test_client().get("/").status_code == 200


@pytest.mark.parametrize("how", ["file", "dict"])
def test_disable_existing_loggers(
    make_app: Callable[..., Flask],
    tmp_path: object,
    capsys: pytest.CaptureFixture[str],
    how: str,
) -> None:
    """Alembic's ``upgrade()`` in this process does not silence our reports."""
    if how == "file":
        from io import StringIO

        logging.config.fileConfig(StringIO(ALEMBIC))
    else:
        console = {"class": "logging.StreamHandler"}
        logging.config.dictConfig(
            {
                "version": 1,
                "handlers": {"console": console},
                "root": {"handlers": ["console"]},
            }
        )
    assert LOGGER.disabled
    report(make_app)
    assert "ended without commit()" in capsys.readouterr().err


def test_disabled_on_its_own(
    make_app: Callable[..., Flask], caplog: pytest.LogCaptureFixture
) -> None:
    """Disabling this very logger still works, and so does its level."""
    LOGGER.disabled = True
    report(make_app)
    LOGGER.disabled = False
    LOGGER.setLevel(logging.CRITICAL)
    report(make_app)
    LOGGER.setLevel(logging.NOTSET)
    assert caplog.records == []
    report(make_app)
    (record,) = caplog.records
    assert record.name == "flask_scopedsession"
    assert record.filename == "lost_work.py"
