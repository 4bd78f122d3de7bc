"""Options of engines and sessions, some of which arrive as text."""

from __future__ import annotations

import typing as t
from collections.abc import Callable
from collections.abc import Mapping
from functools import partial

from sqlalchemy import pool as sa_pool
from sqlalchemy.pool import Pool

from ..errors import ConfigError
from .values import boolean
from .values import echo
from .values import integer
from .values import mapping
from .values import optional_seconds
from .values import text


def engine_options(where: str, value: object) -> dict[str, t.Any]:
    """Return a copy of options for ``create_engine()``, parsed where they are text.

    Options that are not in the table are left to SQLAlchemy.

    :param where: The key or argument that the options came from.
    :raises ConfigError: One has the wrong type; the message names it.
    """
    options = mapping(where, value)
    for name in options.keys() & _ENGINE_OPTIONS.keys():
        options[name] = _ENGINE_OPTIONS[name](f"{where}: {name}", options[name])
    return options


def session_options(where: str, value: object) -> dict[str, t.Any]:
    """Return a copy of options for the sessionmaker, parsed where they are text.

    :raises ConfigError: One has the wrong type, or is set in another place.
    """
    options = mapping(where, value)
    for name, instead in _SET_ELSEWHERE.items():
        if name in options:
            raise ConfigError(f"{where} may not hold {name!r}. Use {instead}.")
    for name in _SESSION_FLAGS:
        if isinstance(options.get(name), (str, int)):
            options[name] = boolean(f"{where}: {name}", options[name])
    return options


def _pool_class(where: str, value: object) -> t.Any:
    found = getattr(sa_pool, value, None) if isinstance(value, str) else value
    if isinstance(found, type) and issubclass(found, Pool):
        return found
    raise ConfigError(
        f"{where} must be a pool class of SQLAlchemy or its name, such as 'NullPool'."
    )


def _pool(where: str, value: object) -> Pool | None:
    if value is None or isinstance(value, Pool):
        return value
    raise ConfigError(
        f"{where} must be a pool, made by you; for a class use 'poolclass'."
    )


def _creator(where: str, value: object) -> t.Any:
    if value is None or callable(value):
        return value
    raise ConfigError(f"{where} must be a function that returns a DBAPI connection.")


_ENGINE_OPTIONS: Mapping[str, Callable[[str, t.Any], t.Any]] = {
    "connect_args": mapping,
    "creator": _creator,
    "echo": echo,
    "echo_pool": echo,
    "execution_options": mapping,
    "hide_parameters": boolean,
    "isolation_level": text,
    "max_overflow": partial(integer, least=-1),
    "pool": _pool,
    "pool_pre_ping": boolean,
    "pool_recycle": partial(integer, least=-1),
    "pool_size": partial(integer, least=0),
    "pool_timeout": optional_seconds,
    "pool_use_lifo": boolean,
    "poolclass": _pool_class,
    "query_cache_size": partial(integer, least=0),
}
_SESSION_FLAGS = (
    *("autobegin", "autoflush", "close_resets_only", "enable_baked_queries"),
    *("expire_on_commit", "twophase"),
)
_SET_ELSEWHERE = {
    "class_": "ScopedSession(session_options={'class_': ...})",
    "bind": "SQLALCHEMY_DATABASE_URI",
    "binds": "ScopedSession(binds=...) and SQLALCHEMY_BINDS",
}
