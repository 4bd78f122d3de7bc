"""The tutorial builds an application that works, and shows what its commands print."""

from __future__ import annotations

import importlib
import sys
from contextlib import suppress
from pathlib import Path
from types import ModuleType

import pytest

DOCS = Path(__file__).resolve().parents[2] / "docs"


def imported() -> ModuleType:
    """Import ``docs/follow.py``, and restore ``sys.path``."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", [str(DOCS), *sys.path])
        return importlib.import_module("follow")


tutorial = imported()


@pytest.mark.workers
@pytest.mark.soak
def test_the_tutorial_can_be_followed(short_tmp: Path, pg_url: str) -> None:
    """Page after page, from an empty folder; ``python docs/follow.py`` writes anew."""
    for page, text in tutorial.follow(short_tmp, pg_url).items():
        assert text == page.read_text(encoding="utf-8"), page.name


@pytest.mark.subprocess
@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("    return app\n", ""),  # the server has no application
        ("db.init_app(app)", "db"),  # the view fails
        ('database":"ok"', 'database":"well"'),  # this is not what curl prints
        ("python\n:caption: `shelf/extensions.py`\n", "python\n"),
    ],
)
def test_a_page_that_is_wrong(short_tmp: Path, old: str, new: str) -> None:
    """A block that does not work, or shows another output, is noticed."""
    text = (DOCS / "tutorial" / "setup.md").read_text(encoding="utf-8")
    wrong = text.replace(old, new)
    assert wrong != text
    problems = (tutorial.Failed, RuntimeError)
    database = tutorial.READERS_DATABASE
    with suppress(*problems), tutorial.reader(short_tmp, database) as person:
        assert person.read(wrong) != wrong
