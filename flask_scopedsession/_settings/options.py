"""Options of engines and sessions, some of which arrive as text."""

from __future__ import annotations

import typing as t
from collections.abc import Callable
from collections.abc import Mapping
from contextlib import suppress
from functools import partial

from sqlalchemy import pool as sa_pool
from sqlalchemy.pool import Pool

from ..errors import ConfigError
from .values import boolean
from .values import chosen
from .values import echo
from .values import integer
from .values import mapping
from .values import optional_seconds
from .values import seconds

_Parser = Callable[[str, t.Any], t.Any]


def engine_options(where: str, value: object) -> dict[str, t.Any]:
    """Return a copy of options for ``create_engine()``, parsed where they are text.

    Options that are not in the table are left to SQLAlchemy.

    :param where: The key or argument that the options came from.
    :raises ConfigError: One has the wrong type; the message names it.
    """
    options = mapping(where, value)
    for name in options.keys() & _ENGINE_OPTIONS.keys():
        given = options[name]
        if isinstance(given, str) and not given.strip():
            del options[name]
        elif given is not None:
            options[name] = _ENGINE_OPTIONS[name](f"{where}: {name}", given)
    return options


def without_defaults(options: Mapping[str, t.Any]) -> dict[str, t.Any]:
    """Return engine options without those that are ``None``: SQLAlchemy's default.

    Left where ``None`` is a value, such as a ``pool_timeout`` that never ends.
    """
    return {
        name: value
        for name, value in options.items()
        if value is not None or name in _TAKES_NONE or name not in _ENGINE_OPTIONS
    }


def session_options(where: str, value: object) -> dict[str, t.Any]:
    """Return a copy of options for the sessionmaker, parsed where they are text.

    :raises ConfigError: One has the wrong type, or is set in another place.
    """
    options = mapping(where, value)
    for name, instead in _SET_ELSEWHERE.items():
        if name in options:
            raise ConfigError(f"{where} may not hold {name!r}. Use {instead}.")
    for name in options.keys() & {*SESSION_FLAGS}:
        given = chosen(options, name)
        if given is None:
            del options[name]
        else:
            options[name] = boolean(f"{where}: {name}", given)
    return options


def _pool_class(where: str, value: object) -> t.Any:
    found = getattr(sa_pool, value, None) if isinstance(value, str) else value
    if isinstance(found, type) and issubclass(found, Pool):
        return found
    raise ConfigError(
        f"{where} must be a pool class of SQLAlchemy or its name, such as 'NullPool'."
    )


def _only(is_valid: Callable[[object], bool], what: str) -> _Parser:
    """Return a parser that accepts what is valid as it is."""

    def parse(where: str, value: object) -> object:
        if is_valid(value):
            return value
        raise ConfigError(f"{where} must be {what}.")

    return parse


_isolation_level = _only(lambda value: isinstance(value, str), "a string")


def _recycle(where: str, value: object) -> float:
    found = seconds(where, value, least=-1)
    return int(found) if found.is_integer() else found


def _boolean_text(where: str, value: object) -> object:
    return boolean(where, value) if isinstance(value, str) else value


def _reset_on_return(where: str, value: object) -> object:
    with suppress(ConfigError):
        return boolean(where, value)
    return value  # a word of SQLAlchemy's


def _with(*booleans: str, **others: _Parser) -> _Parser:
    """Return a parser of a dict with options of its own."""
    parsers = {**dict.fromkeys(booleans, _boolean_text), **others}

    def parse(where: str, value: object) -> dict[str, t.Any]:
        found = mapping(where, value)
        for name in found.keys() & parsers.keys():
            found[name] = parsers[name](f"{where}[{name!r}]", found[name])
        return found

    return parse


_ENGINE_OPTIONS: Mapping[str, _Parser] = {
    # All names are of booleans, with every driver that has them.
    "connect_args": _with(
        *("ansi", "as_dict", "autocommit", "buffered", "check_same_thread", "compress"),
        *("defer_connect", "events", "externalauth", "local_infile", "raw", "readonly"),
        *("ssl_disabled", "ssl_verify_cert", "ssl_verify_identity", "tcp_keepalive"),
        *("uri", "use_pure", "use_unicode"),
    ),
    "creator": _only(callable, "a function that returns a DBAPI connection"),
    "echo": echo,
    "echo_pool": echo,
    "execution_options": _with(
        *("no_parameters", "postgresql_deferrable", "postgresql_readonly"),
        *("preserve_rowcount", "stream_results"),
        isolation_level=_isolation_level,
    ),
    "insertmanyvalues_page_size": partial(integer, least=1),
    "isolation_level": _isolation_level,
    "label_length": partial(integer, least=0),
    "max_identifier_length": partial(integer, least=1),
    "max_overflow": partial(integer, least=-1),
    "pool": _only(
        lambda value: isinstance(value, Pool),
        "a pool, made by you; for a class use 'poolclass'",
    ),
    "pool_recycle": _recycle,
    "pool_reset_on_return": _reset_on_return,
    "pool_size": partial(integer, least=0),
    "pool_timeout": optional_seconds,
    "poolclass": _pool_class,
    "query_cache_size": partial(integer, least=0),
    "thick_mode": _boolean_text,
    **dict.fromkeys(
        (
            *("enable_from_linting", "future", "hide_parameters"),
            *("implicit_returning", "pool_pre_ping", "pool_use_lifo"),
            *("server_side_cursors", "skip_autocommit_rollback"),
            *("supports_native_boolean", "use_insertmanyvalues"),
            # MySQL, Oracle, PostgreSQL, SQLite
            *("is_mariadb", "auto_convert_lobs", "coerce_to_decimal"),
            *("enable_offset_fetch", "optimize_limits", "use_ansi"),
            *("use_binds_for_limits", "use_nchar_for_unicode"),
            *("native_inet_types", "use_native_hstore", "native_datetime"),
            # SQL Server
            *("deprecate_large_types", "enable_pooling", "fast_executemany"),
            *("ignore_no_transaction_on_rollback", "legacy_schema_aliasing"),
            *("supports_comments", "use_scope_identity", "use_setinputsizes"),
        ),
        boolean,
    ),
}
ENGINE_OPTION_NAMES = frozenset(_ENGINE_OPTIONS)
#: ``None`` is no default here: never time out, never reset.
_TAKES_NONE = ("pool_timeout", "pool_reset_on_return")
SESSION_FLAGS = (
    *("autobegin", "autoflush", "close_resets_only", "enable_baked_queries"),
    *("expire_on_commit", "twophase"),
)
_SET_ELSEWHERE = {
    "class_": "ScopedSession(session_options={'class_': ...})",
    "bind": "SQLALCHEMY_DATABASE_URI",
    "binds": "ScopedSession(binds=...) and SQLALCHEMY_BINDS",
}
