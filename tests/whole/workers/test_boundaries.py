"""Files, users, namespaces and read-only systems, as docs/security.md states."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
import stat
import subprocess
import sys
import textwrap
from collections.abc import Callable
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import commands
import pytest
from commands import Result
from environment import child_environ
from flask import Flask
from gates import Gates
from prefork import Prefork
from sqlalchemy import create_engine
from sqlalchemy import make_url
from sqlalchemy import NullPool
from sqlalchemy import text
from users import as_root
from waiting import wait_until

from flask_scopedsession import ScopedSession

pytestmark = [pytest.mark.workers, pytest.mark.slow]

Start = Callable[..., Prefork]
Cli = Callable[..., Result]

#: A user without an entry in the passwd file, as some platforms assign one.
NAMELESS = 4242

#: Files that a measured process writes at its end.
UNWRITING: dict[str, str | None] = {
    "PYTHONDONTWRITEBYTECODE": "1",
    "COVERAGE_PROCESS_START": None,
    "COVERAGE_PROCESS_CONFIG": None,
}


def may_unshare() -> bool:
    """Whether this process may create mount and PID namespaces, as ``unshare`` does."""
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        return False
    return subprocess.run(["unshare", "-mpf", "true"], check=False).returncode == 0


in_namespaces = pytest.mark.skipif(
    not may_unshare(),
    reason="needs root on Linux, with the right to create mount and PID namespaces",
)

#: An application that serves a request on command, and then asks the other workers.
RESIDENT = """
import json, logging, os, sys
from flask import Flask
from sqlalchemy import text
from flask_scopedsession import ScopedSession
from flask_scopedsession._control import endpoint

endpoint._HOUSEKEEPING_EVERY = 1.0  # instead of a minute
logging.basicConfig(format="%(message)s")
db = ScopedSession()
app = Flask("resident", root_path="/", instance_path="/")
app.config["SQLALCHEMY_DATABASE_URI"] = "sqlite://"
app.config.from_prefixed_env()
db.init_app(app)

@app.get("/")
def serve():
    return str(db.session.scalar(text("SELECT 42")))

# Another user may not be allowed to read this interpreter's files, so everything is
# imported before. A request while testing starts no thread.
app.testing = True
assert app.test_client().get("/").text == "42"
with app.app_context():
    db.workers(timeout=0.1)
app.testing = False
uid = int(os.environ.get("RESIDENT_UID", "0"))
if uid:
    os.setgroups([])
    os.setgid(uid)
    os.setuid(uid)
for line in sys.stdin:
    answer = app.test_client().get("/").text
    with app.app_context():
        found = db.workers()
    print(json.dumps({
        "pid": os.getpid(),
        "answer": answer,
        "workers": sorted((w.pid, w.uid) for w in found.workers),
        "silent": len(found.silent),
        "searched": [[s.dir, s.error] for s in found.searched],
    }), flush=True)
"""


class Resident:
    """One such process, in any environment."""

    def __init__(self, before: list[str], env: dict[str, str], log: Path) -> None:
        self.log = log
        with log.open("w") as errors:
            self.process = subprocess.Popen(
                [*before, sys.executable, "-c", RESIDENT],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=child_environ(env),
                cwd="/proc",
                text=True,
            )

    def serve(self) -> Any:
        """Let it serve a request, and return the workers that it sees afterwards."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        assert line, self.log.read_text()
        return json.loads(line)

    def end(self) -> None:
        """Close its input, which ends it."""
        self.process.communicate(timeout=20)


@pytest.fixture
def resident(short_tmp: Path) -> Iterator[Callable[..., Resident]]:
    with ExitStack() as stack:

        def start(*before: str, **env: object) -> Resident:
            log = short_tmp / f"log-{os.urandom(3).hex()}"
            words = {name: str(value) for name, value in env.items()}
            started = Resident(list(before), words, log)
            stack.callback(started.end)
            return started

        yield start


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


# Files


def test_every_file_with_its_mode_and_content(
    prefork: Start,
    run_cli: Cli,
    gates: Gates,
    live_env: dict[str, str],
    short_tmp: Path,
) -> None:
    """A worker in trouble has exactly three files, below two directories."""
    live_env["FLASK_SCOPEDSESSION_HELD_LONG_AFTER"] = "0.1"
    live_env["FLASK_SCOPEDSESSION_NAME"] = "shop"
    live_env["FLASK_SCOPEDSESSION_SHOW_SQL"] = "1"
    live_env["FLASK_SCOPEDSESSION_STACKS"] = "1"
    group = prefork(count=1)
    (pid,) = group.visit_all("/ok")
    group.send("/block")
    gates.wait()
    base = short_tmp / f"flask-scopedsession-{os.geteuid()}"
    wait_until(lambda: list(base.glob("*/*.json")), what="a last snapshot")

    digest = hashlib.sha256(b"shop").hexdigest()[:12]
    (folder,) = base.iterdir()
    assert folder.name == digest
    assert [mode(base), mode(folder)] == [0o700, 0o700]
    files = {path.suffix: path for path in folder.iterdir()}
    assert sorted(files) == [".json", ".lock", ".sock"]
    assert {mode(path) for path in files.values()} == {0o600}
    assert stat.S_ISSOCK(files[".sock"].lstat().st_mode)
    assert files[".lock"].read_text() == digest

    last = json.loads(files[".json"].read_text())
    assert set(last) == {"protocol", "deployment", "app", "worker"}
    answered = run_cli(["pool-status", "--json"]).check().json["workers"][0]
    # The asking process adds the source of the answer.
    assert set(last["worker"]) | {"uid", "host"} == set(answered)
    (holder,) = last["worker"]["pools"][0]["holders"]
    assert holder["endpoint"] == "block"
    assert holder["sql"] is holder["stack"] is None
    (holder,) = answered["pools"][0]["holders"]
    assert holder["sql"]
    assert holder["stack"]
    assert answered["pid"] == pid


# Users


@as_root
def test_a_user_without_a_name(
    resident: Callable[..., Resident], short_tmp: Path
) -> None:
    """It is known by its number only: it has neither a passwd entry nor a home."""
    short_tmp.chmod(0o1777)  # as /tmp is
    theirs = resident(RESIDENT_UID=NAMELESS, HOME="/nonexistent")
    mine = resident()
    seen = theirs.serve()
    assert seen["answer"] == "42"
    assert seen["workers"] == [[seen["pid"], NAMELESS]]
    base = short_tmp / f"flask-scopedsession-{NAMELESS}"
    assert base.stat().st_uid == NAMELESS
    assert mode(base) == 0o700
    assert theirs.log.read_text() == ""
    both = mine.serve()
    assert both["workers"] == sorted([[both["pid"], 0], [seen["pid"], NAMELESS]])
    assert theirs.serve()["workers"] == [[seen["pid"], NAMELESS]]


@as_root
def test_another_user_can_do_nothing(
    resident: Callable[..., Resident], short_tmp: Path
) -> None:
    """Another user sees the directory, but nothing in it."""
    short_tmp.chmod(0o1777)  # as /tmp is
    resident(RESIDENT_UID=NAMELESS).serve()
    base = short_tmp / f"flask-scopedsession-{NAMELESS}"
    (folder,) = base.iterdir()
    (lock,) = folder.glob("*.lock")
    script = """
        import os, socket, sys
        os.setgroups([])
        os.setgid(int(sys.argv[1]))
        os.setuid(int(sys.argv[1]))
        base, folder, lock = sys.argv[2:]
        attempts = [
            lambda: os.listdir(base),
            lambda: os.stat(lock),
            lambda: open(lock),
            lambda: socket.socket(socket.AF_UNIX).connect(lock[:-4] + "sock"),
            lambda: os.unlink(lock),
            lambda: os.mkdir(folder + "x"),
            lambda: os.rename(base, base + "x"),
            lambda: os.rmdir(base),
            lambda: os.chmod(base, 0o777),
        ]
        for attempt in attempts:
            try:
                attempt()
            except PermissionError:
                print("refused")
            else:
                print("done")
        print(oct(os.stat(base).st_mode & 0o777))
    """
    done = subprocess.run(
        [
            *(sys.executable, "-c", textwrap.dedent(script)),
            *(str(NAMELESS + 1), base, folder, lock),
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["refused"] * 9 + ["0o700"]


# The database


@pytest.mark.parametrize("own", [None, "shop-web"])
def test_connections_carry_a_name(
    make_app: Callable[..., Flask], pg_url: str, own: str | None
) -> None:
    """App, host and process, or a configured name; other roles can see it."""
    db = ScopedSession()
    engine = create_engine(pg_url, poolclass=NullPool)
    url = make_url(pg_url)
    if own is not None:
        url = url.update_query_dict({"application_name": own})
    app = make_app(db, import_name="shop", SQLALCHEMY_DATABASE_URI=url)
    with app.app_context(), engine.connect() as other:
        mine = db.session.scalar(text("SELECT pg_backend_pid()"))
        other.execute(text("CREATE ROLE stranger"))
        other.execute(text("SET LOCAL ROLE stranger"))
        row = other.execute(
            text("SELECT * FROM pg_stat_activity WHERE pid = :pid"), {"pid": mine}
        ).one()
        expected = own or f"shop@{socket.gethostname()}:{os.getpid()}"
        assert row.application_name == expected
        assert row.query == "<insufficient privilege>"
        assert row.state is row.client_addr is row.xact_start is None
        other.rollback()


# Containers and services


def mounted(*commands: str) -> list[str]:
    """Return the command that runs something with these mounts only."""
    script = " && ".join(["mount --make-rprivate /", *commands, 'exec "$@"'])
    return ["unshare", "-m", "sh", "-ec", script, "sh"]


def read_only(path: str) -> str:
    return f"mount --bind {path} {path} && mount -o remount,bind,ro {path}"


def nothing_writable(short_tmp: Path) -> list[str]:
    """Return the command that runs something without a folder for temporary files."""
    return mounted(*map(read_only, ["/tmp", "/var/tmp", str(short_tmp)]))


@in_namespaces
@pytest.mark.parametrize("chosen", [False, True])
def test_a_read_only_file_system_is_one_warning_and_the_app_serves(
    resident: Callable[..., Resident], short_tmp: Path, chosen: bool
) -> None:
    everywhere = nothing_writable(short_tmp)
    env = {"FLASK_SCOPEDSESSION_CONTROL_DIR": short_tmp / "run"} if chosen else {}
    started = resident(*everywhere, **env)
    for _ in range(3):
        seen = started.serve()
        assert seen["answer"] == "42"
        assert seen["workers"] == []
    (warning,) = started.log.read_text().splitlines()
    assert warning.startswith("the live view is off in this process: ")
    assert "SCOPEDSESSION_CONTROL_DIR" in warning
    assert "no such file" not in warning.lower()
    ((_, error),) = seen["searched"]
    assert error


@in_namespaces
@pytest.mark.parametrize("target", ["live_app:create_app", "live_app:nonesuch"])
def test_a_command_on_a_read_only_file_system(
    live_env: dict[str, str], short_tmp: Path, target: str
) -> None:
    """It says why it finds no worker, also if the application does not load."""
    command = ["-m", "flask", "--app", target, "pool-status", "--check"]
    done = subprocess.run(
        [*nothing_writable(short_tmp), sys.executable, *command],
        env=child_environ({**live_env, **UNWRITING}),
        cwd="/proc",
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert "Traceback" not in done.stderr
    if target.endswith("create_app"):
        assert done.returncode == 69
        assert "can write to no directory for temporary files" in done.stdout
    else:
        assert done.returncode == 2
        assert "(SCOPEDSESSION_CONTROL_DIR)" in done.stderr


@in_namespaces
def test_a_world_writable_tmpfs_as_in_kubernetes(
    resident: Callable[..., Resident], short_tmp: Path
) -> None:
    """It works as the temporary directory, but not as a chosen directory."""
    volume = short_tmp / "volume"
    volume.mkdir()
    for parent in (volume, short_tmp):
        parent.chmod(0o755)
    pod = mounted(f"mount -t tmpfs -o mode=0777 none {volume}")
    fine = resident(*pod, TMPDIR=volume, RESIDENT_UID=NAMELESS)
    seen = fine.serve()
    assert seen["workers"] == [[seen["pid"], NAMELESS]]
    assert fine.log.read_text() == ""

    refused = resident(
        *pod,
        FLASK_SCOPEDSESSION_CONTROL_DIR=volume / "run",
        RESIDENT_UID=NAMELESS,
    )
    assert refused.serve()["workers"] == []
    assert f"{volume} belongs to uid 0 and can be written by others" in (
        refused.log.read_text()
    )


@in_namespaces
def test_a_service_with_a_tmp_of_its_own(
    resident: Callable[..., Resident], short_tmp: Path
) -> None:
    """It is visible only from within, or in a runtime directory."""
    private, runtime = short_tmp / "tmp", short_tmp / "run" / "shop"
    for path in (private, runtime):
        path.mkdir(parents=True)
    for path in (short_tmp, runtime.parent):
        path.chmod(0o755)
    private.chmod(0o1777)
    os.chown(runtime, NAMELESS, NAMELESS)
    runtime.chmod(0o700)
    service = mounted(f"mount -t tmpfs -o mode=1777 none {private}")

    hidden = resident(*service, TMPDIR=private, RESIDENT_UID=NAMELESS)
    mine = hidden.serve()["pid"]
    outside = resident(TMPDIR=private).serve()
    assert outside["workers"] == [[outside["pid"], 0]]
    within = resident(
        *("nsenter", "-t", str(hidden.process.pid), "-m"), TMPDIR=private
    ).serve()
    assert [mine, NAMELESS] in within["workers"]

    chosen = {"FLASK_SCOPEDSESSION_CONTROL_DIR": runtime}
    seen = resident(*service, **chosen, RESIDENT_UID=NAMELESS).serve()
    assert seen["workers"] == [[seen["pid"], NAMELESS]]
    looking = commands.flask(
        ["pool-status", "--json", "--control-dir", str(runtime)], app=None, cwd="/"
    )
    assert [w["pid"] for w in looking.check().json["workers"]] == [seen["pid"]]


@in_namespaces
def test_two_containers_that_share_a_directory(
    resident: Callable[..., Resident], short_tmp: Path
) -> None:
    """With equal process IDs, each sees both, and knows which one has ended."""
    container = ["unshare", "-pf", "--kill-child", "--mount-proc"]
    one, two = resident(*container), resident(*container)
    one.serve()
    assert two.serve()["workers"] == one.serve()["workers"] == [[1, 0], [1, 0]]
    outside = resident()
    seen = outside.serve()
    assert seen["workers"] == sorted([[1, 0], [1, 0], [seen["pid"], 0]])

    one.process.kill()  # this kills the processes in the container
    one.process.wait(10)
    wait_until(lambda: two.serve()["workers"] == seen["workers"][1:], what="its end")
    # Exactly the files of the ended process.
    folder = next(short_tmp.glob("flask-scopedsession-*/*"))
    wait_until(lambda: len(list(folder.glob("*.lock"))) == 2, what="the sweep")
    assert two.serve()["workers"] == seen["workers"][1:]
    assert outside.serve()["silent"] == 0
