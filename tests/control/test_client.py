"""A command gets every answer there is, in time, whatever the workers do."""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from collections.abc import Iterator
from contextlib import ExitStack
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from users import as_root

from flask_scopedsession._control import client
from flask_scopedsession._control import directory
from flask_scopedsession._control.client import Answers
from flask_scopedsession._control.directory import Place
from flask_scopedsession._control.protocol import pack
from flask_scopedsession.snapshot import WorkerSnapshot

DEPLOYMENT = "0123456789ab"


@pytest.fixture
def home(short_tmp: Path) -> Path:
    return Path(directory.prepare(str(short_tmp / "run"), ""))


def worker(id: str) -> WorkerSnapshot:
    return WorkerSnapshot(
        id=id,
        pid=int(id.partition("-")[0]),
        ppid=1,
        role="web",
        state="ok",
        started_at="2026-01-01T00:00:00Z",
        age_s=1.0,
        server=None,
        source="live",
        snapshot_at="2026-01-01T00:00:00Z",
        pools=(),
        sessions=(),
    )


def envelope(id: str, **changes: Any) -> dict[str, Any]:
    return {
        "protocol": 1,
        "deployment": DEPLOYMENT,
        "app": "shop",
        "worker": worker(id).to_dict(),
        **changes,
    }


class Locks:
    """Another process that holds locks, as live workers do."""

    CODE = """
import fcntl, os, sys
for line in sys.stdin:
    path, deployment = line.split()
    descriptor = os.open(path, os.O_CREAT | os.O_RDWR, 0o600)
    fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.write(descriptor, deployment.encode())
    print(flush=True)
"""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._process = subprocess.Popen(
            [sys.executable, "-S", "-c", self.CODE],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )

    def take(self, id: str, deployment: str = DEPLOYMENT) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{self._home}/{id}.lock {deployment}\n")
        assert self._process.stdout.readline() == "\n"

    def drop(self) -> None:
        """End as killed workers do: the locks are free, the files stay."""
        self._process.kill()
        with suppress(BrokenPipeError):
            self._process.communicate(timeout=10)


@pytest.fixture
def locks(home: Path) -> Iterator[Locks]:
    locks = Locks(home)
    yield locks
    locks.drop()


#: What a fake worker does with the connection of a client.
Behaviour = Callable[[socket.socket], None]


class Fakes:
    """Sockets in the directory, served by threads of this process."""

    def __init__(self, home: Path, locks: Locks) -> None:
        self._home = home
        self._locks = locks
        self._stack = ExitStack()
        self._numbers = iter(range(1, 1000))
        self.done = threading.Event()

    def id(self) -> str:
        return f"{next(self._numbers)}-0000000a"

    def add(
        self,
        behaviour: Behaviour | None,
        *,
        id: str | None = None,
        deployment: str = DEPLOYMENT,
        locked: bool = True,
        backlog: int = 128,
    ) -> str:
        """Add a worker; without a behaviour it accepts no connection."""
        id = id or self.id()
        if locked:
            self._locks.take(id, deployment)
        listener = self._stack.enter_context(socket.socket(socket.AF_UNIX))
        listener.bind(str(self._home / f"{id}.sock"))
        listener.listen(backlog)
        if behaviour is not None:
            thread = threading.Thread(
                target=self._serve, args=(listener, behaviour), daemon=True
            )
            thread.start()
            self._stack.callback(thread.join, 10)
            self._stack.callback(listener.shutdown, socket.SHUT_RDWR)
        return id

    @staticmethod
    def _serve(listener: socket.socket, behaviour: Behaviour) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection, suppress(OSError):
                connection.settimeout(10)
                behaviour(connection)

    def replying(self, message: object, **kwargs: Any) -> str:
        return self.add(lambda connection: send(connection, pack(message)), **kwargs)

    def healthy(self, **kwargs: Any) -> str:
        id = kwargs.pop("id", None) or self.id()
        return self.replying(envelope(id), id=id, **kwargs)

    def close(self) -> None:
        self.done.set()
        self._stack.close()


def send(connection: socket.socket, reply: bytes) -> None:
    connection.recv(1000)
    connection.sendall(reply)


@pytest.fixture
def fakes(home: Path, locks: Locks) -> Iterator[Fakes]:
    fakes = Fakes(home, locks)
    yield fakes
    fakes.close()


@pytest.fixture
def ask(home: Path) -> Callable[..., Answers]:
    def ask(timeout: float = 5.0, **kwargs: Any) -> Answers:
        kwargs.setdefault("deployment", DEPLOYMENT)
        answers = client.ask([Place(str(home), None)], timeout, host="h", **kwargs)
        for reading in (*answers.workers, *answers.silent):
            assert all(" " <= c <= "~" for c in json.dumps(reading.to_dict()))
        return answers

    return ask


def reasons(answers: Answers) -> dict[str, str]:
    return {silent.id: silent.reason for silent in answers.silent}


def states(answers: Answers) -> dict[str, str]:
    return {each.id: each.state for each in answers.workers}


# Answers


def test_an_answer(fakes: Fakes, ask: Callable[..., Answers], home: Path) -> None:
    id = fakes.healthy()
    answers = ask()
    expected = replace(worker(id), uid=os.geteuid(), host="h")
    assert answers.workers == [expected]
    assert answers.silent == []
    assert answers.apps == {"shop"}
    assert [(s.dir, s.error, s.denied) for s in answers.searched] == [
        (str(home), None, False)
    ]


def test_an_empty_directory_has_no_workers(ask: Callable[..., Answers]) -> None:
    assert ask().workers == ask().silent == []


def test_a_long_answer_arrives_whole(fakes: Fakes, ask: Callable[..., Answers]) -> None:
    id = fakes.id()
    fakes.replying(envelope(id, more="x" * 5_000_000), id=id)
    assert states(ask()) == {id: "ok"}


def test_other_deployments_in_the_same_directory_are_not_seen(
    fakes: Fakes, ask: Callable[..., Answers], home: Path
) -> None:
    """Whether they answer, are silent, or are gone."""
    other = {"deployment": "ba9876543210"}
    speaking, gone = fakes.id(), fakes.id()
    fakes.replying(envelope(speaking, **other), id=speaking, **other)
    silent = fakes.add(None, **other)
    nonsense = fakes.replying({}, **other)
    directory.write_last(str(home), gone, json.dumps(envelope(gone, **other)).encode())
    mine = fakes.healthy()
    answers = ask(0.3)
    assert states(answers) == {mine: "ok"}
    assert answers.silent == []
    everything = ask(0.3, deployment=None)
    assert states(everything) == {mine: "ok", speaking: "ok", gone: "gone"}
    assert reasons(everything).keys() == {silent, nonsense}


# Bad answers: named and harmless, never shown raw


TOO_MUCH = struct.pack("!I", (16 << 20) + 1)


def nonsense() -> dict[str, bytes]:
    ours = worker("7-0000000a").to_dict()
    return {
        "no length": b"HTTP/1.1 200 OK\r\n\r\n"[:3],
        "no JSON": struct.pack("!I", 8) + b"nonsense",
        "an escape": struct.pack("!I", 8) + b"\x1b[2J\x1b[1m",
        "a list": pack([1, 2]),
        "an infinite number": pack(envelope("7-0000000a", x=1)).replace(
            b'"x":1', b'"x":NaN'
        )[:-2]
        + b"}}",
        "deep": struct.pack("!I", 100_000) + b"[" * 100_000,
        "no worker": pack(envelope("7-0000000a", worker=None)),
        "half a worker": pack(
            envelope("7-0000000a", worker={**ours, "pools": [{"bind": "x"}]})
        ),
        "wrong types": pack(envelope("7-0000000a", worker={**ours, "pid": "1"})),
        "wrong state": pack(envelope("7-0000000a", worker={**ours, "state": "fine"})),
        "another id": pack(envelope("7-0000000b")),
        "another worker": pack(envelope("8-0000000a")),
        "another pid": pack(envelope("7-0000000a", worker={**ours, "pid": 8})),
    }


@pytest.mark.parametrize("kind", [k for k in nonsense() if k != "no length"])
def test_a_worker_that_answers_nonsense_is_named(
    fakes: Fakes, ask: Callable[..., Answers], kind: str
) -> None:
    reply = nonsense()[kind]
    bad = fakes.add(lambda connection: send(connection, reply), id="7-0000000a")
    good = fakes.healthy()
    answers = ask()
    assert reasons(answers) == {bad: "answered nonsense"}
    assert states(answers) == {good: "ok"}


def test_a_worker_that_answers_too_much_is_named(
    fakes: Fakes, ask: Callable[..., Answers]
) -> None:
    bad = fakes.add(lambda c: send(c, TOO_MUCH + b"x" * 1_000_000))
    assert reasons(ask()) == {bad: "answered too much"}


def test_workers_that_together_answer_too_much_are_named(
    fakes: Fakes,
    ask: Callable[..., Answers],
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """All answers and last snapshots together have a limit, however many there are."""
    for _ in range(4):
        fakes.healthy()
    reply = len(pack(envelope("1-0000000a")))
    for number in range(4):
        directory.write_last(
            str(home),
            f"9{number}-0000000b",
            json.dumps(envelope(f"9{number}-0000000b")).encode(),
        )
    monkeypatch.setattr(client, "_TOGETHER", 10 * reply)
    answers = ask()
    assert len(answers.workers) == 8
    monkeypatch.setattr(client, "_TOGETHER", 3 * reply)
    answers = ask()
    assert 1 <= len(answers.workers) <= 3
    assert set(reasons(answers).values()) == {"answered too much"}


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        ({"protocol": 2, "worker": {}}, "speaks another protocol"),
        ({"protocol": "\x1b[1m"}, "speaks another protocol"),
        ({}, "speaks another protocol"),
        ({"protocol": 1, "error": "\x1b[2J"}, "could not read its ledger"),
    ],
)
def test_a_worker_whose_answer_is_no_snapshot_is_named(
    fakes: Fakes, ask: Callable[..., Answers], reply: dict[str, Any], reason: str
) -> None:
    bad = fakes.replying(reply)
    assert reasons(ask()) == {bad: reason}


def test_control_characters_of_an_answer_are_stripped(
    fakes: Fakes, ask: Callable[..., Answers]
) -> None:
    id = fakes.id()
    evil = "a\x1b[31m\x9b2J\u202eb\x07\r\n"
    reading = {**worker(id).to_dict(), "server": evil}
    fakes.replying(envelope(id, worker=reading, app=evil), id=id)
    answers = ask()
    assert answers.workers[0].server == "a[31m2Jb"
    assert answers.apps == {"a[31m2Jb"}


def test_an_endless_trickle_ends_at_the_deadline(
    fakes: Fakes, ask: Callable[..., Answers]
) -> None:
    def trickle(connection: socket.socket) -> None:
        connection.recv(1000)
        connection.sendall(struct.pack("!I", 1 << 20))
        while not fakes.done.wait(0.01):
            connection.sendall(b" ")

    bad = fakes.add(trickle)
    good = fakes.healthy()
    began = time.monotonic()
    answers = ask(0.5)
    assert 0.5 <= time.monotonic() - began < 1.5
    assert reasons(answers) == {bad: "unresponsive"}
    assert states(answers) == {good: "ok"}


@as_root
def test_a_server_of_another_user_is_not_believed(
    fakes: Fakes, ask: Callable[..., Answers], home: Path, short_tmp: Path
) -> None:
    """Even if its socket is in our directory."""
    code = (
        "import os, socket, sys\n"
        "os.setuid(65534)\n"
        "listener = socket.socket(socket.AF_UNIX)\n"
        "listener.bind(sys.argv[1]); listener.listen(1)\n"
        "print(flush=True); sys.stdin.read()\n"
    )
    theirs = short_tmp / "t"
    theirs.mkdir()
    theirs.chmod(0o777)
    for parent in theirs.parents[:2]:
        parent.chmod(0o755)
    with subprocess.Popen(
        [sys.executable, "-S", "-c", code, str(theirs / "s")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == b"\n"
            (theirs / "s").rename(home / "7-0000000a.sock")
            answers = ask()
        finally:
            process.kill()
    assert reasons(answers) == {"7-0000000a": "not a process of the directory's owner"}


# Workers that start or end meanwhile


def test_a_worker_that_starts_meanwhile_is_asked_again(
    fakes: Fakes, locks: Locks, ask: Callable[..., Answers]
) -> None:
    """It has its lock, but not its socket yet."""
    id = fakes.id()
    locks.take(id)
    with pytest.MonkeyPatch.context() as patch:

        def meanwhile(seconds: float) -> None:
            fakes.healthy(id=id, locked=False)

        patch.setattr(time, "sleep", meanwhile)
        answers = ask()
    assert states(answers) == {id: "ok"}
    assert answers.silent == []


def test_a_worker_that_ends_meanwhile_is_not_listed(
    fakes: Fakes, ask: Callable[..., Answers], home: Path
) -> None:
    def leave(connection: socket.socket) -> None:
        for kind in ("sock", "json", "lock"):
            (home / f"{id}.{kind}").unlink(missing_ok=True)

    id = fakes.id()
    fakes.add(leave, id=id)
    good = fakes.healthy()
    answers = ask()
    assert states(answers) == {good: "ok"}
    assert answers.silent == []


def test_a_worker_that_hangs_up_is_asked_once_more_and_then_named(
    fakes: Fakes, ask: Callable[..., Answers]
) -> None:
    asked: list[int] = []
    bad = fakes.add(lambda connection: asked.append(1))
    assert reasons(ask()) == {bad: "unresponsive"}
    assert len(asked) == 2


def test_a_worker_that_hung_up_once_is_not_silent(
    fakes: Fakes, ask: Callable[..., Answers]
) -> None:
    asked: list[int] = []
    id = fakes.id()

    def at_second_sight(connection: socket.socket) -> None:
        asked.append(1)
        if len(asked) > 1:
            send(connection, pack(envelope(id)))

    fakes.add(at_second_sight, id=id)
    assert states(ask()) == {id: "ok"}


def test_other_workers_are_not_asked_again(
    fakes: Fakes, ask: Callable[..., Answers]
) -> None:
    asked: list[int] = []
    id = fakes.id()

    def count(connection: socket.socket) -> None:
        asked.append(1)
        send(connection, pack(envelope(id)))

    fakes.add(count, id=id)
    fakes.add(lambda connection: None)
    assert states(ask()) == {id: "ok"}
    assert asked == [1]


def test_a_worker_without_its_socket_is_named(
    fakes: Fakes, locks: Locks, ask: Callable[..., Answers]
) -> None:
    id = fakes.id()
    locks.take(id)
    assert reasons(ask()) == {id: "unresponsive"}


def test_a_directory_that_vanishes_meanwhile_is_no_error(
    fakes: Fakes, ask: Callable[..., Answers], home: Path
) -> None:
    def leave(connection: socket.socket) -> None:
        with suppress(FileNotFoundError):
            home.rename(home.with_name("moved"))

    fakes.add(leave)
    answers = ask()
    assert answers.workers == answers.silent == []
    assert [s.error for s in answers.searched] == ["does not exist"]


# Killed workers


def leave_last(home: Path, id: str, content: bytes | None = None) -> Path:
    last = json.dumps(envelope(id)).encode() if content is None else content
    directory.write_last(str(home), id, last)
    return home / f"{id}.json"


def test_a_killed_worker_leaves_no_trace_unless_there_was_trouble(
    fakes: Fakes, locks: Locks, ask: Callable[..., Answers], home: Path
) -> None:
    quiet, troubled = fakes.add(None), fakes.add(None)
    leave_last(home, troubled)
    assert reasons(ask(0.2)) == {quiet: "unresponsive", troubled: "unresponsive"}
    fakes.close()
    locks.drop()
    before = sorted(home.iterdir())
    answers = ask()
    assert answers.silent == []
    assert states(answers) == {troubled: "gone"}
    assert answers.workers[0].source == "last"
    assert sorted(home.iterdir()) == before, "a command deletes nothing"


def test_a_killed_worker_whose_fork_still_has_its_socket_is_gone(
    fakes: Fakes, locks: Locks, ask: Callable[..., Answers], home: Path
) -> None:
    """The socket still listens, but the lock is free."""
    id = fakes.add(None)
    locks.drop()
    answers = ask(0.2)
    assert answers.silent == []
    assert answers.workers == []
    leave_last(home, id)
    assert states(ask(0.2)) == {id: "gone"}


@pytest.mark.parametrize("files", [("json",), ("json", "lock"), ("json", "sock")])
def test_a_last_snapshot_is_shown_with_any_other_files_left(
    ask: Callable[..., Answers], home: Path, files: tuple[str, ...]
) -> None:
    id = "7-0000000a"
    leave_last(home, id)
    for kind in files:
        (home / f"{id}.{kind}").touch()
    assert states(ask()) == {id: "gone"}


def test_a_last_snapshot_is_shown_for_an_hour(
    ask: Callable[..., Answers], home: Path
) -> None:
    path = leave_last(home, "7-0000000a")
    for age, shown in ((3500, True), (3700, False)):
        then = time.time() - age
        os.utime(path, (then, then))
        assert bool(ask().workers) is shown


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"nonsense",
        b"[]",
        b"{}",
        b"\xff",
        b"[" * 60_000,
        b'{"protocol": 1, "deployment": "0123456789ab", "worker": {}}',
        json.dumps(envelope("8-0000000a")).encode(),
        json.dumps(envelope("7-0000000a", protocol=2)).encode(),
        json.dumps(envelope("7-0000000a", more="x" * 65_536)).encode(),
    ],
)
def test_a_malformed_last_snapshot_is_ignored(
    ask: Callable[..., Answers], home: Path, content: bytes
) -> None:
    leave_last(home, "7-0000000a", content)
    answers = ask()
    assert answers.workers == answers.silent == []


def test_a_last_snapshot_that_is_a_link_or_a_pipe_is_not_read(
    ask: Callable[..., Answers], home: Path
) -> None:
    os.mkfifo(home / "7-0000000a.json")
    (home / "8-0000000a.json").symlink_to("/dev/zero")
    assert ask().workers == []


# Silent workers


def test_a_stopped_worker_is_told_from_one_that_is_stuck(
    fakes: Fakes, ask: Callable[..., Answers], home: Path
) -> None:
    code = (
        "import fcntl, os, socket, sys\n"
        "path = f'{sys.argv[1]}/{os.getpid()}-0000000a'\n"
        "lock = open(path + '.lock', 'w'); fcntl.lockf(lock, fcntl.LOCK_EX)\n"
        "listener = socket.socket(socket.AF_UNIX)\n"
        "listener.bind(path + '.sock'); listener.listen(8)\n"
        "print(os.path.basename(path), flush=True); sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-S", "-c", code, str(home)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        try:
            id = process.stdout.readline().decode().strip()
            assert reasons(ask(0.2)) == {id: "unresponsive"}
            process.send_signal(signal.SIGSTOP)
            leave_last(home, id)
            answers = ask(0.2)
            assert reasons(answers) == {id: "stopped"}
            assert states(answers) == {id: "stopped"}
            assert answers.workers[0].source == "last"
        finally:
            process.kill()


def test_a_worker_with_a_full_queue_is_asked_again(
    fakes: Fakes, ask: Callable[..., Answers], home: Path
) -> None:
    """Each of many clients gets its answer, even if some have to connect again."""
    id = fakes.id()
    go_on = threading.Event()

    def slow(connection: socket.socket) -> None:
        assert go_on.wait(10)
        send(connection, pack(envelope(id)))

    fakes.add(slow, id=id, backlog=0)
    with ExitStack() as stack:
        full = False
        while not full:
            knocking = stack.enter_context(socket.socket(socket.AF_UNIX))
            knocking.setblocking(False)
            try:
                knocking.connect(str(home / f"{id}.sock"))
                knocking.send(pack({}))
            except BlockingIOError:
                full = True
        assert reasons(ask(0.2)) == {id: "unresponsive"}
        threading.Timer(0.2, go_on.set).start()
        assert states(ask(5)) == {id: "ok"}


def test_three_hundred_are_asked_at_once(
    fakes: Fakes, locks: Locks, ask: Callable[..., Answers]
) -> None:
    stuck = {fakes.add(None) for _ in range(300)}
    good = fakes.healthy()
    began = time.monotonic()
    answers = ask(1.0)
    assert time.monotonic() - began < 1.9
    assert reasons(answers).keys() == stuck
    assert states(answers) == {good: "ok"}


def test_with_few_descriptors_all_are_asked_in_turn(
    fakes: Fakes, ask: Callable[..., Answers], monkeypatch: pytest.MonkeyPatch
) -> None:
    good = {fakes.healthy() for _ in range(20)}
    connect = client._Question.connect
    open_now: list[int] = []

    def limited(self: client._Question, path: str, owner: int) -> None:
        if len(open_now) >= 5:
            raise OSError(errno.EMFILE, "Too many open files")
        connect(self, path, owner)
        open_now.append(self.socket.fileno())

    end = client._Inquiry._end

    def ended(self: client._Inquiry, question: client._Question) -> None:
        open_now.remove(question.socket.fileno())
        end(self, question)

    monkeypatch.setattr(client._Question, "connect", limited)
    monkeypatch.setattr(client._Inquiry, "_end", ended)
    assert states(ask()).keys() == good


def test_the_lock_of_this_process_is_not_opened(
    home: Path, ask: Callable[..., Answers]
) -> None:
    """Closing it would free it, so that this process would seem dead."""
    id = f"{os.getpid()}-0000000a"
    lock = directory.take_lock(str(home), id, DEPLOYMENT)
    try:
        (home / f"{id}.sock").touch()  # refuses connections
        assert reasons(ask(own={id})) == {id: "unresponsive"}
        pid = os.fork()
        if pid == 0:
            os._exit(0 if directory.alive(str(home), id) else 1)
        assert os.waitpid(pid, 0)[1] == 0
    finally:
        os.close(lock)


# Why no worker is found


def why(path: Path | str, uid: int | None = None) -> tuple[str | None, bool]:
    (searched,) = client.ask([Place(str(path), uid)], 1.0).searched
    return searched.error, searched.denied


def test_a_missing_directory_is_reported(short_tmp: Path) -> None:
    assert why(short_tmp / "a" / "b") == ("does not exist", False)


def test_a_directory_that_cannot_be_created_is_reported(short_tmp: Path) -> None:
    (short_tmp / "file").touch()
    error, denied = why(short_tmp / "file" / "run")
    assert error is not None
    assert "Not a directory" in error
    assert not denied


def test_an_unsafe_directory_is_reported(home: Path) -> None:
    home.chmod(0o777)
    error, denied = why(home)
    assert error is not None
    assert "open to others" in error
    assert not denied


def test_a_path_too_long_is_reported(short_tmp: Path) -> None:
    error, _ = why(short_tmp / ("x" * 100))
    assert error is not None
    assert "too long" in error


@as_root
def test_another_users_directory_is_denied_except_to_root(
    home: Path, fakes: Fakes
) -> None:
    fakes.healthy()
    pid = os.fork()
    if pid == 0:
        for parent in home.parents[:2]:
            parent.chmod(0o755)
        os.setuid(65534)
        error, denied = why(home)
        inside = why(home / "x")
        good = denied and "belongs to uid 0" in str(error) and inside[1]
        os._exit(0 if good else 1)
    assert os.waitpid(pid, 0)[1] == 0


@as_root
def test_root_learns_the_owner_of_an_empty_directory(home: Path) -> None:
    """Root's own workers do not use it, which only their log says."""
    os.chown(home, 65534, -1)
    error, denied = why(home)
    assert error == "is empty; only workers of uid 65534 use it, because it is theirs"
    assert not denied
