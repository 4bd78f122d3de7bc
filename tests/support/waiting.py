"""Waits that end: for a fact to hold, never for an amount of time."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def wait_until(
    check: Callable[[], T],
    *,
    timeout: float = 10.0,
    every: float = 0.02,
    what: str | Callable[[], str] = "the condition",
) -> T:
    """Call ``check`` until what it returns is true, and return that.

    :param timeout: Seconds after which the wait fails with :exc:`TimeoutError`.
    :param every: Seconds between two calls.
    :param what: What was waited for, for the error's message.
    """
    deadline = time.monotonic() + timeout
    while not (found := check()):
        if time.monotonic() > deadline:
            name = what if isinstance(what, str) else what()
            raise TimeoutError(f"{name}: not within {timeout:g} s")
        time.sleep(every)
    return found
