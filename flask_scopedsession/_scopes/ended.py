"""How long requests, commands and jobs lasted, and how many statements each sent."""

from __future__ import annotations

from collections import deque

from .._buckets import STATEMENT_BOUNDS
from .._runtime.native import allocate_lock
from .._tally import Tally

#: Scopes that may wait to be counted.
_PENDING = 128


class EndedScopes:
    """Two histograms of the scopes of contexts, as these end.

    To add one is one ``deque.append``, which takes no lock.
    """

    def __init__(self) -> None:
        self.waiting: deque[tuple[float, int]] = deque()
        """Seconds and statements of each that is not counted yet."""
        self._durations = Tally()
        self._statements = Tally(STATEMENT_BOUNDS)
        self._lock = allocate_lock()

    def add(self, seconds: float, statements: int) -> None:
        """Count a scope that ends."""
        self.waiting.append((seconds, statements))
        if len(self.waiting) >= _PENDING and self._lock.acquire(False):
            try:
                self._count()
            finally:
                self._lock.release()

    def read(self) -> tuple[Tally, Tally]:
        """Return what was counted since the start: seconds, and statements."""
        with self._lock:
            self._count()
            found = Tally(), Tally(STATEMENT_BOUNDS)
            found[0].merge(self._durations)
            found[1].merge(self._statements)
        return found

    def _count(self) -> None:
        take = self.waiting.popleft
        taken = [take() for _ in range(len(self.waiting))]
        if taken:
            seconds, statements = zip(*taken, strict=True)
            self._durations.add(seconds)
            self._statements.add(statements)
