"""Run pytest in another process, on a suite that a test has written."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import commands
from lean import LEAN

#: Plugins that are installed for the tests, and switched off unless they are asked for.
OTHERS = ("asyncio", "faker", "flask", "hypothesispytest", "randomly")


class Suite:
    """What a run of pytest has printed.

    :param folder: The suite, with everything that it imports.
    :param beside: Which of :data:`OTHERS` run, too.
    :param lean: Import Flask and SQLAlchemy before pytest, as ``lean.py`` does.
    """

    def __init__(
        self,
        folder: Path,
        *options: str,
        beside: tuple[str, ...] = (),
        lean: bool = True,
        env: Mapping[str, str | None] | None = None,
    ) -> None:
        off = [f"-pno:{name}" for name in OTHERS if name not in beside]
        ini = folder / "pytest.ini"
        if not (ini.exists() or (folder / "pyproject.toml").exists()):
            ini.write_text("[pytest]\n", encoding="utf-8")
        if "asyncio" in beside:  # without it, pytest-asyncio warns
            options = ("-oasyncio_default_fixture_loop_scope=function", *options)
        start = [LEAN, "-m", "pytest"] if lean else ["-m", "pytest"]
        ran = commands.run(
            ["-W", "error", *start, "-rA", "-pno:cacheprovider", *off, *options],
            cwd=folder,
            env={"COLUMNS": "300", **(env or {})},
        )
        self.code = ran.code
        self.text = ran.stdout + ran.stderr
        self.outcomes: dict[str, str] = {}
        """Of each test, by its name: the worst word for it that pytest has."""
        self.reasons: dict[str, str] = {}
        pattern = r"^(PASSED|FAILED|ERROR) \S+?::(\S+)(?: - (.*))?$"
        for word, name, reason in re.findall(pattern, ran.stdout, re.MULTILINE):
            if word != "PASSED" or name not in self.outcomes:
                self.outcomes[name] = word
            self.reasons[name] = self.reasons.get(name, "") + reason

    def check(self) -> Suite:
        """Return this, or fail with what was printed if a test has not passed."""
        assert self.code == 0, self.text
        return self


def expected(suite: Suite) -> dict[str, str]:
    """Return what each test of a suite should have been, by how its name begins."""
    words = {"leak": "ERROR", "failed": "FAILED", "fine": "PASSED"}
    kinds = {name: re.findall("test_([a-z]+)", name) for name in suite.outcomes}
    return {name: words[found[0]] for name, found in kinds.items()}
