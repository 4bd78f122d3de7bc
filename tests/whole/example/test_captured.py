"""The captured output in the documentation is up to date."""

from __future__ import annotations

import importlib
import re
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from rich.text import Text

ROOT = Path(__file__).resolve().parents[3]
DOCS = ROOT / "docs"

#: What is captured with colors, and drawn.
DRAWN = ["pool-status.ansi"]

#: The size of a character in a picture.
CHARACTER, LINE = 12.2, 24.4

#: What differs from one run or machine to the next, and its replacement.
VARIES = [
    (r"0x[0-9a-f]+", "ADDRESS"),
    (r"\b\d+-[0-9a-f]{8}\.json", "SNAPSHOT"),
    (r"\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d\S*(?: \+0000| UTC)?", "TIME"),
    (r"\d+(?:\.\d+)? (?:ms|s|min|h)\b", "DURATION"),
    # Which of two threads is named first depends on which began its statement first.
    (r"(ThreadPoolExecutor)-\d+_\d+", r"\1-N"),
    # Not the line number of a place in a file: it has to be right.
    (r"(?<![\w.])(?<!\.py:)\d+(?:\.\d+)*", "N"),
    (r"\bN(?:, N)+", "N"),
    # The width of a column depends on its values, and the end of a line on paths.
    (r"\s+", " "),
]


def imported() -> ModuleType:
    """Import ``docs/capture.py``, and restore ``sys.path``."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", [str(DOCS), *sys.path])
        return importlib.import_module("capture")


capture = imported()


def normalised(text: str) -> str:
    for pattern, replacement in VARIES:
        text = re.sub(pattern, replacement, text)
    return text


@pytest.fixture(scope="module")
def root() -> Iterator[Path]:
    """A folder with a short path, open to the user that PostgreSQL runs as."""
    with tempfile.TemporaryDirectory(prefix="ss-captured-", dir="/tmp") as name:
        folder = Path(name)
        folder.chmod(0o755)
        yield folder


@pytest.fixture(scope="module")
def on_sqlite(root: Path) -> Any:
    return capture.Stage(root / "sqlite")


@pytest.fixture(scope="module")
def small_server(root: Path) -> Iterator[Any]:
    """A PostgreSQL with few connections, to crash."""
    with capture.brought_server(root, durable=True) as server:
        server.set(max_connections=10)
        server.crash()
        server.start()
        yield server


@pytest.fixture(scope="module")
def on_postgresql(root: Path, small_server: Any) -> Any:
    url = small_server.url.render_as_string(hide_password=False)
    return capture.Stage(root / "postgresql", FLASK_SQLALCHEMY_DATABASE_URI=url)


def compare(captured: dict[str, str], root: Path) -> None:
    """Compare captured text with the committed files, except for numbers."""
    assert captured
    for name, text in captured.items():
        committed = capture.path_of(name).read_text(encoding="utf-8")
        now = normalised(capture.tidy(text, root)).split()
        assert now == normalised(committed).split(), name


def test_every_captured_file_is_shown_and_made() -> None:
    """Each file is shown on the page or drawn, and a scene of the script writes it."""
    page = (DOCS / "troubleshooting.md").read_text(encoding="utf-8")
    shown = re.findall(r"^```\{literalinclude\} captured/(\S+)$", page, re.MULTILINE)
    names = [Path(name).stem for name in shown] + DRAWN
    files = sorted(capture.path_of(name).name for name in names)
    assert files == sorted(p.name for p in (DOCS / "captured").iterdir())
    source = (DOCS / "capture.py").read_text(encoding="utf-8")
    assert [name for name in names if f'"{name}": ' not in source] == []


@pytest.mark.parametrize("theme", capture.THEMES)
@pytest.mark.parametrize("name", DRAWN)
def test_a_picture_has_the_text_that_was_captured(name: str, theme: str) -> None:
    """``python docs/capture.py`` draws it. It is small, and loads nothing."""
    captured = capture.path_of(name).read_text(encoding="utf-8")
    file = capture.PICTURES / f"{Path(name).stem}-{theme}.svg"
    committed = file.read_text(encoding="utf-8")
    assert re.findall(r"https?:|url\([^#]|@font-face|href", committed) == ["http:"]
    assert file.stat().st_size < 20_000
    for svg in (committed, capture.picture(captured, theme)):
        assert drawn_text(svg) == Text.from_ansi(captured).plain.rstrip()


def drawn_text(svg: str) -> str:
    """Return the text of a picture, with a line for each height."""
    lines: dict[float, str] = {}
    for element in ET.fromstring(svg).iter("{http://www.w3.org/2000/svg}text"):
        x, y = (float(element.attrib[name]) for name in "xy")
        text = (element.text or "").replace("\N{NO-BREAK SPACE}", " ")
        lines[y] = lines.get(y, "").ljust(round(x / CHARACTER)) + text
    height = min(lines)
    rows = {round((y - height) / LINE): text for y, text in lines.items()}
    return "\n".join(rows.get(row, "").rstrip() for row in range(max(rows) + 1))


# One scene a test, so that several processes can share the scenes.
@pytest.mark.workers
@pytest.mark.slow
@pytest.mark.parametrize("play", capture.ON_SQLITE, ids=lambda play: play.__name__)
def test_on_sqlite(play: Any, on_sqlite: Any, root: Path) -> None:
    """``python docs/capture.py`` writes the files anew."""
    compare(play(on_sqlite), root)


@pytest.mark.workers
@pytest.mark.slow
@pytest.mark.parametrize(
    "play",
    [
        *capture.ON_POSTGRESQL,
        capture.connections_died,
        capture.too_many_clients,
    ],
    ids=lambda play: play.__name__,
)
def test_on_postgresql(
    play: Any, on_postgresql: Any, small_server: Any, root: Path
) -> None:
    """``python docs/capture.py`` writes the files anew."""
    if play is capture.connections_died:
        play = partial(play, server=small_server)
    compare(play(on_postgresql), root)
