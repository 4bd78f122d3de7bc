"""Waiting for a condition, with a timeout, instead of for a fixed time."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def wait_until(
    check: Callable[[], T],
    *,
    timeout: float = 30.0,
    every: float = 0.02,
    what: str | Callable[[], str] = "the condition",
) -> T:
    """Call ``check`` until it returns a true value, and return that value.

    :param timeout: Seconds after which the wait fails with :exc:`TimeoutError`.
    :param every: Seconds between two calls.
    :param what: A description of the condition, for the error's message.
    """
    deadline = time.monotonic() + timeout
    while not (found := check()):
        if time.monotonic() > deadline:
            name = what if isinstance(what, str) else what()
            raise TimeoutError(f"{name}: not within {timeout:g} s")
        time.sleep(every)
    return found
