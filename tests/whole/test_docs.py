"""The examples and lists in the documentation are correct."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from inside import KEYS

from flask_scopedsession import cli

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


@pytest.mark.parametrize("command", cli.COMMANDS, ids=lambda c: c.name)
def test_every_option_is_documented(command):
    """The page on the commands names every option."""
    text = (DOCS / "cli.md").read_text(encoding="utf-8")
    options = {name for param in command.params for name in param.opts}
    missing = {name for name in options if name.startswith("--") and name not in text}
    assert not missing


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
