"""``--watch`` on a real terminal with real workers."""

from __future__ import annotations

import os
import re
import shutil
import signal
from collections.abc import Callable
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from gates import Gates
from inside import FULL
from prefork import Prefork
from terminal import Terminal

pytestmark = [pytest.mark.workers, pytest.mark.slow]

Start = Callable[..., Prefork]
Watch = Callable[..., Terminal]

SHELL = "$ the command"
STYLE = re.compile(rb"\x1b\[[0-9;]*m")


@pytest.fixture
def control_dir(live_env: dict[str, str], short_tmp: Path) -> Path:
    path = short_tmp / "run"
    live_env["FLASK_SCOPEDSESSION_CONTROL_DIR"] = str(path)
    prefix = "FLASK_SQLALCHEMY_ENGINE_OPTIONS__"
    live_env |= {f"{prefix}pool_size": "2", f"{prefix}max_overflow": "0"}
    return path


@pytest.fixture
def watch(control_dir: Path, live_env: dict[str, str]) -> Iterator[Watch]:
    """Watch a command on a terminal; by default it draws a single refresh."""
    with ExitStack() as stack:

        def start(
            command: str = "pool-status", every: float = 3600, *args: str, **kw: Any
        ) -> Terminal:
            env = {**live_env, **kw.pop("env", {})}
            module = ["-m", "flask_scopedsession", "--app", "live_app", command]
            words = [*module, f"--watch={every:g}", *args]
            return stack.enter_context(Terminal(words, env=env, **kw))

        yield start


@pytest.fixture
def busy(prefork: Start, gates: Gates, control_dir: Path) -> Prefork:
    """A worker with both connections checked out, and a view that waits."""
    group = prefork(count=1, threads=4)
    group.visit_all("/ok")
    group.send_many("/block", 2)
    gates.wait(count=2)
    group.send("/ok")
    return group


def test_what_is_seen(busy: Prefork, watch: Watch) -> None:
    """The charts, the holders and the waiters, on a screen of its own."""
    it = watch(every=0.2)
    it.wait_for(lambda: "!!!!" in it.text.replace("!! ", ""))
    assert it.alternate
    assert it.screen.cursor.hidden
    assert SHELL not in it.text
    names = re.search(r"PID +STATE +BIND +USE +LAST 2\.4 s +USED/MAX.*WAITING", it.text)
    assert names, it.text
    assert re.search(r" default +████████!! +\S*!!!! +2/2 ", it.text), it.text
    assert "2× block live_app.py:" in it.text
    assert "Waiting for a connection" in it.lines[-2]
    assert it.lines[-1].startswith("  1× ok live_app.py:")


@pytest.mark.parametrize("command", ["pool-status", "session-status"])
def test_ctrl_c(command: str, busy: Prefork, watch: Watch) -> None:
    """Screen, cursor and echo are restored; the exit code is 130."""
    it = watch(command)
    it.wait_for(" default ").type("\x03")
    it.wait_for("exit")
    assert it.lines == [SHELL, "exit 130, echo on, nothing typed"]
    assert not it.alternate
    assert it.tidy


def test_keys(busy: Prefork, watch: Watch) -> None:
    """Keys do not disturb the screen, and do not reach the shell."""
    it = watch(every=0.1)
    it.wait_for(" default ").type("rm -rf /\n")
    drawn = it.sent.count(b"this host only") + 3
    it.wait_for(lambda: it.sent.count(b"this host only") >= drawn)
    assert b"rm -rf" not in it.sent
    # Not with Ctrl-C: then the terminal itself discards what was typed.
    os.kill(it.command_pid(), signal.SIGTERM)
    it.wait_for("exit -15, echo on, nothing typed")


@pytest.mark.parametrize("command", ["pool-status", "session-status"])
def test_resize(command: str, busy: Prefork, watch: Watch) -> None:
    """The page is redrawn at once, although the next refresh is an hour away."""
    it = watch(command, columns=80, rows=40)
    it.wait_for(" default ")
    before = it.lines
    assert max(map(len, before)) <= 80
    places = set(re.findall(r"live_app\.py:\d+ \w+", it.text))
    for columns in (40, 200, 60, 120):
        it.resize(columns, 40)
        it.wait_for(partial(is_drawn_for, columns, it))
        assert set(re.findall(r"live_app\.py:\d+ \w+", it.text)) == places
    it.resize(80, 40)
    it.wait_for(lambda: it.lines == before)
    # Some terminals lose the old cursor position if they have to switch twice.
    assert it.sent.count(b"\x1b[?1049h") == 1


def is_drawn_for(columns: int, it: Terminal) -> bool:
    """Decide by what only narrow pages, or only wide ones, show."""
    narrow = "UTC · this host only" not in it.text
    wide = FULL * 10 in it.text
    return (narrow, wide) == (columns < 60, columns >= 100)


def test_a_screen_that_is_too_small(busy: Prefork, watch: Watch) -> None:
    """It shows the header and the problems; after a resize, everything."""
    it = watch(rows=8)
    it.wait_for("this host only")
    assert len(it.lines) == 8
    assert re.fullmatch(r"\.\.\. \d+ more lines", it.lines[1])
    assert it.lines[-1].startswith("  1× ok live_app.py:")
    it.resize(80, 24)
    it.wait_for("USED/MAX")
    assert "more lines" not in it.text


def test_ctrl_z(busy: Prefork, watch: Watch) -> None:
    """The terminal is restored while it is stopped, and redrawn afterwards."""
    it = watch()
    it.wait_for(" default ")
    before = it.lines
    it.type("\x1a")
    it.wait_for("stopped")
    assert it.lines == [SHELL, "stopped, echo on, nothing typed"]
    assert it.tidy
    it.type("fg\n")
    it.wait_for(lambda: it.alternate and it.lines == before)
    assert it.screen.cursor.hidden
    it.type("\x03")
    it.wait_for("exit 130, echo on")
    assert it.tidy


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT])
def test_other_ends(number: int, busy: Prefork, watch: Watch) -> None:
    """The command ends by the signal, after restoring the terminal."""
    it = watch()
    it.wait_for(" default ")
    os.kill(it.command_pid(), number)
    it.wait_for("exit")
    assert it.lines == [SHELL, f"exit -{number}, echo on, nothing typed"]
    assert it.tidy


def test_a_worker_that_hangs(busy: Prefork, watch: Watch) -> None:
    """While it does not answer, a resize and Ctrl-C take effect at once."""
    it = watch("pool-status", 0.1, "--timeout=3600")
    it.wait_for(" default ")
    (pid,) = busy.worker_pids()
    # From now on a refresh takes an hour; one in progress may still end.
    os.kill(pid, signal.SIGSTOP)
    for columns in (120, 80, 120, 80):
        it.resize(columns)
        it.wait_for(partial(is_drawn_for, columns, it))
    it.type("\x03")
    it.wait_for("exit 130, echo on")


def test_what_vanishes(
    busy: Prefork, watch: Watch, control_dir: Path, prefork: Start, gates: Gates
) -> None:
    """Without worker and directory it keeps refreshing, until a worker is back."""
    it = watch(every=0.1)
    it.wait_for(" default ")
    gates.open()
    it.wait_for("0/2")  # else the worker would be killed, and shown as gone
    busy.stop()
    it.wait_for("No worker has answered")
    shutil.rmtree(control_dir, ignore_errors=True)
    it.wait_for(f"(looked in {control_dir}).")
    prefork(count=1).get("/ok")
    it.wait_for(" default ")


def test_ascii_without_colours(busy: Prefork, watch: Watch) -> None:
    """Charts in ASCII; and no styles at all with NO_COLOR."""
    it = watch(every=0.2, env={"PYTHONIOENCODING": "ascii", "NO_COLOR": "1"})
    it.wait_for(lambda: "!!!!" in it.text.replace("!! ", ""))
    assert "########!!" in it.text
    shown = it.sent.partition(b"\x1b[?1049h")[2]
    assert shown.isascii()
    assert not STYLE.search(shown)


def test_colours(busy: Prefork, watch: Watch) -> None:
    """A terminal has colours by default."""
    it = watch()
    it.wait_for(" default ")
    assert STYLE.search(it.sent)


def test_dumb_terminal(busy: Prefork, watch: Watch) -> None:
    """One page below the other, without an escape sequence."""
    it = watch(every=0.1, rows=100, env={"TERM": "dumb"})
    it.wait_for(lambda: it.text.count("this host only") >= 3)
    assert b"\x1b" not in it.sent
    assert "QueuePool" in it.text
    assert re.search(r"\S\n\nlive_app on ", it.text)
    it.type("\x03")
    it.wait_for("exit 130, echo on")
