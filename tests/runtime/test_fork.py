"""What is reset in a child process; whole processes are forked in tests/whole."""

from __future__ import annotations

import gc
import os

import pytest

from flask_scopedsession._runtime import fork


class Application:
    def __init__(self, error: Exception | None = None) -> None:
        self.resets = 0
        self._error = error

    def after_fork(self) -> None:
        self.resets += 1
        if self._error is not None:
            raise self._error


@pytest.fixture(autouse=True)
def no_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fork, "_process_wide", [])
    monkeypatch.setattr(fork, "_applications", type(fork._applications)())


def test_an_application_that_fails_does_not_hinder_the_others(
    caplog: pytest.LogCaptureFixture,
) -> None:
    applications = [Application(), Application(RuntimeError("x")), Application()]
    for each in applications:
        fork.watch(each)
    fork.after_fork_in_child()
    assert [each.resets for each in applications] == [1, 1, 1]
    (record,) = caplog.records
    assert "reset after fork failed" in record.getMessage()
    assert vars(record)["scopedsession_pid"] == os.getpid()


def test_an_application_that_was_dropped_is_not_reset() -> None:
    application = Application()
    fork.watch(application)
    del application
    gc.collect()
    assert not list(fork._applications)
