"""Build the package, and check that it can be published.

Both archives are complete, a second build is identical, the description has no link
that leads nowhere on an index page, and the wheel works installed. --tag also expects
that this is the release of the tag.

Usage: python check_package.py [--tag TAG] PROJECT SCRATCH
"""

from __future__ import annotations

import argparse
import email
import os
import re
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from email.message import Message
from pathlib import Path

COMMANDS = ("pool-status", "session-status", "pool-advise", "db-ping", "pool-metrics")

#: What a link or picture leads to, in Markdown or HTML, unless it is an address or on
#: the same page.
RELATIVE_LINK = re.compile(
    r"""(?:\]\(|\b(?:href|src|srcset)=["'])(?!https?://|#)([^)"'\s]+)"""
)

#: Follows the README's example, saved as hello.py.
TRY = """
from hello import app
assert app.test_client().get("/").json == {"answer": 42}
"""


def main(project: Path, scratch: Path, tag: str | None) -> None:
    clear(scratch)
    if (project / ".git").exists():
        os.environ["SOURCE_DATE_EPOCH"] = git(project, "log", "-1", "--format=%ct")
    sdist, wheel = build(project, scratch / "dist")
    again = check_sdist(sdist, project, scratch / "unpacked")
    check_identical([sdist, wheel], build(again, scratch / "again"))
    run(sys.executable, "-m", "twine", "check", "--strict", sdist, wheel)
    run(sys.executable, "-m", "check_wheel_contents", wheel)
    metadata = check_wheel(wheel, project)
    check_metadata(metadata, project, tag)
    check_installed(wheel, metadata, scratch / "installed")
    print(f"{sdist.name}, {wheel.name}: can be published")


def clear(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)


def git(project: Path, *words: str) -> str:
    return run("git", "-C", project, *words, capture=True).strip()


def build(project: Path, out: Path) -> tuple[Path, Path]:
    """Build the source archive, and the wheel from it."""
    run(sys.executable, "-m", "build", "--outdir", out, project, capture=True)
    [sdist] = out.glob("*.tar.gz")
    [wheel] = out.glob("*.whl")
    return sdist, wheel


def check_sdist(sdist: Path, project: Path, place: Path) -> Path:
    """Unpack it, and expect each tracked file, unchanged: all that the tests need."""
    with tarfile.open(sdist) as archive:
        archive.extractall(place)  # noqa: S202  # built a moment ago
    [unpacked] = place.iterdir()
    found = {path.relative_to(unpacked) for path in unpacked.rglob("*")}
    found = {name for name in found if (unpacked / name).is_file()}
    if (project / ".git").exists():
        tracked = {Path(name) for name in git(project, "ls-files").splitlines()}
        wrong = (found - {Path("PKG-INFO")}) ^ tracked
        expect(not wrong, f"not both tracked and in the source archive: {wrong}")
    changed = {
        str(name)
        for name in found - {Path("PKG-INFO")}
        if (unpacked / name).read_bytes() != (project / name).read_bytes()
    }
    expect(not changed, f"changed in the source archive: {changed}")
    return unpacked


def check_identical(first: list[Path], second: tuple[Path, Path]) -> None:
    """Expect that another place and other times of the files make no difference."""
    for one, other in zip(first, second, strict=True):
        expect(one.read_bytes() == other.read_bytes(), f"another {one.name} each time")


def check_wheel(wheel: Path, project: Path) -> Message:
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
        for path in [*root.rglob("*"), project / "pytest_scopedsession.py"]
        if path.is_file() and path.parent.name != "__pycache__"
    }
    expect(not wanted - package, f"missing in the wheel: {wanted - package}")
    expect(not package - wanted, f"only in the wheel: {package - wanted}")
    expect("flask_scopedsession/py.typed" in names, "no py.typed")
    expect(f"{folder}/licenses/LICENSE" in names, "no LICENSE")
    return metadata


def check_metadata(metadata: Message, project: Path, tag: str | None) -> None:
    expect(metadata["License-Expression"] == "BSD-3-Clause", "no SPDX license")
    text = metadata.get_payload()
    links = RELATIVE_LINK.findall(text)
    expect(not links, f"on an index page, these links lead nowhere: {links}")
    expect("```{" not in text, "an index page does not know MyST's directives")
    changes = (project / "CHANGES.md").read_text(encoding="utf-8")
    [newest, *_] = re.findall(r"^## (.*)$", changes, re.MULTILINE)
    version = metadata["Version"]
    expect(newest.split()[0] == version, f"CHANGES.md begins with {newest}")
    if tag is not None:
        expect(tag == f"v{version}", f"the tag is {tag}, and the version {version}")
        expect("unreleased" not in newest.lower(), "CHANGES.md has no date")
        expect("not on PyPI" not in text, "README.md says that it is not on PyPI")


def check_installed(wheel: Path, metadata: Message, place: Path) -> None:
    """Expect an import without a warning, the commands, and the README's example."""
    venv.create(place, with_pip=True)
    python = place / "bin" / "python"
    run(python, "-m", "pip", "install", "--quiet", wheel)
    run(python, "-I", "-W", "error", "-c", "import flask_scopedsession")
    listed = run(python, "-I", "-m", "flask", "--help", capture=True)
    for command in COMMANDS:
        expect(command in listed, f"'flask --help' does not list {command}")
        run(python, "-I", "-m", "flask_scopedsession", command, "--help", capture=True)
    [example, *_] = re.findall(
        r"^```python\n(.*?)^```", metadata.get_payload(), re.MULTILINE | re.DOTALL
    )
    (place / "hello.py").write_text(example, encoding="utf-8")
    run(python, "-c", TRY, cwd=place)
    run(place / "bin" / "flask", "--app", "hello", "db-ping", cwd=place)


def run(*words: object, capture: bool = False, cwd: Path | None = None) -> str:
    done = subprocess.run(
        [str(word) for word in words],
        check=False,
        cwd=cwd,
        stdout=subprocess.PIPE if capture else None,
        stderr=subprocess.STDOUT if capture else None,
        encoding="utf-8",
    )
    expect(done.returncode == 0, f"{done.stdout or ''}{words[0]} failed")
    return done.stdout or ""


def expect(holds: bool, message: str) -> None:
    if not holds:
        raise SystemExit(message)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--tag")
    parser.add_argument("project", type=Path)
    parser.add_argument("scratch", type=Path)
    given = parser.parse_args()
    main(given.project.resolve(), given.scratch.resolve(), given.tag)
