"""What the errors of the package say, read from its source, for the page on errors.

``python tests/support/messages.py`` writes the lists of the page.
"""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

#: Between the text of a section and its list.
HEAD = "\nIts messages:\n\n"

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "flask_scopedsession"
PAGE = ROOT / "docs" / "errors.md"

#: Stands for what differs from one message to the next.
DOTS = "…"


def classes() -> list[str]:
    """Return the names of the error classes, in the order of the source."""
    tree = ast.parse((PACKAGE / "errors.py").read_text(encoding="utf-8"))
    return [node.name for node in tree.body if isinstance(node, ast.ClassDef)]


def text_of(node: ast.expr, names: dict[str, ast.expr]) -> str:
    """Return the text of an expression, as far as it is written in the source."""
    match node:
        case ast.Constant(value=str(text)):
            return text
        case ast.JoinedStr(values=parts):
            return "".join(text_of(part, names) for part in parts)
        case ast.FormattedValue(value=value) if isinstance(value, ast.Name):
            return text_of(value, names)
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return text_of(left, names) + text_of(right, names)
        case ast.Name(id=name) if name in names:
            return text_of(names[name], names)
    return DOTS


def constants(tree: ast.Module) -> dict[str, ast.expr]:
    """Return the module's constants, those of a message among them."""
    return {
        node.targets[0].id: node.value
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
    }


def written(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """Yield each class that a module makes an error of, and the error's message."""
    known = constants(tree)
    for node in ast.walk(tree):
        match node:
            case ast.Call(func=ast.Name(id=name), args=[message, *_]):
                text = text_of(message, known)
                yield name, re.sub(rf"{DOTS}(\W?{DOTS})+", DOTS, text)


def messages() -> dict[str, list[str]]:
    """Return the messages of each class that are more than what differs."""
    found: defaultdict[str, set[str]] = defaultdict(set)
    for path in PACKAGE.rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for name, text in written(tree):
            if re.search(r"[a-z]{2} [a-z]{2}", text):
                found[name].add(re.sub(r"\s+", " ", text).strip())
    return {name: sorted(found[name], key=str.casefold) for name in classes()}


def row(text: str) -> str:
    """Return a message as an item: the fact as code, the remedy as text."""
    fact, stop, remedy = text.partition(". ")
    remedy = re.sub(r"([*_<>\[\]`\\])", r"\\\1", remedy)
    return f"-   `{fact}.` {remedy}\n" if stop else f"-   `{fact}`\n"


def section(name: str, page: str) -> str:
    """Return the section of a class, from its heading to the next one."""
    return page.partition(f"\n## {name}\n")[2].partition("\n## ")[0]


def main() -> None:
    """Write the lists into the page."""
    page = PAGE.read_text(encoding="utf-8")
    for name, texts in messages().items():
        old = section(name, page)
        new = old.split(HEAD)[0].rstrip("\n") + "\n"
        if texts:
            new += HEAD + "".join(map(row, texts))
        page = page.replace(old, new)
    PAGE.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
