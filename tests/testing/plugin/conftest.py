"""Suites that run in another pytest."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from suites import Suite

INNER = Path(__file__).parent / "inner"


class Inner:
    """Runs suites of the folder ``inner`` with its application and fixtures."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        shutil.copy(INNER / "shop.py", folder)
        self.use("app_conftest.py")

    def use(self, conftest: str) -> None:
        """Use the fixtures of another file."""
        shutil.copy(INNER / conftest, self.folder / "conftest.py")

    def __call__(self, *args, **kwargs) -> Suite:
        """Run suites, which end in ``.py``, with these options of pytest."""
        for name in (name for name in args if name.endswith(".py")):
            shutil.copy(INNER / name, self.folder / f"test_{name}")
        options = [name for name in args if not name.endswith(".py")]
        return Suite(self.folder, *options, **kwargs)


@pytest.fixture
def inner(short_tmp: Path) -> Inner:
    """Run suites of the folder ``inner``."""
    return Inner(short_tmp)
