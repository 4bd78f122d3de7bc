"""The directory of the control sockets: whether it is safe, and the files in it.

``<pid>-<random>.sock`` is the socket. ``.lock`` is locked as long as its process lives,
and contains the ID of the deployment. ``.json`` is a last snapshot. ``.new`` and
``.tmp`` are unfinished and will be renamed to one of these. The random part tells apart
processes of different PID namespaces that share a volume.
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

#: Whether this platform has the locks that tell live workers from dead ones.
LOCKS = fcntl is not None

#: A socket's path may have this many bytes: 104 on macOS with the final NUL.
PATH_LIMIT = 103

#: Seconds for which the last snapshot of a killed worker is kept.
KEEP_LAST = 3600.0

#: Most bytes of a last snapshot.
LAST_LIMIT = 64 * 1024

#: Seconds after which the files of a start that never finished are removed.
_UNFINISHED = 60.0

#: How many live workers a sweep passes. Two, so that one that is stopped by a signal
#: does not keep the files of the dead workers after it.
_NEIGHBORS = 2

#: All file name endings, in the order in which a worker removes its own files.
KINDS = ("sock", "json", "tmp", "new", "lock")

_NAME = rf"([0-9]{{1,10}}-[0-9a-f]{{8}})\.({'|'.join(KINDS)})"
_BASE = "flask-scopedsession-(0|[1-9][0-9]{0,9})"
_OTHERWISE = "set SCOPEDSESSION_CONTROL_DIR to a directory of the worker's own user"
_REMEDY = f"S{_OTHERWISE[1:]}."

# Absent on Windows. O_NONBLOCK, because opening a named pipe waits for its other end.
_SAFELY = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)


def deployment_id(name: str) -> str:
    """Return the ID of a deployment: twelve hex digits, from its name."""
    return hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()[:12]


def base_path(uid: int | None = None) -> str:
    """Return the directory that holds all deployments of one user.

    :raises ControlError: There is no directory for temporary files.
    """
    owner = os.geteuid() if uid is None else uid
    try:
        parent = tempfile.gettempdir()
    except OSError:  # all of them may be on a read-only file system
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
    """Return the user IDs of the other users who may have such a directory."""
    try:
        names = os.listdir(tempfile.gettempdir())
    except OSError:
        return []
    found = (re.fullmatch(_BASE, name) for name in names)
    return sorted({int(each[1]) for each in found if each} - {os.geteuid()})


# -- safety --------------------------------------------------------------------


class Place(t.NamedTuple):
    """A directory in which workers may be found."""

    path: str
    uid: int | None
    """The user whose default directory this is; ``None`` if it was configured."""

    def examine(self) -> int:
        """Check that workers would use it; return the user ID that they run as.

        :raises OSError: It does not exist, or must not be read.
        :raises ControlError: No worker would use it; the message says why.
        """
        _check_length(self.path)
        owner = self.uid
        if owner is None:
            owner = os.geteuid() or os.lstat(self.path).st_uid
        parent = os.path.dirname(self.path)
        (_check_parent if self.uid is None else check)(parent, owner)
        check(self.path, owner)
        return owner

    def obstacle(self) -> str:
        """Return why a directory that does not exist cannot be created, if so."""
        parent = os.path.dirname(self.path)
        while not os.path.lexists(parent):
            parent = os.path.dirname(parent)
        if os.access(parent, os.W_OK | os.X_OK):
            return ""
        return f", and uid {os.geteuid()} cannot create it: {parent} {_belongs(parent)}"


def prepare(path: str | None, name: str) -> str:
    """Create the directory if need be, check that it is safe, and return it.

    :param path: The configured directory, or ``None`` for the default.
    :param name: The name of the deployment.
    :raises UnsafeDirectory: It exists, but others own it or may enter it.
    :raises ControlError: It cannot be created, or its path is too long for a socket.
    """
    if path is None:
        levels = [base_path(), default_path(name)]
    else:
        levels = [os.path.abspath(path)]
        while not os.path.exists(parent := os.path.dirname(levels[0])):
            levels.insert(0, parent)
    _check_length(levels[-1])
    try:
        if path is not None:
            _check_parent(os.path.dirname(levels[0]), os.geteuid())
        # One level at a time, because makedirs() gives parents the umask's mode.
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
    """Check that only the user `uid` can use a directory.

    :raises UnsafeDirectory: It is a link, another user's, or open to others.
    :raises FileNotFoundError: It does not exist.
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
    raise UnsafeDirectory(f"{path} {problem} Or {_OTHERWISE}.")


def _make(level: str) -> None:
    try:
        os.mkdir(level, 0o700)
        os.chmod(level, 0o700)  # mkdir() has applied the umask
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
            f"{directory} is too long for a Unix socket (at most {PATH_LIMIT} bytes"
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
        f" what is in it. chmod it to 0755. Or {_OTHERWISE}."
    )


def _belongs(path: str) -> str:
    try:
        return f"belongs to uid {os.lstat(path).st_uid}"
    except OSError as error:
        return f"cannot be read ({error.strerror})"


# -- files ---------------------------------------------------------------------


class Found(t.NamedTuple):
    """The files of one process."""

    id: str
    pid: int
    kinds: frozenset[str]
    """Their endings, of :data:`KINDS`."""


def file(path: str, id: str, kind: str) -> str:
    """Return the path of one of a process's files."""
    return os.path.join(path, f"{id}.{kind}")


def listing(path: str) -> list[Found]:
    """Return the processes that have files in a directory, sorted by id."""
    kinds: dict[str, set[str]] = {}
    for name in os.listdir(path):
        match = re.fullmatch(_NAME, name)
        if match is not None:
            kinds.setdefault(match[1], set()).add(match[2])
    return [
        Found(id, int(id.partition("-")[0]), frozenset(found))
        for id, found in sorted(kinds.items())
    ]


def take_lock(path: str, id: str, deployment: str) -> int:
    """Create and lock the lock file of this process; return its descriptor.

    This process must not open the file again: closing any descriptor of a file drops
    the process's POSIX locks on it.
    """
    unfinished = file(path, id, "new")
    descriptor = _create(unfinished)
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.write(descriptor, deployment.encode())
        # Renamed once it is locked. An unlocked lock file is a dead worker's, and
        # another worker would remove it.
        os.rename(unfinished, file(path, id, "lock"))
    except BaseException:
        os.close(descriptor)
        remove([unfinished])
        raise
    return descriptor


def deployment_of(path: str, id: str) -> str | None:
    """Return the deployment of another process, if its lock file says it."""
    try:
        with open(file(path, id, "lock"), "rb", 0, opener=_open_safely) as lock:
            return (lock.read(64) or b"").decode("ascii", "replace") or None
    except OSError:
        return None


def alive(path: str, id: str) -> bool:
    """Whether another process lives, which means that it holds its lock."""
    try:
        # A PID proves nothing: it is reused, and differs between PID namespaces. The
        # lock is shared, so that two commands do not take each other for the owner.
        descriptor = _lock_of_the_dead(path, id, os.O_RDONLY, fcntl.LOCK_SH)
    except FileNotFoundError:
        return False
    except OSError:
        return True  # unknown
    if descriptor is None:
        return True
    os.close(descriptor)
    return False


def _lock_of_the_dead(path: str, id: str, mode: int, how: int) -> int | None:
    """Return the descriptor of a lock that was free, ``None`` if it is held."""
    descriptor = _open_safely(file(path, id, "lock"), mode)
    try:
        fcntl.lockf(descriptor, how | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        if error.errno in (errno.EACCES, errno.EAGAIN):
            return None
        raise
    return descriptor


def sweep(path: str, id: str, own: t.Collection[str]) -> list[Found]:
    """Remove the files of the dead workers that follow a live one; for workers only.

    The order is that of the ids, and the first follows the last. As each live worker
    opens only the locks up to its next live neighbors, the work of all workers together
    grows with their number instead of its square.

    :param id: The worker that sweeps.
    :param own: The ids of this process, whose lock files must not be opened.
    :return: Those whose lock was left behind: a worker that ends in order removes it.
    """
    found = listing(path)
    start = sum(each.id <= id for each in found)
    passed = 0
    lost: list[Found] = []
    for each in found[start:] + found[:start]:
        if each.id not in own and not _swept(path, each, lost):
            passed += 1
            if passed == _NEIGHBORS:
                break
    return lost


def _swept(path: str, found: Found, lost: list[Found]) -> bool:
    """Remove the files of a process if it is dead; whether it is."""
    if "lock" not in found.kinds:
        for kind in found.kinds:
            age = KEEP_LAST if kind == "json" else _UNFINISHED
            remove([file(path, found.id, kind)], older_than=age)
        return True
    try:
        held = _lock_of_the_dead(path, found.id, os.O_RDWR, fcntl.LOCK_EX)
    except OSError:
        return True  # another worker has removed it, or it is no lock file
    if held is None:
        return False
    # Opened just before its owner removed it, it is free, too.
    if os.fstat(held).st_nlink:
        lost.append(found)
    remove(file(path, found.id, kind) for kind in found.kinds - {"json"})
    os.close(held)
    return True


def remove(paths: t.Iterable[str], *, older_than: float = 0.0) -> None:
    """Remove files that exist and are old enough.

    :param older_than: Seconds since their last modification; 0 for any age.
    """
    for path in paths:
        try:
            if older_than <= 0 or time.time() - os.lstat(path).st_mtime > older_than:
                os.unlink(path)
        except OSError:
            continue  # another worker has removed it, or it is another user's


def write_last(path: str, id: str, content: bytes) -> None:
    """Replace this process's last snapshot atomically; mode 0600."""
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
    """Return the last snapshot that a process of the user `uid` left, if any."""
    try:
        with open(file(path, id, "json"), "rb", 0, opener=_open_safely) as last:
            found = os.fstat(last.fileno())
            # Root reads the files of all users, who may have put a link or a pipe here.
            if not stat.S_ISREG(found.st_mode) or found.st_uid != uid:
                return None
            if found.st_size > LAST_LIMIT or time.time() - found.st_mtime > KEEP_LAST:
                return None
            return last.read(LAST_LIMIT)
    except OSError:
        return None


def _open_safely(path: str, flags: int) -> int:
    return os.open(path, flags | _SAFELY)


def _create(path: str) -> int:
    flags = os.O_CREAT | os.O_EXCL | os.O_RDWR | getattr(os, "O_NOFOLLOW", 0)
    descriptor = os.open(path, flags, 0o600)
    os.fchmod(descriptor, 0o600)  # open() has applied the umask
    return descriptor
