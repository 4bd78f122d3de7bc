"""The directory of the control sockets: who may be in it, and what lies there.

``<pid>-<random>.sock`` listens, ``.lock`` is locked for as long as its process
lives, ``.json`` is a last snapshot. The random part keeps apart processes of
different pid namespaces that share a volume.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import stat
import tempfile
import time
import typing as t
from functools import partial

from ..errors import ControlError
from ..errors import UnsafeDirectory

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

#: A socket's path may have this many bytes: 104 on macOS with the final NUL.
PATH_LIMIT = 103

#: Seconds for which the last snapshot of a killed worker is kept.
KEEP_LAST = 3600.0

#: Seconds after which files of a start that never finished are swept.
_UNFINISHED = 60.0

_NAME = re.compile(r"(\d{1,10}-[0-9a-f]{8})\.(sock|lock|json|new|tmp)")
_REMEDY = "Set SCOPEDSESSION_CONTROL_DIR to a directory of the worker's own user."


def deployment_id(name: str) -> str:
    """Return the twelve hex digits that stand for a deployment's name."""
    return hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()[:12]


def base_path(uid: int | None = None) -> str:
    """Return the directory that holds all deployments of one user."""
    owner = os.geteuid() if uid is None else uid
    return os.path.join(tempfile.gettempdir(), f"flask-scopedsession-{owner}")


def default_path(name: str, uid: int | None = None) -> str:
    """Return where the sockets of the deployment `name` are by default."""
    return os.path.join(base_path(uid), deployment_id(name))


def prepare(path: str | None, name: str) -> str:
    """Make the directory safe to put a socket in, and return it.

    :param path: The configured directory, or ``None`` for the default.
    :raises UnsafeDirectory: It exists, but others own it or may enter it.
    :raises ControlError: It cannot be made, or is too long for a socket.
    """
    if path is None:
        levels = [base_path(), default_path(name)]
    else:
        levels = _missing_levels(os.path.abspath(path))
        _check_parent(os.path.dirname(levels[0]))
    directory = levels[-1]
    longest = os.path.join(directory, f"{'9' * 7}-{'f' * 8}.sock")
    if len(os.fsencode(longest)) > PATH_LIMIT:
        raise ControlError(
            f"{directory} is too long for a unix socket (at most {PATH_LIMIT} bytes"
            " with the file's name). Set SCOPEDSESSION_CONTROL_DIR to a shorter one."
        )
    for level in levels:
        # Level by level: makedirs() would give parents the umask's mode.
        try:
            os.mkdir(level, 0o700)
        except FileExistsError:
            pass
        except OSError as error:
            raise ControlError(
                f"{level} cannot be created ({error.strerror}). {_REMEDY}"
            ) from None
        check(level, os.geteuid())
    return directory


def check(path: str, uid: int) -> None:
    """Make sure that a directory is `uid`'s alone.

    :raises UnsafeDirectory: It is a link, somebody else's, or open to others.
    :raises FileNotFoundError: It is not there.
    """
    found = os.lstat(path)
    if stat.S_ISLNK(found.st_mode):
        problem = "is a symbolic link"
    elif not stat.S_ISDIR(found.st_mode):
        problem = "is not a directory"
    elif found.st_uid != uid:
        problem = f"belongs to uid {found.st_uid}, not to uid {uid}"
    elif found.st_mode & 0o077:
        problem = f"is open to others (mode {stat.S_IMODE(found.st_mode):04o})"
    else:
        return
    raise UnsafeDirectory(f"{path} {problem}. Remove it or chmod it to 0700. {_REMEDY}")


def _missing_levels(path: str) -> list[str]:
    """Return the levels to be made or checked: the last, and what is missing above."""
    levels = [path]
    while not os.path.lexists(parent := os.path.dirname(levels[0])):
        levels.insert(0, parent)
    return levels


def _check_parent(path: str) -> None:
    found = os.stat(path)
    loose = found.st_mode & 0o022 and not found.st_mode & stat.S_ISVTX
    if loose and found.st_uid not in (0, os.geteuid()):
        raise UnsafeDirectory(
            f"{path} can be written by others, who could replace what is in it."
            f" {_REMEDY}"
        )
    if found.st_mode & stat.S_IWOTH and not found.st_mode & stat.S_ISVTX:
        raise UnsafeDirectory(
            f"{path} can be written by everybody, who could replace what is in it."
            f" {_REMEDY}"
        )


# -- files ---------------------------------------------------------------------


class Found(t.NamedTuple):
    """The files of one process, by their ending."""

    id: str
    pid: int
    kinds: frozenset[str]


def listing(path: str) -> list[Found]:
    """Return the processes that have files in a directory, by id."""
    kinds: dict[str, set[str]] = {}
    for name in os.listdir(path):
        match = _NAME.fullmatch(name)
        if match is not None:
            kinds.setdefault(match[1], set()).add(match[2])
    return [
        Found(id, int(id.partition("-")[0]), frozenset(found))
        for id, found in sorted(kinds.items())
    ]


def take_lock(path: str, id: str) -> int:
    """Create and lock the lock file of this process; return its descriptor.

    It must not be opened again in this process: closing any descriptor of a file
    drops the process's POSIX locks on it.
    """
    unfinished = os.path.join(path, f"{id}.new")
    flags = os.O_CREAT | os.O_EXCL | os.O_RDWR | getattr(os, "O_NOFOLLOW", 0)
    descriptor = os.open(unfinished, flags, 0o600)
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Renamed when locked, so that nobody sees it unlocked and sweeps it.
        os.rename(unfinished, os.path.join(path, f"{id}.lock"))
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def alive(path: str, id: str) -> bool:
    """Whether the process of a lock file holds it. Not for one's own id."""
    # A pid proves nothing: it is reused, and differs between pid namespaces.
    # Shared, so that two who ask do not take each other for the owner.
    return not _locked(path, id, fcntl.LOCK_SH, lambda: None)


def _locked(path: str, id: str, how: int, then: t.Callable[[], object]) -> bool:
    """Call `then` while holding the lock of a dead process; whether it is dead."""
    mode = os.O_RDONLY if how == fcntl.LOCK_SH else os.O_RDWR
    try:
        descriptor = os.open(
            os.path.join(path, f"{id}.lock"), mode | getattr(os, "O_NOFOLLOW", 0)
        )
    except FileNotFoundError:
        return True
    try:
        fcntl.lockf(descriptor, how | fcntl.LOCK_NB)
        then()
        return True
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            return False
        raise
    finally:
        os.close(descriptor)


def sweep(path: str, own: t.Collection[str]) -> None:
    """Remove what dead processes left behind; for workers only.

    :param own: The ids of this process, whose lock files must not be opened.
    """
    for found in listing(path):
        if found.id in own:
            continue
        names = {kind: os.path.join(path, f"{found.id}.{kind}") for kind in found.kinds}
        if "lock" in names:
            doomed = [names[kind] for kind in ("sock", "lock") if kind in names]
            _locked(path, found.id, fcntl.LOCK_EX, partial(remove, doomed))
        elif "json" in names:
            remove([names["json"]], older_than=KEEP_LAST)
            remove([names["sock"]] if "sock" in names else [])
        else:
            remove(list(names.values()), older_than=_UNFINISHED)


def remove(paths: t.Iterable[str], *, older_than: float = 0.0) -> None:
    """Remove files that are there and old enough, in seconds."""
    for path in paths:
        try:
            if older_than <= 0 or time.time() - os.lstat(path).st_mtime > older_than:
                os.unlink(path)
        except OSError:
            continue  # somebody else swept it, or it is theirs


def write_private(path: str, id: str, content: bytes) -> None:
    """Replace this process's last snapshot in one step; mode 0600."""
    unfinished = os.path.join(path, f"{id}.tmp")
    remove([unfinished])
    flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | getattr(os, "O_NOFOLLOW", 0)
    with open(os.open(unfinished, flags, 0o600), "wb") as file:
        file.write(content)
    os.rename(unfinished, os.path.join(path, f"{id}.json"))
