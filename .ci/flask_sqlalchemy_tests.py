"""Run Flask-SQLAlchemy's own tests on this package, and expect all of them to pass.

They are taken from its source archive in the package index, into a temporary folder.
What they import as flask_sqlalchemy is flask_scopedsession.flask_sqlalchemy.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import tarfile
import xml.etree.ElementTree as ET
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory

ARCHIVE = "flask-sqlalchemy==3.1.1"
EXPECTED = 452

RUN = """
import sys
from flask_scopedsession.flask_sqlalchemy import install_as_flask_sqlalchemy
install_as_flask_sqlalchemy()
import pytest
sys.exit(pytest.main(sys.argv[1:]))
"""
OPTIONS = (
    *("-q", "--tb=short", "-p", "no:cacheprovider"),
    # Some of the tests call it themselves, and Python 3.12 warns.
    *("-W", "ignore:datetime.datetime.utcnow:DeprecationWarning"),
)


def main() -> None:
    with TemporaryDirectory() as scratch:
        project = download(Path(scratch))
        report = Path(scratch, "report.xml")
        subprocess.run(
            [sys.executable, "-c", RUN, *OPTIONS, f"--junit-xml={report}", "tests"],
            cwd=project,
            # pytest would warn that it cannot rewrite a plugin's package, ours.
            env={**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
            check=False,
        )
        passed = count_passed(report)
    print(
        f"{passed} of Flask-SQLAlchemy's {EXPECTED} tests passed on SQLAlchemy"
        f" {version('sqlalchemy')}, Flask {version('flask')}, Python"
        f" {platform.python_version()}"
    )
    if passed < EXPECTED:
        raise SystemExit(1)


def download(scratch: Path) -> Path:
    """Return the folder of the unpacked source archive."""
    subprocess.run(
        [
            *(sys.executable, "-m", "pip", "download", "--quiet"),
            *("--disable-pip-version-check", "--no-deps", "--no-binary", ":all:"),
            *("--dest", scratch, ARCHIVE),
        ],
        check=True,
    )
    [archive] = scratch.glob("*.tar.gz")
    with tarfile.open(archive) as opened:
        # Older versions of Python do not have it.
        opened.extraction_filter = getattr(tarfile, "data_filter", None)
        opened.extractall(scratch)  # noqa: S202
    [project] = (path for path in scratch.iterdir() if path.is_dir())
    return project


def count_passed(report: Path) -> int:
    if not report.exists():
        return 0
    cases = ET.parse(report).getroot().iter("testcase")  # noqa: S314 - made above
    return sum(len(case.findall("./")) == 0 for case in cases)


if __name__ == "__main__":
    main()
