"""Celery's prefork pool: the parent uses its engine before it forks."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import commands
import psycopg
import pytest
from commands import Result
from gates import Gates
from postgres import activity
from serving import Served
from sqlalchemy import make_url
from waiting import wait_until

pytestmark = [pytest.mark.workers, pytest.mark.slow]

HERE = Path(__file__).parent

Cli = Callable[..., Result]


class Jobs(Served):
    """A Celery worker with two children, on a broker of files."""

    def __init__(self, home: Path, url: str, env: dict[str, str], *args: str) -> None:
        for name in ("queue", "exchanges", "answers"):
            (home / name).mkdir()
        self.home = home
        self.control_dir = home / "run"
        self._database = make_url(url)
        env = {
            **env,
            "FLASK_SQLALCHEMY_DATABASE_URI": url,
            "FLASK_SCOPEDSESSION_CONTROL_DIR": str(self.control_dir),
            "JOBS_HOME": str(home),
        }
        quiet = ["--without-gossip", "--without-mingle", "--without-heartbeat"]
        worker = ["-m", "celery", "-A", "jobs_app:jobs", "worker", "--concurrency=2"]
        command = [sys.executable, *worker, *quiet, *args]
        super().__init__("celery", home, command, count=2, env=env, cwd=HERE)

    def ask_for(self, source: str) -> None:
        """Send tasks with a line of Python."""
        commands.run(
            ["-c", f"import jobs_app\n{source}"], env=self.env, cwd=HERE
        ).check()

    def answers(self) -> list[dict[str, Any]]:
        """Return the answers of the tasks so far."""
        return [json.loads(p.read_text()) for p in (self.home / "answers").iterdir()]

    def look(self) -> list[Any]:
        """Return the workers that ``pool-status`` shows."""
        args = ["pool-status", "--json"]
        found = commands.flask(args, app="served_app:app", env=self.env, cwd=HERE)
        assert found.check().json["silent"] == []
        workers: list[Any] = found.json["workers"]
        return workers

    def seen(self) -> set[int]:
        """Return the process IDs of the files in the control directory."""
        if not self.control_dir.exists():
            return set()
        return {int(path.name.partition("-")[0]) for path in self.control_dir.iterdir()}

    def wait_settled(self, gone: set[int], *, timeout: float = 30) -> None:
        """Wait until there are two children, none of them `gone`, and both answer."""

        def settled() -> bool:
            self.check_running()
            pids = set(self.worker_pids())
            return len(pids) == 2 and not pids & gone and self.seen() == pids

        wait_until(
            settled,
            timeout=timeout,
            what=lambda: f"{self.worker_pids()} {self.seen()}\n{self.log}",
        )

    def check_settled(self) -> None:
        """``pool-status`` and the database agree on the connections."""
        workers = self.look()
        assert [worker["pid"] for worker in workers] == self.worker_pids()
        assert {(worker["role"], worker["source"]) for worker in workers} == {
            ("job", "live")
        }
        pools = [pool for worker in workers for pool in worker["pools"]]
        assert [pool["used"] for pool in pools] == [0, 0]
        wait_until(
            lambda: (
                sorted(activity(self._database).values())
                == ["idle"] * sum(pool["open"] for pool in pools)
                + ["idle in transaction"]
            ),
            what=lambda: f"{pools} {activity(self._database)}",
        )


@pytest.fixture
def start(
    short_tmp: Path, live_env: dict[str, str], pg_url: str
) -> Iterator[Callable[..., Any]]:
    @contextmanager
    def start(*args: str) -> Iterator[Jobs]:
        home = short_tmp / "jobs"
        home.mkdir()
        with Jobs(home, pg_url, live_env, *args) as jobs:
            jobs.wait_settled(set(), timeout=30)
            yield jobs

    return start  # type: ignore[return-value]


def test_recycled_children(start: Any, pg_url: str) -> None:
    """Each task has its own session and each child its own connections. None remains,
    and the parent's transaction continues until the parent ends it."""
    with start("--max-tasks-per-child=3") as jobs:
        jobs.ask_for("for n in range(9): jobs_app.own.delay(f'token-{n}')")
        wait_until(lambda: len(jobs.answers()) == 9, what=lambda: jobs.log)
        answers = jobs.answers()
        owner: dict[int, int] = {}
        for answer in answers:
            assert answer["found"] == [answer["token"]]
            (backend,) = answer["backends"]
            assert owner.setdefault(backend, answer["pid"]) == answer["pid"]
            assert answer["loaded_by"]["pid"] == jobs.pid
            assert answer["loaded_by"]["backend"] not in owner
        pids = [answer["pid"] for answer in answers]
        assert len(set(pids)) > 2
        jobs.wait_settled({pid for pid in pids if pids.count(pid) == 3})
        jobs.check_settled()
        jobs.stop()
    with psycopg.connect(
        make_url(pg_url)
        .set(drivername="postgresql")
        .render_as_string(hide_password=False)
    ) as connection:
        words = connection.execute("SELECT word FROM parents").fetchall()
    assert words == [("begun",), ("ended",)]


def test_a_killed_child(start: Any, gates: Gates) -> None:
    """It is shown with its task. Its connection and its transaction are gone."""
    with start() as jobs:
        jobs.ask_for("jobs_app.hold.delay()")
        gates.wait(timeout=30)
        (pid,) = gates.arrived()
        workers = jobs.look()
        holders = [h for w in workers for p in w["pools"] for h in p["holders"]]
        assert [each["job"] for each in holders] == ["task hold"]
        used = {w["pid"]: [p["used"] for p in w["pools"]] for w in workers}
        assert used.pop(pid) == [1]
        assert list(used.values()) == [[0]]
        jobs.kill(pid)
        jobs.wait_gone(pid)
        jobs.wait_settled({pid})
        jobs.check_settled()
        jobs.stop(timeout=1)
