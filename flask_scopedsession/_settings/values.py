"""Parsers of single values, which may have come from the environment as text.

`where` is the key or argument, for the message of a :exc:`.ConfigError`. The value is
never in the message, because it may hold a password.
"""

from __future__ import annotations

import os
import typing as t
from collections.abc import Callable
from collections.abc import Mapping
from contextlib import suppress

from ..errors import ConfigError

T = t.TypeVar("T")

_FALSE_WORDS = frozenset(("false", "no", "off", "0"))
_TRUE_WORDS = frozenset(("true", "yes", "on", "1"))


def attempt(make: Callable[[], T], *expected: type[Exception]) -> T | Exception:
    """Return what `make` returns, or the error that it raised.

    An error that is raised afterwards, outside of the ``except`` block, does not have
    this one as its ``__context__``, which may quote a URL with its password.
    """
    try:
        return make()
    except expected as error:
        return error


def chosen(config: Mapping[str, t.Any], key: str) -> t.Any:
    """Return what is configured; ``None`` when the key is missing or empty."""
    value = config.get(key)
    return None if isinstance(value, str) and not value.strip() else value


def boolean(where: str, value: object) -> bool:
    """Return a truth value that may have been given as text."""
    if isinstance(value, str):
        word = value.strip().lower()
        if word in _FALSE_WORDS:
            return False
        if word in _TRUE_WORDS:
            return True
    elif isinstance(value, int) and value in (0, 1):
        return bool(value)
    raise ConfigError(f"{where} must be true or false.")


def is_on(config: Mapping[str, t.Any], key: str) -> bool:
    """Whether one of Flask's own flags is set: from the environment, it is text."""
    value = chosen(config, key)
    return boolean(key, value) if isinstance(value, str) else bool(value)


def echo(where: str, value: object) -> bool | t.Literal["debug"]:
    """Return a truth value or ``"debug"``."""
    if value == "debug":
        return "debug"
    with suppress(ConfigError):
        return boolean(where, value)
    raise ConfigError(f"{where} must be true, false or 'debug'.")


def choice(*words: str) -> Callable[[str, object], str]:
    """Return a parser that accepts these words and no others."""
    listed = f"{', '.join(map(repr, words[:-1]))} or {words[-1]!r}"

    def parse(where: str, value: object) -> str:
        if isinstance(value, str) and value in words:
            return value
        raise ConfigError(f"{where} must be {listed}.")

    return parse


def integer(where: str, value: object, *, least: int) -> int:
    """Return a whole number that may have been given as text."""
    number = value
    if isinstance(value, str):
        with suppress(ValueError):
            number = int(value)
    if isinstance(number, float) and number.is_integer():
        number = int(number)
    if isinstance(number, int) and not isinstance(number, bool) and number >= least:
        return number
    raise ConfigError(f"{where} must be a whole number, at least {least}.")


def seconds(where: str, value: object, *, least: float) -> float:
    """Return a number of seconds that may have been given as text."""
    number = float("nan")
    if isinstance(value, (str, int, float)) and not isinstance(value, bool):
        with suppress(ValueError, OverflowError):
            number = float(value)
    if least <= number < float("inf"):  # false for "not a number"
        return number
    raise ConfigError(f"{where} must be a number of seconds, at least {least:g}.")


def optional_seconds(where: str, value: object) -> float | None:
    """Return a number of seconds, at least 0, or ``None``."""
    return None if value is None else seconds(where, value, least=0)


def text(where: str, value: object) -> str:
    """Return text; ``from_prefixed_env()`` reads ``42`` as a number."""
    if isinstance(value, str):
        return value
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return str(value)
    raise ConfigError(f"{where} must be a string, not {kind(value)}.")


def file_name(where: str, value: str) -> str:
    """Return text that can name a file."""
    if "\0" in value:
        raise ConfigError(f"{where} may not contain a NUL character.")
    # Bytes of the environment that are not UTF-8 arrive as surrogates, and go back.
    if isinstance(attempt(lambda: os.fsencode(value), UnicodeError), UnicodeError):
        raise ConfigError(f"{where} has characters that cannot be encoded.")
    return value


def mapping(where: str, value: object) -> dict[str, t.Any]:
    """Return a copy of a dict whose keys are strings."""
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise ConfigError(f"{where} must be a dict, not {kind(value)}.")
    if not all(isinstance(name, str) for name in value):
        raise ConfigError(f"{where} must have strings as keys.")
    return dict(value)


def kind(value: object) -> str:
    """Return a value's type in words, such as ``a list``; never the value."""
    name = type(value).__name__
    return "None" if value is None else f"{'an' if name[0] in 'aeiou' else 'a'} {name}"
