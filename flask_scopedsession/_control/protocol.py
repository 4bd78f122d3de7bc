"""The messages on a control socket: one request and one reply, both JSON.

Each is preceded by its length in four bytes, big-endian. The only request is
``{"protocol": 1, "want": "snapshot"}``. None changes anything in a worker.
"""

from __future__ import annotations

import json
import math
import socket
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

#: Linux: ``struct ucred``, the process ID, then the user ID and the group ID.
_UCRED = struct.Struct("3i")

#: macOS, FreeBSD: the beginning of ``struct xucred``, a version and the user ID.
#: SOL_LOCAL is 0, LOCAL_PEERCRED is 1; the socket module has no names for them.
_XUCRED = struct.Struct("=II")
_XUCRED_SIZE = 76

_LINUX = sys.platform in ("linux", "android") and hasattr(socket, "SO_PEERCRED")
_BSD = sys.platform == "darwin" or sys.platform.startswith("freebsd")

#: Whether this platform reports the user at the other end; required for answering.
CREDENTIALS = _LINUX or _BSD


class Malformed(ValueError):
    """The other side broke the protocol; the message says how."""


class TooLarge(Malformed):
    """The other side announced more than it may send."""


def pack(message: object) -> bytes:
    """Return a message as it is sent: its length and its JSON."""
    return frame(encode(message))


def encode(message: object) -> bytes:
    """Return a message as compact JSON."""
    return json.dumps(message, separators=(",", ":")).encode()


def frame(body: bytes) -> bytes:
    """Return a message that is encoded already, preceded by its length."""
    return _LENGTH.pack(len(body)) + body


def unpack(received: bytes | bytearray, limit: int) -> dict[str, t.Any] | None:
    """Return the message once it is complete, ``None`` until then.

    :param limit: Most bytes that a message may announce.
    :raises Malformed: It is too large, or not a JSON object.
    """
    if len(received) < _LENGTH.size:
        return None
    (length,) = _LENGTH.unpack_from(received)
    if length > limit:
        raise TooLarge(f"more than {limit} bytes")
    if len(received) - _LENGTH.size < length:
        return None
    return decode(bytes(received[_LENGTH.size : _LENGTH.size + length]))


def decode(body: bytes) -> dict[str, t.Any]:
    """Return the JSON object in `body`.

    :raises Malformed: It is something else, or contains huge or infinite numbers.
    """
    try:
        message = json.loads(
            body, parse_int=_int, parse_float=_float, parse_constant=_float
        )
    except (ValueError, RecursionError):
        raise Malformed("no JSON") from None
    if not isinstance(message, dict):
        raise Malformed("no JSON object")
    return message


def _int(digits: str) -> int:
    if len(digits) > 20:
        raise ValueError
    return int(digits)


def _float(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise ValueError
    return number


def peer_credentials(connection: t.Any) -> tuple[int | None, int] | None:
    """Return the process ID, if known, and the user ID at the other end of a socket.

    They are those at the time of ``connect()``, or of ``listen()`` for the listening
    side. The process ID is unknown if it is not in this PID namespace.
    """
    if _LINUX:
        raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
        pid, uid, _ = _UCRED.unpack(raw)
        return pid or None, uid
    if _BSD:
        raw = connection.getsockopt(0, 1, _XUCRED_SIZE)
        version, uid = _XUCRED.unpack_from(raw)
        return (None, uid) if version == 0 else None
    return None
