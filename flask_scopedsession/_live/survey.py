"""Ask the workers of this host, and put their answers into one survey."""

from __future__ import annotations

import os
import platform
import socket
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version

from .._control import client
from .._control import directory
from .._control.endpoint import unsupported
from .._control.server import SERVER
from ..errors import ControlError
from ..snapshot import SearchedDirectory
from ..snapshot import Survey
from ..snapshot._json import timestamp


def survey_deployment(
    app: str, name: str, control_dir: str | None, timeout: float, problem: str | None
) -> Survey:
    """Ask every live worker of one deployment.

    :param app: The application's name.
    :param name: The deployment's name.
    :param control_dir: The configured directory, or ``None`` for the default.
    :param timeout: Seconds to wait for each worker.
    :param problem: Why this process itself does not answer, if so.
    """
    try:
        places = _places(control_dir, name)
    except ControlError as error:
        answers = client.Answers([SearchedDirectory("", str(error))])
    else:
        answers = _ask(places, timeout, directory.deployment_id(name))
    if problem is not None and not answers.workers:
        answers.searched.append(SearchedDirectory("", problem))
    return _make_survey(app, answers)


def survey_directory(path: str, timeout: float) -> Survey:
    """Ask every live worker in a directory, whatever its application.

    :param timeout: Seconds to wait for each worker.
    """
    problem = unsupported()
    if problem is not None:
        answers = client.Answers([SearchedDirectory(path, problem)])
    else:
        answers = _ask([directory.Place(os.path.abspath(path), None)], timeout)
    return _make_survey(", ".join(sorted(answers.apps)), answers)


def _places(control_dir: str | None, name: str) -> list[directory.Place]:
    """Return where a deployment's sockets may be; for root, those of all users."""
    if unsupported() is not None:
        return []
    if control_dir:
        return [directory.Place(control_dir, None)]
    own = os.geteuid()
    places = [directory.Place(directory.default_path(name), own)]
    for uid in directory.other_users() if own == 0 else ():
        path = directory.default_path(name, uid)
        if os.path.lexists(path):
            places.append(directory.Place(path, uid))
    return places


def _ask(
    places: list[directory.Place], timeout: float, deployment: str | None = None
) -> client.Answers:
    return client.ask(
        places,
        timeout,
        deployment=deployment,
        own=SERVER.ids(),
        host=socket.gethostname(),
    )


def _make_survey(app: str, answers: client.Answers) -> Survey:
    return Survey(
        app=app,
        host=socket.gethostname(),
        collected_at=timestamp(),
        versions=_versions(),
        searched=tuple(answers.searched),
        workers=tuple(sorted(answers.workers, key=lambda w: (w.uid or 0, w.pid))),
        silent=tuple(sorted(answers.silent, key=lambda s: s.pid)),
    )


def _versions() -> dict[str, str]:
    found = {}
    for name in ("flask_scopedsession", "sqlalchemy", "flask"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "unknown"
    return {**found, "python": platform.python_version()}
