"""What is said over a control socket: one request, one reply, both JSON.

Each is preceded by its length as four bytes, big-endian. A request is
``{"protocol": 1, "want": "snapshot"}``; there is none that acts on a worker.
"""

from __future__ import annotations

import json
import struct
import sys
import typing as t

PROTOCOL = 1
REQUEST = {"protocol": PROTOCOL, "want": "snapshot"}

#: Seconds that one conversation may take.
DEADLINE = 5.0

REQUEST_LIMIT = 64 * 1024
REPLY_LIMIT = 16 * 1024 * 1024

_LENGTH = struct.Struct("!I")


class Malformed(ValueError):
    """The other side broke the protocol; the message says how."""


def pack(message: object) -> bytes:
    """Return `message` as it goes over the wire."""
    body = json.dumps(message, separators=(",", ":")).encode()
    return _LENGTH.pack(len(body)) + body


def unpack(received: bytes | bytearray, limit: int) -> dict[str, t.Any] | None:
    """Return the message once it is complete, ``None`` until then.

    :param limit: The most bytes a message may announce.
    :raises Malformed: It is too large, or no JSON object.
    """
    if len(received) < _LENGTH.size:
        return None
    (length,) = _LENGTH.unpack_from(received)
    if length > limit:
        raise Malformed("too large")
    if len(received) - _LENGTH.size < length:
        return None
    body = bytes(received[_LENGTH.size : _LENGTH.size + length])
    try:
        message = json.loads(body)
    except (ValueError, RecursionError):
        raise Malformed("no JSON") from None
    if not isinstance(message, dict):
        raise Malformed("no JSON object")
    return message


def peer_credentials(connection: t.Any) -> tuple[int | None, int] | None:
    """Return the process id, if known, and user id at the other end of a socket.

    Linux: ``SO_PEERCRED``, for a listener those of the process that listens.
    macOS and the BSDs: ``LOCAL_PEERCRED``. Elsewhere ``None``: no service then.
    """
    import socket

    option = getattr(socket, "SO_PEERCRED", None)
    if option is not None:
        raw = connection.getsockopt(socket.SOL_SOCKET, option, struct.calcsize("3i"))
        pid, uid, _ = struct.unpack("3i", raw)
        return pid, uid
    if sys.platform == "darwin" or "bsd" in sys.platform:
        # struct xucred: a version, the uid, then groups; SOL_LOCAL is 0.
        raw = connection.getsockopt(0, 1, 76)
        _, uid = struct.unpack_from("II", raw)
        return None, uid
    return None
