"""Threads whose results and exceptions reach the test."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any
from typing import TypeVar

T = TypeVar("T")


class Working:
    """A thread that runs a function, and keeps its result or exception."""

    def __init__(self, work: Callable[[], Any], name: str) -> None:
        self._work = work
        self._result: Any = None
        self._error: BaseException | None = None
        self.thread = threading.Thread(target=self._run, name=name, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        try:
            self._result = self._work()
        except BaseException as error:  # noqa: BLE001 - raised by result()
            self._error = error

    def result(self, timeout: float = 30) -> Any:
        """Wait for the thread; return its function's result, or raise its exception."""
        self.thread.join(timeout)
        if self.thread.is_alive():
            raise TimeoutError(f"{self.thread.name} is still running")
        if self._error is not None:
            raise self._error
        return self._result


def in_thread(work: Callable[[], T], name: str = "work") -> T:
    """Run `work` in a new thread, and return its result."""
    found: T = Working(work, name).result()
    return found
