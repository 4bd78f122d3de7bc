"""Bookmarks: the place in a result where a page ends, sealed for a URL.

Nobody without the application's secret key can read or make one. What is in a bookmark
is a synthetic initialization vector (RFC 5297's construction, with HMAC-SHA256 for the
tag and SHAKE256 for the key stream), and the text. So equal places have equal
bookmarks, and what could be opened is what was sealed.
"""

from __future__ import annotations

import base64
import datetime as dt
import hashlib
import hmac
import json
import os
import typing as t
from collections.abc import Callable
from collections.abc import Iterator
from decimal import Decimal
from functools import cache
from uuid import UUID

from flask import current_app

from .._runtime.logs import fields
from .._runtime.logs import log

_TAG = 16

#: How the values of drivers that JSON does not have are written and read.
_TYPES: dict[type[t.Any], tuple[Callable[[t.Any], t.Any], Callable[[t.Any], t.Any]]] = {
    Decimal: (str, Decimal),
    UUID: (str, UUID),
    bytes: (bytes.hex, bytes.fromhex),
    dt.date: (dt.date.isoformat, dt.date.fromisoformat),
    dt.time: (dt.time.isoformat, dt.time.fromisoformat),
    dt.datetime: (dt.datetime.isoformat, dt.datetime.fromisoformat),
    dt.timedelta: (
        lambda value: [value.days, value.seconds, value.microseconds],
        lambda parts: dt.timedelta(*parts),
    ),
}
_BY_NAME = {type_.__name__: read for type_, (_, read) in _TYPES.items()}


def seal(about: str, content: t.Any) -> str:
    """Return a bookmark.

    :param about: What is needed to open it again.
    :raises TypeError: The content has a value of an unknown type.
    """
    data = json.dumps(content, default=_written, separators=(",", ":")).encode()
    data += b" " * (-len(data) % 32)  # else its length says much of a short value
    for_tag, for_stream = next(_keys())
    tag = _tag(for_tag, about, data)
    sealed = tag + _mixed(for_stream, tag, data)
    return base64.urlsafe_b64encode(sealed).decode().rstrip("=")


def unseal(about: str, bookmark: t.Any) -> t.Any:
    """Return the content of a bookmark, or ``None`` if it is none."""
    try:
        text = bookmark.encode("ascii")
        sealed = base64.b64decode(text + b"=" * (-len(text) % 4), b"-_", validate=True)
    except (AttributeError, ValueError):
        return None
    tag, mixed = sealed[:_TAG], sealed[_TAG:]
    for for_tag, for_stream in _keys():
        data = _mixed(for_stream, tag, mixed)
        if hmac.compare_digest(_tag(for_tag, about, data), tag):
            return json.loads(data, object_hook=_read)
    return None


def _written(value: t.Any) -> t.Any:
    if isinstance(value, memoryview):
        value = bytes(value)
    if type(value) not in _TYPES:
        raise TypeError(type(value).__name__)
    return {type(value).__name__: _TYPES[type(value)][0](value)}


def _read(pair: dict[str, t.Any]) -> t.Any:
    [(name, written)] = pair.items()
    return _BY_NAME[name](written)


def _tag(key: bytes, about: str, data: bytes) -> bytes:
    return hmac.digest(key, about.encode() + b"\0" + data, "sha256")[:_TAG]


def _mixed(key: bytes, tag: bytes, data: bytes) -> bytes:
    """Encrypt or decrypt."""
    stream = hashlib.shake_256(key + tag).digest(len(data))
    return bytes(a ^ b for a, b in zip(data, stream, strict=True))


def _keys() -> Iterator[tuple[bytes, bytes]]:
    """Yield the keys of the current secret key, and of those before it."""
    config = current_app.config
    secret = config.get("SECRET_KEY") or _key_of_process()
    for each in (secret, *(config.get("SECRET_KEY_FALLBACKS") or ())):
        key = each.encode() if isinstance(each, str) else each
        yield _derived(key, b"tag"), _derived(key, b"stream")


def _derived(key: bytes, purpose: bytes) -> bytes:
    return hmac.digest(key, b"flask-scopedsession bookmark " + purpose, "sha256")


@cache
def _key_of_process() -> bytes:
    log.warning(
        "SECRET_KEY is not set, so the bookmarks of paginate_keyset() are valid in this"
        " process alone, until it ends. Set SECRET_KEY.",
        extra=fields("configuration"),
    )
    return os.urandom(32)
