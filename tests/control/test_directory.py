"""The control directory is private, and no live worker's files are removed."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import stat
import threading
import time
import warnings
from collections.abc import Callable
from collections.abc import Iterator
from contextlib import contextmanager
from contextlib import ExitStack
from multiprocessing.connection import Connection
from multiprocessing.context import ForkProcess
from pathlib import Path

import pytest
from users import as_root

from flask_scopedsession._control import directory
from flask_scopedsession._control.directory import deployment_id
from flask_scopedsession._control.directory import Place
from flask_scopedsession._control.directory import prepare
from flask_scopedsession.errors import ControlError
from flask_scopedsession.errors import UnsafeDirectory

NAME = "shop:/srv/shop"
STRANGER = 65534


def mode(path: str | Path) -> int:
    return stat.S_IMODE(os.lstat(path).st_mode)


def names(path: Path) -> list[str]:
    return sorted(each.name for each in path.iterdir())


@contextmanager
def umask(value: int) -> Iterator[None]:
    before = os.umask(value)
    try:
        yield
    finally:
        os.umask(before)


@pytest.fixture
def base(short_tmp: Path) -> Path:
    return short_tmp / f"flask-scopedsession-{os.geteuid()}"


@pytest.fixture
def leaf(base: Path) -> Path:
    return base / deployment_id(NAME)


# Safety


@pytest.mark.parametrize("mask", [0o000, 0o022, 0o077, 0o277])
def test_every_level_is_private_whatever_the_umask(
    base: Path, leaf: Path, mask: int
) -> None:
    with umask(mask):
        assert prepare(None, NAME) == str(leaf)
    assert mode(base) == mode(leaf) == 0o700


@pytest.mark.parametrize("mask", [0o000, 0o022, 0o077])
def test_missing_levels_of_a_chosen_directory_are_private_too(
    short_tmp: Path, mask: int
) -> None:
    chosen = short_tmp / "a" / "b" / "c"
    with umask(mask):
        prepare(str(chosen), NAME)
    assert [mode(chosen), mode(chosen.parent), mode(short_tmp / "a")] == [0o700] * 3


def test_preparing_twice_changes_nothing(leaf: Path) -> None:
    assert prepare(None, NAME) == prepare(None, NAME) == str(leaf)


def test_the_directory_is_named_after_the_deployment(base: Path) -> None:
    import hashlib

    expected = hashlib.sha256(NAME.encode()).hexdigest()[:12]
    assert Path(prepare(None, NAME)) == base / expected
    assert prepare(None, "another") != prepare(None, NAME)


def refused(path: str | None = None) -> str:
    with pytest.raises(UnsafeDirectory) as caught:
        prepare(path, NAME)
    assert "SCOPEDSESSION_CONTROL_DIR" in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("level", ["base", "leaf"])
def test_a_link_is_refused_at_either_level(
    short_tmp: Path, base: Path, leaf: Path, level: str
) -> None:
    elsewhere = short_tmp / "elsewhere"
    elsewhere.mkdir(mode=0o700)
    if level == "base":
        base.symlink_to(elsewhere)
    else:
        base.mkdir(mode=0o700)
        leaf.symlink_to(elsewhere)
    message = refused()
    assert "is a symbolic link" in message
    assert f"uid {os.geteuid()}" in message
    assert str(base if level == "base" else leaf) in message
    assert list(elsewhere.iterdir()) == []


@pytest.mark.parametrize("level", ["base", "leaf"])
@pytest.mark.parametrize("open_to", [0o777, 0o1777, 0o750, 0o701, 0o720])
def test_a_directory_that_others_may_enter_is_refused(
    base: Path, leaf: Path, level: str, open_to: int
) -> None:
    prepare(None, NAME)
    path = base if level == "base" else leaf
    path.chmod(open_to)
    message = refused()
    assert f"{path} belongs to uid {os.geteuid()}, but is open to others" in message
    assert f"{open_to:04o}" in message
    assert "chmod it to 0700" in message


@as_root
@pytest.mark.parametrize("level", ["base", "leaf"])
def test_another_users_directory_is_refused(base: Path, leaf: Path, level: str) -> None:
    prepare(None, NAME)
    path = base if level == "base" else leaf
    os.chown(path, STRANGER, STRANGER)
    assert f"{path} belongs to uid {STRANGER}, not to uid 0" in refused()


def test_a_chosen_link_is_refused(short_tmp: Path) -> None:
    (short_tmp / "real").mkdir(mode=0o700)
    (short_tmp / "link").symlink_to(short_tmp / "real")
    assert "symbolic link" in refused(str(short_tmp / "link"))


def test_a_dangling_parent_is_refused(short_tmp: Path) -> None:
    (short_tmp / "link").symlink_to(short_tmp / "nowhere")
    assert "symbolic link" in refused(str(short_tmp / "link" / "run"))


def test_a_chosen_directory_below_a_link_is_fine(short_tmp: Path) -> None:
    (short_tmp / "real").mkdir(mode=0o700)
    (short_tmp / "link").symlink_to(short_tmp / "real")
    prepare(str(short_tmp / "link" / "run"), NAME)
    assert mode(short_tmp / "real" / "run") == 0o700


def test_a_directory_below_a_world_writable_one_is_refused(short_tmp: Path) -> None:
    (short_tmp / "p").mkdir()
    (short_tmp / "p").chmod(0o777)
    assert "written by others" in refused(str(short_tmp / "p" / "run"))
    (short_tmp / "p").chmod(0o1777)  # as /tmp: only the owner renames a file
    prepare(str(short_tmp / "p" / "run"), NAME)


def test_a_file_in_its_place_is_refused(base: Path) -> None:
    base.touch()
    assert "is not a directory" in refused()


def failed(path: str) -> str:
    with pytest.raises(ControlError) as caught:
        prepare(path, NAME)
    assert "SCOPEDSESSION_CONTROL_DIR" in str(caught.value)
    assert f"uid {os.geteuid()}" in str(caught.value)
    return str(caught.value)


def test_a_directory_that_cannot_be_created_is_named(short_tmp: Path) -> None:
    (short_tmp / "file").touch()
    message = failed(str(short_tmp / "file" / "run"))
    assert str(short_tmp / "file" / "run") in message
    assert "Not a directory" in message
    assert "belongs to uid" in message


def test_a_read_only_file_system_is_named() -> None:
    message = failed("/proc/flask-scopedsession")
    assert "/proc/flask-scopedsession" in message


def test_a_path_too_long_for_a_socket_is_named(short_tmp: Path) -> None:
    message = failed(str(short_tmp / ("x" * 100)))
    assert "too long for a Unix socket" in message
    assert not (short_tmp / ("x" * 100)).exists()


def test_the_longest_accepted_path_can_be_bound(short_tmp: Path) -> None:
    suffix = len("/1234567-12345678.sock")
    room = directory.PATH_LIMIT - suffix - len(str(short_tmp)) - 1
    chosen = prepare(str(short_tmp / ("x" * room)), NAME)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{chosen}/1234567-12345678.sock")
    failed(str(short_tmp / ("x" * (room + 1))))


# Commands


def test_a_command_creates_nothing(leaf: Path, base: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Place(str(leaf), os.geteuid()).examine()
    assert not base.exists()


def test_a_command_refuses_what_workers_refuse(base: Path, leaf: Path) -> None:
    prepare(None, NAME)
    place = Place(str(leaf), os.geteuid())
    assert place.examine() == os.geteuid()
    base.chmod(0o755)  # the leaf itself is still private
    with pytest.raises(UnsafeDirectory):
        place.examine()


@as_root
def test_root_does_not_use_another_users_directory_as_its_own(
    base: Path, leaf: Path
) -> None:
    prepare(None, NAME)
    for path in (base, leaf):
        os.chown(path, STRANGER, STRANGER)
    with pytest.raises(UnsafeDirectory):
        Place(str(leaf), 0).examine()
    assert Place(str(leaf), STRANGER).examine() == STRANGER
    assert Place(str(leaf), None).examine() == STRANGER  # it is configured


def test_other_users_are_found_by_well_formed_names(short_tmp: Path) -> None:
    for end in ("7", "65534", "007", "-1", "²", "x", "9" * 11, str(os.geteuid())):
        (short_tmp / f"flask-scopedsession-{end}").touch()
    assert directory.other_users() == [7, 65534]


def test_a_temporary_directory_that_cannot_be_read_has_no_users(
    monkeypatch: pytest.MonkeyPatch, short_tmp: Path
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(short_tmp / "gone"))
    assert directory.other_users() == []


# Files


@pytest.fixture
def home(short_tmp: Path) -> Path:
    return Path(prepare(str(short_tmp / "run"), NAME))


def id_of(pid: int, end: str = "00000001") -> str:
    return f"{pid}-{end}"


@contextmanager
def a_process_with_a_lock(home: Path) -> Iterator[tuple[str, ForkProcess]]:
    """Another process that holds a lock; its socket does not listen."""
    fork = multiprocessing.get_context("fork")
    ours, theirs = fork.Pipe()
    process = fork.Process(target=hold_a_lock, args=(home, theirs), daemon=True)
    with ours, theirs:
        with warnings.catch_warnings():
            # Python 3.12 and newer warn of the test runner's threads.
            warnings.simplefilter("ignore", DeprecationWarning)
            process.start()
        try:
            id = ours.recv()
            (home / f"{id}.sock").touch()
            yield id, process
        finally:
            process.kill()
            process.join(10)
            process.close()


def hold_a_lock(home: Path, found: Connection) -> None:
    id = f"{os.getpid()}-0000000a"
    directory.take_lock(str(home), id, "abc")
    found.send(id)
    signal.pause()


def age(path: Path, seconds: float) -> None:
    then = time.time() - seconds
    os.utime(path, (then, then), follow_symlinks=False)


def test_a_listing_ignores_malformed_names(home: Path) -> None:
    for name in (
        *("12-0123abcd.sock", "12-0123abcd.lock", "3-ffffffff.json"),
        *("x.sock", "12-0123ABCD.sock", "12-0123abcd.sock.bak", "12-0123abcd.txt"),
        *("٣-0123abcd.sock", "12-0123abcd.sock\n", "99999999999-0123abcd.sock"),
    ):
        (home / name).touch()
    assert directory.listing(str(home)) == [
        directory.Found("12-0123abcd", 12, frozenset({"sock", "lock"})),
        directory.Found("3-ffffffff", 3, frozenset({"json"})),
    ]


@pytest.mark.parametrize("mask", [0o000, 0o022, 0o077, 0o277])
def test_files_are_private_whatever_the_umask(home: Path, mask: int) -> None:
    with umask(mask):
        lock = directory.take_lock(str(home), id_of(1), "abc")
        directory.write_last(str(home), id_of(1), b"{}")
    os.close(lock)
    assert mode(home / f"{id_of(1)}.lock") == mode(home / f"{id_of(1)}.json") == 0o600
    assert len(list(home.iterdir())) == 2


def test_a_lock_tells_live_workers_from_dead_ones(home: Path) -> None:
    with a_process_with_a_lock(home) as (id, process):
        assert directory.alive(str(home), id)
        assert directory.deployment_of(str(home), id) == "abc"
        assert directory.alive(str(home), id), "looking must not free it"
        process.kill()
        process.join(10)
        assert not directory.alive(str(home), id)
        assert (home / f"{id}.lock").exists()
    assert not directory.alive(str(home), id_of(4))


def test_two_commands_do_not_take_each_other_for_the_owner(
    home: Path, run_script: Callable[..., object]
) -> None:
    with a_process_with_a_lock(home) as (id, process):
        process.kill()
        process.join(10)
        held = directory._lock_of_the_dead(
            str(home), id, os.O_RDONLY, directory.fcntl.LOCK_SH
        )
        assert held is not None
        try:
            script = """
            import sys
            from flask_scopedsession._control import directory
            print(directory.alive(sys.argv[1], sys.argv[2]))
            """
            result = run_script(script, str(home), id)
            assert result.check().stdout == "False\n"  # type: ignore[attr-defined]
        finally:
            os.close(held)


def test_a_failed_lock_leaves_nothing(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError("no locks available")

    monkeypatch.setattr(directory.fcntl, "lockf", fail)
    with pytest.raises(OSError, match="no locks"):
        directory.take_lock(str(home), id_of(1), "abc")
    assert list(home.iterdir()) == []


def test_a_failed_snapshot_leaves_nothing(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "rename", fail)
    with pytest.raises(OSError, match="disk full"):
        directory.write_last(str(home), id_of(1), b"{}")
    assert list(home.iterdir()) == []


def test_a_snapshot_replaces_the_last_one_atomically(home: Path) -> None:
    directory.write_last(str(home), id_of(1), b"1")
    (home / f"{id_of(1)}.tmp").symlink_to(
        "/etc/passwd"
    )  # left there, or put there on purpose
    directory.write_last(str(home), id_of(1), b"2")
    assert directory.read_last(str(home), id_of(1), os.geteuid()) == b"2"
    assert names(home) == [f"{id_of(1)}.json"]


def test_a_snapshot_is_read_only_from_a_small_file_of_its_owner(home: Path) -> None:
    me = os.geteuid()
    path = home / f"{id_of(1)}.json"
    read = directory.read_last
    assert read(str(home), id_of(1), me) is None
    path.write_bytes(b"x" * directory.LAST_LIMIT)
    assert read(str(home), id_of(1), me) == b"x" * directory.LAST_LIMIT
    assert read(str(home), id_of(1), me + 1) is None
    path.write_bytes(b"x" * (directory.LAST_LIMIT + 1))
    assert read(str(home), id_of(1), me) is None
    path.write_bytes(b"{}")
    age(path, directory.KEEP_LAST + 1)
    assert read(str(home), id_of(1), me) is None
    path.unlink()
    (home / "elsewhere").write_bytes(b"{}")
    path.symlink_to(home / "elsewhere")
    assert read(str(home), id_of(1), me) is None
    path.unlink()
    os.mkfifo(path)  # opening it would wait for a writer
    assert read(str(home), id_of(1), me) is None
    path.unlink()
    path.mkdir()
    assert read(str(home), id_of(1), me) is None


# Sweeping


def test_files_of_dead_workers_are_removed_and_their_last_snapshot_after_an_hour(
    home: Path,
) -> None:
    with a_process_with_a_lock(home) as (id, process):
        for kind in ("json", "tmp", "new"):
            (home / f"{id}.{kind}").touch()
        directory.sweep(str(home), "", ())
        assert len(list(home.iterdir())) == 5, "a living worker's files"
        process.kill()
        process.join(10)
        directory.sweep(str(home), "", ())
        assert names(home) == [f"{id}.json"]
        age(home / f"{id}.json", directory.KEEP_LAST - 10)
        directory.sweep(str(home), "", ())
        assert names(home) == [f"{id}.json"]
        age(home / f"{id}.json", directory.KEEP_LAST + 10)
        directory.sweep(str(home), "", ())
        assert names(home) == []


def in_another_process(do: Callable[[], object]) -> None:
    """A process finds each of its own locks free."""
    pid = os.fork()
    if pid == 0:
        do()
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0


def test_a_sweep_tells_which_workers_were_lost(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once, and not one that removes its own files at that moment."""
    with a_process_with_a_lock(home) as (id, process):
        assert directory.sweep(str(home), "", ()) == []
        process.kill()
        process.join(10)
        assert [each.id for each in directory.sweep(str(home), "", ())] == [id]
        assert directory.sweep(str(home), "", ()) == []
    with a_process_with_a_lock(home) as (id, process):
        process.kill()
        process.join(10)
        lock = directory.fcntl.lockf

        def removed_meanwhile(descriptor: int, how: int) -> None:
            (home / f"{id}.lock").unlink()
            lock(descriptor, how)

        monkeypatch.setattr(directory.fcntl, "lockf", removed_meanwhile)
        assert directory.sweep(str(home), "", ()) == []


def opened_by_a_sweep(home: Path, after: str) -> list[str]:
    """Return the ids of the workers whose lock files a sweep opens."""
    opened: list[str] = []
    original = directory._lock_of_the_dead

    def counted(path: str, id: str, mode: int, how: int) -> int | None:
        opened.append(id)
        return original(path, id, mode, how)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(directory, "_lock_of_the_dead", counted)
        directory.sweep(str(home), after, ())
    return opened


def test_a_sweep_opens_the_locks_up_to_its_second_live_neighbor(home: Path) -> None:
    """So each worker opens two locks, however many workers there are."""
    with ExitStack() as stack:
        lives = [stack.enter_context(a_process_with_a_lock(home)) for _ in range(4)]
        ids = sorted(id for id, _ in lives)
        for number, id in enumerate(ids):
            following = [*ids[number + 1 :], *ids[: number + 1]]
            assert opened_by_a_sweep(home, id) == following[:2]


def test_files_of_dead_workers_are_removed_by_the_two_live_ones_before_them(
    home: Path,
) -> None:
    """There are two, because one may be stopped. The first id follows the last."""
    with ExitStack() as stack:
        lives = dict(stack.enter_context(a_process_with_a_lock(home)) for _ in range(5))
        first, second, third, fourth, fifth = ids = sorted(lives)
        dead = {second, fifth}
        for id in dead:
            lives[id].kill()
            lives[id].join(10)
        assert opened_by_a_sweep(home, second) == [third, fourth]
        assert {each.id for each in directory.listing(str(home))} == set(ids)
        assert opened_by_a_sweep(home, third) == [fourth, fifth, first]
        assert {each.id for each in directory.listing(str(home))} == {*ids} - {fifth}
        directory.sweep(str(home), fourth, ())
        assert {each.id for each in directory.listing(str(home))} == {*ids} - dead


@pytest.mark.parametrize("kind", ["new", "tmp", "sock"])
def test_files_of_a_start_that_never_finished_are_removed_after_a_minute(
    home: Path, kind: str
) -> None:
    path = home / f"{id_of(1)}.{kind}"
    path.touch()
    directory.sweep(str(home), "", ())
    assert path.exists(), "it may be starting"
    age(path, 61)
    directory.sweep(str(home), "", ())
    assert not path.exists()


@pytest.mark.parametrize("step", ["lockf", "rename"])
def test_a_starting_worker_is_never_taken_for_a_dead_one(
    home: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """A sweep at any moment of a start removes nothing."""
    module = directory.fcntl if step == "lockf" else os
    original = getattr(module, step)

    def sweep() -> None:
        def do() -> None:
            monkeypatch.undo()
            directory.sweep(str(home), "", ())

        in_another_process(do)

    def sweep_around(*args: object) -> None:
        sweep()
        original(*args)
        sweep()

    monkeypatch.setattr(module, step, sweep_around)
    lock = directory.take_lock(str(home), id_of(1), "abc")
    os.close(lock)
    assert names(home) == [f"{id_of(1)}.lock"]


def test_a_sweep_never_opens_its_own_lock(home: Path) -> None:
    """Closing any descriptor of it would free it."""
    lock = directory.take_lock(str(home), id_of(1), "abc")
    try:
        directory.sweep(str(home), id_of(1), {id_of(1)})
        pid = os.fork()
        if pid == 0:
            os._exit(0 if directory.alive(str(home), id_of(1)) else 1)
        assert os.waitpid(pid, 0)[1] == 0
    finally:
        os.close(lock)


@pytest.mark.parametrize("odd", ["link", "fifo", "directory"])
def test_an_odd_lock_stops_neither_a_sweep_nor_a_command(home: Path, odd: str) -> None:
    path = home / f"{id_of(1)}.lock"
    if odd == "link":
        path.symlink_to("/etc/passwd")
    elif odd == "fifo":
        os.mkfifo(path)
    else:
        path.mkdir()
    stale = home / f"{id_of(2)}.new"
    stale.touch()
    age(stale, 61)
    done = threading.Event()

    def visit() -> None:
        directory.alive(str(home), id_of(1))
        directory.deployment_of(str(home), id_of(1))
        directory.sweep(str(home), "", ())
        done.set()

    thread = threading.Thread(target=visit, daemon=True)
    thread.start()
    assert done.wait(5), "it waits for a pipe's other end"
    thread.join(5)
    assert not stale.exists()


@as_root
def test_a_lock_that_may_not_be_read_counts_as_held(home: Path) -> None:
    with a_process_with_a_lock(home) as (id, process):
        process.kill()
        process.join(10)
        home.chmod(0o755)
        for parent in (home.parent,):
            parent.chmod(0o755)
        pid = os.fork()
        if pid == 0:
            os.setuid(STRANGER)
            os._exit(0 if directory.alive(str(home), id) else 1)
        assert os.waitpid(pid, 0)[1] == 0
