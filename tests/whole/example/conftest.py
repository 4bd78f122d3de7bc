"""The example application, with the airports in SQLite files for each test."""

from __future__ import annotations

import os
import shutil
import sys
import threading
from collections.abc import Callable
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from waiting import wait_until

ROOT = Path(__file__).resolve().parents[3]

# The distribution does not contain the example. Its folder is last on the path, so that
# an installed flask_scopedsession is tested.
if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))

from example_app import create_app  # noqa: E402
from example_app import faults  # noqa: E402
from example_app.extensions import db  # noqa: E402
from flask_scopedsession.testing import isolate  # noqa: E402


def files_in(folder: Path) -> dict[str, Any]:
    """Configure both databases as files in ``folder``."""
    return {
        "TESTING": True,
        "SQLALCHEMY_DATABASE_URI": f"sqlite:///{folder / 'airports.sqlite3'}",
        "SQLALCHEMY_BINDS": {"audit": f"sqlite:///{folder / 'audit.sqlite3'}"},
    }


@pytest.fixture(autouse=True)
def own_instance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ignore the developer's instance folder and settings."""
    for name in list(os.environ):
        if name.startswith(("EXAMPLE_", "FLASK_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("EXAMPLE_INSTANCE_PATH", str(tmp_path / "instance"))


@pytest.fixture(scope="session")
def imported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the databases after the import."""
    folder = tmp_path_factory.mktemp("imported")
    app = create_app(files_in(folder))
    result = app.test_cli_runner().invoke(args=["import-airports"])
    assert result.exit_code == 0, result.output
    db.dispose(app)
    return folder


@pytest.fixture
def make_example(imported: Path, tmp_path: Path) -> Iterator[Callable[..., Flask]]:
    """Make the application; ``make_example(EXAMPLE_FAULTS=True, ...)``."""
    shutil.copytree(imported, tmp_path, dirs_exist_ok=True)
    apps = []

    def make(**config: Any) -> Flask:
        app = create_app({**files_in(tmp_path), **config})
        apps.append(app)
        return app

    yield make
    wait_until(lambda: not jobs(), what="the background jobs' end")
    while faults.kept:
        faults.kept.pop().close()
    faults.sessions.clear()
    faults.cached.clear()
    for app in apps:
        db.dispose(app)


def jobs() -> list[threading.Thread]:
    """Return the threads of background jobs."""
    return [t for t in threading.enumerate() if t.name.startswith("recount-")]


@pytest.fixture(scope="session")
def shared(imported: Path) -> Iterator[Flask]:
    """The application of all tests that are isolated."""
    app = create_app(files_in(imported))
    yield app
    db.dispose(app)


@pytest.fixture
def example(request: pytest.FixtureRequest) -> Iterator[Flask]:
    """The application, without faults; what a test does to its databases is undone.

    A test that opens the files itself, or whose requests compete for them, has the
    marker ``real_commits``, and files of its own.

    It is not called ``app``: pytest-flask would push a request context around the test,
    and all its requests would share one session.
    """
    if request.node.get_closest_marker("real_commits"):
        yield request.getfixturevalue("make_example")()
        return
    app = request.getfixturevalue("shared")
    with isolate(app):
        yield app
        wait_until(lambda: not jobs(), what="the background jobs' end")


@pytest.fixture
def browser(example: Flask) -> FlaskClient:
    """A client of ``example``."""
    return example.test_client()
