"""The control thread always answers, and disturbs nothing, whatever clients do."""

from __future__ import annotations

import errno
import itertools
import json
import os
import resource
import socket
import stat
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from users import as_root
from waiting import wait_until

from flask_scopedsession._control import client
from flask_scopedsession._control import directory
from flask_scopedsession._control import endpoint as endpoint_module
from flask_scopedsession._control import protocol
from flask_scopedsession._control import server as server_module
from flask_scopedsession._control.endpoint import Endpoint
from flask_scopedsession._control.endpoint import Source
from flask_scopedsession._control.protocol import pack
from flask_scopedsession._control.protocol import REQUEST
from flask_scopedsession._control.protocol import unpack
from flask_scopedsession._control.server import Server
from flask_scopedsession.errors import ControlError

REPLY = b'{"protocol":1,"worker":"w"}'


def nothing() -> None:
    pass


@pytest.fixture
def home(short_tmp: Path) -> Path:
    return Path(directory.prepare(str(short_tmp / "run"), ""))


@pytest.fixture
def source(home: Path) -> Source:
    return Source(
        prepare=lambda: directory.prepare(str(home), ""),
        deployment="abc",
        reply=lambda id, limit: REPLY,
        last_snapshot=None,
        paused=nothing,
    )


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.close()


@pytest.fixture
def connect(home: Path) -> Iterator[Callable[[Endpoint], socket.socket]]:
    """Connect to an endpoint; closed after the test."""
    with ExitStack() as stack:

        def connect(endpoint: Endpoint) -> socket.socket:
            connection = stack.enter_context(socket.socket(socket.AF_UNIX))
            connection.settimeout(10)
            connection.connect(str(home / f"{endpoint.id}.sock"))
            return connection

        yield connect


def receive(connection: socket.socket) -> dict[str, Any] | None:
    """Return the reply; ``None`` if the server hung up."""
    received = b""
    try:
        while chunk := connection.recv(65536):
            received += chunk
            reply = unpack(received, 1 << 30)
            if reply is not None:
                return reply
    except ConnectionResetError:
        pass
    return None


def asked(connection: socket.socket) -> dict[str, Any] | None:
    connection.sendall(pack(REQUEST))
    return receive(connection)


def hung_up_on(connection: socket.socket, more: bytes) -> bool:
    """Send more; whether the server has closed the connection."""
    try:
        connection.send(more)
    except BlockingIOError:
        time.sleep(0.001)
    except OSError:
        return True
    return False


def names(path: Path) -> list[str]:
    return sorted(each.name for each in path.iterdir())


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def held(home: Path, id: str) -> bool:
    """Whether another process finds the lock held. (In this one it never is.)"""
    code = (
        "import fcntl, sys\n"
        "with open(sys.argv[1], 'rb') as file:\n"
        "    try: fcntl.lockf(file, fcntl.LOCK_SH | fcntl.LOCK_NB)\n"
        "    except OSError: print('held')"
    )
    path = str(home / f"{id}.lock")
    done = subprocess.run(
        [sys.executable, "-S", "-c", code, path],
        capture_output=True,
        check=True,
        timeout=30,
    )
    return done.stdout == b"held\n"


def descriptors() -> int:
    """Count this process's open files, where the system tells."""
    open_files = Path("/proc/self/fd")
    return len(list(open_files.iterdir())) if open_files.exists() else 0


# Files


@pytest.mark.parametrize("mask", [0o000, 0o022, 0o077])
def test_socket_and_lock_are_private_whatever_the_umask(
    server: Server, source: Source, home: Path, mask: int
) -> None:
    before = os.umask(mask)
    try:
        endpoint = server.open(source)
    finally:
        os.umask(before)
    assert names(home) == [f"{endpoint.id}.lock", f"{endpoint.id}.sock"]
    assert mode(home / f"{endpoint.id}.sock") == mode(home / f"{endpoint.id}.lock")
    assert mode(home / f"{endpoint.id}.sock") == 0o600
    assert endpoint.id.startswith(f"{os.getpid()}-")


def test_closing_leaves_no_file_and_no_thread(
    server: Server, source: Source, home: Path
) -> None:
    endpoint = server.open(source)
    directory.write_last(str(home), endpoint.id, b"{}")
    server.close()
    assert names(home) == []
    assert not [t for t in threading.enumerate() if "scopedsession" in t.name]


def test_a_socket_is_listening_before_its_file_appears(
    source: Source, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename = os.rename
    seen = []

    def look_first(old: str, new: str) -> None:
        if new.endswith(".sock"):
            with socket.socket(socket.AF_UNIX) as visitor:
                visitor.connect(old)  # refused unless it listens
            seen.append(mode(Path(old)))
        rename(old, new)

    monkeypatch.setattr(os, "rename", look_first)
    Endpoint(source).close()
    assert seen == [0o600]


@pytest.mark.parametrize("step", ["take_lock", "bind", "chmod", "listen", "rename"])
def test_a_start_that_fails_halfway_leaves_nothing(
    server: Server,
    source: Source,
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
    step: str,
) -> None:
    def fail(*args: object) -> None:
        if step != "rename" or str(args[-1]).endswith(".sock"):
            raise OSError(errno.ENOSPC, "No space left on device")
        Path(str(args[0])).replace(str(args[1]))

    class Failing(socket.socket):
        pass

    if step == "take_lock":
        monkeypatch.setattr(directory, "take_lock", fail)
    elif step in ("chmod", "rename"):
        monkeypatch.setattr(os, step, fail)
    else:
        setattr(Failing, step, fail)
        monkeypatch.setattr(socket, "socket", Failing)
    before = descriptors()
    with pytest.raises(ControlError, match="No space left"):
        server.open(source)
    monkeypatch.undo()
    assert names(home) == []
    assert descriptors() == before
    assert server.open(source), "the next one is not hindered"


def test_a_refusal_names_directory_owner_and_remedy(
    server: Server, source: Source, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(directory, "take_lock", fail)
    with pytest.raises(ControlError) as caught:
        server.open(source)
    for word in (str(home), f"uid {os.geteuid()}", "SCOPEDSESSION_CONTROL_DIR"):
        assert word in str(caught.value)


def test_a_thread_that_cannot_be_started_is_an_error_and_leaves_nothing(
    server: Server, source: Source, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(server_module, "NativeThread", fail)
    with pytest.raises(ControlError, match="cannot start a thread"):
        server.open(source)
    assert names(home) == []
    monkeypatch.undo()
    assert server.open(source)


# Housekeeping


@pytest.fixture
def busy_house(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do the housekeeping of each minute all the time."""
    monkeypatch.setattr(server_module, "_TICK", 0.01)
    monkeypatch.setattr(endpoint_module, "_HOUSEKEEPING_EVERY", 0.0)
    monkeypatch.setattr(endpoint_module, "_SNAPSHOT_EVERY", 0.0)


def test_files_of_dead_workers_are_removed_at_the_start(
    server: Server, source: Source, home: Path
) -> None:
    for kind in ("lock", "sock"):
        (home / f"1-00000001.{kind}").touch()
    server.open(source)
    wait_until(lambda: len(names(home)) == 2, what="sweep")


def test_files_of_dead_workers_are_removed_again_and_again_but_never_live_ones(
    server: Server,
    source: Source,
    home: Path,
    busy_house: None,
    connect: Callable[[Endpoint], socket.socket],
) -> None:
    one = server.open(source)
    other = server.open(source)
    for number in range(3):
        # The lock last: a sweep in between would take the socket for that of a start.
        (home / f"{number}-00000001.sock").touch()
        (home / f"{number}-00000001.lock").touch()
        wait_until(lambda: len(names(home)) == 4, what="sweep")
    for endpoint in (one, other):
        assert asked(connect(endpoint)) == json.loads(REPLY)
        assert held(home, endpoint.id), "a sweep opened its own process's lock"


@pytest.mark.parametrize("lost", [("sock",), ("lock",), ("sock", "lock"), ("all",)])
def test_files_that_a_cleaner_removed_are_created_again(
    server: Server,
    source: Source,
    home: Path,
    busy_house: None,
    connect: Callable[[Endpoint], socket.socket],
    lost: tuple[str, ...],
) -> None:
    endpoint = server.open(source)
    if lost == ("all",):
        # At once, because a file may be created again while the next one is removed.
        home.rename(home.with_name("moved"))
    else:
        for kind in lost:
            (home / f"{endpoint.id}.{kind}").unlink()
    wait_until(
        lambda: home.exists() and len(names(home)) == 2, what="socket and lock again"
    )
    assert mode(home) == 0o700
    assert mode(home / f"{endpoint.id}.sock") == 0o600
    assert asked(connect(endpoint)) == json.loads(REPLY)
    wait_until(lambda: held(home, endpoint.id), what="the lock")


def test_files_in_use_look_used_to_a_cleaner(
    server: Server, source: Source, home: Path, busy_house: None
) -> None:
    endpoint = server.open(source)
    directory.write_last(str(home), endpoint.id, b"{}")
    files = [home / f"{endpoint.id}.{kind}" for kind in ("sock", "lock", "json")]
    for path in files:
        os.utime(path, (0, 0), follow_symlinks=False)
    wait_until(lambda: all(path.lstat().st_mtime > 1e9 for path in files))


@as_root
def test_a_directory_that_another_user_created_again_is_not_used(
    server: Server, source: Source, home: Path, busy_house: None
) -> None:
    server.open(source)
    theirs = home.with_name("theirs")
    theirs.mkdir(0o700)  # so that only its owner is wrong
    os.chown(theirs, 65534, 65534)
    with pytest.MonkeyPatch.context() as patch:
        checks, moved = threading.Semaphore(0), threading.Event()
        check = directory.check

        def late(path: str, uid: int) -> None:
            checks.release()
            assert moved.wait(10)
            check(path, uid)

        patch.setattr(directory, "check", late)
        # While the server waits in there, it creates nothing.
        assert checks.acquire(timeout=5)
        home.rename(home.with_name("moved"))
        theirs.rename(home)
        moved.set()
        for _ in range(5):
            assert checks.acquire(timeout=5)
    assert names(home) == []


@pytest.mark.parametrize(
    ("error", "logged"), [(RuntimeError("on purpose"), 1), (OSError("disk full"), 0)]
)
def test_an_endpoint_in_trouble_does_not_hinder_the_others(
    server: Server,
    source: Source,
    home: Path,
    busy_house: None,
    caplog: pytest.LogCaptureFixture,
    error: Exception,
    logged: int,
) -> None:
    def fail(id: str, limit: int) -> bytes | None:
        raise error

    server.open(source._replace(last_snapshot=fail))
    other = server.open(source._replace(last_snapshot=lambda id, limit: b"{}"))
    wait_until(lambda: f"{other.id}.json" in names(home))
    server.resume()
    assert len(caplog.records) == logged


# Last snapshots


def test_a_last_snapshot_is_private_and_removed_at_exit(
    server: Server, source: Source, home: Path
) -> None:
    limits = []

    def trouble(id: str, limit: int) -> bytes | None:
        limits.append(limit)
        return b"{}"

    endpoint = server.open(source._replace(last_snapshot=trouble))
    path = home / f"{endpoint.id}.json"
    wait_until(path.exists)
    assert mode(path) == 0o600
    assert limits == [64 * 1024]
    server.close()
    assert names(home) == []


def test_last_snapshots_are_thirty_seconds_apart(source: Source, home: Path) -> None:
    written = []

    def trouble(id: str, limit: int) -> bytes | None:
        written.append(1)
        return b"{}"

    endpoint = Endpoint(source._replace(last_snapshot=trouble))
    try:
        for now in (100.0, 102.0, 129.9, 130.0, 131.0, 160.0):
            endpoint.tick(now, (endpoint.id,))
        assert len(written) == 3
    finally:
        endpoint.close()


def test_without_trouble_no_last_snapshot_is_written(
    source: Source, home: Path
) -> None:
    trouble: list[bytes | None] = [None, None, b"{}"]
    endpoint = Endpoint(source._replace(last_snapshot=lambda *_: trouble.pop(0)))
    try:
        endpoint.tick(1.0, (endpoint.id,))
        endpoint.tick(3.0, (endpoint.id,))
        assert len(names(home)) == 2
        endpoint.tick(5.0, (endpoint.id,))
        assert len(names(home)) == 3
    finally:
        endpoint.close()


def test_a_last_snapshot_lasts_no_longer_than_the_trouble(
    source: Source, home: Path
) -> None:
    """After half a minute, it would name connections that were returned."""
    trouble: list[bytes | None] = [b"{}", None, None, b"{}"]
    endpoint = Endpoint(source._replace(last_snapshot=lambda *_: trouble.pop(0)))
    path = home / f"{endpoint.id}.json"
    seen = []
    try:
        for now in (1.0, 30.0, 31.0, 33.0, 35.0):
            endpoint.tick(now, (endpoint.id,))
            seen.append(path.exists())
    finally:
        endpoint.close()
    assert seen == [True, True, False, False, True]


# Clients


def test_an_answer(
    server: Server, source: Source, connect: Callable[[Endpoint], socket.socket]
) -> None:
    assert asked(connect(server.open(source))) == json.loads(REPLY)


def test_clients_within_a_tenth_of_a_second_share_an_answer(
    server: Server,
    source: Source,
    monkeypatch: pytest.MonkeyPatch,
    connect: Callable[[Endpoint], socket.socket],
) -> None:
    made: list[int] = []

    def count(id: str, limit: int) -> bytes:
        assert limit == protocol.REPLY_LIMIT
        made.append(1)
        return json.dumps({"n": len(made)}).encode()

    monkeypatch.setattr(endpoint_module, "_FRESH", 1000.0)
    endpoint = server.open(source._replace(reply=count))
    assert [asked(connect(endpoint)) for _ in range(5)] == [{"n": 1}] * 5
    monkeypatch.setattr(endpoint_module, "_FRESH", -1.0)
    assert asked(connect(endpoint)) == {"n": 2}


@pytest.mark.parametrize(
    "sent",
    [
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        struct.pack("!I", 0),
        struct.pack("!I", 5) + b"\x80\x04K\x01.",
        struct.pack("!I", 64 * 1024 + 1),
        struct.pack("!I", 2**32 - 1) + b"x" * 1000,
        struct.pack("!I", 60_000) + b"[" * 60_000,
        struct.pack("!I", 4) + b"[{}]",
        os.urandom(5000),
    ],
)
def test_garbage_closes_the_connection_and_changes_nothing(
    server: Server,
    source: Source,
    connect: Callable[[Endpoint], socket.socket],
    sent: bytes,
) -> None:
    endpoint = server.open(source)
    connection = connect(endpoint)
    connection.sendall(sent)
    connection.shutdown(socket.SHUT_WR)
    assert receive(connection) is None
    assert asked(connect(endpoint)) == json.loads(REPLY)


@pytest.mark.parametrize(
    "request_",
    [
        {"protocol": 2, "want": "snapshot"},
        {"protocol": 1, "want": "reconnect"},
        {"protocol": 1, "want": ["snapshot"]},
        {"want": "snapshot"},
        {},
    ],
)
def test_an_unknown_request_is_an_error(
    server: Server,
    source: Source,
    connect: Callable[[Endpoint], socket.socket],
    request_: dict[str, object],
) -> None:
    connection = connect(server.open(source))
    connection.sendall(pack(request_))
    assert receive(connection) == {"protocol": 1, "error": "unknown request"}


def test_a_request_may_have_unknown_keys(
    server: Server, source: Source, connect: Callable[[Endpoint], socket.socket]
) -> None:
    connection = connect(server.open(source))
    connection.sendall(pack({**REQUEST, "more": True}))
    assert receive(connection) == json.loads(REPLY)


def test_a_snapshot_that_fails_is_an_error_and_ends_nothing(
    server: Server, source: Source, connect: Callable[[Endpoint], socket.socket]
) -> None:
    answers = iter([KeyError("secret"), None])

    def reply(id: str, limit: int) -> bytes:
        error = next(answers)
        if error is not None:
            raise error
        return REPLY

    endpoint = server.open(source._replace(reply=reply))
    assert asked(connect(endpoint)) == {"protocol": 1, "error": "KeyError"}
    assert asked(connect(endpoint)) == json.loads(REPLY)


def test_a_half_closed_connection_gets_its_answer(
    server: Server, source: Source, connect: Callable[[Endpoint], socket.socket]
) -> None:
    connection = connect(server.open(source))
    connection.sendall(pack(REQUEST))
    connection.shutdown(socket.SHUT_WR)
    assert receive(connection) == json.loads(REPLY)


def test_a_request_may_arrive_in_pieces(
    server: Server, source: Source, connect: Callable[[Endpoint], socket.socket]
) -> None:
    connection = connect(server.open(source))
    for byte in pack(REQUEST):
        connection.send(bytes([byte]))
    assert receive(connection) == json.loads(REPLY)


def test_clients_that_give_up_at_any_moment_do_no_harm(
    server: Server, source: Source, connect: Callable[[Endpoint], socket.socket]
) -> None:
    big = json.dumps({"x": "x" * 3_000_000}).encode()
    endpoint = server.open(source._replace(reply=lambda *_: big))
    for request in (b"", b"\x00", pack(REQUEST)[:10], pack(REQUEST)):
        for read in (0, 1):
            connection = connect(endpoint)
            connection.sendall(request)
            if read and request == pack(REQUEST):
                assert connection.recv(1)
            connection.close()
    assert asked(connect(endpoint)) == json.loads(big)


def test_a_hundred_clients_at_once(
    server: Server, source: Source, connect: Callable[[Endpoint], socket.socket]
) -> None:
    endpoint = server.open(source)
    connections = [connect(endpoint) for _ in range(100)]
    for connection in connections:
        connection.sendall(pack(REQUEST))
    assert [receive(c) for c in connections] == [json.loads(REPLY)] * 100


def test_slow_clients_are_disconnected_at_the_deadline(
    server: Server,
    source: Source,
    monkeypatch: pytest.MonkeyPatch,
    connect: Callable[[Endpoint], socket.socket],
) -> None:
    monkeypatch.setattr(server_module, "DEADLINE", 0.2)
    big = b'"' + b"x" * 10_000_000 + b'"'
    endpoint = server.open(source._replace(reply=lambda *_: big))
    silent, trickling, unread = (connect(endpoint) for _ in range(3))
    unread.sendall(pack(REQUEST))
    began = time.monotonic()
    while not hung_up_on(trickling, b"\x00"):
        assert time.monotonic() < began + 5
        time.sleep(0.01)
    assert receive(silent) is None
    received = 0
    while chunk := unread.recv(1 << 20):
        received += len(chunk)
    assert received < len(big)
    assert time.monotonic() - began < 4


def test_many_slow_clients_do_not_block_others(
    server: Server, source: Source, connect: Callable[[Endpoint], socket.socket]
) -> None:
    endpoint = server.open(source)
    for _ in range(server_module._MOST_CLIENTS + 20):
        connect(endpoint)
    began = time.monotonic()
    assert asked(connect(endpoint)) == json.loads(REPLY)
    assert time.monotonic() - began < 2.0 < protocol.DEADLINE


def test_at_the_limit_of_clients_the_thread_does_not_spin(
    server: Server, source: Source, connect: Callable[[Endpoint], socket.socket]
) -> None:
    endpoint = server.open(source)
    for _ in range(server_module._MOST_CLIENTS):
        connect(endpoint)
    last = connect(endpoint)
    used = time.process_time()
    assert asked(last) == json.loads(REPLY)
    assert time.process_time() - used < 0.25


def test_without_free_descriptors_the_thread_does_not_spin(
    server: Server,
    source: Source,
    monkeypatch: pytest.MonkeyPatch,
    connect: Callable[[Endpoint], socket.socket],
) -> None:
    endpoint = server.open(source)
    accept = Endpoint.accept
    tries: list[float] = []

    def exhausted(self: Endpoint) -> Any:
        tries.append(time.monotonic())
        if len(tries) < 3:
            raise OSError(errno.EMFILE, "Too many open files")
        return accept(self)

    monkeypatch.setattr(Endpoint, "accept", exhausted)
    monkeypatch.setattr(server_module, "_PAUSE", 0.1)
    assert asked(connect(endpoint)) == json.loads(REPLY)
    gaps = [later - earlier for earlier, later in itertools.pairwise(tries)]
    assert len(tries) == 3
    assert min(gaps) >= 0.1


def test_after_any_error_the_thread_goes_on_and_each_type_is_logged_once(
    server: Server,
    source: Source,
    monkeypatch: pytest.MonkeyPatch,
    connect: Callable[[Endpoint], socket.socket],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """By the next piece of work: the thread itself logs nothing."""
    asked_to_resume: list[int] = []
    endpoint = server.open(source._replace(paused=lambda: asked_to_resume.append(1)))
    failures = iter([RuntimeError("on purpose"), MemoryError(), RuntimeError("again")])
    serve = server_module._Loop._serve

    def failing(self: Any, descriptor: int) -> None:
        error = next(failures, None)
        if error is not None:
            raise error
        serve(self, descriptor)

    monkeypatch.setattr(server_module._Loop, "_serve", failing)
    monkeypatch.setattr(server_module, "_PAUSE", 0.01)
    assert asked(connect(endpoint)) == json.loads(REPLY)
    assert caplog.records == []
    assert server.paused
    assert asked_to_resume == [1, 1]
    server.resume()
    server.resume()
    first, second = caplog.records
    assert "RuntimeError: on purpose" in first.getMessage()
    assert "MemoryError" in second.getMessage()
    assert vars(first)["scopedsession_pid"] == os.getpid()
    assert not server.paused


def test_an_error_that_no_work_has_logged_is_logged_at_exit(
    server: Server,
    source: Source,
    connect: Callable[[Endpoint], socket.socket],
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail(id: str, limit: int) -> bytes:
        raise RuntimeError("on purpose")

    asked(connect(server.open(source._replace(reply=fail))))
    server.close()
    assert [r.getMessage().count("on purpose") for r in caplog.records] == [2]


def test_python_has_the_private_method_that_accepts_under_gevent() -> None:
    """gevent calls the same private method; without it there is one warning."""
    assert callable(vars(socket.SocketType).get("_accept"))


def test_without_that_method_the_live_view_is_off(
    server: Server, source: Source, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endpoint_module.native, "can_accept", lambda _: False)
    with pytest.raises(ControlError, match="SCOPEDSESSION_CONTROL=0"):
        server.open(source)
    assert names(home) == []


def test_memory_is_bounded_whatever_clients_send(
    server: Server, source: Source, connect: Callable[[Endpoint], socket.socket]
) -> None:
    """One client can make it keep at most twice the size of a request."""
    endpoint = server.open(source)
    connection = connect(endpoint)
    connection.setblocking(False)
    connection.send(struct.pack("!I", protocol.REQUEST_LIMIT))
    sent = 0
    deadline = time.monotonic() + 5
    while not hung_up_on(connection, b"x" * 65536):
        assert time.monotonic() < deadline
        sent += 65536
    assert sent < 4 << 20


# Peers


@as_root
def test_another_user_is_not_served(server: Server, source: Source, home: Path) -> None:
    """Even where the directory and the socket let it through."""
    endpoint = server.open(source)
    for path in (home, home.parent):
        path.chmod(0o755)
    path = home / f"{endpoint.id}.sock"
    path.chmod(0o666)
    code = (
        "import os, socket, sys\n"
        "os.setuid(int(sys.argv[2]))\n"
        "c = socket.socket(socket.AF_UNIX); c.settimeout(5)\n"
        "c.connect(sys.argv[1])\n"
        "try:\n"
        "    c.sendall(bytes.fromhex(sys.argv[3])); print(len(c.recv(1000)))\n"
        "except (BrokenPipeError, ConnectionResetError): print(0)\n"
    )
    for uid, expected in ((65534, 0), (0, len(REPLY) + 4)):
        done = subprocess.run(
            [sys.executable, "-c", code, str(path), str(uid), pack(REQUEST).hex()],
            capture_output=True,
            check=True,
            timeout=20,
        )
        assert int(done.stdout) == expected


def test_a_peer_without_credentials_is_not_served(
    server: Server,
    source: Source,
    monkeypatch: pytest.MonkeyPatch,
    connect: Callable[[Endpoint], socket.socket],
) -> None:
    monkeypatch.setattr(endpoint_module, "peer_credentials", lambda _: None)
    endpoint = server.open(source)
    connection = connect(endpoint)
    assert receive(connection) is None
    assert connection.fileno() >= 0


# Start and stop


def test_several_applications_share_one_thread(
    server: Server, source: Source, connect: Callable[[Endpoint], socket.socket]
) -> None:
    endpoints = [
        server.open(source._replace(reply=lambda id, _: f'{{"id":"{id}"}}'.encode()))
        for _ in range(5)
    ]
    assert len([t for t in threading.enumerate() if "scopedsession" in t.name]) == 1
    for endpoint in endpoints:
        assert asked(connect(endpoint)) == {"id": endpoint.id}
    server.discard(endpoints[0])
    server.discard(endpoints[0])
    assert server.ids() == {e.id for e in endpoints[1:]}
    assert asked(connect(endpoints[1])) == {"id": endpoints[1].id}


def test_a_thread_that_does_not_stop_in_time_does_no_harm(
    server: Server,
    source: Source,
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
    connect: Callable[[Endpoint], socket.socket],
) -> None:
    """It keeps its descriptors until it ends."""
    monkeypatch.setattr(server_module, "DEADLINE", 0.05)
    stuck, go_on = threading.Event(), threading.Event()

    def slow(id: str, limit: int) -> bytes:
        stuck.set()
        assert go_on.wait(10)
        return REPLY

    endpoint = server.open(source._replace(reply=slow))
    connection = connect(endpoint)
    connection.sendall(pack(REQUEST))
    assert stuck.wait(5)
    loop = server._loop
    assert loop is not None
    server.discard(endpoint)
    assert not loop._stop_reader.closed, "closed under a thread that still waits on it"
    monkeypatch.setattr(server_module, "DEADLINE", 5.0)
    other = server.open(source)
    assert asked(connect(other)) == json.loads(REPLY)
    go_on.set()
    assert receive(connection) in (json.loads(REPLY), None)
    assert loop._thread.join(5)
    assert loop._stop_reader.closed
    assert asked(connect(other)) == json.loads(REPLY)
    assert names(home) == [f"{other.id}.lock", f"{other.id}.sock"]


def test_a_dropped_application_is_retired_at_once(
    server: Server,
    source: Source,
    home: Path,
    connect: Callable[[Endpoint], socket.socket],
) -> None:
    """A client is not answered any more, and ``wake()`` does not wait for a check."""
    is_gone: list[bool] = []
    dropped = server.open(
        source._replace(
            reply=lambda id, limit: None if is_gone else REPLY,
            gone=lambda: bool(is_gone),
        )
    )
    other = server.open(source)
    assert asked(connect(dropped)) == json.loads(REPLY)
    dropped._cached = (0.0, b"")
    is_gone.append(True)
    assert asked(connect(dropped)) is None
    server.wake()
    wait_until(lambda: not (home / f"{dropped.id}.sock").exists(), timeout=1.5)
    assert server.ids() == {other.id}
    assert asked(connect(other)) == json.loads(REPLY)


def test_waking_up_many_times_does_no_harm(
    server: Server, source: Source, connect: Callable[[Endpoint], socket.socket]
) -> None:
    """Not even more often than the pipe has room for, or without a thread."""
    server.wake()
    endpoint = server.open(source)
    for _ in range(70_000):
        server.wake()
    assert asked(connect(endpoint)) == json.loads(REPLY)
    server.discard(endpoint)
    server.wake()


def test_nothing_runs_without_an_endpoint(server: Server) -> None:
    server.resume()
    server.before_fork()
    server.after_fork_in_parent()
    assert not server.paused
    server.close()
    assert not [t for t in threading.enumerate() if "scopedsession" in t.name]


def test_an_idle_thread_uses_almost_no_cpu(
    server: Server, source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    rounds = []
    run = server_module._Loop._round

    def counted(self: Any) -> None:
        rounds.append(1)
        run(self)

    monkeypatch.setattr(server_module._Loop, "_round", counted)
    monkeypatch.setattr(server_module, "_TICK", 0.1)
    server.open(source)
    used = resource.getrusage(resource.RUSAGE_SELF)
    time.sleep(0.55)
    later = resource.getrusage(resource.RUSAGE_SELF)
    assert len(rounds) <= 8
    assert later.ru_utime - used.ru_utime < 0.2


# Forks; whole processes are forked in tests/whole/concurrency


def test_several_threads_that_fork_wait_for_each_other(
    server: Server, source: Source, connect: Callable[[Endpoint], socket.socket]
) -> None:
    endpoint = server.open(source)
    inside: list[int] = []
    overlaps: list[int] = []

    def fork() -> None:
        for _ in range(20):
            server.before_fork()
            inside.append(1)
            overlaps.append(len(inside))
            inside.pop()
            server.after_fork_in_parent()

    threads = [threading.Thread(target=fork) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert set(overlaps) == {1}
    assert server.paused
    server.resume()
    assert not server.paused
    assert asked(connect(endpoint)) == json.loads(REPLY)


def test_a_fork_while_the_lock_is_held_is_not_a_deadlock(
    server: Server, source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A signal handler may fork while the interrupted thread holds the lock."""
    monkeypatch.setattr(server_module, "DEADLINE", 0.1)
    forked = []

    def prepare() -> str:
        if not forked:  # the thread calls this again, too
            server.before_fork()
            server.after_fork_in_parent()
            forked.append(1)
        return source.prepare()

    server.open(source._replace(prepare=prepare))
    assert forked == [1]
    assert server._lock.acquire(False)
    server._lock.release()


def test_after_a_fork_each_application_is_asked_to_resume(
    server: Server, source: Source
) -> None:
    paused: list[str] = []
    for name in "ab":
        server.open(source._replace(paused=lambda name=name: paused.append(name)))  # type: ignore[misc]
    server.before_fork()
    assert paused == []
    server.after_fork_in_parent()
    assert paused == ["a", "b"]


def test_a_thread_that_cannot_be_started_after_a_fork_is_tried_again(
    server: Server,
    source: Source,
    monkeypatch: pytest.MonkeyPatch,
    connect: Callable[[Endpoint], socket.socket],
) -> None:
    endpoint = server.open(source)
    server.before_fork()
    server.after_fork_in_parent()
    with monkeypatch.context() as patch:

        def fail(*_: object) -> None:
            raise RuntimeError("can't start new thread")

        patch.setattr(server_module, "NativeThread", fail)
        server.resume()
        assert server.paused
    server.resume()
    assert not server.paused
    assert asked(connect(endpoint)) == json.loads(REPLY)


def test_the_client_understands_the_server(
    server: Server, source: Source, home: Path
) -> None:
    server.open(source)  # its reply is not that of a worker
    answers = client.ask(
        [directory.Place(str(home), None)], 5.0, own=server.ids(), host="h"
    )
    assert [s.reason for s in answers.silent] == ["answered nonsense"]
