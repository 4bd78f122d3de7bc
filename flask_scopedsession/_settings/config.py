"""``app.config`` to frozen settings. Pure: no file, socket or driver is touched."""

from __future__ import annotations

import os
import re
import typing as t
from collections.abc import Callable
from collections.abc import Mapping
from dataclasses import dataclass
from dataclasses import field
from functools import partial
from types import MappingProxyType

from sqlalchemy import pool as sa_pool
from sqlalchemy.engine import URL
from sqlalchemy.pool import Pool

from ..errors import ConfigError
from .urls import driver_of
from .urls import is_sqlite
from .urls import parse_url
from .values import boolean
from .values import chosen
from .values import echo
from .values import integer
from .values import kind
from .values import mapping
from .values import seconds
from .values import text

DEFAULT_BIND = "default"

LostWorkPolicy = t.Literal["warn", "raise", "ignore"]

_PREFIX = "SCOPEDSESSION_"
_KEYS = frozenset(
    _PREFIX + name
    for name in (
        *("NAME", "TRACKING", "CONTROL", "CONTROL_DIR", "SNAPSHOT_FILE"),
        *("HELD_LONG_AFTER", "LOST_WORK", "PING_IDLE_AFTER", "STACKS", "SHOW_SQL"),
        *("SQLITE_PRAGMAS", "SQLITE_BEGIN", "FAIR_POOL"),
    )
)
_URI = "SQLALCHEMY_DATABASE_URI"
_BINDS = "SQLALCHEMY_BINDS"
_ENGINE_OPTIONS = "SQLALCHEMY_ENGINE_OPTIONS"
_SESSION_OPTIONS = "SQLALCHEMY_SESSION_OPTIONS"
_OF_FLASK_SQLALCHEMY = ("SQLALCHEMY_RECORD_QUERIES", "SQLALCHEMY_TRACK_MODIFICATIONS")


@dataclass(frozen=True, slots=True)
class BindSettings:
    """One database: where it is and how its engine is made."""

    name: str
    key: str
    """The configuration key that named it, for error messages."""
    url: URL = field(repr=False)
    options: Mapping[str, t.Any] = field(repr=False)
    ping_idle_after: float | None
    fair_pool: bool
    pragmas: Mapping[str, str]
    begin: str | None


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything that one application configured."""

    name: str
    binds: Mapping[str, BindSettings]
    session_options: Mapping[str, t.Any] = field(repr=False)
    tracking: bool
    control: bool | None
    """``None``: unless the application is being tested."""
    control_dir: str | None
    snapshot_file: bool
    held_long_after: float
    lost_work: LostWorkPolicy
    stacks: bool
    show_sql: bool
    notes: tuple[str, ...] = ()
    """What is worth one log line, such as a key that belongs to another extension."""


def read_settings(
    config: Mapping[str, t.Any],
    *,
    default_name: str,
    engine_options: Mapping[str, t.Any] | None = None,
    environ: Mapping[str, str] | None = None,
) -> Settings:
    """Turn ``app.config`` into :class:`Settings`.

    :param default_name: The deployment's name when ``SCOPEDSESSION_NAME`` is unset.
    :param engine_options: Defaults for every bind, given to the constructor.
    :param environ: The process environment; ``SCOPEDSESSION_CONTROL=0`` in it wins.
    :raises ConfigError: A key is missing or wrong; the message says which.
    """
    _refuse_unknown(config)
    debug = bool(config.get("DEBUG"))
    name = chosen(config, "SCOPEDSESSION_NAME")
    return Settings(
        name=default_name if name is None else text("SCOPEDSESSION_NAME", name),
        binds=MappingProxyType(_read_binds(config, engine_options)),
        session_options=MappingProxyType(_read_session_options(config)),
        tracking=_flag(config, "SCOPEDSESSION_TRACKING", True),
        control=_read_control(config, os.environ if environ is None else environ),
        control_dir=_read_control_dir(config),
        snapshot_file=_flag(config, "SCOPEDSESSION_SNAPSHOT_FILE", True),
        held_long_after=_duration(config, "SCOPEDSESSION_HELD_LONG_AFTER", 15.0, 0.1),
        lost_work=_read_lost_work(config),
        stacks=_flag(config, "SCOPEDSESSION_STACKS", debug),
        show_sql=_flag(config, "SCOPEDSESSION_SHOW_SQL", debug),
        notes=tuple(
            f"{key} belongs to Flask-SQLAlchemy, and does nothing here."
            for key in _OF_FLASK_SQLALCHEMY
            if _flag(config, key, False)
        ),
    )


def _refuse_unknown(config: Mapping[str, t.Any]) -> None:
    for key in map(str, config):
        if key.startswith(_PREFIX) and key not in _KEYS:
            names = [known.removeprefix(_PREFIX) for known in _KEYS]
            import difflib

            near = difflib.get_close_matches(key.removeprefix(_PREFIX), names, 1)
            hint = f" Did you mean {_PREFIX}{near[0]}?" if near else ""
            raise ConfigError(f"{key} is not a key of this version.{hint}")


# -- binds ---------------------------------------------------------------------


def _read_binds(
    config: Mapping[str, t.Any], defaults: Mapping[str, t.Any] | None
) -> dict[str, BindSettings]:
    basic = _engine_options("ScopedSession(engine_options=...)", defaults)
    shared = _engine_options(_ENGINE_OPTIONS, chosen(config, _ENGINE_OPTIONS))
    parsed = {
        name: (key, *_split(key, value))
        for name, (key, value) in _named_binds(config).items()
    }
    main = parsed.get(DEFAULT_BIND)
    binds = {}
    for name, (key, url, own) in parsed.items():
        # What one driver understands, another refuses.
        inherits = main is None or driver_of(url) == driver_of(main[1])
        options = {**basic, **(shared if inherits else {}), **own}
        options.setdefault("echo", _read_echo(config))
        binds[name] = _bind(config, name, key, url, options)
    return binds


def _named_binds(config: Mapping[str, t.Any]) -> dict[str, tuple[str, t.Any]]:
    """Return each bind's configuration key and its raw value, by its name."""
    found: dict[str, tuple[str, t.Any]] = {}
    uri = chosen(config, _URI)
    if uri is not None:
        found[DEFAULT_BIND] = (_URI, uri)
    binds = chosen(config, _BINDS)
    if not isinstance(binds, (Mapping, type(None))):
        raise ConfigError(f"{_BINDS} must map names to URLs, not be {kind(binds)}.")
    for given, value in (binds or {}).items():
        # Flask-SQLAlchemy's name of the default bind is None.
        name = DEFAULT_BIND if given is None else given
        if not isinstance(name, str) or not name:
            raise ConfigError(f"{_BINDS}: the name of a bind must be a string.")
        key = f"{_BINDS}[{given!r}]"
        if name in found:
            raise ConfigError(
                f"{key} and {found[name][0]} both name the default bind. Keep one."
            )
        found[name] = (key, value)
    if not found:
        raise ConfigError(
            f"{_URI} is not set, and {_BINDS} is empty. Set one of them before"
            f" init_app, such as app.config[{_URI!r}] = 'sqlite:///app.db'."
        )
    return found


def _split(key: str, value: t.Any) -> tuple[URL, dict[str, t.Any]]:
    """Separate a configured bind into its URL and its own engine options."""
    if not isinstance(value, Mapping) or "drivername" in value:
        return parse_url(key, value), {}
    if "url" not in value:
        raise ConfigError(
            f"{key} must be a URL, a dict of its parts with a 'drivername', or a dict"
            " with a 'url' and engine options."
        )
    options = mapping(key, value)
    return parse_url(f"{key}['url']", options.pop("url")), _engine_options(key, options)


def _bind(
    config: Mapping[str, t.Any],
    name: str,
    key: str,
    url: URL,
    options: dict[str, t.Any],
) -> BindSettings:
    # Read for all, so that a slip is found whatever the database.
    idle_after = _read_idle_after(config)
    pragmas = _read_pragmas(config)
    begin = _read_begin(config)
    sqlite = is_sqlite(url)
    # pool_pre_ping tests every time; once more would be in vain.
    tested = not sqlite and not options.get("pool_pre_ping")
    return BindSettings(
        name=name,
        key=key,
        url=url,
        options=MappingProxyType(options),
        ping_idle_after=idle_after if tested else None,
        fair_pool=_flag(config, "SCOPEDSESSION_FAIR_POOL", True),
        pragmas=MappingProxyType(pragmas if sqlite else {}),
        begin=begin if sqlite else None,
    )


# -- options of engines and sessions -------------------------------------------


def _pool_class(where: str, value: object) -> t.Any:
    found = getattr(sa_pool, value, None) if isinstance(value, str) else value
    if isinstance(found, type) and issubclass(found, Pool):
        return found
    raise ConfigError(
        f"{where} must be a pool class of SQLAlchemy or its name, such as 'NullPool'."
    )


def _pool_timeout(where: str, value: object) -> float | None:
    return None if value is None else seconds(where, value, least=0)


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


#: The options whose values are checked, or arrive as text from the environment.
_READERS: Mapping[str, Callable[[str, t.Any], t.Any]] = {
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
    "pool_timeout": _pool_timeout,
    "pool_use_lifo": boolean,
    "poolclass": _pool_class,
    "query_cache_size": partial(integer, least=0),
}


def _engine_options(where: str, value: object) -> dict[str, t.Any]:
    options = mapping(where, value)
    for name in options.keys() & _READERS.keys():
        options[name] = _READERS[name](f"{where}: {name}", options[name])
    return options


def _read_session_options(config: Mapping[str, t.Any]) -> dict[str, t.Any]:
    options = mapping(_SESSION_OPTIONS, chosen(config, _SESSION_OPTIONS))
    for taken, instead in (
        ("class_", "ScopedSession(session_options={'class_': ...})"),
        ("bind", _URI),
        ("binds", f"ScopedSession(binds=...) and {_BINDS}"),
    ):
        if taken in options:
            raise ConfigError(
                f"{_SESSION_OPTIONS} may not hold {taken!r}. Use {instead}."
            )
    for name in (
        *("autobegin", "autoflush", "close_resets_only", "enable_baked_queries"),
        *("expire_on_commit", "twophase"),
    ):
        if isinstance(options.get(name), (str, int)):
            options[name] = boolean(f"{_SESSION_OPTIONS}: {name}", options[name])
    return options


# -- single keys ---------------------------------------------------------------


def _flag(config: Mapping[str, t.Any], key: str, default: bool) -> bool:
    value = chosen(config, key)
    return default if value is None else boolean(key, value)


def _duration(
    config: Mapping[str, t.Any], key: str, default: float, least: float
) -> float:
    value = chosen(config, key)
    return default if value is None else seconds(key, value, least=least)


def _read_control(
    config: Mapping[str, t.Any], environ: Mapping[str, str]
) -> bool | None:
    key = "SCOPEDSESSION_CONTROL"
    configured = chosen(config, key)
    if not _flag(environ, key, True):
        return False
    return None if configured is None else boolean(key, configured)


def _read_control_dir(config: Mapping[str, t.Any]) -> str | None:
    key = "SCOPEDSESSION_CONTROL_DIR"
    value = chosen(config, key)
    if isinstance(value, os.PathLike):
        value = os.fsdecode(value)
    path = None if value is None else text(key, value)
    if path is not None and "\0" in path:
        raise ConfigError(f"{key} may not contain a NUL character.")
    return path


def _read_lost_work(config: Mapping[str, t.Any]) -> LostWorkPolicy:
    key = "SCOPEDSESSION_LOST_WORK"
    value = chosen(config, key)
    if value is None:
        return "warn"
    if value not in t.get_args(LostWorkPolicy):
        raise ConfigError(f"{key} must be 'warn', 'raise' or 'ignore'.")
    if value == "raise" and not (config.get("DEBUG") or config.get("TESTING")):
        raise ConfigError(
            f"{key} may be 'raise' in debug mode and tests only. Use 'warn' in"
            " production."
        )
    return t.cast(LostWorkPolicy, value)


def _read_idle_after(config: Mapping[str, t.Any]) -> float | None:
    key = "SCOPEDSESSION_PING_IDLE_AFTER"
    if key in config and config[key] is None:
        return None
    return _duration(config, key, 0.5, 0.0)


def _read_pragmas(config: Mapping[str, t.Any]) -> dict[str, str]:
    key = "SCOPEDSESSION_SQLITE_PRAGMAS"
    pragmas = {}
    for name, value in mapping(key, chosen(config, key)).items():
        word = ("ON" if value else "OFF") if isinstance(value, bool) else str(value)
        # They cannot be given as parameters.
        plain = re.fullmatch(r"\w+(\.\w+)?", name) and re.fullmatch(r"-?[\w.]+", word)
        if value is None or not plain:
            raise ConfigError(
                f"{key} needs plain names and plain values, such as"
                " {'journal_mode': 'WAL'}."
            )
        pragmas[name] = word
    return pragmas


def _read_begin(config: Mapping[str, t.Any]) -> str | None:
    key = "SCOPEDSESSION_SQLITE_BEGIN"
    value = chosen(config, key)
    if value in (None, "DEFERRED", "IMMEDIATE"):
        return t.cast("str | None", value)
    raise ConfigError(f"{key} must be 'DEFERRED' or 'IMMEDIATE'.")


def _read_echo(config: Mapping[str, t.Any]) -> bool | str:
    value = chosen(config, "SQLALCHEMY_ECHO")
    return False if value is None else echo("SQLALCHEMY_ECHO", value)
