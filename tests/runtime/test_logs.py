"""Log records: fields, time and process, and outliving ``logging.config``."""

from __future__ import annotations

import ast
import json
import logging
import logging.config
import re
from collections.abc import Callable
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import commands
import pytest
from flask import Flask
from models import Base
from models import User

import flask_scopedsession
from flask_scopedsession import ScopedSession

PACKAGE = Path(flask_scopedsession.__file__).parent
DOCS = Path(__file__).parents[2] / "docs"
PAGE = DOCS / "logs.md"

#: A field and its type, in a table of the page.
FIELD = re.compile(r"^\| `(scopedsession_\w+)` \| ([a-z ]+) \|", re.MULTILINE)

TYPES: dict[str, Any] = {
    "string": str,
    "integer": int,
    "number": (int, float),
    "boolean": bool,
    "object": dict,
    "list": list,
    "null": type(None),
}

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


def documented() -> dict[str, tuple[str, dict[str, str]]]:
    """Return the level and the types of the fields of each event on the page."""
    text = PAGE.read_text(encoding="utf-8")
    levels = dict(re.findall(r"^\| \[`(\w+)`\]\(#\1\) \| (\w+) \|", text, re.MULTILINE))
    sections = re.split(r"^### (\w+)$", text, flags=re.MULTILINE)
    assert sections[1::2] == list(levels), "a section for each row, in this order"
    return {
        event: (levels[event], dict(FIELD.findall(section)))
        for event, section in zip(sections[1::2], sections[2::2], strict=True)
    }


def test_each_record_is_documented() -> None:
    """With its level and exactly its fields, wherever it is logged."""
    found: dict[str, tuple[str, set[str]]] = {}
    for where, call in calls():
        (extra,) = (each.value for each in call.keywords if each.arg == "extra")
        assert isinstance(extra, ast.Call), where
        event = ast.literal_eval(extra.args[0])
        assert isinstance(call.func, ast.Attribute)
        level = call.func.attr.replace("exception", "error")
        record = level, {f"scopedsession_{each.arg}" for each in extra.keywords}
        assert found.setdefault(event, record) == record, where
    assert found == {
        event: (level, set(types)) for event, (level, types) in documented().items()
    }
    assert len(found) > 10


@pytest.mark.subprocess
@pytest.mark.parametrize("configuration", ["json_logs", "structlog_logs"])
def test_each_record_as_json(short_tmp: Path, configuration: str) -> None:
    """Both documented configurations write every field, as the type on the page."""
    script = str(DOCS / "records.py")
    commands.run([script, str(short_tmp / "records"), configuration]).check()
    common = dict(FIELD.findall(PAGE.read_text("utf-8").partition("### ")[0]))
    for event, (level, types) in documented().items():
        lines = (short_tmp / "records" / f"{event}.json").read_text("utf-8")
        record = json.loads(lines)
        assert lines.count("\n") == 1
        assert record["scopedsession_event"] == event
        assert record.get("levelname", record.get("level")).lower() == level
        own = {name for name in record if name.startswith("scopedsession_")}
        assert own == {*types, *common}, event
        for name, kinds in {**types, **common}.items():
            names = kinds.split(" or ")
            assert any(isinstance(record[name], TYPES[kind]) for kind in names), name
            assert (type(record[name]) is bool) == (kinds == "boolean"), name
        # What the rows contain, and what was sent as parameters.
        assert "gift" not in lines
        if configuration == "json_logs":
            shown = (DOCS / "records" / f"{event}.json").read_text("utf-8")
            assert normalised(lines) == normalised(shown), "python docs/records.py"


def normalised(line: str) -> str:
    """Leave out what differs from one run to the next."""
    line = re.sub(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d+", "TIME", line)
    about = r"held(?: for)?|connection for|gave up after|uid"
    line = re.sub(rf"({about}) \d+(\.\d+)?", r"\1 N", line)
    line = re.sub(r'(_s|pid)": \d+(\.\d+)?', r'\1": N', line)
    return re.sub(r"worker \d+|\d+-[0-9a-f]{8}", "WORKER", line)


def test_a_record_can_be_silenced(
    make_app: Callable[..., Flask], caplog: pytest.LogCaptureFixture
) -> None:
    """By the documented filter, which lets other events through."""
    code = PAGE.read_text("utf-8").partition("## Silencing a record")[2]
    names: dict[str, Any] = {}
    before = LOGGER.filters[:]
    try:
        exec(re.findall(r"```python\n(.*?)```", code, re.DOTALL)[0], names)
        report(make_app)
        (record,) = caplog.records
        record.scopedsession_event = "many_statements"
        assert not LOGGER.filter(record)
    finally:
        LOGGER.filters[:] = before


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
    text = PAGE.read_text(encoding="utf-8").partition("## The records")[0]
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    result = run_script(LOSES_WORK.format(code))
    pid = result.stdout.strip()
    assert re.match(rf"\S+ \S+ {pid} lost_work {re.escape(MESSAGE)}", result.stderr)
