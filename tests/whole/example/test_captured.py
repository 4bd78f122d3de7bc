"""What docs/troubleshooting.md shows is what one sees."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import sqlalchemy

ROOT = Path(__file__).resolve().parents[3]
DOCS = ROOT / "docs"

#: What differs from one run or machine to the next, and what is put there instead.
VARIES = [
    (r"0x[0-9a-f]+", "ADDRESS"),
    (r"\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d\S*(?: \+0000| UTC)?", "TIME"),
    (r"\d+(?:\.\d+)? (?:ms|s|min|h)\b", "DURATION"),
    # Not of a line in a file: that is to be the right one.
    (r"(?<![\w.])(?<!\.py:)\d+(?:\.\d+)*", "N"),
    (r"\bN(?:, N)+", "N"),
    # Columns are as wide as what is in them, and lines are broken where they must.
    (r"\s+", " "),
]


def normalised(text: str) -> str:
    for pattern, instead in VARIES:
        text = re.sub(pattern, instead, text)
    return text


def test_the_page_shows_every_captured_file_and_no_other() -> None:
    """A file that nobody shows, or that is not there, is a mistake."""
    page = (DOCS / "troubleshooting.md").read_text(encoding="utf-8")
    shown = re.findall(r"^```\{literalinclude\} captured/(\S+)$", page, re.MULTILINE)
    assert sorted(shown) == sorted(p.name for p in (DOCS / "captured").iterdir())


@pytest.mark.workers
@pytest.mark.slow
@pytest.mark.skipif(
    not sqlalchemy.__version__.startswith("2.1"),
    reason="the words of SQLAlchemy's errors are those of 2.1",
)
def test_what_was_captured_is_what_one_sees(short_tmp: Path) -> None:
    """All but numbers; ``python docs/capture.py`` writes it anew."""
    short_tmp.chmod(0o755)
    again = short_tmp / "again"
    subprocess.run([sys.executable, DOCS / "capture.py", again], check=True)
    committed = sorted((DOCS / "captured").iterdir())
    assert sorted(p.name for p in again.iterdir()) == [p.name for p in committed]
    for path in committed:
        now = (again / path.name).read_text(encoding="utf-8")
        then = path.read_text(encoding="utf-8")
        assert normalised(now) == normalised(then), path.name
