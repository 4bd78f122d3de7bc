"""Frozen readings to JSON and back, checked against their annotations.

The JSON may come from a broken or compromised process.
"""

from __future__ import annotations

import dataclasses
import math
import re
import time
import types
import typing as t
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime
from datetime import timezone
from functools import cache

if t.TYPE_CHECKING:
    from typing_extensions import Self


class Reading:
    """A frozen dataclass that can be converted to plain data and back."""

    __slots__ = ()

    def to_dict(self) -> dict[str, t.Any]:
        """Return plain dicts, lists and scalars, ready for :func:`json.dumps`."""
        names = _fields(t.cast(t.Any, type(self)))
        return {name: _plain(getattr(self, name)) for name in names}

    @classmethod
    def from_dict(cls, data: object) -> Self:
        """Return a reading, given the result of :meth:`to_dict`.

        Unknown keys are ignored, so that a newer process can be read. To read what
        ``flask pool-status --json`` has printed::

            survey = Survey.from_dict(json.loads(text))

        :param data: The dict, or what :func:`json.loads` returned.
        :raises ValueError: A field is missing, or has another type than annotated.
        """
        if not isinstance(data, Mapping):
            raise ValueError(f"{cls.__name__} is not an object")  # noqa: TRY004
        values = {}
        for name, (check, required) in _fields(t.cast(t.Any, cls)).items():
            if name in data:
                try:
                    values[name] = check(data[name])
                except _WrongType as error:
                    raise ValueError(f"{cls.__name__}.{name} is not {error}") from None
            elif required:
                raise ValueError(f"{cls.__name__}.{name} is missing")
        return cls(**values)


#: Types of which most values are, in JSON as they are.
_AS_IT_IS = frozenset({int, bool, type(None)})


def _plain(value: t.Any) -> t.Any:
    kind = type(value)
    if kind in _AS_IT_IS:
        return value
    if kind is float:
        return round(value, 6)
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, Reading):
        return value.to_dict()
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {_plain(key): _plain(item) for key, item in value.items()}
    return value


_UNPRINTABLE = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff]"
)


def clean(text: str) -> str:
    """Strip control characters, escapes and bidirectional marks."""
    if text.isascii() and text.isprintable():
        return text
    return _UNPRINTABLE.sub("", text)


class _WrongType(Exception):
    """A value has another type than annotated; the text is the annotated one."""


_Check = t.Callable[[t.Any], t.Any]


@cache
def _fields(cls: type) -> dict[str, tuple[_Check, bool]]:
    """Return how to check each field of a class, and whether it is required."""
    hints = t.get_type_hints(cls)
    return {
        field.name: (_check_of(hints[field.name]), field.default is dataclasses.MISSING)
        for field in dataclasses.fields(t.cast(t.Any, cls))
    }


def _check_of(kind: t.Any) -> _Check:
    """Return a function that checks a value from another process, and returns it.

    It is made once per field, because a thousand workers send 600,000 values.

    :param kind: The annotation of the field.
    """
    origin = t.get_origin(kind)
    arguments = t.get_args(kind)
    if origin in (t.Union, types.UnionType):
        inner = _check_of(next(a for a in arguments if a is not type(None)))
        return lambda value: None if value is None else inner(value)
    if origin is tuple:
        return _check_of_items(arguments[0])
    if origin is not None and origin is not t.Literal:
        return _check_of_mapping(_check_of(arguments[1]))
    if isinstance(kind, type) and issubclass(kind, Reading):
        return kind.from_dict

    def literal(value: t.Any) -> t.Any:
        if value in arguments:
            return value
        raise _WrongType(kind)

    def number(value: t.Any) -> float:
        if type(value) in (float, int):
            with suppress(OverflowError):
                if math.isfinite(found := float(value)):
                    return found
        raise _WrongType("float")

    def string(value: t.Any) -> str:
        if isinstance(value, str):
            return clean(value)
        raise _WrongType("str")

    def exact(value: t.Any) -> t.Any:
        if type(value) is kind:  # a bool is no int
            return value
        raise _WrongType(kind.__name__)

    if origin is t.Literal:
        return literal
    return {float: number, str: string}.get(kind, exact)


def _check_of_items(kind: t.Any) -> _Check:
    check = _check_of(kind)

    def items(value: t.Any) -> tuple[t.Any, ...]:
        if not isinstance(value, (list, tuple)):
            raise _WrongType("tuple")
        if kind is int and set(map(type, value)) <= {int}:
            return tuple(value)  # the buckets, which are most values of a worker
        return tuple(map(check, value))

    return items


def _check_of_mapping(check: _Check) -> _Check:
    def mapping(value: t.Any) -> dict[str, t.Any]:
        if not isinstance(value, Mapping):
            raise _WrongType("Mapping")
        return {clean(str(key)): check(item) for key, item in value.items()}

    return mapping


def timestamp(seconds: float | None = None) -> str:
    """Return a point in time as RFC 3339 in UTC.

    :param seconds: As :func:`time.time`; ``None`` for now.
    """
    moment = datetime.fromtimestamp(
        time.time() if seconds is None else seconds, timezone.utc
    )
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
