"""What contributors read is true, and the versions they install fit pyproject.toml."""

from __future__ import annotations

import re
import sys
from configparser import ConfigParser
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # which pytest installs

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


def section(title: str) -> str:
    """Return the text between a heading and the next."""
    return PAGE.split(f"\n## {title}\n")[1].split("\n## ")[0]


def test_each_folder_is_described() -> None:
    """The table has the folders of the project, and no others."""
    described = re.findall(r"^\| `([^`]+)` \|", section("The folders"), re.MULTILINE)
    ignored = (ROOT / ".gitignore").read_text(encoding="utf-8").split()
    there = [f"{path.name}/" for path in ROOT.iterdir() if path.is_dir()]
    others = {".git/", *(each for each in there if each.endswith(".egg-info/"))}
    assert set(described) == set(there) - others - set(ignored)


def test_each_file_that_a_change_goes_to_exists() -> None:
    named = re.findall(r"`([\w./]+/[\w.]*)`", section("Where a change goes"))
    assert len(named) > 20
    places = (ROOT, ROOT / "flask_scopedsession")
    assert not [
        name for name in named if not any((at / name).exists() for at in places)
    ]


def test_each_command_exists() -> None:
    """Targets of the Makefile, environments of tox, and scripts."""
    setup = ConfigParser()
    setup.read(ROOT / "setup.cfg")
    targets = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"make ([a-z-]+)", PAGE):
        assert re.search(rf"^{target}:", targets, re.MULTILINE), target
    for name in re.findall(r"tox run -e ([\w,-]+)", PAGE):
        for environment in name.split(","):
            assert f"testenv:{environment}" in setup, environment
    for script in re.findall(r"python ([\w./]+\.py)", PAGE):
        assert (ROOT / script).exists(), script


def test_each_fixture_exists() -> None:
    text = (ROOT / "tests" / "conftest.py").read_text(encoding="utf-8")
    named = re.findall(r"^\| `(\w+)` \|", section("How to write a test"), re.MULTILINE)
    assert named
    assert not [name for name in named if f"\ndef {name}(" not in text]


# Versions


def wanted() -> list[str]:
    """Return each package that pyproject.toml names."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    data: dict[str, Any] = tomllib.loads(text)
    lists = [
        data["project"]["dependencies"],
        *data["project"]["optional-dependencies"].values(),
        *data["dependency-groups"].values(),
    ]
    return sorted({each for some in lists for each in some if isinstance(each, str)})


LOCK = (ROOT / "requirements" / "dev.txt").read_text(encoding="utf-8")


@pytest.mark.parametrize("text", wanted())
def test_the_lock_satisfies_pyproject(text: str) -> None:
    """After a change of pyproject.toml, ``make lock`` does this."""
    requirement = Requirement(text)
    name = canonicalize_name(requirement.name)
    pins = [line for line in LOCK.splitlines() if line.startswith(f"{name}==")]
    assert pins
    for pin in pins:
        [exact] = Requirement(pin).specifier
        assert requirement.specifier.contains(exact.version), pin


def test_the_lock_names_no_index() -> None:
    """So that everybody installs from the index that is configured."""
    assert "://" not in LOCK
