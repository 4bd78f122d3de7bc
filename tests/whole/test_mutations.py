"""Each protection that ``mutations.py`` takes out is there, and so are its tests."""

from __future__ import annotations

import ast
import runpy
import shutil
from functools import cache
from pathlib import Path
from typing import Any

import pytest

TESTS = Path(__file__).resolve().parent.parent
SCRIPT = runpy.run_path(str(TESTS / "mutations.py"))
PACKAGE = TESTS.parent / SCRIPT["PACKAGE"]
MUTATIONS = SCRIPT["MUTATIONS"]

Change = SCRIPT["Change"]
NotFound = SCRIPT["NotFound"]


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_a_mutation_fits_the_package(mutation: Any, tmp_path: Path) -> None:
    """What it replaces is there once, and the result is Python."""
    copy = tmp_path / PACKAGE.name
    for change in mutation.changes:
        path = SCRIPT["find"](change.where, PACKAGE)[0].relative_to(PACKAGE)
        (copy / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(PACKAGE / path, copy / path)
    SCRIPT["apply"](mutation.changes, copy)


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_the_tests_of_a_mutation_exist(mutation: Any) -> None:
    assert mutation.tests
    for test in mutation.tests:
        file, _, name = test.partition("::")
        assert name in functions_of(file), test


@cache
def functions_of(file: str) -> set[str]:
    """Return the names of the functions of a file of tests."""
    tree = ast.parse((TESTS.parent / file).read_text(encoding="utf-8"))
    return {n.name for n in tree.body if isinstance(n, ast.FunctionDef)}


def test_names_of_mutations_are_different() -> None:
    names = [mutation.name for mutation in MUTATIONS]
    assert len(set(names)) == len(names)


@pytest.fixture
def package(tmp_path: Path) -> Path:
    folder = tmp_path / PACKAGE.name
    (folder / "room").mkdir(parents=True)
    (folder / "room" / "__init__.py").write_text("")
    (folder / "room" / "module.py").write_text(
        "LIMIT = 1\n"
        "class Pool:\n"
        "    def give(self):\n"
        "        try:\n"
        "            return take()\n"
        "        finally:\n"
        "            put()\n"
        "    def other(self):\n"
        "        return take()\n"
    )
    return folder


MODULE = f"{PACKAGE.name}.room.module"


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (Change(MODULE, "LIMIT = 1", "LIMIT = 2"), "LIMIT = 2"),
        (Change(f"{MODULE}:LIMIT", "1", "3"), "LIMIT = 3"),
        (Change(f"{MODULE}:Pool.other", "take()", "None"), "        return None"),
        (
            Change(f"{MODULE}:Pool.give", "finally:\n    put()", "finally:\n    pass"),
            "            pass",
        ),
        (
            Change(f"{MODULE}:Pool.other", None, "def other(self):\n    return 5"),
            "        return 5",
        ),
    ],
)
def test_a_change(change: Any, line: str, package: Path) -> None:
    """Of one definition, whatever its indentation."""
    before = (package / "room" / "module.py").read_text().splitlines()
    SCRIPT["apply"]((change,), package)
    after = (package / "room" / "module.py").read_text().splitlines()
    assert line in after
    assert len(before) == len(after)
    assert sum(a != b for a, b in zip(before, after, strict=True)) == 1


@pytest.mark.parametrize(
    ("where", "old", "new", "why"),
    [
        (f"{PACKAGE.name}.hall:f", "a", "b", "no module"),
        ("another.room.module:LIMIT", "1", "2", "no module"),
        (f"{MODULE}:Pool.get", "a", "b", "0 definitions of get"),
        (f"{MODULE}:Pool.give", "give(self, how)", "", "0 times"),
        (f"{MODULE}:Pool", "take()", "None", "2 times"),
        (f"{MODULE}:Pool.give", "put()", "", "after the change"),
    ],
)
def test_a_change_that_does_not_fit(
    where: str, old: str, new: str, why: str, package: Path
) -> None:
    """It is an error, rather than a mutation that changes nothing."""
    with pytest.raises(NotFound, match=why):
        SCRIPT["apply"]((Change(where, old, new),), package)
