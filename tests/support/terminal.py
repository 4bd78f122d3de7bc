"""A terminal for tests: they read its screen, type, and resize it."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import struct
import sys
import termios
import time
from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import pyte
import pyte.modes
from environment import child_environ
from environment import WORKERS
from lean import LEAN
from starting import start

_SWITCH = re.compile(rb"\x1b\[\?1049([hl])")


class Terminal:
    """Run a command under a small shell on a pseudo-terminal.

    ::

        with Terminal(["-m", "flask", "pool-status", "--watch"], columns=80) as it:
            it.wait_for("PID")
            it.type("\\x03")
            it.wait_for("exit 130")

    It has a normal and an alternate screen, as a real terminal has.

    :param args: Arguments for ``lean.py``.
    :param env: Added to the environment; ``None`` removes a variable.
    """

    def __init__(
        self,
        args: Sequence[str],
        *,
        columns: int = 80,
        rows: int = 24,
        env: Mapping[str, str | None] | None = None,
    ) -> None:
        self._main, self._other = pty.openpty()
        self._screens = {key: pyte.Screen(columns, rows) for key in (b"l", b"h")}
        self._streams = {k: pyte.ByteStream(s) for k, s in self._screens.items()}
        self._current = b"l"
        self._pending = b""
        #: All bytes that the terminal has received.
        self.sent = b""
        self._set_size(columns, rows)
        shell = Path(__file__).with_name("shell.py")
        self._process = start(
            [sys.executable, LEAN, str(shell), *args],
            stdin=self._other,
            stdout=self._other,
            stderr=self._other,
            env=child_environ({"TERM": "xterm-256color", **(env or {})}),
            cwd=WORKERS,
        )
        os.close(self._other)

    def __enter__(self) -> Terminal:  # noqa: PYI034  # Self is newer than 3.10
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        # Closing the terminal sends SIGHUP, which ends the command and its shell.
        os.close(self._main)
        try:
            self._process.wait(10)
        finally:
            self._process.kill()
            self._process.wait(10)

    # Output

    @property
    def screen(self) -> pyte.Screen:
        """Return the visible screen."""
        return self._screens[self._current]

    @property
    def alternate(self) -> bool:
        """Return whether the alternate screen is visible."""
        return self._current == b"h"

    @property
    def lines(self) -> list[str]:
        """Return the visible lines, without empty lines at the end."""
        text = "\n".join(line.rstrip() for line in self.screen.display)
        return text.rstrip().split("\n")

    @property
    def text(self) -> str:
        """Return the visible text."""
        return "\n".join(self.lines)

    @property
    def tidy(self) -> bool:
        """Return whether the cursor is visible and long lines wrap."""
        wraps = pyte.modes.DECAWM in self.screen.mode
        return wraps and not self.screen.cursor.hidden

    def wait_for(
        self, what: str | Callable[[], bool], *, timeout: float = 40.0
    ) -> Terminal:
        """Read output until a text is visible, or until *what* returns true."""
        deadline = time.monotonic() + timeout
        while not (what in self.text if isinstance(what, str) else what()):
            left = deadline - time.monotonic()
            assert left > 0, f"no {what!r} on the screen:\n{self.text}"
            self._read(left)
        return self

    def _read(self, timeout: float) -> None:
        if not select.select([self._main], [], [], timeout)[0]:
            return
        chunk = os.read(self._main, 65536)
        self.sent += chunk
        data = self._pending + chunk
        # An escape sequence may be split between two reads.
        cut = data.rfind(b"\x1b", -len("\x1b[?1049"))
        whole = len(data) if cut < 0 or b"1049" in data[cut:-1] else cut
        self._pending = data[whole:]
        pieces = _SWITCH.split(data[:whole])
        self._streams[self._current].feed(pieces[0])
        for switch, piece in zip(pieces[1::2], pieces[2::2], strict=True):
            self._switch(switch)
            self._streams[switch].feed(piece)

    def _switch(self, to: bytes) -> None:
        before, self._current = self.screen, to
        if to == b"h":
            self.screen.reset()
        # Both screens share these settings of the terminal.
        self.screen.cursor.hidden = before.cursor.hidden
        self.screen.mode.discard(pyte.modes.DECAWM)
        self.screen.mode |= before.mode & {pyte.modes.DECAWM}

    # Input

    def type(self, text: str) -> None:
        """Type a text."""
        os.write(self._main, text.encode())

    def resize(self, columns: int, rows: int = 24) -> None:
        """Resize the terminal's window."""
        for screen in self._screens.values():
            screen.resize(rows, columns)
        self._set_size(columns, rows)

    def _set_size(self, columns: int, rows: int) -> None:
        size = struct.pack("HHHH", rows, columns, 0, 0)
        fcntl.ioctl(self._main, termios.TIOCSWINSZ, size)

    def command_pid(self) -> int:
        """Return the ID of the process group in the foreground."""
        return os.tcgetpgrp(self._main)
