"""The picture of a request shows what a request does."""

from __future__ import annotations

from pathlib import Path

import commands
import pytest

DOCS = Path(__file__).resolve().parents[2] / "docs"


@pytest.mark.subprocess
def test_the_picture_is_what_happens(short_tmp: Path) -> None:
    """``python docs/request_life.py`` draws it from the steps that it records."""
    commands.run([DOCS / "request_life.py", short_tmp], cwd=short_tmp).check()
    for name in ("request-life.svg", "request-life-dark.svg"):
        now = (short_tmp / name).read_text(encoding="utf-8")
        assert now == (DOCS / name).read_text(encoding="utf-8")
