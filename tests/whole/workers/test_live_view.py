"""A second terminal shows exactly the serving workers and their connections."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from commands import Result
from gates import Gates
from prefork import Prefork
from users import as_root
from waiting import wait_until

pytestmark = [pytest.mark.workers, pytest.mark.slow]

Start = Callable[..., Prefork]
Cli = Callable[..., Result]

APP = Path(__file__).with_name("live_app.py")

#: The files of a serving worker without trouble.
SERVING = {"sock", "lock"}


def line_of(text: str) -> int:
    """Return the number of the only line of live_app that ends like this."""
    lines = APP.read_text().splitlines()
    (found,) = [n for n, line in enumerate(lines, 1) if line.endswith(text)]
    return found


@pytest.fixture
def control_dir(live_env: dict[str, str], short_tmp: Path) -> Path:
    path = short_tmp / "run"
    live_env["FLASK_SCOPEDSESSION_CONTROL_DIR"] = str(path)
    return path


def files_of(control_dir: Path) -> dict[int, set[str]]:
    """Return the kinds of files that each process has in a directory."""
    found: dict[int, set[str]] = {}
    for path in control_dir.iterdir():
        found.setdefault(int(path.name.partition("-")[0]), set()).add(path.suffix[1:])
    return found


def look(run_cli: Cli, *args: str) -> Any:
    return run_cli(["pool-status", "--json", *args]).check().json


def pids(found: Any) -> list[int]:
    return [worker["pid"] for worker in found["workers"]]


KINDS = [
    pytest.param(kind, preload, id=f"{kind}{'-preload' if preload else ''}")
    for kind in ("sync", "gthread", "gevent")
    for preload in (False, True)
]


@pytest.mark.parametrize(("worker_class", "preload"), KINDS)
def test_each_serving_worker_and_its_holder_is_seen(
    prefork: Start, run_cli: Cli, gates: Gates, worker_class: str, preload: bool
) -> None:
    group = prefork(count=2, worker_class=worker_class, preload=preload)
    workers = group.visit_all("/ok")
    for pid in workers:
        group.send("/block", on=pid)
    gates.wait(count=2)
    found = look(run_cli)
    assert pids(found) == workers
    assert found["silent"] == []
    for worker in found["workers"]:
        assert worker["role"] == "web"
        assert worker["ppid"] == group.pid
        assert worker["source"] == "live"
        assert worker["server"].startswith("gunicorn/")
        (pool,) = worker["pools"]
        (holder,) = pool["holders"]
        assert pool["used"] == 1
        assert holder["endpoint"] == "block"
        assert holder["rule"] == "/block"
        place = re.fullmatch(r"live_app\.py:(\d+) wait_for_gate", holder["at"])
        assert place is not None
        start = line_of("def wait_for_gate() -> None:")
        assert start < int(place[1]) <= start + 8
    assert sum(total["used"] for total in found["totals"]) == 2


@pytest.mark.parametrize(("worker_class", "preload"), [KINDS[0], KINDS[3], KINDS[4]])
def test_recycled_workers_are_gone_without_a_trace(
    prefork: Start,
    run_cli: Cli,
    control_dir: Path,
    worker_class: str,
    preload: bool,
) -> None:
    group = prefork(count=1, worker_class=worker_class, preload=preload, max_requests=5)
    deadline = time.monotonic() + 20
    generations: list[int] = []
    while len(generations) < 3:
        assert time.monotonic() < deadline
        with suppress(OSError):  # the worker has just ended
            pid = group.get("/ok").json["pid"]
            if pid not in generations:
                generations.append(pid)
    wait_until(lambda: len(files_of(control_dir)) == 1, what="tidy exits")
    assert files_of(control_dir) == {generations[-1]: SERVING}
    found = look(run_cli)
    assert pids(found) == generations[-1:]
    assert found["silent"] == []


def test_a_wedged_worker_answers_at_once(
    prefork: Start, run_cli: Cli, gates: Gates, live_env: dict[str, str]
) -> None:
    """All its threads are blocked: one holds the connection, the others wait."""
    prefix = "FLASK_SQLALCHEMY_ENGINE_OPTIONS__"
    live_env |= {f"{prefix}pool_size": "1", f"{prefix}max_overflow": "0"}
    live_env[f"{prefix}pool_timeout"] = "300"
    group = prefork(count=1, threads=4)
    (pid,) = group.visit_all("/ok")
    group.send("/block")
    gates.wait()
    group.send_many("/ok", 3)
    wait_until(lambda: look(run_cli)["totals"][0]["pending"] == 3)

    def state() -> Any:
        return look(run_cli)["workers"][0]["state"]

    wait_until(lambda: state() == "wedged")
    began = time.monotonic()
    result = run_cli(["pool-status", "--timeout", "25"])
    assert time.monotonic() - began < 20  # a silent worker is waited for
    assert result.code == 0
    for word in (str(pid), "wedged", "block", "live_app.py:", "wait"):
        assert word in result.stdout
    checked = run_cli(["pool-status", "--json", "--check"])
    assert checked.code == 4
    (pool,) = checked.json["workers"][0]["pools"]
    assert [holder["endpoint"] for holder in pool["holders"]] == ["block"]
    assert [waiter["endpoint"] for waiter in pool["waiters"]] == ["ok"] * 3
    assert {w["at"].split()[0] for w in pool["waiters"]} == {
        f"live_app.py:{line_of('return answer(one=db.session.scalar(select(1)))')}"
    }


def test_stopped_and_frozen_workers_are_named(prefork: Start, run_cli: Cli) -> None:
    group = prefork(count=3)
    stopped, frozen, well = group.visit_all("/ok")
    group.kill(stopped, signal.SIGSTOP)
    group.send("/freeze?seconds=30", on=frozen)
    wait_until(lambda: cpu_asleep(frozen), what="a frozen worker")
    result = run_cli(["pool-status", "--json", "--check", "--timeout", "1.5"])
    assert result.code == 5, result.stderr
    found = result.json
    assert pids(found) == [well]
    assert {silent["pid"]: silent["reason"] for silent in found["silent"]} == {
        stopped: "stopped",
        frozen: "unresponsive",
    }
    assert found["totals"][0]["workers"] == 1
    group.kill(stopped, signal.SIGCONT)


def cpu_asleep(pid: int) -> bool:
    """Whether a worker is in /freeze: one thread sleeps and keeps the GIL."""
    waits = {
        (task / "wchan").read_text() for task in Path(f"/proc/{pid}/task").iterdir()
    }
    return any("nanosleep" in wait for wait in waits)


def test_the_killed_leave_the_totals_and_a_last_snapshot_if_there_was_trouble(
    prefork: Start,
    run_cli: Cli,
    gates: Gates,
    control_dir: Path,
    live_env: dict[str, str],
) -> None:
    prefix = "FLASK_SQLALCHEMY_ENGINE_OPTIONS__"
    live_env |= {f"{prefix}pool_size": "1", f"{prefix}max_overflow": "0"}
    group = prefork(count=2)
    troubled, quiet = group.visit_all("/ok")
    group.send("/block", on=troubled)
    gates.wait()
    group.send("/ok", on=troubled)
    wait_until(lambda: "json" in files_of(control_dir)[troubled], what="last snapshot")
    assert "json" not in files_of(control_dir)[quiet]
    (last,) = control_dir.glob("*.json")
    assert last.stat().st_mode & 0o777 == 0o600
    assert last.stat().st_size <= 64 * 1024

    for pid in (troubled, quiet):
        group.kill(pid, signal.SIGKILL)
        group.wait_gone(pid)
    found = look(run_cli)
    assert found["silent"] == found["totals"] == []
    (gone,) = found["workers"]
    assert (gone["pid"], gone["state"], gone["source"]) == (troubled, "gone", "last")
    assert [h["endpoint"] for h in gone["pools"][0]["holders"]] == ["block"]
    kinds = files_of(control_dir)
    assert kinds[quiet] == SERVING, "a command sweeps nothing"

    wait_until(lambda: len(group.worker_pids()) == 2, what="new workers")
    new = group.visit_all("/ok")
    wait_until(
        lambda: (
            files_of(control_dir) == {troubled: {"json"}, **dict.fromkeys(new, SERVING)}
        ),
        what="a sweep",
    )
    found = look(run_cli)
    assert sorted(pids(found)) == sorted([troubled, *new])
    assert found["totals"][0]["workers"] == 2


def test_two_deployments_do_not_see_each_other(
    prefork: Start, run_cli: Cli, control_dir: Path
) -> None:
    """Not even in the same directory; the same is true of silent workers."""
    names = [{"FLASK_SCOPEDSESSION_NAME": name} for name in ("shop", "shop-test")]
    groups = [prefork(count=1, env=name) for name in names]
    (shop,), (test,) = (group.visit_all("/ok") for group in groups)
    assert len(files_of(control_dir)) == 2
    for name, pid in zip(names, (shop, test), strict=True):
        found = run_cli(["pool-status", "--json"], env=name).check().json
        assert pids(found) == [pid]
    groups[1].kill(test, signal.SIGSTOP)
    found = run_cli(["pool-status", "--json", "--timeout", "0.5"], env=names[0])
    assert pids(found.json) == [shop]
    assert found.json["silent"] == []
    other = run_cli(["pool-status", "--json", "--timeout", "0.5"], env=names[1])
    assert other.json["workers"] == []
    assert [silent["reason"] for silent in other.json["silent"]] == ["stopped"]
    groups[1].kill(test, signal.SIGCONT)
    everybody = ["pool-status", "--json", "--control-dir", str(control_dir)]
    found = run_cli(everybody, app=None).check().json
    assert sorted(pids(found)) == sorted([shop, test])


def test_through_a_link_and_from_another_directory_it_is_the_same_deployment(
    prefork: Start, run_cli: Cli, short_tmp: Path
) -> None:
    (short_tmp / "current").symlink_to(APP.parent)
    group = prefork(count=1)
    workers = group.visit_all("/ok")
    for cwd, app in (
        (short_tmp / "current", "live_app"),
        (Path("/"), f"{short_tmp}/current/live_app.py:create_app"),
    ):
        result = run_cli(["pool-status", "--json"], cwd=cwd, app=app)
        assert pids(result.check().json) == workers


def test_a_refused_directory_is_one_warning_and_the_app_serves(
    prefork: Start, run_cli: Cli, control_dir: Path
) -> None:
    control_dir.mkdir()
    control_dir.chmod(0o777)
    group = prefork(count=1)
    for _ in range(3):
        assert group.get("/ok").status == 200
    assert group.log.count("the live view is off") == 1
    for word in (str(control_dir), f"uid {os.geteuid()}", "SCOPEDSESSION_CONTROL_DIR"):
        assert word in group.log
    assert list(control_dir.iterdir()) == []
    result = run_cli(["pool-status"])
    assert result.code == 0
    assert "No worker has answered" in result.stdout
    assert f"{control_dir} belongs to uid" in result.stdout
    assert "open to others" in result.stdout
    assert run_cli(["pool-status", "--check"]).code == 69


@as_root
def test_workers_of_another_user_are_seen_by_root_and_by_that_user_only(
    prefork: Start, run_cli: Cli, short_tmp: Path, gates: Gates, run_script: Cli
) -> None:
    short_tmp.chmod(0o1777)  # as /tmp is
    gates.folder.chmod(0o777)
    mine = prefork(count=1).visit_all("/pid")
    # Possibly that user cannot read this interpreter's files. So a request that does
    # not start the control thread imports everything before.
    (short_tmp / "warm_app.py").write_text(
        "from live_app import create_app\n"
        "app = create_app()\n"
        "app.testing = True\n"
        "assert app.test_client().get('/ok').status_code == 200\n"
        "app.testing = False\n"
    )
    group = prefork(
        "warm_app:app",
        count=1,
        preload=True,
        cwd=short_tmp,
        env={"FLASK_SQLALCHEMY_DATABASE_URI": "sqlite://"},
        args=["--user=65534", "--group=65534"],
    )
    theirs = group.visit_all("/pid")
    base = short_tmp / "flask-scopedsession-65534"
    assert base.stat().st_uid == 65534
    assert base.stat().st_mode & 0o777 == 0o700

    found = look(run_cli)
    assert sorted((w["uid"], w["pid"]) for w in found["workers"]) == [
        (0, *mine),
        (65534, *theirs),
    ]
    script = """
        import json, os, sys, time
        from live_app import create_app, db
        with create_app().app_context():
            db.workers()  # so that all is imported
            os.setuid(int(sys.argv[1]))
            found = db.workers()
        print([worker.pid for worker in found.workers], len(found.silent))
    """
    env = {"FLASK_SQLALCHEMY_DATABASE_URI": "sqlite://"}
    for uid, seen in ((65534, theirs), (65533, [])):
        result = run_script(script, str(uid), env=env).check()
        assert result.stdout == f"{seen} 0\n"


def test_the_environment_switches_it_off(
    prefork: Start, run_cli: Cli, control_dir: Path
) -> None:
    group = prefork(
        count=1,
        env={"SCOPEDSESSION_CONTROL": "0", "FLASK_SCOPEDSESSION_CONTROL": "true"},
    )
    assert group.get("/ok").status == 200
    assert not control_dir.exists()
    result = run_cli(["pool-status"], env={"SCOPEDSESSION_CONTROL": "0"})
    assert "SCOPEDSESSION_CONTROL is off" in result.check().stdout
