"""The examples and lists in the documentation are correct."""

from __future__ import annotations

import re
from configparser import ConfigParser
from dataclasses import fields
from dataclasses import is_dataclass
from pathlib import Path

import pytest
from inside import KEYS

from flask_scopedsession import cli
from flask_scopedsession import snapshot

DOCS = Path(__file__).parent.parent.parent / "docs"


def python_blocks(page: str) -> str:
    """Return the page's Python, with its line numbers."""
    text = (DOCS / page).read_text(encoding="utf-8")
    lines = []
    inside = False
    for line in text.splitlines():
        if line.startswith("```"):
            inside = line == "```python"
            lines.append("")
        else:
            lines.append(line if inside else "")
    return "\n".join(lines)


@pytest.mark.subprocess
@pytest.mark.parametrize("page", ["start.md", "scope.md"])
def test_examples_run(page, run_script, short_tmp):
    """All examples of a page run, one after the other."""
    run_script(python_blocks(page), cwd=short_tmp).check()


def test_every_key_is_documented():
    """The page on configuration has a section for each key, and no other."""
    text = (DOCS / "config.md").read_text(encoding="utf-8")
    documented = re.findall(r"^### `(\w+)`$", text, re.MULTILINE)
    assert sorted(documented) == sorted(KEYS)


def test_the_table_of_packages_is_the_one_that_is_checked():
    """The page on the design has the rows that ``lint-imports`` checks."""
    text = (DOCS / "design.md").read_text(encoding="utf-8")
    _, table = text.split("| package | what it contains |\n|---|---|\n")
    rows = table.split("\n\n")[0].splitlines()
    documented = [set(re.findall(r"`(\w+)/?`", row.split("|")[1])) for row in rows]
    parser = ConfigParser()
    parser.read(DOCS.parent / "setup.cfg")
    layers = parser["importlinter:contract:layers"]["layers"].split("\n")
    assert documented == [set(re.findall(r"\w+", row)) for row in layers if row]


@pytest.mark.parametrize("command", cli.COMMANDS, ids=lambda c: c.name)
def test_every_option_is_documented(command):
    """The page on the commands names every option."""
    text = (DOCS / "cli.md").read_text(encoding="utf-8")
    options = {name for param in command.params for name in param.opts}
    missing = {name for name in options if name.startswith("--") and name not in text}
    assert not missing


def test_every_field_of_the_json_is_documented():
    """The page on the commands names every field of every reading."""
    text = (DOCS / "cli.md").read_text(encoding="utf-8").split("\n## JSON\n")[1]
    readings = [each for each in vars(snapshot).values() if is_dataclass(each)]
    names = {field.name for reading in readings for field in fields(reading)}
    assert len(names) > 100
    assert names - set(re.findall(r"\w+", text)) == set()


def test_tests_that_the_page_on_security_names_exist():
    """The page on security names only tests that exist."""
    text = (DOCS / "security.md").read_text(encoding="utf-8")
    tests = DOCS.parent / "tests"
    named = []
    for row in (line for line in text.splitlines() if line.startswith("|")):
        file = None
        for path, name in re.findall(r"`(?:([\w/]+\.py)::)?(test_\w+)`", row):
            file = tests / path if path else file
            if file is not None:
                named.append((file, name))
    assert len(named) > 50
    assert not [
        f"{file.name}::{name}"
        for file, name in named
        if f"def {name}(" not in file.read_text(encoding="utf-8")
    ]
