"""Log records: fields, time and process, and outliving ``logging.config``."""

from __future__ import annotations

import ast
import logging
import logging.config
import re
from collections.abc import Callable
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from models import Base
from models import User

import flask_scopedsession
from flask_scopedsession import ScopedSession

PACKAGE = Path(flask_scopedsession.__file__).parent
CHECKS = Path(__file__).parents[2] / "docs" / "checks.md"

LOSES_WORK = """
import logging, logging.config, os, sys
from flask import Flask
from sqlalchemy import text
from flask_scopedsession import ScopedSession

db = ScopedSession()
app = Flask("shop")
app.config["SQLALCHEMY_DATABASE_URI"] = "sqlite://"
db.init_app(app)

@app.post("/orders/<int:n>")
def add(n):
    db.session.execute(text("CREATE TABLE orders (id)"))
    db.session.execute(text("INSERT INTO orders VALUES (1)"))
    return ""

print(os.getpid())
{}
app.test_client().post("/orders/1")
"""
MESSAGE = "POST /orders/<int:n> -> add ended without commit(): unsaved changes were"


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


def calls() -> list[tuple[str, ast.Call]]:
    """Return each call of the package that logs something."""
    return [
        (str(path.relative_to(PACKAGE)), node)
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and isinstance(node.func.value, ast.Name)
        and node.func.value.id == "log"
        and hasattr(logging, node.func.attr)
    ]


def test_each_record_has_a_documented_event() -> None:
    """``docs/checks.md`` lists them all, and no other."""
    events = set()
    for where, call in calls():
        (extra,) = (each.value for each in call.keywords if each.arg == "extra")
        assert isinstance(extra, ast.Call), where
        events.add(ast.literal_eval(extra.args[0]))
    text = CHECKS.read_text(encoding="utf-8").partition("## In the log")[2]
    assert (
        set(
            re.findall(
                r"^\| `([a-z]+_?[a-z_]*)` \| (?:info|warning|error) \|",
                text,
                re.MULTILINE,
            )
        )
        == events
    )
    assert len(events) > 5


@pytest.mark.subprocess
def test_without_any_configuration(run_script: Callable[..., Any]) -> None:
    """A record says when, how bad, whose, and by which process; and that is all."""
    result = run_script(LOSES_WORK.format(""))
    pid = result.stdout.strip()
    assert re.fullmatch(
        r"\[\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}\] WARNING in flask_scopedsession"
        rf" \(process {pid}\): {re.escape(MESSAGE)}.*\n",
        result.stderr,
    )


@pytest.mark.subprocess
@pytest.mark.parametrize(
    ("configure", "expected"),
    [
        ("logging.basicConfig(format='%(levelname)s|%(message)s')", "WARNING|"),
        ("logging.getLogger('flask_scopedsession').addHandler(H())", "lost_work|"),
        ("logging.lastResort = None; logging.root.addHandler(H())", "lost_work|"),
    ],
    ids=["basic", "own", "root"],
)
def test_a_configured_handler_decides(
    run_script: Callable[..., Any], configure: str, expected: str
) -> None:
    """It gets the message as it is, and the fields."""
    handler = (
        "class H(logging.Handler):\n"
        "    def emit(self, record):\n"
        "        assert record.scopedsession_pid == os.getpid() == record.process\n"
        "        event = record.scopedsession_event\n"
        "        print(f'{event}|{record.getMessage()}', file=sys.stderr)\n"
    )
    result = run_script(LOSES_WORK.format(handler + configure))
    assert result.stderr.startswith(expected + MESSAGE)
    assert result.stderr.count("\n") == 1


@pytest.mark.subprocess
def test_the_documented_configuration(run_script: Callable[..., Any]) -> None:
    """It prints the event and the process."""
    text = CHECKS.read_text(encoding="utf-8").partition("## In the log")[2]
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    result = run_script(LOSES_WORK.format(code))
    pid = result.stdout.strip()
    assert re.match(rf"\S+ \S+ {pid} lost_work {re.escape(MESSAGE)}", result.stderr)
