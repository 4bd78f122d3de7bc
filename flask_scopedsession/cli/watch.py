"""``--watch``: refresh again and again, on a screen of its own or in lines.

The page is drawn in place on the terminal's alternate screen, and the normal screen
comes back however the command ends. A thread asks the workers, so that a slow answer
delays neither a resize nor Ctrl-C.
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
from rich.console import Console
from rich.control import Control
from rich.segment import ControlType
from rich.text import Text

from .._format import count
from .._terminal.charts import History
from .._terminal.charts import Refresh
from .._terminal.page import fold
from .._terminal.page import Page
from ..errors import ScopedSessionError

try:
    import termios
except ImportError:  # Windows
    termios = None  # type: ignore[assignment]

_ERASE_REST = Control((ControlType.ERASE_IN_LINE, 0)).segment
#: Do not wrap lines: a terminal may draw a character wider than we expect.
_NO_WRAP = "\x1b[?7l"
#: Wrap lines; without an alternate screen, as on a serial line, continue at the bottom.
_WRAP = "\x1b[?7h\x1b[999;1H\n"


def _signals(*names: str) -> frozenset[int]:
    """Return the signals that exist on this platform."""
    found = (getattr(signal, name, None) for name in names)
    return frozenset(number for number in found if number is not None)


_ENDING = _signals("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT")
_STOPPING = _signals("SIGTSTP")
#: The terminal has another size, or another program may have drawn on it.
_REDRAWING = _signals("SIGWINCH", "SIGCONT")

#: Seconds after which a signal is noticed at the latest.
_SIGNAL_DELAY = 0.5

Ask = Callable[[], Refresh]
Show = Callable[[Refresh, "History | None"], str]
#: A number is a signal's; a text says why a refresh failed.
Event = int | Refresh | str


def watch(ask: Ask, show: Show, seconds: float, *, as_json: bool) -> t.NoReturn:
    """Refresh every so many seconds; go on after a refresh that failed.

    :raises KeyboardInterrupt: By Ctrl-C.
    :raises click.ClickException: The first refresh was refused.
    """
    first = _refresh(ask, strict=True)
    dumb = os.environ.get("TERM") in ("dumb", "unknown")
    terminal = sys.stdout is not None and sys.stdout.isatty()
    if as_json or dumb or not terminal:
        _in_lines(first, ask, show, seconds, "" if as_json else "\n")
    events: queue.SimpleQueue[Event] = queue.SimpleQueue()
    events.put(first)
    with _Screen(events) as screen:
        arguments = (ask, seconds, events)
        threading.Thread(target=_keep_asking, args=arguments, daemon=True).start()
        number = _draw_until_ended(screen, events, show, History(seconds))
    # The terminal is restored: now end by this signal, as any other process would.
    signal.raise_signal(number)
    raise SystemExit(128 + number)


def _in_lines(
    found: Refresh | str, ask: Ask, show: Show, seconds: float, separator: str
) -> t.NoReturn:
    before = ""
    while True:
        if isinstance(found, str):
            click.echo(found, err=True)
        else:
            click.echo(before + show(found, None), nl=False)
            before = separator
        time.sleep(seconds)
        found = _refresh(ask)


def _refresh(ask: Ask, *, strict: bool = False) -> Refresh | str:
    """Return what was found, or why the refresh failed."""
    try:
        return ask()
    except Exception as error:
        if strict and isinstance(error, click.ClickException):
            raise
        # The text of any other error may contain a database URL.
        known = isinstance(error, (OSError, ScopedSessionError, click.ClickException))
        said = f": {error}" if known else ""
        return f"Refresh failed: {type(error).__name__}{said}"


def _keep_asking(
    ask: Ask, seconds: float, events: queue.SimpleQueue[Event]
) -> t.NoReturn:
    while True:
        time.sleep(seconds)
        events.put(_refresh(ask))


def _draw_until_ended(
    screen: _Screen, events: queue.SimpleQueue[Event], show: Show, history: History
) -> int:
    """Draw each refresh until a signal ends the command; return that signal."""
    found: Refresh | None = None
    problem = ""
    while True:
        try:
            # A signal that arrives just before get() does not wake it.
            event = events.get(timeout=_SIGNAL_DELAY)
        except queue.Empty:
            continue
        if isinstance(event, Refresh):
            found, problem = event, ""
            history.add(event.survey)
        elif isinstance(event, str):
            problem = event
        elif event in _ENDING:
            return event
        elif event in _STOPPING:
            screen.suspend()
        else:
            screen.open()
        # Dragging a window's corner sends many signals: draw once for all of them.
        if events.empty():
            screen.draw("" if found is None else show(found, history), problem)


class _Screen:
    """A terminal that is drawn on, and left as it was.

    Signals become events, so none interrupts the drawing.
    """

    def __init__(self, events: queue.SimpleQueue[Event]) -> None:
        self._events = events
        self._console = Console(force_terminal=True, legacy_windows=False)
        self._handlers: dict[int, t.Any] = {}
        self._modes: list[t.Any] | None = None

    def __enter__(self) -> _Screen:  # noqa: PYI034  # Self is newer than 3.10
        for number in _ENDING | _STOPPING | _REDRAWING:
            # Keep ignored signals, as under nohup, and handlers that are not Python's.
            if signal.getsignal(number) not in (signal.SIG_IGN, None):
                self._handlers[number] = signal.signal(number, self._note)
        try:
            self.open()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        try:
            with suppress(OSError):  # the terminal may be gone
                self._close()
        finally:
            for number, handler in self._handlers.items():
                signal.signal(number, handler)

    def _note(self, number: int, _: types.FrameType | None) -> None:
        # SimpleQueue.put() is documented to be reentrant.
        self._events.put(number)

    def suspend(self) -> None:
        """Give the terminal back and stop, as by Ctrl-Z; return in the foreground."""
        self._close()
        ours = signal.signal(signal.SIGTSTP, signal.SIG_DFL)
        signal.raise_signal(signal.SIGTSTP)
        signal.signal(signal.SIGTSTP, ours)
        self.open()

    def open(self) -> None:
        """Use the alternate screen, without cursor and echo."""
        # Some terminals lose the old cursor position if they have to switch twice.
        if not self._console.is_alt_screen:
            self._console.set_alt_screen(True)
        self._console.show_cursor(False)
        click.echo(_NO_WRAP, nl=False)
        if termios is None:
            return
        # Keys that are pressed would be written over the page.
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
            # TCSAFLUSH: what was typed meanwhile is not for the shell.
            with suppress(termios.error):
                termios.tcsetattr(sys.stdout.fileno(), termios.TCSAFLUSH, modes)
        click.echo(_WRAP, nl=False)
        self._console.show_cursor(True)
        self._console.set_alt_screen(False)

    def draw(self, text: str, problem: str) -> None:
        """Draw a page and a problem below it, as much as there is room for."""
        if problem:
            page = Page()
            page.line()
            page.parts(problem.split(), style="red")
            text += str(page)
        columns, rows = shutil.get_terminal_size()
        options = self._console.options.update(no_wrap=True, overflow="ignore")
        drawn = []
        for line in fitting(fold(text, columns), rows):
            line.end = ""
            segments = [*self._console.render(line, options)]
            # After a character at the right edge, this would erase it.
            if line.cell_len < columns:
                segments.append(_ERASE_REST)
            drawn.append(segments)
        drawn += [[_ERASE_REST]] * (rows - len(drawn))
        self._console.update_screen_lines(drawn)


def fitting(lines: list[Text], rows: int) -> list[Text]:
    """Return as many lines as a screen has: the header, and the end of the page.

    The first rows of a table are the least important and are left out. The column
    headings stay above the other rows.
    """
    if len(lines) <= rows:
        return lines
    bare = [line.plain for line in lines]
    head = lines[: max(1, min(bare.index("") if "" in bare else 1, rows - 2))]
    first = len(lines) - rows + len(head) + 1
    names = next((i for i, line in enumerate(bare) if line.split()[:1] == ["PID"]), 0)
    if names and names < first < bare.index("", names):
        head.append(lines[names])
        first += 1
        # Leave out the second line of a row whose first line is left out.
        width = bare[names].index("PID") + len("PID")
        while first < len(bare) and bare[first] and not bare[first][:width].strip():
            first += 1
    left_out = Text(f"... {count(len(lines) - rows + 1, 'more line')}")
    return [*head, left_out, *lines[first:]][:rows]
