"""The dashboard of real workers: the same from each of them, also in trouble."""

from __future__ import annotations

import re
import signal
from html import unescape

import pytest
from prefork import Prefork
from waiting import wait_until

pytestmark = pytest.mark.workers

APP = "dashboard_app:create_app()"


def words(group: Prefork, on: int | None = None) -> str:
    reply = group.get("/pools/", on=on)
    assert reply.status == 200, reply.text
    return " ".join(unescape(re.sub("<[^>]*>", " ", reply.text)).split())


def test_each_worker_tells_the_same(prefork):
    """Of all workers, also of one that was killed."""
    group = prefork(APP, count=2, env={"FLASK_SCOPEDSESSION_HELD_LONG_AFTER": "0.1"})
    pids = group.visit_all()
    group.get("/leak", on=pids[0])

    def leak_is_seen_by_both() -> bool:
        return all("1 connection leaked" in words(group, on=pid) for pid in pids)

    wait_until(leak_is_seen_by_both, what="the leak")
    for pid in pids:
        assert re.search(
            rf"1× leak .* its request is over.* default {pids[0]}", words(group, on=pid)
        )
    for pid in pids:
        document = group.get("/pools/status.json", on=pid).json
        assert [each["pid"] for each in document["workers"]] == pids

    # What it held is shown once its last snapshot is on the disk.
    wait_until(
        lambda: list(group.log_path.parent.rglob(f"{pids[0]}-*.json")), what="it"
    )
    group.kill(pids[0], signal.SIGKILL)
    group.wait_gone(pids[0])
    page = words(group, on=pids[1])
    assert "1 worker gone (killed)" in page
    assert f"1 worker is gone (killed): pid {pids[0]}" in page
    assert "Last held by workers that are gone; these connections are closed" in page
    assert f"{pids[0]} (gone)" in page
    assert "1 connection leaked" not in page


@pytest.mark.parametrize(("worker_class", "threads"), [("gthread", 4), ("gevent", 1)])
def test_all_other_threads_are_stuck(prefork, gates, worker_class, threads):
    """One holds the only connection, and the others wait for it."""
    options = "FLASK_SQLALCHEMY_ENGINE_OPTIONS__"
    env = {f"{options}pool_size": "1", f"{options}max_overflow": "0"}
    group = prefork(APP, count=1, worker_class=worker_class, threads=threads, env=env)
    stuck = [group.send("/block")]
    gates.wait()
    stuck += group.send_many("/ok", 2)

    def both_wait() -> bool:
        document = group.get("/pools/status.json").json
        return bool(document["workers"][0]["pools"][0]["pending"] == 2)

    wait_until(both_wait, what="the waiting threads")
    page = words(group)
    assert "2 threads waiting" in page
    assert "1× block" in page
    assert "2× ok" in page
    assert not any(each.done() for each in stuck)
