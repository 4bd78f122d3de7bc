"""Ask every worker in a directory, all at once, and say who stayed silent."""

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

#: Conversations at a time; a process may have 1,024 descriptors by default.
_AT_ONCE = 512

#: Bytes that all answers from one directory may have, together. Root asks strangers,
#: and what they make up shall not fill its memory; each worker has a bound of its own.
_TOGETHER = 256 * 1024 * 1024

#: Seconds until one whose queue was full is asked again.
_SOON = 0.02


@dataclass
class Answers:
    """What came back from one or more directories."""

    searched: list[SearchedDirectory] = field(default_factory=list)
    workers: list[WorkerSnapshot] = field(default_factory=list)
    silent: list[Silent] = field(default_factory=list)
    apps: set[str] = field(default_factory=set)


class _Unusable(Exception):
    """The worker gave no usable answer; the reason is the text."""


class _Question:
    """One worker that is being asked."""

    def __init__(
        self, found: directory.Found, deadline: float, spend: t.Callable[[int], None]
    ) -> None:
        """:param spend: Told how many bytes have come; raises if they are too many."""
        self.found = found
        self.deadline = deadline
        self._spend = spend
        self.pid = found.pid
        """As this process sees it; a container's is another one."""
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.setblocking(False)
        self._to_send = pack(REQUEST)
        self._received = bytearray()

    def connect(self, path: str, owner: int) -> None:
        self.socket.connect(directory.file(path, self.found.id, "sock"))
        peer = peer_credentials(self.socket)
        if peer is None or peer[1] != owner:
            raise _Unusable("not a process of the directory's owner")
        self.pid = peer[0] or self.pid

    def step(self, selector: selectors.BaseSelector) -> dict[str, t.Any] | None:
        """Send or receive what can be; return the reply once it is complete."""
        if self._to_send:
            self._to_send = self._to_send[self.socket.send(self._to_send) :]
            if not self._to_send:
                selector.modify(self.socket, selectors.EVENT_READ, self)
            return None
        chunk = self.socket.recv(1 << 18)
        if not chunk:
            raise ConnectionResetError
        self._spend(len(chunk))
        self._received += chunk
        return unpack(self._received, REPLY_LIMIT)


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
    :param deployment: Ignore workers of any other.
    :param own: Ids of this very process: its locks must not be opened.
    """
    answers = Answers()
    for place in places:
        error = None
        denied = False
        try:
            owner = place.examine()
            _Inquiry(place.path, owner, timeout, deployment, own, host, answers).run()
            error = _whose(place, owner)
        except FileNotFoundError:
            error = "does not exist" + place.obstacle()
        except PermissionError:
            error = f"uid {os.geteuid()} may not look into it"
            denied = True
        except OSError as problem:
            error = problem.strerror or type(problem).__name__
        except ControlError as problem:
            error = str(problem)
            denied = isinstance(problem, UnsafeDirectory) and _is_strangers(place.path)
        answers.searched.append(SearchedDirectory(place.path, error, denied))
    return answers


def _whose(place: directory.Place, owner: int) -> str | None:
    """Tell root that its own workers would not use a chosen directory."""
    if place.uid is not None or owner == os.geteuid() or directory.listing(place.path):
        return None
    return f"is empty; it belongs to uid {owner}, whose workers alone may use it"


def _is_strangers(path: str) -> bool:
    try:
        return os.geteuid() not in (0, os.lstat(path).st_uid)
    except OSError:
        return False


class _Inquiry:
    """One directory, from the listing to the last answer."""

    def __init__(
        self,
        path: str,
        owner: int,
        timeout: float,
        deployment: str | None,
        own: t.Collection[str],
        host: str,
        answers: Answers,
    ) -> None:
        self._path = path
        self._owner = owner
        self._timeout = timeout
        self._deployment = deployment
        self._own = own
        self._host = host
        self._answers = answers
        self._done: set[str] = set()
        self._vanished = False
        self._last_round = False
        self._left = _TOGETHER
        self._asked: dict[int, _Question] = {}  # who has waited longest first

    def run(self) -> None:
        self._round()
        if self._vanished:
            # A worker came or went while we looked: look once more, then believe it.
            time.sleep(_SOON)
            self._last_round = True
            self._round()

    def _round(self) -> None:
        found = directory.listing(self._path)
        waiting = deque(each for each in found if each.id not in self._done)
        began = time.monotonic()
        self._selector = selectors.DefaultSelector()
        try:
            while waiting or self._asked:
                self._begin_some(waiting, began)
                if self._asked:
                    self._wait(_SOON if waiting else self._timeout)
                elif waiting:
                    time.sleep(_SOON)
        finally:
            for question in self._asked.values():
                question.socket.close()
            self._asked.clear()
            self._selector.close()

    def _begin_some(self, waiting: deque[directory.Found], began: float) -> None:
        """Ask as many as there is room for; once all of them had their turn, return."""
        for _ in range(min(len(waiting), _AT_ONCE - len(self._asked))):
            found = waiting.popleft()
            now = time.monotonic()
            try:
                self._begin(found, now + self._timeout)
            except BlockingIOError as error:
                # Its queue is full: many ask at once, or it is stuck.
                if now - began < self._timeout:
                    waiting.append(found)
                else:
                    self._settle(found, found.pid, TimeoutError(*error.args))
            except (OSError, _Unusable) as error:
                if self._asked and getattr(error, "errno", 0) == errno.EMFILE:
                    waiting.appendleft(found)
                    return
                self._settle(found, found.pid, error)

    def _begin(self, found: directory.Found, deadline: float) -> None:
        if "sock" not in found.kinds:
            # Not yet, not any more, or nothing but a last snapshot.
            if found.id not in self._own:
                self._settle(found, found.pid, FileNotFoundError(errno.ENOENT, ""))
            return
        question = _Question(found, deadline, self._spend)
        try:
            question.connect(self._path, self._owner)
            self._selector.register(question.socket, selectors.EVENT_WRITE, question)
        except BaseException:
            question.socket.close()
            raise
        self._asked[question.socket.fileno()] = question

    def _wait(self, most: float) -> None:
        first = next(iter(self._asked.values()))
        until_due = max(0.0, first.deadline - time.monotonic())
        for key, _ in self._selector.select(min(most, until_due)):
            question: _Question = key.data
            try:
                reply = question.step(self._selector)
            except BlockingIOError:
                continue
            except (OSError, Malformed) as error:
                self._end(question)
                self._settle(question.found, question.pid, error)
            else:
                if reply is not None:
                    self._end(question)
                    self._accept(question, reply)
        now = time.monotonic()
        for question in list(self._asked.values()):
            if question.deadline > now:
                break
            self._end(question)
            self._settle(question.found, question.pid, TimeoutError())

    def _spend(self, amount: int) -> None:
        self._left -= amount
        if self._left < 0:
            raise TooLarge(f"more than {_TOGETHER} bytes together")

    def _end(self, question: _Question) -> None:
        del self._asked[question.socket.fileno()]
        self._selector.unregister(question.socket)
        question.socket.close()

    # -- what it means ---------------------------------------------------------

    def _accept(self, question: _Question, reply: dict[str, t.Any]) -> None:
        found = question.found
        try:
            worker = self._worker_in(reply, found.id)
        except _Unusable as error:
            self._settle(found, question.pid, error)
            return
        self._done.add(found.id)
        if worker is not None:
            self._answers.apps.add(clean(str(reply.get("app") or "")))
            self._answers.workers.append(replace(worker, source="live"))

    def _worker_in(self, reply: dict[str, t.Any], id: str) -> WorkerSnapshot | None:
        """Return the worker that a reply tells of, unless of another deployment."""
        if reply.get("protocol") != PROTOCOL:
            raise _Unusable("speaks another protocol")
        if "error" in reply:
            raise _Unusable("could not read its ledger")
        if self._deployment not in (None, reply.get("deployment")):
            return None
        try:
            worker = WorkerSnapshot.from_dict(reply.get("worker"))
        except (ValueError, TypeError, RecursionError):
            raise _Unusable("answered nonsense") from None
        if worker.id != id or not id.startswith(f"{worker.pid}-"):
            raise _Unusable("answered nonsense")
        return replace(worker, uid=self._owner, host=self._host)

    def _settle(self, found: directory.Found, pid: int, error: Exception) -> None:
        """Decide what it means that a worker gave no answer."""
        reason = _reason(error)
        if reason is None:
            if not isinstance(error, TimeoutError) and not self._last_round:
                self._vanished = self._vanished or "lock" in found.kinds
                if "lock" in found.kinds:
                    return
            if found.id not in self._own and not directory.alive(self._path, found.id):
                self._done.add(found.id)
                self._add_last(found.id, "gone")
                return
            reason = "stopped" if _is_stopped(pid) else "unresponsive"
        self._done.add(found.id)
        if not self._is_foreign(found.id):
            silent = Silent(found.id, found.pid, self._host, reason)
            self._answers.silent.append(silent)
            self._add_last(
                found.id, "stopped" if reason == "stopped" else "unresponsive"
            )

    def _is_foreign(self, id: str) -> bool:
        """Whether the lock of a silent worker says that it is another deployment's."""
        if self._deployment is None or id in self._own:
            return False
        return directory.deployment_of(self._path, id) not in (None, self._deployment)

    def _add_last(self, id: str, state: WorkerState) -> None:
        """Add the last snapshot of a worker, if it left one that makes sense."""
        content = directory.read_last(self._path, id, self._owner)
        if content is None:
            return
        try:
            self._spend(len(content))
            worker = self._worker_in(decode(content), id)
        except (Malformed, _Unusable):
            return
        if worker is not None:
            self._answers.workers.append(replace(worker, state=state, source="last"))


def _reason(error: Exception) -> str | None:
    """Say what was wrong with an answer; ``None`` if there was none."""
    if isinstance(error, TooLarge):
        return "answered too much"
    if isinstance(error, Malformed):
        return "answered nonsense"
    if isinstance(error, _Unusable):
        return str(error)
    return "permission denied" if isinstance(error, PermissionError) else None


def _is_stopped(pid: int) -> bool:
    """Whether a process is stopped by a signal or a debugger, where /proc says so."""
    try:
        with open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as file:
            state = next((line for line in file if line.startswith("State:")), "")
    except OSError:
        return False
    return state.split()[1:2] in (["T"], ["t"])
