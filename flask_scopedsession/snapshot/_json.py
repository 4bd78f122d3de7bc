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
        return {
            field.name: _plain(getattr(self, field.name))
            for field in dataclasses.fields(t.cast(t.Any, self))
        }

    @classmethod
    def from_dict(cls, data: object) -> Self:
        """Return a reading, given the result of :meth:`to_dict`.

        Unknown keys are ignored, so that a newer process can be read.

        :raises ValueError: A field is missing, or has another type than annotated.
        """
        if not isinstance(data, Mapping):
            raise ValueError(f"{cls.__name__} is not an object")  # noqa: TRY004
        values = {}
        for name, (kind, required) in _fields(t.cast(t.Any, cls)).items():
            if name in data:
                values[name] = _typed(kind, data[name], f"{cls.__name__}.{name}")
            elif required:
                raise ValueError(f"{cls.__name__}.{name} is missing")
        return cls(**values)


def _plain(value: t.Any) -> t.Any:
    if isinstance(value, Reading):
        return value.to_dict()
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {_plain(key): _plain(item) for key, item in value.items()}
    if isinstance(value, float):
        return round(value, 6)
    return clean(value) if isinstance(value, str) else value


_UNPRINTABLE = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff]"
)


def clean(text: str) -> str:
    """Strip control characters, escapes and bidirectional marks."""
    return _UNPRINTABLE.sub("", text)


@cache
def _fields(cls: type) -> dict[str, tuple[t.Any, bool]]:
    hints = t.get_type_hints(cls)
    return {
        field.name: (hints[field.name], field.default is dataclasses.MISSING)
        for field in dataclasses.fields(cls)
    }


def _finite(value: object) -> float | None:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        with suppress(OverflowError):
            if math.isfinite(number := float(value)):
                return number
    return None


def _typed(kind: t.Any, value: t.Any, where: str) -> t.Any:
    """Check a value from another process against its annotation, and return it."""
    origin = t.get_origin(kind)
    arguments = t.get_args(kind)
    if origin in (t.Union, types.UnionType):
        if value is None:
            return None
        return _typed(next(a for a in arguments if a is not type(None)), value, where)
    if origin is t.Literal:
        if value in arguments:
            return value
    elif origin is tuple:
        if isinstance(value, (list, tuple)):
            return tuple(_typed(arguments[0], item, where) for item in value)
    elif origin is not None:  # a mapping
        if isinstance(value, Mapping):
            return {
                clean(str(key)): _typed(arguments[1], item, where)
                for key, item in value.items()
            }
    elif isinstance(kind, type) and issubclass(kind, Reading):
        return kind.from_dict(value)
    elif kind is float:
        number = _finite(value)
        if number is not None:
            return number
    elif kind is str:
        if isinstance(value, str):
            return clean(value)
    elif isinstance(value, kind) and (kind is bool or not isinstance(value, bool)):
        return value
    raise ValueError(f"{where} is not {getattr(kind, '__name__', kind)}")


def timestamp(seconds: float | None = None) -> str:
    """Return a point in time as RFC 3339 in UTC.

    :param seconds: As :func:`time.time`; ``None`` for now.
    """
    moment = datetime.fromtimestamp(
        time.time() if seconds is None else seconds, timezone.utc
    )
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
