"""One request and one reply in JSON, of limited size, without surprises."""

from __future__ import annotations

import json
import os
import socket
import struct

import pytest

from flask_scopedsession._control import protocol
from flask_scopedsession._control.protocol import decode
from flask_scopedsession._control.protocol import Malformed
from flask_scopedsession._control.protocol import pack
from flask_scopedsession._control.protocol import peer_credentials
from flask_scopedsession._control.protocol import TooLarge
from flask_scopedsession._control.protocol import unpack


def test_a_message_may_arrive_in_any_two_pieces() -> None:
    message = {"want": "snapshot", "n": [1, 2.5, None, True, "ü"]}
    wire = pack(message)
    for cut in range(len(wire)):
        assert unpack(wire[:cut], 1000) is None
    assert unpack(wire, 1000) == message


def test_bytes_after_a_message_are_ignored() -> None:
    assert unpack(pack({"a": 1}) + b"more", 100) == {"a": 1}


def test_a_length_over_the_limit_is_refused_before_its_body_arrives() -> None:
    with pytest.raises(TooLarge):
        unpack(struct.pack("!I", 101), 100)
    assert unpack(struct.pack("!I", 100), 100) is None


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\x80\x04K\x01.",  # a pickle
        b"nonsense",
        b"[]",
        b'"text"',
        b"null",
        b"\xff\xfe",
        b'{"a": NaN}',
        b'{"a": -Infinity}',
        b'{"a": 1e999}',
        b'{"a": 999999999999999999999}',
        b'{"a": ' + b"9" * 5000 + b"}",
        b"[" * 60_000,
        b'{"a":' * 60_000,
    ],
)
def test_malformed_messages_raise_one_error(body: bytes) -> None:
    with pytest.raises(Malformed):
        decode(body)
    with pytest.raises(Malformed):
        unpack(struct.pack("!I", len(body)) + body, 1 << 20)


def test_integers_and_floats_keep_their_type() -> None:
    found = decode(b'{"i": 3, "f": 3.0, "big": -9223372036854775808}')
    assert found == {"i": 3, "f": 3.0, "big": -(2**63)}
    assert [type(value) for value in found.values()] == [int, float, int]


def test_peer_credentials_are_the_process_and_the_user() -> None:
    one, other = socket.socketpair()
    with one, other:
        assert peer_credentials(one) in (
            (os.getpid(), os.geteuid()),
            (None, os.geteuid()),
        )


class Xucred:
    """A socket that answers as the header files of macOS describe."""

    def __init__(self, version: int) -> None:
        groups = struct.pack("16I", *range(16))
        self.raw = struct.pack("=IIhxx", version, 501, 16) + groups

    def getsockopt(self, level: int, option: int, size: int) -> bytes:
        assert (level, option) == (0, 1)  # SOL_LOCAL, LOCAL_PEERCRED
        assert len(self.raw) == size
        return self.raw


def test_peer_credentials_on_macos_are_the_user(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(protocol, "_LINUX", False)
    monkeypatch.setattr(protocol, "_BSD", True)
    assert peer_credentials(Xucred(0)) == (None, 501)
    assert peer_credentials(Xucred(1)) is None  # an unknown layout


def test_a_platform_without_credentials_has_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(protocol, "_LINUX", False)
    monkeypatch.setattr(protocol, "_BSD", False)
    one, other = socket.socketpair()
    with one, other:
        assert peer_credentials(one) is None


def test_the_only_request_is_for_a_snapshot() -> None:
    assert json.loads(pack(protocol.REQUEST)[4:]) == {"protocol": 1, "want": "snapshot"}
