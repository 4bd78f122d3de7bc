"""Ask every worker in a directory, all at once, and name those that do not answer."""

from __future__ import annotations

import errno
import os
import selectors
import socket
import time
import typing as t
from collections import deque
from dataclasses import dataclass
from dataclasses import field
from dataclasses import replace

from ..errors import ControlError
from ..errors import UnsafeDirectory
from ..snapshot import SearchedDirectory
from ..snapshot import Silent
from ..snapshot import WorkerSnapshot
from ..snapshot._json import clean
from ..snapshot._readings import WorkerState
from . import directory
from .protocol import decode
from .protocol import Malformed
from .protocol import pack
from .protocol import peer_credentials
from .protocol import PROTOCOL
from .protocol import REPLY_LIMIT
from .protocol import REQUEST
from .protocol import TooLarge
from .protocol import unpack

#: Conversations at a time. A process may have 1,024 descriptors by default.
_AT_ONCE = 512

#: Most bytes of all answers from one directory together. Each answer has a limit of
#: its own, but root asks the workers of all users, who may start any number of them.
_TOGETHER = 256 * 1024 * 1024

#: Seconds until a worker whose queue was full is asked again.
_SOON = 0.02


@dataclass
class Answers:
    """What came back from one or more directories."""

    searched: list[SearchedDirectory] = field(default_factory=list)
    workers: list[WorkerSnapshot] = field(default_factory=list)
    silent: list[Silent] = field(default_factory=list)
    apps: set[str] = field(default_factory=set)


def ask(
    places: t.Iterable[directory.Place],
    timeout: float,
    *,
    deployment: str | None = None,
    own: t.Collection[str] = (),
    host: str = "",
) -> Answers:
    """Ask all workers whose sockets are in `places`.

    :param timeout: Seconds to wait for each worker.
    :param deployment: Ignore workers of any other; ``None`` for those of all.
    :param own: The ids of this process, whose locks must not be opened.
    :param host: The host's name, for the answers.
    """
    answers = Answers()
    for place in places:
        error = None
        denied = False
        try:
            owner = place.examine()
            _Inquiry(place.path, owner, timeout, deployment, own, host, answers).run()
            if place.uid is None and owner != os.geteuid():
                # The directory was configured, and this process is root's.
                error = _empty(place.path, owner)
        except FileNotFoundError:
            error = "does not exist" + place.obstacle()
        except PermissionError:
            error = f"uid {os.geteuid()} is not allowed to read it"
            denied = True
        except OSError as problem:
            error = problem.strerror or type(problem).__name__
        except ControlError as problem:
            error = str(problem)
            denied = isinstance(problem, UnsafeDirectory) and _is_strangers(place.path)
        answers.searched.append(SearchedDirectory(place.path, error, denied))
    return answers


def _empty(path: str, owner: int) -> str | None:
    """Explain to root why its own workers are not in a directory of another user."""
    if directory.listing(path):
        return None
    return f"is empty; only workers of uid {owner} use it, because it is theirs"


def _is_strangers(path: str) -> bool:
    try:
        return os.geteuid() not in (0, os.lstat(path).st_uid)
    except OSError:
        return False


class _Unusable(Exception):
    """The worker gave no usable answer; the reason is the text."""


class _Question:
    """One worker that is being asked."""

    def __init__(self, found: directory.Found, deadline: float) -> None:
        self.found = found
        self.deadline = deadline
        self.pid = found.pid
        """As this process sees it. In a container, it has another one."""
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.setblocking(False)
        self.to_send = pack(REQUEST)
        self.received = bytearray()

    def connect(self, path: str, owner: int) -> None:
        self.socket.connect(directory.file(path, self.found.id, "sock"))
        peer = peer_credentials(self.socket)
        if peer is None or peer[1] != owner:
            raise _Unusable("not a process of the directory's owner")
        self.pid = peer[0] or self.pid


@dataclass
class _Inquiry:
    """One directory, from the listing to the last answer."""

    path: str
    owner: int
    timeout: float
    deployment: str | None
    own: t.Collection[str]
    host: str
    answers: Answers
    done: set[str] = field(default_factory=set)
    """The ids of the workers about which everything is known."""
    asked: dict[int, _Question] = field(default_factory=dict)
    """By descriptor; the earliest deadline first."""
    bytes_left: int = field(default_factory=lambda: _TOGETHER)
    has_vanished: bool = False
    is_last_round: bool = False

    def run(self) -> None:
        self._round()
        if self.has_vanished:
            # A worker started or ended meanwhile. Look again, and then believe it.
            time.sleep(_SOON)
            self.is_last_round = True
            self._round()

    def _round(self) -> None:
        found = directory.listing(self.path)
        waiting = deque(each for each in found if each.id not in self.done)
        began = time.monotonic()
        self.selector = selectors.DefaultSelector()
        try:
            while waiting or self.asked:
                self._begin_some(waiting, began)
                if self.asked:
                    self._wait(_SOON if waiting else self.timeout)
                elif waiting:
                    time.sleep(_SOON)
        finally:
            for question in self.asked.values():
                question.socket.close()
            self.asked.clear()
            self.selector.close()

    def _begin_some(self, waiting: deque[directory.Found], began: float) -> None:
        """Ask as many workers as there is room for, each at most once."""
        for _ in range(min(len(waiting), _AT_ONCE - len(self.asked))):
            found = waiting.popleft()
            now = time.monotonic()
            try:
                self._begin(found, now + self.timeout)
            except BlockingIOError as error:
                # Its queue is full: many clients ask it, or it is stuck.
                if now - began < self.timeout:
                    waiting.append(found)
                else:
                    self._settle(found, found.pid, TimeoutError(*error.args))
            except (OSError, _Unusable) as error:
                if self.asked and getattr(error, "errno", 0) == errno.EMFILE:
                    waiting.appendleft(found)  # until a conversation has ended
                    return
                self._settle(found, found.pid, error)

    def _begin(self, found: directory.Found, deadline: float) -> None:
        if "sock" not in found.kinds:
            # Starting, ending, or dead with nothing left but a last snapshot.
            if found.id not in self.own:
                self._settle(found, found.pid, FileNotFoundError(errno.ENOENT, ""))
            return
        question = _Question(found, deadline)
        try:
            question.connect(self.path, self.owner)
            self.selector.register(question.socket, selectors.EVENT_WRITE, question)
        except BaseException:
            question.socket.close()
            raise
        self.asked[question.socket.fileno()] = question

    def _wait(self, most: float) -> None:
        """Wait at most so many seconds, and go on with all that are ready or due."""
        first = next(iter(self.asked.values()))
        until_due = max(0.0, first.deadline - time.monotonic())
        for key, _ in self.selector.select(min(most, until_due)):
            self._go_on(key.data)
        now = time.monotonic()
        for question in list(self.asked.values()):
            if question.deadline > now:
                break
            self._end(question)
            self._settle(question.found, question.pid, TimeoutError())

    def _go_on(self, question: _Question) -> None:
        """Send or receive as much as possible."""
        try:
            if question.to_send:
                sent = question.socket.send(question.to_send)
                question.to_send = question.to_send[sent:]
                if not question.to_send:
                    reading = selectors.EVENT_READ
                    self.selector.modify(question.socket, reading, question)
                return
            chunk = question.socket.recv(1 << 18)
            if not chunk:
                raise ConnectionResetError
            self._spend(len(chunk))
            question.received += chunk
            reply = unpack(question.received, REPLY_LIMIT)
            if reply is None:
                return
            worker = self._worker_in(reply, question.found.id)
        except BlockingIOError:
            return
        except (OSError, Malformed, _Unusable) as error:
            self._end(question)
            self._settle(question.found, question.pid, error)
            return
        self._end(question)
        self.done.add(question.found.id)
        if worker is not None:
            self.answers.apps.add(clean(str(reply.get("app") or "")))
            self.answers.workers.append(replace(worker, source="live"))

    def _spend(self, amount: int) -> None:
        self.bytes_left -= amount
        if self.bytes_left < 0:
            raise TooLarge(f"more than {_TOGETHER} bytes together")

    def _end(self, question: _Question) -> None:
        del self.asked[question.socket.fileno()]
        self.selector.unregister(question.socket)
        question.socket.close()

    # -- what an answer means --------------------------------------------------

    def _worker_in(self, reply: dict[str, t.Any], id: str) -> WorkerSnapshot | None:
        """Return the worker of a reply; ``None`` if it is of another deployment."""
        if reply.get("protocol") != PROTOCOL:
            raise _Unusable("speaks another protocol")
        if "error" in reply:
            raise _Unusable("could not read its ledger")
        if self.deployment not in (None, reply.get("deployment")):
            return None
        try:
            worker = WorkerSnapshot.from_dict(reply.get("worker"))
        except (ValueError, TypeError, RecursionError):
            raise _Unusable("answered nonsense") from None
        if worker.id != id or not id.startswith(f"{worker.pid}-"):
            raise _Unusable("answered nonsense")
        return replace(worker, uid=self.owner, host=self.host)

    def _settle(self, found: directory.Found, pid: int, error: Exception) -> None:
        """Decide what it means that a worker gave no usable answer."""
        reason = _reason(error)
        own = found.id in self.own
        if reason is None:
            hung_up = not isinstance(error, TimeoutError)
            if hung_up and "lock" in found.kinds and not self.is_last_round:
                self.has_vanished = True
                return
            if not own and not directory.alive(self.path, found.id):
                self.done.add(found.id)
                self._add_last(found.id, "gone")
                return
            reason = "stopped" if _is_stopped(pid) else "unresponsive"
        self.done.add(found.id)
        if self.deployment is not None and not own:
            deployment = directory.deployment_of(self.path, found.id)
            if deployment not in (None, self.deployment):
                return
        self.answers.silent.append(Silent(found.id, found.pid, self.host, reason))
        self._add_last(found.id, "stopped" if reason == "stopped" else "unresponsive")

    def _add_last(self, id: str, state: WorkerState) -> None:
        """Add the last snapshot of a worker, if it left a usable one."""
        content = directory.read_last(self.path, id, self.owner)
        if content is None:
            return
        try:
            self._spend(len(content))
            worker = self._worker_in(decode(content), id)
        except (Malformed, _Unusable):
            return
        if worker is not None:
            self.answers.workers.append(replace(worker, state=state, source="last"))


def _reason(error: Exception) -> str | None:
    """Return what was wrong with an answer; ``None`` if there was no answer."""
    if isinstance(error, TooLarge):
        return "answered too much"
    if isinstance(error, Malformed):
        return "answered nonsense"
    if isinstance(error, _Unusable):
        return str(error)
    return "permission denied" if isinstance(error, PermissionError) else None


def _is_stopped(pid: int) -> bool:
    """Whether a signal or a debugger has stopped a process, where /proc says so."""
    try:
        with open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as file:
            state = next((line for line in file if line.startswith("State:")), "")
    except OSError:
        return False
    return state.split()[1:2] in (["T"], ["t"])
