"""What the tests of other libraries share: recipes of the documentation, and its table.

Each of ``MODULES`` is about one library and has a constant ``CLIENT``, a
:class:`Client`. Run as a program, this module writes them into the table of
``docs/clients.md``.
"""

from __future__ import annotations

import ast
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from typing import Literal

ROOT = Path(__file__).parent.parent.parent
PAGE = ROOT / "docs" / "clients.md"
TESTS = ROOT / "tests" / "clients"
#: pytest-flask is among the packages of all tests, for every version of Flask.
MODULES = [*TESTS.glob("test_*.py"), ROOT / "tests" / "whole" / "test_pytest_flask.py"]

HEAD = "| library | how it works | what the test does |\n| --- | --- | --- |\n"


@dataclass(frozen=True)
class Client:
    """A library that uses the extension, and how."""

    name: str
    url: str
    works: Literal["as it is", "recipe", "drop-in", "broken by itself"]
    """``recipe``: with the code below this name's heading on the page.

    ``drop-in``: with :mod:`flask_scopedsession.flask_sqlalchemy` only.
    """
    does: str
    """What the test does, as a cell of the table."""

    def row(self, test: str) -> str:
        """Return the row of the table; ``test`` is the module's name."""
        word: str = self.works
        if word == "recipe":
            anchor = re.sub(r"[^\w -]", "", self.name.lower()).replace(" ", "-")
            word = f"[{word}](#{anchor})"
        elif word == "drop-in":
            word = f"[{word}](flask-sqlalchemy.md)"
        cell = f"{self.does} (`{test}`)"
        return f"| [{self.name}]({self.url}) | {word} | {cell} |\n"


def clients() -> list[tuple[str, Client]]:
    """Return each test module's name and client, without importing them."""
    found = []
    for path in sorted(MODULES):
        for statement in ast.parse(path.read_text(encoding="utf-8")).body:
            match statement:
                case ast.Assign([ast.Name("CLIENT")], ast.Call(keywords=words)):
                    values = {str(w.arg): ast.literal_eval(w.value) for w in words}
                    found.append((path.name, Client(**values)))
    return sorted(found, key=lambda pair: pair[1].name.lower())


def table() -> str:
    """Return the table of ``docs/clients.md``."""
    return HEAD + "".join(client.row(test) for test, client in clients())


def recipe(name: str, **given: Any) -> dict[str, Any]:
    """Run the Python code below a heading of ``docs/clients.md``.

    :param name: The heading.
    :param given: Names that the code uses and does not define.
    :returns: The names that there are afterwards.
    """
    text = PAGE.read_text(encoding="utf-8")
    section = re.search(
        rf"^## {re.escape(name)}\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL
    )
    assert section, f"docs/clients.md has no heading {name!r}"
    found = list(
        re.finditer(r"^```python\n(.*?)^```$", section[1], re.MULTILINE | re.DOTALL)
    )
    assert found, f"docs/clients.md has no Python code below {name!r}"
    names = dict(given)
    for block in found:
        # The empty lines keep the page's line numbers in tracebacks.
        above = text.count("\n", 0, section.start(1) + block.start(1))
        exec(compile("\n" * above + block[1], str(PAGE), "exec"), names)
    return names


def write() -> None:
    """Write the table into the page."""
    text = PAGE.read_text(encoding="utf-8")
    before, found, rest = text.partition(HEAD)
    assert found, "docs/clients.md has no table"
    after = rest[re.match(r"(\|.*\n)*", rest).end() :]  # type: ignore[union-attr]
    PAGE.write_text(before + table() + after, encoding="utf-8")


if __name__ == "__main__":
    write()
    sys.stdout.write(table())
