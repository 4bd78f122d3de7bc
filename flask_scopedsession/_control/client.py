"""Ask every worker in a directory, all at once, and say who stayed silent."""

from __future__ import annotations

import errno
import json
import os
import selectors
import socket
import time
import typing as t
from dataclasses import dataclass
from dataclasses import field
from dataclasses import replace

from ..errors import UnsafeDirectory
from ..snapshot import clean
from ..snapshot import SearchedDirectory
from ..snapshot import Silent
from ..snapshot import WorkerSnapshot
from . import directory
from .protocol import Malformed
from .protocol import pack
from .protocol import peer_credentials
from .protocol import PROTOCOL
from .protocol import REPLY_LIMIT
from .protocol import REQUEST
from .protocol import unpack

#: Conversations at a time; a process may have 1,024 descriptors by default.
_AT_ONCE = 256

_LAST_LIMIT = 64 * 1024


@dataclass
class Answers:
    """What came back from one or more directories."""

    searched: list[SearchedDirectory] = field(default_factory=list)
    workers: list[WorkerSnapshot] = field(default_factory=list)
    silent: list[Silent] = field(default_factory=list)
    apps: set[str] = field(default_factory=set)


@dataclass
class _Question:
    """One worker that is being asked."""

    path: str
    id: str
    pid: int
    socket: socket.socket
    deadline: float
    received: bytearray = field(default_factory=bytearray)
    to_send: bytes = field(default_factory=lambda: pack(REQUEST))


class _Gone(Exception):
    """The worker is not there (any more)."""


class _Silent(Exception):
    """The worker is there, but gave no usable answer; the reason is the text."""


def ask(
    paths: t.Iterable[str],
    timeout: float,
    *,
    deployment: str | None = None,
    own: t.Collection[str] = (),
    host: str = "",
) -> Answers:
    """Ask all workers whose sockets are in `paths`.

    :param timeout: Seconds to wait for each worker.
    :param deployment: Ignore workers of any other.
    :param own: Ids of this very process: its locks must not be opened.
    """
    answers = Answers()
    for path in paths:
        try:
            owner = _owner(path)
        except FileNotFoundError:
            answers.searched.append(SearchedDirectory(path, "does not exist"))
        except PermissionError:
            answers.searched.append(SearchedDirectory(path, "permission denied", True))
        except UnsafeDirectory as error:
            denied = os.geteuid() not in (0, _uid_of(path))
            answers.searched.append(SearchedDirectory(path, str(error), denied))
        else:
            answers.searched.append(SearchedDirectory(path))
            _Inquiry(path, owner, timeout, deployment, own, host, answers).run()
    return answers


def _owner(path: str) -> int:
    """Return whose workers may answer in a directory: ours, or for root its owner's."""
    me = os.geteuid()
    owner = os.lstat(path).st_uid if me == 0 else me
    directory.check(path, owner)
    return owner


def _uid_of(path: str) -> int:
    try:
        return os.lstat(path).st_uid
    except OSError:
        return -1


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
        self._vanished: set[str] = set()

    def run(self) -> None:
        self._round()
        if self._vanished:
            # A worker came or went while we looked: look once more, then believe it.
            self._vanished.clear()
            self._round(last=True)

    def _round(self, last: bool = False) -> None:
        waiting = [f for f in directory.listing(self._path) if f.id not in self._done]
        open_now: dict[int, _Question] = {}
        selector = selectors.DefaultSelector()
        try:
            while waiting or open_now:
                while waiting and len(open_now) < _AT_ONCE:
                    self._begin(waiting.pop(), selector, open_now, last)
                self._wait(selector, open_now, last)
        finally:
            for question in open_now.values():
                question.socket.close()
            selector.close()

    def _begin(
        self,
        found: directory.Found,
        selector: selectors.BaseSelector,
        open_now: dict[int, _Question],
        last: bool,
    ) -> None:
        if "sock" not in found.kinds:
            if "json" in found.kinds and "lock" not in found.kinds:
                self._gone(found.id, found.pid)
            return
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.setblocking(False)
            connection.connect(os.path.join(self._path, f"{found.id}.sock"))
            peer = peer_credentials(connection)
            if peer is None or peer[1] != self._owner:
                raise _Silent("not a process of the directory's owner")
        except (OSError, _Silent) as error:
            connection.close()
            self._settle(found.id, found.pid, error, last)
            return
        question = _Question(
            self._path,
            found.id,
            peer[0] or found.pid,
            connection,
            time.monotonic() + self._timeout,
        )
        open_now[connection.fileno()] = question
        selector.register(connection, selectors.EVENT_WRITE, question)

    def _wait(
        self,
        selector: selectors.BaseSelector,
        open_now: dict[int, _Question],
        last: bool,
    ) -> None:
        if not open_now:
            return
        now = time.monotonic()
        soonest = min(question.deadline for question in open_now.values())
        for key, _ in selector.select(max(0.0, soonest - now)):
            question: _Question = key.data
            try:
                reply = self._step(question, selector)
            except (OSError, Malformed, ValueError, _Silent) as error:
                self._end(question, selector, open_now)
                self._settle(question.id, question.pid, error, last)
            else:
                if reply is not None:
                    self._end(question, selector, open_now)
                    self._accept(question, reply)
        now = time.monotonic()
        for question in [q for q in open_now.values() if now >= q.deadline]:
            self._end(question, selector, open_now)
            self._settle(question.id, question.pid, TimeoutError(), last)

    @staticmethod
    def _end(
        question: _Question,
        selector: selectors.BaseSelector,
        open_now: dict[int, _Question],
    ) -> None:
        del open_now[question.socket.fileno()]
        selector.unregister(question.socket)
        question.socket.close()

    @staticmethod
    def _step(
        question: _Question, selector: selectors.BaseSelector
    ) -> dict[str, t.Any] | None:
        """Send or receive what can be; return the reply once it is complete."""
        if question.to_send:
            sent = question.socket.send(question.to_send)
            question.to_send = question.to_send[sent:]
            if not question.to_send:
                selector.modify(question.socket, selectors.EVENT_READ, question)
            return None
        try:
            chunk = question.socket.recv(1 << 20)
        except BlockingIOError:
            return None
        if not chunk:
            raise ConnectionResetError
        question.received += chunk
        return unpack(question.received, REPLY_LIMIT)

    def _accept(self, question: _Question, reply: dict[str, t.Any]) -> None:
        self._done.add(question.id)
        if "error" in reply:
            self._silence(question.id, question.pid, "could not read its ledger")
            return
        if reply.get("protocol") != PROTOCOL:
            self._silence(question.id, question.pid, "speaks another protocol")
            return
        if self._deployment not in (None, reply.get("deployment")):
            return
        try:
            worker = WorkerSnapshot.from_dict(reply.get("worker"))
            if worker.id != question.id:
                raise ValueError
        except (ValueError, TypeError, RecursionError):
            self._silence(question.id, question.pid, "answered nonsense")
            return
        self._answers.apps.add(clean(str(reply.get("app") or "")))
        self._answers.workers.append(
            replace(worker, source="live", uid=self._owner, host=self._host)
        )

    def _settle(self, id: str, pid: int, error: Exception, last: bool) -> None:
        """Decide what it means that a worker gave no answer."""
        code = getattr(error, "errno", None)
        if isinstance(error, Malformed):
            reason = "answered nonsense" if "JSON" in str(error) else "answered too much"
        elif isinstance(error, _Silent):
            reason = str(error)
        elif isinstance(error, TimeoutError):
            reason = "stopped" if _is_stopped(pid) else "unresponsive"
        elif not last:
            self._vanished.add(id)
            return
        elif id not in self._own and not directory.alive(self._path, id):
            self._gone(id, pid)
            return
        elif code == errno.EACCES:
            reason = "permission denied"
        else:
            reason = "stopped" if _is_stopped(pid) else "unresponsive"
        self._done.add(id)
        self._silence(id, pid, reason)

    def _silence(self, id: str, pid: int, reason: str) -> None:
        self._answers.silent.append(Silent(id, pid, self._host, reason))
        state: t.Any = "stopped" if reason == "stopped" else "unresponsive"
        self._last(id, state)

    def _gone(self, id: str, pid: int) -> None:
        self._done.add(id)
        path = os.path.join(self._path, f"{id}.json")
        try:
            recent = time.time() - os.lstat(path).st_mtime < directory.KEEP_LAST
        except OSError:
            return
        if recent:
            self._last(id, "gone")

    def _last(self, id: str, state: t.Any) -> None:
        """Add the last snapshot of a worker, if it left one."""
        path = os.path.join(self._path, f"{id}.json")
        try:
            flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0)
            with open(os.open(path, flags), "rb") as file:
                reply = json.loads(file.read(_LAST_LIMIT + 1))
            if self._deployment not in (None, reply["deployment"]):
                return
            worker = WorkerSnapshot.from_dict(reply["worker"])
        except (OSError, ValueError, TypeError, KeyError, RecursionError):
            return
        self._answers.workers.append(
            replace(
                worker,
                id=id,
                state=state,
                source="last",
                uid=self._owner,
                host=self._host,
            )
        )


def _is_stopped(pid: int) -> bool:
    """Whether a process is stopped by a signal or a debugger, where /proc says so."""
    try:
        with open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as file:
            state = next((line for line in file if line.startswith("State:")), "")
    except OSError:
        return False
    return state.split()[1:2] in (["T"], ["t"])
