"""Draw the picture of ``explanation.md`` from what one request really does.

``python docs/request_life.py [FOLDER]`` runs the application of that page, sends it a
request, and records Flask's signals, SQLAlchemy's events, and when the registry has a
session. It writes ``request-life.svg`` and ``request-life-dark.svg``, by default beside
the page. A test draws them again, and fails if they differ.
"""

from __future__ import annotations

import importlib
import os
import re
import sys
import tempfile
from dataclasses import dataclass
from html import escape
from pathlib import Path
from types import FrameType
from typing import Any

import flask
from sqlalchemy import event

DOCS = Path(__file__).resolve().parent
PAGE = DOCS / "explanation.md"

#: The function of the page that handles the request.
VIEW = "add_visit"

# What happens


@dataclass(frozen=True)
class Step:
    """Something that happened in the request.

    :param name: The signal or event.
    :param line: The line of the view that was running, or nothing.
    :param verb: The first word of a statement.
    """

    name: str
    line: str
    verb: str = ""


class Recorder:
    """Records the steps of a request to the application of the page."""

    def __init__(self, folder: Path) -> None:
        self.steps: list[Step] = []
        page = PAGE.read_text(encoding="utf-8")
        found = re.search(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
        if found is None:
            raise RuntimeError(f"{PAGE.name} has no example")
        self._source = found[1].splitlines()
        path = folder / "visits.py"
        path.write_text(found[1], encoding="utf-8")
        sys.path.insert(0, str(folder))
        self._visits: Any = importlib.import_module("visits")
        self._db = self._visits.db
        self._had_session = False

    def record(self) -> list[Step]:
        """Send one request, and return its steps."""
        app, db = self._visits.create_app(), self._db
        with app.app_context():
            db.create_all()  # afterwards, the pool has an idle connection
            engine = db.engine
        for name in (
            *("appcontext_pushed", "request_started", "request_finished"),
            *("request_tearing_down", "appcontext_tearing_down", "appcontext_popped"),
        ):
            self._on_signal(getattr(flask, name), name, app)
        for name in ("checkout", "checkin"):
            self._on_event(engine.pool, name)
        for name in ("begin", "commit", "rollback"):
            self._on_event(engine, name)
        for name in ("before_attach", "before_flush"):
            self._on_event(db.session, name)
        event.listen(engine, "before_cursor_execute", self._on_statement)
        response = app.test_client().post("/visits")
        if response.json != {"visits": 1}:
            raise RuntimeError(response.text)
        db.dispose(app)
        return self.steps

    def _on_signal(self, signal: Any, name: str, app: flask.Flask) -> None:
        signal.connect(lambda _, **__: self._note(name), app, weak=False)

    def _on_event(self, target: Any, name: str) -> None:
        event.listen(target, name, lambda *_: self._note(name))

    def _on_statement(self, _c: Any, _cursor: Any, statement: str, *_: Any) -> None:
        self._note("before_cursor_execute", statement.split(maxsplit=1)[0])

    def _note(self, name: str, verb: str = "") -> None:
        line = self._running_line()
        # No event tells when a session begins or ends, but the registry knows.
        has_session = self._db.session.registry.has()
        if has_session != self._had_session:
            self._had_session = has_session
            self.steps.append(Step("present" if has_session else "removed", line))
        self.steps.append(Step(name, line, verb))

    def _running_line(self) -> str:
        frame: FrameType | None = sys._getframe()
        while frame is not None and frame.f_code.co_name != VIEW:
            frame = frame.f_back
        return "" if frame is None else self._source[frame.f_lineno - 1].strip()


# How it is drawn


@dataclass(frozen=True)
class Lane:
    """A bar: what exists from one step to another."""

    name: str
    light: str
    dark: str
    begins: str = ""
    ends: tuple[str, ...] = ()


LANES = [
    Lane("engine and pool", "#475569", "#94a3b8"),
    Lane(
        *("application context, which is the scope", "#1d4ed8", "#93c5fd"),
        *("appcontext_pushed", ("appcontext_popped",)),
    ),
    Lane("session", "#0f766e", "#5eead4", "present", ("removed",)),
    Lane("transaction", "#b45309", "#fcd34d", "begin", ("commit", "rollback")),
    Lane("connection", "#9d174d", "#f9a8d4", "checkout", ("checkin",)),
]

HAS = "registry.has()"

#: Of each step: its bar, what it means, and who tells of it.
WORDS = {
    "appcontext_pushed": (1, "Flask pushes the context", "Flask"),
    "request_started": (1, "The request starts", "Flask"),
    "present": (2, "The registry has a session", HAS),
    "before_attach": (2, "The object is added, nothing sent", "session"),
    "before_flush": (2, "The session flushes its changes", "session"),
    "checkout": (4, "A connection is checked out", "pool"),
    "begin": (3, "A transaction begins", "engine"),
    "before_cursor_execute": (3, "{verb} is sent", "engine"),
    "commit": (3, "The transaction is committed", "engine"),
    "rollback": (3, "The transaction is rolled back", "engine"),
    "checkin": (4, "The connection is returned", "pool"),
    "request_finished": (1, "The response is ready", "Flask"),
    "request_tearing_down": (1, "Flask ends the request", "Flask"),
    "removed": (2, "The session is closed, removed", HAS),
    "appcontext_tearing_down": (1, "Flask ends the context", "Flask"),
    "appcontext_popped": (1, "Flask pops the context", "Flask"),
}

WIDTH, BAR, GAP, TEXT = 360, 20, 4, 128
ROW, HEADING = 40, 36

STYLE = """
text { font: 12.5px system-ui, sans-serif; fill: %(ink)s; }
.from { font: 12px ui-monospace, monospace; fill: %(faint)s; }
.line { font: bold 12px ui-monospace, monospace; }
.bar { font-size: 12px; fill: %(paper)s; }
"""
LIGHT = {"ink": "#1f2937", "faint": "#4b5563", "paper": "#ffffff"}
DARK = {"ink": "#e5e7eb", "faint": "#b6bec9", "paper": "#0b0f14"}


def draw(steps: list[Step], *, dark: bool) -> str:
    """Return the steps as an SVG, from top to bottom."""
    texts: list[str] = []
    guides: list[str] = []
    bars: list[str] = []
    began: dict[int, int] = {}
    y, line = 8, None
    for step in steps:
        if step.line != line:
            y += HEADING
            title = step.line or ("Flask" if line is None else "Flask again")
            texts.append(text("line", y - 8, title))
            line = step.line
        middle = y + ROW // 2
        y += ROW
        number, words, source = WORDS[step.name]
        what = f"{source}: {step.name}"
        if source == HAS:
            what = f"{HAS} is {step.name == 'present'}"
        texts.append(text("words", middle, words.format(verb=step.verb)))
        texts.append(text("from", middle + 15, what))
        path = f"M{left(number) + BAR} {middle}H{TEXT - 5}"
        guides.append(f'<path d="{path}" stroke="{colour(number, dark)}"/>')
        for number, lane in enumerate(LANES):
            if step.name == lane.begins:
                began[number] = middle - 8
            elif step.name in lane.ends:
                bars.append(bar(number, began.pop(number), middle + 8, dark))
    if began:
        raise RuntimeError(f"no end of {[LANES[number].name for number in began]}")
    height = y + 16
    bars.append(bar(0, 0, height, dark))
    size = f'width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}"'
    style = STYLE % (DARK if dark else LIGHT)
    # The guides come first, so that they pass behind the bars.
    shapes = "\n".join([*guides, *bars, *texts])
    return f"""\
<svg xmlns="http://www.w3.org/2000/svg" {size}>
<title>The life of a request, from top to bottom</title>
<style>{style}</style>
{shapes}
</svg>
"""


def text(kind: str, y: int, words: str) -> str:
    """Return a line of text."""
    return f'<text class="{kind}" x="{TEXT}" y="{y}">{escape(words)}</text>'


def bar(number: int, top: int, bottom: int, dark: bool) -> str:
    """Return a bar with its name, which runs downwards."""
    x, fill = left(number), colour(number, dark)
    size = f'x="{x}" y="{top}" width="{BAR}" height="{bottom - top}"'
    turned = f"translate({x + 6} {top + 10}) rotate(90)"
    return (
        f'<rect {size} rx="3" fill="{fill}"/>\n'
        f'<text class="bar" transform="{turned}">{LANES[number].name}</text>'
    )


def left(number: int) -> int:
    """Return where a bar begins."""
    return number * (BAR + GAP)


def colour(number: int, dark: bool) -> str:
    """Return the colour of a bar."""
    return LANES[number].dark if dark else LANES[number].light


def main(folder: Path = DOCS) -> None:
    """Write both pictures."""
    folder = folder.resolve()
    with tempfile.TemporaryDirectory(prefix="ss-") as temporary:
        steps = Recorder(Path(temporary)).record()
    for name, dark in (("request-life.svg", False), ("request-life-dark.svg", True)):
        (folder / name).write_text(draw(steps, dark=dark), encoding="utf-8")


if __name__ == "__main__":
    os.umask(0o022)
    main(*map(Path, sys.argv[1:]))
