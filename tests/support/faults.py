"""A proxy that simulates a faulty network between a driver and its database."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing_extensions import Self


class _Link:
    """One connection through the proxy, which two threads forward."""

    def __init__(self, client: socket.socket, server: socket.socket) -> None:
        self.client = client
        self.server = server
        self._users = 2
        self._lock = threading.Lock()

    def shut(self) -> None:
        """Shut both sockets down, which wakes their threads."""
        _shut(self.client)
        _shut(self.server)

    def leave(self) -> None:
        """Close both sockets once both threads have left.

        If they were closed earlier, another connection could get a descriptor that a
        thread is about to use.
        """
        self.shut()
        with self._lock:
            self._users -= 1
            last = self._users == 0
        if last:
            self.client.close()
            self.server.close()


class FaultProxy:
    """Listen on a loopback port and forward to a database, with faults on request.

    The port stays reserved while the proxy refuses connections.

    :param target: The database's Unix socket, or its host and port.
    """

    def __init__(self, target: Path | tuple[str, int]) -> None:
        self._target = target
        self._flowing = threading.Event()
        self._flowing.set()
        self._delay = 0.0
        self._last_words: bytes | None = None
        self._budget: int | None = None
        self._lock = threading.Lock()
        self._links: list[_Link] = []
        self._threads: list[threading.Thread] = []
        self._listener: tuple[socket.socket, threading.Thread] | None = None
        # This socket never listens. It reserves the port while the proxy does not
        # listen there.
        self._holder = self._bound(0)
        self.host: str = "127.0.0.1"
        self.port: int = self._holder.getsockname()[1]
        self._listen()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    # -- faults --------------------------------------------------------------------

    def forward(self) -> None:
        """Forward normally from now on; data that was held back arrives late."""
        self._delay = 0.0
        self._last_words = self._budget = None
        self._flowing.set()
        if self._listener is None:
            self._listen()

    def refuse(self) -> None:
        """Refuse new connections; existing ones continue."""
        self._stop_listening()

    def hang(self) -> None:
        """Accept connections and forward nothing, on existing ones either."""
        self._flowing.clear()

    def delay(self, seconds: float) -> None:
        """Delay all data by *seconds*, in both directions."""
        self._delay = seconds

    def cut(self) -> None:
        """Cut every existing connection."""
        with self._lock:
            links = list(self._links)
        for link in links:
            link.shut()

    def cut_answer_to(self, words: bytes) -> None:
        """Forward the next message that contains `words`, and cut before its answer."""
        self._last_words = words

    def cut_after(self, amount: int) -> None:
        """Cut a connection after `amount` more bytes of answers have passed."""
        self._budget = amount

    def close(self) -> None:
        """Close all connections and end all threads."""
        self._stop_listening()
        self._flowing.set()
        self._delay = 0.0
        self.cut()
        for thread in self._threads:
            thread.join(10)
        self._holder.close()

    # -- forwarding ----------------------------------------------------------------

    @staticmethod
    def _bound(port: int) -> socket.socket:
        bound = socket.socket()
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        bound.bind(("127.0.0.1", port))
        return bound

    def _start(self, target: Callable[..., None], *args: object) -> threading.Thread:
        thread = threading.Thread(
            target=target, args=args, name="fault-proxy", daemon=True
        )
        with self._lock:
            self._threads = [each for each in self._threads if each.is_alive()]
            thread.start()
            self._threads.append(thread)
        return thread

    def _listen(self) -> None:
        listener = self._bound(self.port)
        listener.listen(128)
        self._listener = listener, self._start(self._accept, listener)

    def _stop_listening(self) -> None:
        if self._listener is not None:
            (listener, thread), self._listener = self._listener, None
            _shut(listener)
            thread.join(10)

    def _accept(self, listener: socket.socket) -> None:
        with listener:
            while True:
                try:
                    client, _ = listener.accept()
                except OSError:
                    return
                try:
                    server = self._connect()
                except OSError:
                    client.close()
                    continue
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                link = _Link(client, server)
                with self._lock:
                    self._links.append(link)
                self._start(self._ask, link)
                self._start(self._answer, link)

    def _connect(self) -> socket.socket:
        if isinstance(self._target, tuple):
            return socket.create_connection(self._target, 10)
        server = socket.socket(socket.AF_UNIX)
        try:
            server.connect(str(self._target))
        except OSError:
            server.close()
            raise
        return server

    def _ask(self, link: _Link) -> None:
        try:
            for data in self._received(link.client):
                words = self._last_words
                if words is not None and words in data:
                    self._last_words, self._budget = None, 0
                link.server.sendall(data)
        except OSError:
            pass  # the connection was cut
        finally:
            self._leave(link)

    def _answer(self, link: _Link) -> None:
        try:
            for data in self._received(link.server):
                budget = self._budget
                if budget is None or len(data) < budget:
                    self._budget = None if budget is None else budget - len(data)
                    link.client.sendall(data)
                else:
                    self._budget = None
                    link.client.sendall(data[:budget])
                    return
        except OSError:
            pass  # the connection was cut
        finally:
            self._leave(link)

    def _received(self, source: socket.socket) -> Iterator[bytes]:
        while data := source.recv(1 << 16):
            if self._delay:
                time.sleep(self._delay)
            self._flowing.wait()
            yield data

    def _leave(self, link: _Link) -> None:
        with self._lock:
            if link in self._links:
                self._links.remove(link)
        link.leave()


def _shut(which: socket.socket) -> None:
    with suppress(OSError):
        which.shutdown(socket.SHUT_RDWR)
