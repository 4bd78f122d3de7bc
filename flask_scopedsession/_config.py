"""``app.config`` to frozen settings. Pure: no file, socket or driver is touched.

An error names the key, never the value: a URL holds a password, and not only
in its userinfo (``?password=``, ``odbc_connect=...PWD``).
"""

from __future__ import annotations

import difflib
import os
import re
import typing as t
from collections.abc import Mapping
from dataclasses import dataclass
from dataclasses import field
from types import MappingProxyType

from sqlalchemy import pool as sa_pool
from sqlalchemy.engine import make_url
from sqlalchemy.engine import URL
from sqlalchemy.exc import ArgumentError
from sqlalchemy.exc import NoSuchModuleError
from sqlalchemy.pool import Pool

from .errors import ConfigError

DEFAULT_BIND = "default"

LostWorkPolicy = t.Literal["warn", "raise", "ignore"]

_PREFIX = "SCOPEDSESSION_"
_KEYS = frozenset(
    _PREFIX + name
    for name in (
        "NAME",
        "TRACKING",
        "CONTROL",
        "CONTROL_DIR",
        "SNAPSHOT_FILE",
        "HELD_LONG_AFTER",
        "LOST_WORK",
        "PING_IDLE_AFTER",
        "FAIR_POOL",
        "STACKS",
        "SHOW_SQL",
        "SQLITE_PRAGMAS",
        "SQLITE_BEGIN",
    )
)
_BOOLEAN_ENGINE_OPTIONS = ("pool_pre_ping", "pool_use_lifo", "hide_parameters")
_FALSE_WORDS = frozenset(("false", "no", "off", "0", ""))
_TRUE_WORDS = frozenset(("true", "yes", "on", "1"))


@dataclass(frozen=True, slots=True)
class BindSettings:
    """One database: where it is and how its engine is made."""

    name: str
    key: str
    """The configuration key that named it, for error messages."""
    url: URL = field(repr=False)
    options: Mapping[str, t.Any] = field(repr=False)
    ping_idle_after: float | None
    pragmas: Mapping[str, str]
    begin: str | None

    @property
    def in_memory(self) -> bool:
        """Whether this is an SQLite database that lives in memory."""
        if self.url.get_backend_name() != "sqlite":
            return False
        database = self.url.database or ":memory:"
        return (
            database == ":memory:"
            or database.startswith("file::memory:")
            or "mode=memory" in database
            or self.url.query.get("mode") == "memory"
        )


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
    :param environ: The process environment; ``SCOPEDSESSION_CONTROL`` in it wins.
    :raises ConfigError: A key is missing or wrong; the message says which.
    """
    _refuse_unknown(config)
    environ = os.environ if environ is None else environ
    debug = bool(config.get("DEBUG"))
    control: bool | None = None
    if config.get("SCOPEDSESSION_CONTROL") is not None:
        control = _boolean(config, "SCOPEDSESSION_CONTROL", True)
    if "SCOPEDSESSION_CONTROL" in environ and not _boolean(
        environ, "SCOPEDSESSION_CONTROL", True
    ):
        control = False
    return Settings(
        name=_text(config, "SCOPEDSESSION_NAME") or default_name,
        binds=MappingProxyType(_read_binds(config, engine_options or {})),
        session_options=MappingProxyType(_read_session_options(config)),
        tracking=_boolean(config, "SCOPEDSESSION_TRACKING", True),
        control=control,
        control_dir=_text(config, "SCOPEDSESSION_CONTROL_DIR"),
        snapshot_file=_boolean(config, "SCOPEDSESSION_SNAPSHOT_FILE", True),
        held_long_after=_seconds(config, "SCOPEDSESSION_HELD_LONG_AFTER", 15.0, 0.1),
        lost_work=_read_lost_work(config),
        stacks=_boolean(config, "SCOPEDSESSION_STACKS", debug),
        show_sql=_boolean(config, "SCOPEDSESSION_SHOW_SQL", debug),
        notes=_foreign_keys(config),
    )


def _refuse_unknown(config: Mapping[str, t.Any]) -> None:
    for key in config:
        if key.startswith(_PREFIX) and key not in _KEYS:
            near = difflib.get_close_matches(key, _KEYS, 1)
            hint = f" Did you mean {near[0]}?" if near else ""
            raise ConfigError(f"{key} is not a key of this version.{hint}")
    if _boolean(config, "SCOPEDSESSION_FAIR_POOL", False):
        raise ConfigError(
            "SCOPEDSESSION_FAIR_POOL is not available in this version. Remove the key."
        )


def _foreign_keys(config: Mapping[str, t.Any]) -> tuple[str, ...]:
    found = [
        key
        for key in ("SQLALCHEMY_RECORD_QUERIES", "SQLALCHEMY_TRACK_MODIFICATIONS")
        if config.get(key)
    ]
    if not found:
        return ()
    verb = "belong" if len(found) > 1 else "belongs"
    return (f"{' and '.join(found)} {verb} to Flask-SQLAlchemy; nothing is done here.",)


# -- binds ---------------------------------------------------------------------


def _read_binds(
    config: Mapping[str, t.Any], defaults: Mapping[str, t.Any]
) -> dict[str, BindSettings]:
    raw_binds = config.get("SQLALCHEMY_BINDS") or {}
    if not isinstance(raw_binds, Mapping):
        raise ConfigError(
            "SQLALCHEMY_BINDS must map bind names to URLs, not be a"
            f" {type(raw_binds).__name__}."
        )
    shared = _options(config, "SQLALCHEMY_ENGINE_OPTIONS")
    raw: dict[str, tuple[str, t.Any]] = {}
    uri = config.get("SQLALCHEMY_DATABASE_URI")
    if uri is not None and uri != "":
        raw[DEFAULT_BIND] = ("SQLALCHEMY_DATABASE_URI", uri)
    for name, value in raw_binds.items():
        name = DEFAULT_BIND if name is None else name
        if not isinstance(name, str) or not name:
            raise ConfigError("SQLALCHEMY_BINDS: a bind's name must be a string.")
        key = f"SQLALCHEMY_BINDS[{name!r}]"
        if name in raw:
            raise ConfigError(
                f"{key} and SQLALCHEMY_DATABASE_URI both name the default bind."
                " Keep one of them."
            )
        raw[name] = (key, value)
    if not raw:
        raise ConfigError(
            "SQLALCHEMY_DATABASE_URI is not set, and SQLALCHEMY_BINDS is empty. Set"
            " one before init_app, such as"
            " app.config['SQLALCHEMY_DATABASE_URI'] = 'sqlite:///app.db'."
        )

    parsed = {name: _split(key, value) for name, (key, value) in raw.items()}
    main = parsed.get(DEFAULT_BIND)
    binds = {}
    for name, (url, own) in parsed.items():
        key = raw[name][0]
        inherits = main is None or _driver(url) == _driver(main[0])
        options = {**defaults, **(shared if inherits else {}), **own}
        binds[name] = _make_bind(config, name, key, url, options)
    return binds


def _split(key: str, value: t.Any) -> tuple[URL, dict[str, t.Any]]:
    """Separate a configured bind into its URL and its own engine options."""
    options: dict[str, t.Any] = {}
    if isinstance(value, Mapping) and "drivername" not in value:
        options = {str(k): v for k, v in value.items()}
        if "url" not in options:
            raise ConfigError(f"{key} must be a URL, or a dict with a 'url'.")
        value = options.pop("url")
    return _parse_url(key, value), options


def _parse_url(key: str, value: t.Any) -> URL:
    if isinstance(value, Mapping):
        try:
            url = URL.create(**value)
        except (TypeError, ValueError, ArgumentError):
            raise ConfigError(
                f"{key} is a dict that URL.create() does not accept. It takes"
                " drivername, username, password, host, port, database and query."
            ) from None
    elif isinstance(value, (str, URL)):
        try:
            url = make_url(value)
        except (ArgumentError, ValueError):
            # The original message may quote the string, password and all.
            raise ConfigError(
                f"{key} could not be parsed as a database URL. It looks like"
                " dialect+driver://user:password@host:port/database; percent-encode"
                " special characters in the password."
            ) from None
    else:
        raise ConfigError(
            f"{key} must be a str, a URL or a dict, not a {type(value).__name__}."
        )
    _check_dialect(key, url)
    return url


def _check_dialect(key: str, url: URL) -> None:
    try:
        dialect = url.get_dialect()
    except (NoSuchModuleError, ArgumentError):
        raise ConfigError(
            f"{key} names the dialect {url.drivername!r}, which SQLAlchemy does not"
            " know. Check the spelling, or install the package that provides it."
        ) from None
    except ImportError:
        # A dialect that imports its driver at once; creating the engine says more.
        return
    if dialect.is_async:
        raise ConfigError(
            f"{key} names the async driver {url.drivername!r}. This extension serves"
            " synchronous sessions; use a synchronous driver of the same database,"
            f" such as {_sync_example(url)}."
        )


def _sync_example(url: URL) -> str:
    known = {"postgresql": "postgresql+psycopg2", "mysql": "mysql+pymysql"}
    return known.get(url.get_backend_name(), url.get_backend_name())


def _driver(url: URL) -> tuple[str, str]:
    try:
        return url.get_backend_name(), url.get_driver_name()
    except ImportError:
        return url.get_backend_name(), url.drivername


def _make_bind(
    config: Mapping[str, t.Any],
    name: str,
    key: str,
    url: URL,
    options: dict[str, t.Any],
) -> BindSettings:
    options.setdefault("echo", _echo(config))
    for option in _BOOLEAN_ENGINE_OPTIONS:
        if option in options:
            options[option] = _boolean(options, option, False, within=key)
    if isinstance(options.get("poolclass"), str):
        options["poolclass"] = _pool_class(key, options["poolclass"])
    sqlite = url.get_backend_name() == "sqlite"
    return BindSettings(
        name=name,
        key=key,
        url=url,
        options=MappingProxyType(options),
        ping_idle_after=_idle_after(config, networked=not sqlite),
        pragmas=MappingProxyType(_pragmas(config) if sqlite else {}),
        begin=_begin(config) if sqlite else None,
    )


def _pool_class(key: str, name: str) -> type[Pool]:
    found = getattr(sa_pool, name, None)
    if not (isinstance(found, type) and issubclass(found, Pool)):
        raise ConfigError(
            f"{key}: poolclass {name!r} is no pool class of SQLAlchemy. Use a name"
            " such as 'QueuePool' or 'NullPool', or the class itself."
        )
    return found


# -- single keys ---------------------------------------------------------------


def _read_session_options(config: Mapping[str, t.Any]) -> dict[str, t.Any]:
    options = _options(config, "SQLALCHEMY_SESSION_OPTIONS")
    for taken, instead in (
        ("class_", "ScopedSession(session_options={'class_': ...})"),
        ("bind", "SQLALCHEMY_DATABASE_URI"),
        ("binds", "ScopedSession(binds=...) and SQLALCHEMY_BINDS"),
    ):
        if taken in options:
            raise ConfigError(
                f"SQLALCHEMY_SESSION_OPTIONS may not hold {taken!r}. Use {instead}."
            )
    return options


def _read_lost_work(config: Mapping[str, t.Any]) -> LostWorkPolicy:
    value = config.get("SCOPEDSESSION_LOST_WORK", "warn")
    if value not in ("warn", "raise", "ignore"):
        raise ConfigError(
            "SCOPEDSESSION_LOST_WORK must be 'warn', 'raise' or 'ignore'."
        )
    if value == "raise" and not (config.get("DEBUG") or config.get("TESTING")):
        raise ConfigError(
            "SCOPEDSESSION_LOST_WORK='raise' is for debug mode and tests only. Use"
            " 'warn' in production."
        )
    return t.cast(LostWorkPolicy, value)


def _idle_after(config: Mapping[str, t.Any], *, networked: bool) -> float | None:
    key = "SCOPEDSESSION_PING_IDLE_AFTER"
    if key in config and config[key] is None:
        return None
    chosen = _seconds(config, key, 0.5, 0.0)
    return chosen if networked else None


def _pragmas(config: Mapping[str, t.Any]) -> dict[str, str]:
    key = "SCOPEDSESSION_SQLITE_PRAGMAS"
    pragmas = {}
    for name, value in _options(config, key).items():
        text = ("ON" if value else "OFF") if isinstance(value, bool) else str(value)
        if not re.fullmatch(r"\w+(\.\w+)?", name) or not re.fullmatch(
            r"-?[\w.]+", text
        ):
            raise ConfigError(
                f"{key}: {name!r} needs a plain name and a plain value, such as"
                " {'journal_mode': 'WAL'}."
            )
        pragmas[name] = text
    return pragmas


def _begin(config: Mapping[str, t.Any]) -> str | None:
    value = config.get("SCOPEDSESSION_SQLITE_BEGIN")
    if value is None or value in ("DEFERRED", "IMMEDIATE"):
        return t.cast("str | None", value)
    raise ConfigError("SCOPEDSESSION_SQLITE_BEGIN must be 'DEFERRED' or 'IMMEDIATE'.")


def _echo(config: Mapping[str, t.Any]) -> bool | str:
    if config.get("SQLALCHEMY_ECHO") == "debug":
        return "debug"
    return _boolean(config, "SQLALCHEMY_ECHO", False)


def _options(config: Mapping[str, t.Any], key: str) -> dict[str, t.Any]:
    value = config.get(key) or {}
    if not isinstance(value, Mapping):
        raise ConfigError(f"{key} must be a dict, not a {type(value).__name__}.")
    return {str(name): item for name, item in value.items()}


def _boolean(
    config: Mapping[str, t.Any], key: str, default: bool, *, within: str = ""
) -> bool:
    value = config.get(key, default)
    if isinstance(value, str):
        word = value.strip().lower()
        if word in _FALSE_WORDS:
            return False
        if word in _TRUE_WORDS:
            return True
    elif isinstance(value, (bool, int)):
        return bool(value)
    where = f"{within}: {key}" if within else key
    raise ConfigError(f"{where} must be true or false.")


def _text(config: Mapping[str, t.Any], key: str) -> str | None:
    value = config.get(key)
    if value is None or value == "":
        return None
    if isinstance(value, (str, os.PathLike)):
        return os.fspath(value)
    # from_prefixed_env() reads FLASK_SCOPEDSESSION_NAME=42 as a number.
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    raise ConfigError(f"{key} must be a string, not a {type(value).__name__}.")


def _seconds(
    config: Mapping[str, t.Any], key: str, default: float, least: float
) -> float:
    value = config.get(key, default)
    try:
        seconds = float(value) if not isinstance(value, bool) else -1.0
    except (TypeError, ValueError):
        seconds = -1.0
    if not least <= seconds < float("inf"):
        raise ConfigError(f"{key} must be a number of seconds, at least {least}.")
    return seconds
