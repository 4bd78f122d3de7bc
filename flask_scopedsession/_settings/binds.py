"""The configured databases: their names, URLs and engine options."""

from __future__ import annotations

import typing as t
from collections.abc import Iterable
from collections.abc import Mapping
from types import MappingProxyType

from sqlalchemy.engine import URL

from .._format import ASYNC
from ..errors import ConfigError
from .keys import ASYNC_BINDS
from .keys import BINDS
from .keys import ENGINE_OPTIONS
from .keys import KEYS
from .keys import read_key
from .keys import URI
from .options import engine_options
from .options import without_defaults
from .urls import driver_of
from .urls import is_sqlite
from .urls import parse_url
from .values import mapping

DEFAULT_BIND = "default"

#: Engine options that mean nothing without a pool.
_OF_A_POOL = (
    *("max_overflow", "pool", "pool_pre_ping", "pool_recycle", "pool_reset_on_return"),
    *("pool_size", "pool_timeout", "pool_use_lifo", "poolclass"),
)


class BindSettings(t.NamedTuple):
    """One database: where it is, and how its engine is made."""

    name: str
    key: str
    """The configuration key that named it, for error messages."""
    url: URL
    options: Mapping[str, t.Any]
    """Options for ``create_engine()``."""
    ping_idle_after: float | None
    """Seconds after which an idle connection is tested before use; ``None``: never."""
    fair_pool: bool
    pragmas: Mapping[str, str]
    begin: str | None

    def __repr__(self) -> str:
        """Name the bind; its options may hold a password."""
        return f"{type(self).__name__}(name={self.name!r})"


def read_binds(
    values: Mapping[str, t.Any],
    defaults: Mapping[str, t.Any] | None,
    inherit: bool = True,
    notes: Iterable[str] = (),
) -> dict[str, BindSettings]:
    """Return the settings of every bind by its name.

    :param values: The values of all keys, as :func:`.read_keys` returns them.
    :param defaults: The engine options that were given to the constructor.
    :param inherit: Whether other binds than the default one get the general options.
    :param notes: Sentences on keys that do nothing, for the error if there is no bind.
    :raises ConfigError: A bind or one of its options is wrong, or there is no bind.
    """
    basic = engine_options("ScopedSession(engine_options=...)", defaults)
    if values[URI] is None and not values[BINDS]:
        text = (
            f"{URI} is not set, and {BINDS} is empty. Set one of them before"
            f" init_app, such as app.config[{URI!r}] = 'sqlite:///app.db'."
        )
        raise ConfigError(" ".join([text, *notes]))
    parsed = {
        name: (key, *_split(key, value))
        for name, (key, value) in _named(values).items()
    }
    main = parsed.get(DEFAULT_BIND)
    binds = {}
    for name, (key, url, own) in parsed.items():
        # Another driver may refuse the options that this one understands.
        inherits = name == DEFAULT_BIND or (
            inherit and (main is None or driver_of(url) == driver_of(main[1]))
        )
        shared = values[ENGINE_OPTIONS] if inherits else {}
        options = {"echo": values["SQLALCHEMY_ECHO"], **basic, **shared, **own}
        binds[name] = _bind(values, name, key, url, without_defaults(options))
    return binds


def read_async_binds(values: Mapping[str, t.Any]) -> dict[str, BindSettings]:
    """Return the settings of the binds of ``db.async_session`` by their names.

    :raises ConfigError: A bind or one of its options is wrong.
    """
    binds = {}
    for name, (key, value) in _entries(ASYNC_BINDS, values, {}).items():
        url, own = _split(key, value, is_async=True)
        for option in own:
            if option in _OF_A_POOL:
                raise ConfigError(
                    f"{key}: {option} cannot be used. Each async function has an event"
                    " loop of its own, and a connection cannot leave it: each session"
                    f" opens one, and closes it. Remove {option}."
                )
        shown = f"{ASYNC}{name}"
        if shown in values[BINDS]:
            raise ConfigError(
                f"{BINDS}[{shown!r}]: the live view shows {key} by this name. Choose"
                " another."
            )
        options = {"echo": values["SQLALCHEMY_ECHO"], **own}
        binds[name] = _bind(values, shown, key, url, without_defaults(options))
    return binds


def changed_bind(
    config: Mapping[str, t.Any],
    before: Mapping[str, t.Any],
    binds: Mapping[str, BindSettings],
    async_binds: Mapping[str, BindSettings],
) -> str | None:
    """Return the key of a bind that by now is another database, if any.

    A key that was removed is no change: it may have gone because of its password.

    :param before: What was configured when the binds were read.
    """
    keys = (URI, BINDS, ASYNC_BINDS)
    if all(config.get(key) == before[key] for key in keys):
        return None
    now = {
        key: read_key(config, key) or before[key] or KEYS[key].default for key in keys
    }
    for is_async, named, known in (
        (False, _named(now), binds),
        (True, _entries(ASYNC_BINDS, now, {}), async_binds),
    ):
        for name, (key, value) in named.items():
            url, _ = _split(key, value, is_async)
            if name not in known or known[name].url != url:
                return key
    return None


def _named(values: Mapping[str, t.Any]) -> dict[str, tuple[str, t.Any]]:
    """Return each bind's configuration key and its raw value, by its name."""
    found: dict[str, tuple[str, t.Any]] = {}
    if values[URI] is not None:
        found[DEFAULT_BIND] = (URI, values[URI])
    _entries(BINDS, values, found)
    return found


def _entries(
    where: str, values: Mapping[str, t.Any], found: dict[str, tuple[str, t.Any]]
) -> dict[str, tuple[str, t.Any]]:
    """Add what one key maps to those that were found."""
    for given, value in values[where].items():
        # Flask-SQLAlchemy's name for the default bind is None.
        name = DEFAULT_BIND if given is None else given
        if not isinstance(name, str) or not name:
            raise ConfigError(f"{where}: a bind's name must be a non-empty string.")
        key = f"{where}[{given!r}]"
        if name in found:
            raise ConfigError(
                f"{key} and {found[name][0]} both name the default bind. Keep one."
            )
        found[name] = (key, value)
    return found


def _split(
    key: str, value: t.Any, is_async: bool = False
) -> tuple[URL, dict[str, t.Any]]:
    """Separate a configured bind into its URL and its own engine options."""
    if not isinstance(value, Mapping) or "drivername" in value:
        return parse_url(key, value, is_async), {}
    if "url" not in value:
        raise ConfigError(
            f"{key} must be a URL, a dict of its parts with a 'drivername', or a dict"
            " with a 'url' and engine options."
        )
    options = mapping(key, value)
    url = parse_url(f"{key}['url']", options.pop("url"), is_async)
    return url, engine_options(key, options)


def _bind(
    values: Mapping[str, t.Any],
    name: str,
    key: str,
    url: URL,
    options: dict[str, t.Any],
) -> BindSettings:
    sqlite = is_sqlite(url)
    # pool_pre_ping tests at every checkout; a second test would be useless.
    tested = not sqlite and not options.get("pool_pre_ping")
    pragmas = values["SCOPEDSESSION_SQLITE_PRAGMAS"] if sqlite else {}
    return BindSettings(
        name=name,
        key=key,
        url=url,
        options=MappingProxyType(options),
        ping_idle_after=values["SCOPEDSESSION_PING_IDLE_AFTER"] if tested else None,
        fair_pool=values["SCOPEDSESSION_FAIR_POOL"],
        pragmas=MappingProxyType(pragmas),
        begin=values["SCOPEDSESSION_SQLITE_BEGIN"] if sqlite else None,
    )
