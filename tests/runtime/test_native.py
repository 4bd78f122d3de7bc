"""Threads, locks and sockets of the operating system, with and without gevent."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flask_scopedsession._runtime import native


def test_a_thread_has_ended_after_a_join() -> None:
    """For the operating system, too, which Python asks when a process forks."""
    go_on = threading.Event()
    thread = native.NativeThread(lambda: go_on.wait(10), "waits")  # type: ignore[arg-type]
    task = Path(f"/proc/self/task/{_native_id('waits')}")
    assert not thread.join(0.01)
    go_on.set()
    assert thread.join(10)
    assert not task.exists()


def _native_id(name: str) -> int | None:
    return next(t.native_id for t in threading.enumerate() if t.name == name)


def test_a_connection_is_accepted(short_tmp: Path) -> None:
    with (
        socket.socket(socket.AF_UNIX) as listener,
        socket.socket(socket.AF_UNIX) as client,
    ):
        listener.bind(str(short_tmp / "sock"))
        listener.listen(1)
        listener.setblocking(False)
        assert native.can_accept(listener)
        with pytest.raises(BlockingIOError):
            native.accept(listener)
        client.connect(str(short_tmp / "sock"))
        with native.accept(listener) as connection:
            client.send(b"x")
            assert connection.recv(1) == b"x"


@pytest.mark.subprocess
def test_under_gevent_nothing_is_cooperative(
    run_script: Callable[..., Any], short_tmp: Path
) -> None:
    pytest.importorskip("gevent")
    result = run_script(
        """
        import gevent.monkey
        gevent.monkey.patch_all()
        import gevent._hub_local, os, socket, sys, threading
        from flask_scopedsession._runtime import native

        assert native.is_patched("socket") and native.is_patched("threading")
        assert native.current_greenlet() is not None
        lock = native.allocate_lock()
        assert not isinstance(lock, type(threading.Lock()))

        def accept():
            try:
                unpatched = native.original("socket", "socket")
                listener = unpatched(socket.AF_UNIX, socket.SOCK_STREAM)
                listener.bind(sys.argv[1])
                listener.listen(1)
                assert native.can_accept(listener)
                client = unpatched(socket.AF_UNIX, socket.SOCK_STREAM)
                client.connect(sys.argv[1])
                connection = native.accept(listener)
                assert type(connection) is unpatched, type(connection)
                for each in (listener, client, connection):
                    each.close()
                found.append(gevent._hub_local.get_hub_if_exists())
            except BaseException as error:
                found.append(error)

        found = []
        thread = native.NativeThread(accept, "accepts")
        assert thread.join(10)
        assert found == [None], found
        print("content")
        """,
        str(short_tmp / "sock"),
    )
    assert result.check().stdout == "content\n"
