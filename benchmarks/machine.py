"""The machine and the versions of a run."""

from __future__ import annotations

import os
import platform
import subprocess
import typing as t
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version
from pathlib import Path

from .contestants import CONTESTANTS
from .runner import ROOT

_OTHERS = ("Flask", "Werkzeug", "SQLAlchemy", "psycopg", "gunicorn")


def describe() -> dict[str, t.Any]:
    """Return what a reader needs to know about the machine, without its name."""
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": os.cpu_count(),
        "load_before": round(os.getloadavg()[0], 2),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
    }


def _processor() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
    except OSError:
        return platform.processor() or "unknown"
    names = (line for line in text.splitlines() if line.startswith("model name"))
    return next(names, "unknown").partition(":")[2].strip() or "unknown"


def versions() -> dict[str, str]:
    """Return the versions of the contestants and of what they build on."""
    packages = {each.package for each in CONTESTANTS.values()} - {None}
    found = {}
    for name in (*_OTHERS, *sorted(t.cast("set[str]", packages))):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def commit() -> str | None:
    """Return the measured commit, marked as dirty if files differ from it."""
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--exclude=*"],  # noqa: S607
            capture_output=True,
            cwd=ROOT,
            encoding="utf-8",
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
