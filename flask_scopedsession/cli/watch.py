"""``--watch``: look again and again, on a whole screen or in lines.

On a terminal the alternate screen is drawn over in place, and what was there before
comes back, however the command ends. A thread asks the workers, so that a look that
takes long holds up neither a resize nor Ctrl-C.
"""

from __future__ import annotations

import os
import queue
import shutil
import signal
import sys
import threading
import time
import types
import typing as t
from collections.abc import Callable
from contextlib import suppress

import click

from .._terminal.charts import History
from .._terminal.charts import Look
from ..errors import ScopedSessionError

try:
    import termios
except ImportError:  # Windows
    termios = None  # type: ignore[assignment]

#: The alternate screen, without cursor; nor do lines wrap, should a terminal take a
#: character for wider than we do.
_AGAIN = "\x1b[?25l\x1b[?7l\x1b[2J"
_ENTER = f"\x1b[?1049h{_AGAIN}"
#: Where there is no alternate screen, as on a serial line, go on at the bottom.
_LEAVE = "\x1b[?7h\x1b[?25h\x1b[999;1H\n\x1b[?1049l"
#: To the end of the line; to the end of the screen.
_CLEAR_LINE, _CLEAR_BELOW = "\x1b[K", "\x1b[J"


def _signals(*names: str) -> frozenset[int]:
    """Return those that there are on this platform."""
    found = (getattr(signal, name, None) for name in names)
    return frozenset(number for number in found if number is not None)


_ENDING = _signals("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT")
_STOPPING = _signals("SIGTSTP")
#: The terminal has another size, or may have been used by somebody else.
_REDRAWING = _signals("SIGWINCH", "SIGCONT")

#: Seconds after which a signal is noticed at the latest.
_DEAF = 0.5

Ask = Callable[[], Look]
Show = Callable[[Look, "History | None"], str]
#: A number is a signal's, a text says why a look has failed.
Event = int | Look | str


def watch(
    ask: Ask, show: Show, history: History, seconds: float, *, as_json: bool
) -> t.NoReturn:
    """Look again every so many seconds; a look that fails is not the last.

    :raises KeyboardInterrupt: By Ctrl-C.
    :raises click.ClickException: The first look was refused.
    """
    dumb = os.environ.get("TERM") in ("dumb", "unknown")
    if as_json or dumb or not sys.stdout.isatty():
        _in_lines(ask, show, seconds, separator="" if as_json else "\n")
    first = _look(ask, strict=True)
    events: queue.SimpleQueue[Event] = queue.SimpleQueue()
    events.put(first)
    with _Screen(events) as screen:
        looking = (ask, seconds, events)
        threading.Thread(target=_keep_looking, args=looking, daemon=True).start()
        number = _until_ended(screen, events, show, history)
    # The terminal is as it was; now end as anybody who gets this signal.
    signal.raise_signal(number)
    raise SystemExit(128 + number)


def _in_lines(ask: Ask, show: Show, seconds: float, separator: str) -> t.NoReturn:
    before = ""
    strict = True
    while True:
        found = _look(ask, strict=strict)
        strict = False
        if isinstance(found, str):
            click.echo(found, err=True)
        else:
            click.echo(before + show(found, None), nl=False)
            before = separator
        time.sleep(seconds)


def _look(ask: Ask, *, strict: bool = False) -> Look | str:
    """Return what was found, or why nothing was."""
    try:
        return ask()
    except Exception as error:
        if strict and isinstance(error, click.ClickException):
            raise
        # The text of an error may hold a URL, unless it is one of these.
        known = isinstance(error, (OSError, ScopedSessionError, click.ClickException))
        said = f": {error}" if known else ""
        return f"This look has failed: {type(error).__name__}{said}"


def _keep_looking(
    ask: Ask, seconds: float, events: queue.SimpleQueue[Event]
) -> t.NoReturn:
    while True:
        time.sleep(seconds)
        events.put(_look(ask))


def _until_ended(
    screen: _Screen, events: queue.SimpleQueue[Event], show: Show, history: History
) -> int:
    """Draw what is found, until a signal ends it; return that."""
    found: Look | None = None
    problem = ""
    while True:
        try:
            # A signal that comes just before a wait begins does not end the wait.
            event = events.get(timeout=_DEAF)
        except queue.Empty:
            continue
        if isinstance(event, Look):
            found, problem = event, ""
            history.add(found.survey)
        elif isinstance(event, str):
            problem = event
        elif event in _ENDING:
            return event
        elif event in _STOPPING:
            screen.suspend()
        else:
            screen.again()
        # Not a frame for each of the signals that one tug at a window's corner sends.
        if events.empty():
            text = "" if found is None else show(found, history)
            screen.draw(text, problem)


class _Screen:
    """A terminal that is drawn on, and left as it was.

    Signals become events: none interrupts a frame in the middle.
    """

    def __init__(self, events: queue.SimpleQueue[Event]) -> None:
        self._events = events
        self._handlers: dict[int, t.Any] = {}
        self._modes: list[t.Any] | None = None

    def __enter__(self) -> _Screen:  # noqa: PYI034  # Self is newer than 3.10
        for number in _ENDING | _STOPPING | _REDRAWING:
            # As under nohup; and handlers that are not Python's stay.
            if signal.getsignal(number) not in (signal.SIG_IGN, None):
                self._handlers[number] = signal.signal(number, self._note)
        try:
            self._open(_ENTER)
        except BaseException:
            self._restore()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()

    def _restore(self) -> None:
        try:
            with suppress(OSError):  # the terminal may be gone
                self._close()
        finally:
            for number, handler in self._handlers.items():
                signal.signal(number, handler)

    def _note(self, number: int, _: types.FrameType | None) -> None:
        # put() may be entered again from a signal handler: it is documented.
        self._events.put(number)

    def suspend(self) -> None:
        """Give the terminal back, and stop, as by Ctrl-Z; go on in the foreground."""
        self._close()
        ours = signal.signal(signal.SIGTSTP, signal.SIG_DFL)
        signal.raise_signal(signal.SIGTSTP)
        signal.signal(signal.SIGTSTP, ours)
        self._open(_ENTER)

    def again(self) -> None:
        """Begin with an empty screen."""
        self._open(_AGAIN)

    def draw(self, text: str, problem: str) -> None:
        """Show a page and what is wrong with it, as much as there is room for."""
        from .._terminal.page import fold
        from .._terminal.page import Page

        if problem:
            page = Page()
            page.line()
            page.parts(problem.split(), style="red")
            text += str(page)
        columns, rows = shutil.get_terminal_size()
        self._write(frame(fitting(fold(text, columns), rows), columns, rows))

    def _open(self, codes: str) -> None:
        self._write(codes)
        if termios is None:
            return
        # What is typed would be written over the screen.
        with suppress(termios.error):
            modes = termios.tcgetattr(sys.stdout.fileno())
            if self._modes is None:
                self._modes = modes
            silent = [*modes]
            silent[3] &= ~termios.ECHO
            termios.tcsetattr(sys.stdout.fileno(), termios.TCSADRAIN, silent)

    def _close(self) -> None:
        modes, self._modes = self._modes, None
        if modes is not None:
            # What was typed meanwhile is not for the shell.
            with suppress(termios.error):
                termios.tcsetattr(sys.stdout.fileno(), termios.TCSAFLUSH, modes)
        self._write(_LEAVE)

    def _write(self, text: str) -> None:
        click.echo(text, nl=False)


def fitting(lines: list[str], rows: int) -> list[str]:
    """Return as many lines as a screen has: the head, and the end with the problems.

    A table's first rows need an eye least; the names of its columns stay with the rest.
    """
    from .._terminal.page import count
    from .._terminal.page import unstyled

    if len(lines) <= rows:
        return lines
    bare = [unstyled(line) for line in lines]
    head = lines[: max(1, min(bare.index("") if "" in bare else 1, rows - 2))]
    first = len(lines) - rows + len(head) + 1
    names = next((i for i, line in enumerate(bare) if line.split()[:1] == ["PID"]), 0)
    if names and names < first < bare.index("", names):
        head.append(lines[names])
        first += 1
        # Not the second line of a row whose first line is left out.
        width = bare[names].index("PID") + len("PID")
        while first < len(bare) and bare[first] and not bare[first][:width].strip():
            first += 1
    left_out = f"... {count(len(lines) - rows + 1, 'more line')}"
    return [*head, left_out, *lines[first:]][:rows]


def frame(lines: list[str], columns: int, rows: int) -> str:
    """Return what replaces a screen's content line by line, so without flicker."""
    from rich.cells import cell_len

    from .._terminal.page import unstyled

    drawn = []
    for row, line in enumerate(lines, 1):
        # At the right edge, clearing would take the last character.
        full = cell_len(unstyled(line)) >= columns
        drawn.append(f"\x1b[{row};1H{line}{'' if full else _CLEAR_LINE}")
    if len(lines) < rows:
        drawn.append(f"\x1b[{len(lines) + 1};1H{_CLEAR_BELOW}")
    return "".join(drawn)
