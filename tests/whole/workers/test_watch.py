"""``--watch`` on a real terminal, with real workers: what a person sees."""

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
    """Watch ``pool-status`` on a terminal; by default it looks once and draws."""
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
    """One worker, both of whose connections are held, and a view that waits."""
    group = prefork(count=1, threads=4)
    group.visit_all("/ok")
    group.send_many("/block", 2)
    gates.wait(count=2)
    group.send("/ok")
    return group


def test_what_is_seen(busy: Prefork, watch: Watch) -> None:
    """The use of each pool and its past, who holds and who waits; on its own screen."""
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
    """All is as before: screen, cursor, echo; and 130."""
    it = watch(command)
    it.wait_for(" default ").type("\x03")
    it.wait_for("exit")
    assert it.lines == [SHELL, "exit 130, echo on, nothing typed"]
    assert not it.alternate
    assert it.tidy


def test_keys(busy: Prefork, watch: Watch) -> None:
    """What is typed does not disturb the screen, and is not for the shell."""
    it = watch(every=0.1)
    it.wait_for(" default ").type("rm -rf /\n")
    drawn = it.sent.count(b"this host only") + 3
    it.wait_for(lambda: it.sent.count(b"this host only") >= drawn)
    assert b"rm -rf" not in it.sent
    # Not by Ctrl-C, at which the terminal itself forgets what was typed.
    os.kill(it.command_pid(), signal.SIGTERM)
    it.wait_for("exit -15, echo on, nothing typed")


@pytest.mark.parametrize("command", ["pool-status", "session-status"])
def test_resize(command: str, busy: Prefork, watch: Watch) -> None:
    """Drawn for the new size at once, though the next look is an hour away."""
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


def is_drawn_for(columns: int, it: Terminal) -> bool:
    """Tell by what only narrow ones, and only wide ones, have."""
    narrow = "UTC · this host only" not in it.text
    wide = FULL * 10 in it.text
    return (narrow, wide) == (columns < 60, columns >= 100)


def test_a_screen_that_is_too_small(busy: Prefork, watch: Watch) -> None:
    """The header, and what needs an eye; then all of it again."""
    it = watch(rows=8)
    it.wait_for("this host only")
    assert len(it.lines) == 8
    assert re.fullmatch(r"\.\.\. \d+ more lines", it.lines[1])
    assert it.lines[-1].startswith("  1× ok live_app.py:")
    it.resize(80, 24)
    it.wait_for("USED/MAX")
    assert "more lines" not in it.text


def test_ctrl_z(busy: Prefork, watch: Watch) -> None:
    """It stops with the terminal as it was, and comes back on its own screen."""
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
    """It dies of the signal, as anybody would; but first it tidies up."""
    it = watch()
    it.wait_for(" default ")
    os.kill(it.command_pid(), number)
    it.wait_for("exit")
    assert it.lines == [SHELL, f"exit -{number}, echo on, nothing typed"]
    assert it.tidy


def test_a_worker_that_hangs(busy: Prefork, watch: Watch) -> None:
    """While it is waited for, a resize and Ctrl-C are heard at once."""
    it = watch("pool-status", 0.1, "--timeout=3600")
    it.wait_for(" default ")
    (pid,) = busy.worker_pids()
    # From now on a look takes an hour; one that was under way may still end.
    os.kill(pid, signal.SIGSTOP)
    for columns in (120, 80, 120, 80):
        it.resize(columns)
        it.wait_for(partial(is_drawn_for, columns, it))
    it.type("\x03")
    it.wait_for("exit 130, echo on")


def test_what_vanishes(
    busy: Prefork, watch: Watch, control_dir: Path, prefork: Start, gates: Gates
) -> None:
    """Worker and directory go, and it goes on: until there is a worker again."""
    it = watch(every=0.1)
    it.wait_for(" default ")
    gates.open()
    it.wait_for("0/2")  # or it would be killed, and shown as gone
    busy.stop()
    it.wait_for("No worker has answered")
    shutil.rmtree(control_dir, ignore_errors=True)
    it.wait_for(f"(looked in {control_dir}).")
    prefork(count=1).get("/ok")
    it.wait_for(" default ")


def test_ascii_without_colours(busy: Prefork, watch: Watch) -> None:
    """Bars of what there is; and NO_COLOR is no style at all."""
    it = watch(every=0.2, env={"PYTHONIOENCODING": "ascii", "NO_COLOR": "1"})
    it.wait_for(lambda: "!!!!" in it.text.replace("!! ", ""))
    assert "########!!" in it.text
    shown = it.sent.partition(b"\x1b[?1049h")[2]
    assert shown.isascii()
    assert not STYLE.search(shown)


def test_colours(busy: Prefork, watch: Watch) -> None:
    """There are some, for who wants them."""
    it = watch()
    it.wait_for(" default ")
    assert STYLE.search(it.sent)


def test_dumb_terminal(busy: Prefork, watch: Watch) -> None:
    """Lines, one look below the other; no escape sequence."""
    it = watch(every=0.1, rows=100, env={"TERM": "dumb"})
    it.wait_for(lambda: it.text.count("this host only") >= 3)
    assert b"\x1b" not in it.sent
    assert "QueuePool" in it.text
    assert re.search(r"\S\n\nlive_app on ", it.text)
    it.type("\x03")
    it.wait_for("exit 130, echo on")
