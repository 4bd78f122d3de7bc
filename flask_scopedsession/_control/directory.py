"""The directory of the control sockets: who may be in it, and what lies there.

``<pid>-<random>.sock`` listens, ``.lock`` is locked for as long as its process
lives and says which deployment that belongs to, ``.json`` is a last snapshot,
``.new`` and ``.tmp`` are on their way to become one of these. The random part keeps
apart processes of different pid namespaces that share a volume.
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

from ..errors import ControlError
from ..errors import UnsafeDirectory

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

#: Whether this platform has the locks that tell the living from the dead.
LOCKS = fcntl is not None

#: A socket's path may have this many bytes: 104 on macOS with the final NUL.
PATH_LIMIT = 103

#: Seconds for which the last snapshot of a killed worker is kept.
KEEP_LAST = 3600.0

#: Bytes that a last snapshot may have.
LAST_LIMIT = 64 * 1024

#: Seconds after which files of a start that never finished are swept.
_UNFINISHED = 60.0

#: All endings, in the order in which a worker removes its own.
KINDS = ("sock", "json", "tmp", "new", "lock")

_NAME = re.compile(rf"([0-9]{{1,10}}-[0-9a-f]{{8}})\.({'|'.join(KINDS)})")
_BASE = re.compile("flask-scopedsession-(0|[1-9][0-9]{0,9})")
_REMEDY = "Set SCOPEDSESSION_CONTROL_DIR to a directory of the worker's own user."

# Absent on Windows. The second: who opens a pipe must not wait for its other end.
_SAFELY = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)


def deployment_id(name: str) -> str:
    """Return the twelve hex digits that stand for a deployment's name."""
    return hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()[:12]


def base_path(uid: int | None = None) -> str:
    """Return the directory that holds all deployments of one user.

    :raises ControlError: There is no directory for temporary files.
    """
    owner = os.geteuid() if uid is None else uid
    try:
        parent = tempfile.gettempdir()
    except OSError:  # all of them are on a read-only file system, for one
        raise ControlError(
            f"uid {os.geteuid()} can write to no directory for temporary files,"
            f" neither to TMPDIR nor to /tmp. {_REMEDY}"
        ) from None
    return os.path.join(parent, f"flask-scopedsession-{owner}")


def default_path(name: str, uid: int | None = None) -> str:
    """Return where the sockets of the deployment `name` are by default.

    :raises ControlError: There is no directory for temporary files.
    """
    return os.path.join(base_path(uid), deployment_id(name))


def other_users() -> list[int]:
    """Return the other users of whom there may be directories, by uid."""
    try:
        names = os.listdir(tempfile.gettempdir())
    except OSError:
        return []
    found = (_BASE.fullmatch(name) for name in names)
    return sorted({int(each[1]) for each in found if each} - {os.geteuid()})


# -- is it safe ----------------------------------------------------------------


class Place(t.NamedTuple):
    """A directory in which workers may be found."""

    path: str
    uid: int | None
    """Whose default directory this is; ``None`` if somebody has chosen it."""

    def examine(self) -> int:
        """Make sure that workers would use it; return the uid they run as.

        :raises OSError: It is not there, or nobody may look.
        :raises ControlError: No worker would use it; the message says why.
        """
        _check_length(self.path)
        owner = self.uid
        if owner is None:
            owner = os.geteuid() or os.lstat(self.path).st_uid
        parent = os.path.dirname(self.path)
        if self.uid is None:
            _check_parent(parent, owner)
        else:
            check(parent, owner)
        check(self.path, owner)
        return owner

    def obstacle(self) -> str:
        """Return why a directory that is not there cannot be made, if so."""
        parent = os.path.dirname(self.path)
        while not os.path.lexists(parent):
            parent = os.path.dirname(parent)
        if os.access(parent, os.W_OK | os.X_OK):
            return ""
        return f", and uid {os.geteuid()} cannot create it: {parent} {_belongs(parent)}"


def prepare(path: str | None, name: str) -> str:
    """Make the directory safe to put a socket in, and return it.

    :param path: The configured directory, or ``None`` for the default.
    :raises UnsafeDirectory: It exists, but others own it or may enter it.
    :raises ControlError: It cannot be made, or is too long for a socket.
    """
    levels = _levels(path, name)
    _check_length(levels[-1])
    try:
        if path is not None:
            _check_parent(os.path.dirname(levels[0]), os.geteuid())
        for level in levels:
            _make(level)
            check(level, os.geteuid())
    except OSError as error:
        raise ControlError(
            f"{error.filename} cannot be used by uid {os.geteuid()}"
            f" ({error.strerror}). {_REMEDY}"
        ) from None
    return levels[-1]


def check(path: str, uid: int) -> None:
    """Make sure that a directory is `uid`'s alone.

    :raises UnsafeDirectory: It is a link, somebody else's, or open to others.
    :raises FileNotFoundError: It is not there.
    """
    found = os.lstat(path)
    owner = f"belongs to uid {found.st_uid}"
    if stat.S_ISLNK(found.st_mode):
        problem = f"is a symbolic link and {owner}. Remove it."
    elif not stat.S_ISDIR(found.st_mode):
        problem = f"is not a directory and {owner}. Remove it."
    elif found.st_uid != uid:
        problem = f"{owner}, not to uid {uid}. Remove it."
    elif found.st_mode & 0o077:
        mode = stat.S_IMODE(found.st_mode)
        problem = f"{owner}, but is open to others (mode {mode:04o}). chmod it to 0700."
    else:
        return
    raise UnsafeDirectory(f"{path} {problem} Or: {_REMEDY}")


def _levels(path: str | None, name: str) -> list[str]:
    """Return the directories that must be the worker's own, the outermost first.

    Of a configured one these are the last, and what is missing above it.
    """
    if path is None:
        return [base_path(), default_path(name)]
    levels = [os.path.abspath(path)]
    while not os.path.exists(parent := os.path.dirname(levels[0])):
        levels.insert(0, parent)
    return levels


def _make(level: str) -> None:
    # Level by level: makedirs() would give parents the umask's mode.
    try:
        os.mkdir(level, 0o700)
        os.chmod(level, 0o700)  # whatever the umask has left of it
    except FileExistsError:
        return
    except OSError as error:
        parent = os.path.dirname(level)
        raise ControlError(
            f"{level} cannot be created by uid {os.geteuid()} ({error.strerror});"
            f" {parent} {_belongs(parent)}. {_REMEDY}"
        ) from None


def _check_length(directory: str) -> None:
    longest = os.path.join(directory, f"{'9' * 7}-{'f' * 8}.sock")
    if len(os.fsencode(longest)) > PATH_LIMIT:
        raise ControlError(
            f"{directory} is too long for a unix socket (at most {PATH_LIMIT} bytes"
            " with the file's name). Set SCOPEDSESSION_CONTROL_DIR to a shorter one"
            f" that belongs to uid {os.geteuid()}."
        )


def _check_parent(path: str, uid: int) -> None:
    found = os.stat(path)
    if not found.st_mode & 0o022 or found.st_mode & stat.S_ISVTX:
        return
    if found.st_uid in (0, uid) and not found.st_mode & stat.S_IWOTH:
        return
    raise UnsafeDirectory(
        f"{path} {_belongs(path)} and can be written by others, who could replace"
        f" what is in it. chmod it to 0755. Or: {_REMEDY}"
    )


def _belongs(path: str) -> str:
    try:
        return f"belongs to uid {os.lstat(path).st_uid}"
    except OSError as error:
        return f"cannot be looked at ({error.strerror})"


# -- files ---------------------------------------------------------------------


class Found(t.NamedTuple):
    """The files of one process, by their ending."""

    id: str
    pid: int
    kinds: frozenset[str]


def file(path: str, id: str, kind: str) -> str:
    """Return the path of one of a process's files."""
    return os.path.join(path, f"{id}.{kind}")


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


def take_lock(path: str, id: str, deployment: str) -> int:
    """Create and lock the lock file of this process; return its descriptor.

    It must not be opened again in this process: closing any descriptor of a file
    drops the process's POSIX locks on it.
    """
    unfinished = file(path, id, "new")
    descriptor = _create(unfinished)
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.write(descriptor, deployment.encode())
        # Renamed when locked, so that nobody sees it unlocked and sweeps it.
        os.rename(unfinished, file(path, id, "lock"))
    except BaseException:
        os.close(descriptor)
        remove([unfinished])
        raise
    return descriptor


def deployment_of(path: str, id: str) -> str | None:
    """Return which deployment a process belongs to. Not for one's own id."""
    try:
        descriptor = os.open(file(path, id, "lock"), os.O_RDONLY | _SAFELY)
    except OSError:
        return None
    try:
        return os.read(descriptor, 64).decode("ascii", "replace") or None
    except OSError:
        return None
    finally:
        os.close(descriptor)


def alive(path: str, id: str) -> bool:
    """Whether the process of a lock file holds it. Not for one's own id."""
    try:
        # A pid proves nothing: it is reused, and differs between pid namespaces.
        # Shared, so that two who ask do not take each other for the owner.
        descriptor = _lock_of_the_dead(path, id, os.O_RDONLY, fcntl.LOCK_SH)
    except FileNotFoundError:
        return False
    except OSError:
        return True  # nobody can tell
    if descriptor is None:
        return True
    os.close(descriptor)
    return False


def _lock_of_the_dead(path: str, id: str, mode: int, how: int) -> int | None:
    """Return the descriptor of a lock that was free, ``None`` if it is held."""
    descriptor = os.open(file(path, id, "lock"), mode | _SAFELY)
    try:
        fcntl.lockf(descriptor, how | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        if error.errno in (errno.EACCES, errno.EAGAIN):
            return None
        raise
    return descriptor


def sweep(path: str, own: t.Collection[str]) -> None:
    """Remove what dead processes left behind; for workers only.

    :param own: The ids of this process, whose lock files must not be opened.
    """
    for found in listing(path):
        if found.id in own:
            continue
        names = {kind: file(path, found.id, kind) for kind in found.kinds}
        last = names.pop("json", None)
        if "lock" in names:
            try:
                held = _lock_of_the_dead(path, found.id, os.O_RDWR, fcntl.LOCK_EX)
            except OSError:
                continue  # somebody else swept it, or it is no lock file
            if held is not None:
                remove(names.values())
                os.close(held)
        else:
            remove(names.values(), older_than=_UNFINISHED)
            remove([last] if last is not None else [], older_than=KEEP_LAST)


def remove(paths: t.Iterable[str], *, older_than: float = 0.0) -> None:
    """Remove files that are there and old enough, in seconds."""
    for path in paths:
        try:
            if older_than <= 0 or time.time() - os.lstat(path).st_mtime > older_than:
                os.unlink(path)
        except OSError:
            continue  # somebody else swept it, or it is theirs


def write_last(path: str, id: str, content: bytes) -> None:
    """Replace this process's last snapshot in one step; mode 0600."""
    unfinished = file(path, id, "tmp")
    remove([unfinished])
    try:
        with open(_create(unfinished), "wb") as out:
            out.write(content)
        os.rename(unfinished, file(path, id, "json"))
    except BaseException:
        remove([unfinished])
        raise


def read_last(path: str, id: str, uid: int) -> bytes | None:
    """Return the last snapshot that a process of `uid` left, if there is one."""
    try:
        descriptor = os.open(file(path, id, "json"), os.O_RDONLY | _SAFELY)
    except OSError:
        return None
    try:
        found = os.fstat(descriptor)
        # Root reads everybody's, and so must not follow what they lay out for it.
        if not stat.S_ISREG(found.st_mode) or found.st_uid != uid:
            return None
        if found.st_size > LAST_LIMIT or time.time() - found.st_mtime > KEEP_LAST:
            return None
        return os.read(descriptor, LAST_LIMIT)
    except OSError:
        return None
    finally:
        os.close(descriptor)


def _create(path: str) -> int:
    flags = os.O_CREAT | os.O_EXCL | os.O_RDWR | getattr(os, "O_NOFOLLOW", 0)
    descriptor = os.open(path, flags, 0o600)
    os.fchmod(descriptor, 0o600)  # whatever the umask has left of it
    return descriptor
