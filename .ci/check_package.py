"""Build the package, and check that the wheel is complete and works installed.

Usage: python check_package.py PROJECT SCRATCH
"""

from __future__ import annotations

import email
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

COMMANDS = ("pool-status", "session-status", "pool-advise", "db-ping", "pool-metrics")


def main(project: Path, scratch: Path) -> None:
    run(sys.executable, "-m", "build", "--outdir", scratch / "dist", project)
    [wheel] = (scratch / "dist").glob("*.whl")
    check_content(wheel, project)
    check_installed(wheel, scratch / "venv")
    print(f"{wheel.name}: complete, and works installed")


def check_content(wheel: Path, project: Path) -> None:
    """Expect exactly the modules of the checkout, the license and the metadata."""
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        [record] = (name for name in names if name.endswith(".dist-info/METADATA"))
        metadata = email.message_from_bytes(archive.read(record))
    folder = record.partition("/")[0]
    package = {name for name in names if not name.startswith(folder)}
    root = project / "flask_scopedsession"
    wanted = {
        path.relative_to(project).as_posix()
        for path in [
            *root.rglob("*.py"),
            root / "py.typed",
            project / "pytest_scopedsession.py",
        ]
    }
    expect(not wanted - package, f"missing in the wheel: {wanted - package}")
    expect(not package - wanted, f"only in the wheel: {package - wanted}")
    expect(f"{folder}/licenses/LICENSE" in names, "no LICENSE")
    expect(metadata["License-Expression"] == "BSD-3-Clause", "no SPDX license")


def check_installed(wheel: Path, place: Path) -> None:
    """Expect the installed package to import without a warning, and its commands."""
    venv.create(place, with_pip=True, clear=True)
    python = place / "bin" / "python"
    run(python, "-m", "pip", "install", "--quiet", wheel)
    run(python, "-I", "-W", "error", "-c", "import flask_scopedsession")
    listed = run(python, "-I", "-m", "flask", "--help", capture=True)
    for command in COMMANDS:
        expect(command in listed, f"'flask --help' does not list {command}")
        run(python, "-I", "-m", "flask_scopedsession", command, "--help", capture=True)


def run(*words: object, capture: bool = False) -> str:
    done = subprocess.run(
        [str(word) for word in words],
        check=True,
        stdout=subprocess.PIPE if capture else None,
        stderr=subprocess.STDOUT if capture else None,
        encoding="utf-8",
    )
    return done.stdout or ""


def expect(holds: bool, message: str) -> None:
    if not holds:
        raise SystemExit(message)


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), Path(sys.argv[2]).resolve())
