"""``app.config`` to frozen settings. Touches no file, socket or driver."""

from __future__ import annotations

import os
import typing as t
from collections.abc import Collection
from collections.abc import Mapping
from types import MappingProxyType

from .binds import BindSettings
from .binds import DEFAULT_BIND
from .binds import read_async_binds
from .binds import read_binds
from .keys import CONTROL
from .keys import LOST_WORK
from .keys import MANY_STATEMENTS
from .keys import read_keys
from .keys import SESSION_OPTIONS
from .keys import unread_keys
from .values import boolean
from .values import chosen

__all__ = ["DEFAULT_BIND", "BindSettings", "Settings", "read_settings"]

LostWorkPolicy = t.Literal["warn", "raise", "ignore"]


class Settings(t.NamedTuple):
    """Everything that one application configured."""

    name: str
    """Which deployment this is: workers and commands of one name find each other."""
    connection_name: str | None
    """What its connections are called at the server; ``None``: as the app."""
    binds: Mapping[str, BindSettings]
    async_binds: Mapping[str, BindSettings]
    """Of ``db.async_session``."""
    session_options: Mapping[str, t.Any]
    tracking: bool
    control: bool | None
    """``None``: answer unless the application is being tested."""
    control_dir: str | None
    """``None``: the default directory, which depends on the name."""
    snapshot_file: bool
    held_long_after: float
    """Seconds after which a checked out connection is reported."""
    lost_work: LostWorkPolicy
    many_statements: int
    """A scope that sends more is reported; 0: none."""
    stacks: bool
    show_sql: bool
    notes: tuple[str, ...] = ()
    """Sentences to log once, on keys that do nothing here."""

    def __repr__(self) -> str:
        """Name the deployment; options may hold a password."""
        return f"{type(self).__name__}(name={self.name!r}, binds={self.binds!r})"


def read_settings(
    config: Mapping[str, t.Any],
    *,
    default_name: str,
    engine_options: Mapping[str, t.Any] | None = None,
    inherit: bool = True,
    others: Collection[str] = (),
) -> Settings:
    """Turn ``app.config`` into :class:`Settings`.

    ``SCOPEDSESSION_CONTROL=0`` in the process environment counts more.

    :param default_name: The deployment's name when ``SCOPEDSESSION_NAME`` is unset.
    :param engine_options: Defaults for every bind, given to the constructor.
    :param inherit: Whether ``SQLALCHEMY_ENGINE_OPTIONS`` are for every bind of the same
        driver, or for the default bind only.
    :param others: More keys that have a meaning.
    :raises ConfigError: A key is missing or wrong; the message says which.
    """
    notes = unread_keys(config, others)
    values = read_keys(config)
    switch = chosen(os.environ, CONTROL)
    name, tracking = values["SCOPEDSESSION_NAME"], values["SCOPEDSESSION_TRACKING"]
    many = values[MANY_STATEMENTS] if tracking else 0
    if not tracking and chosen(config, MANY_STATEMENTS) and values[MANY_STATEMENTS]:
        why = "SCOPEDSESSION_TRACKING is off, so that statements are not counted."
        notes = (*notes, f"{MANY_STATEMENTS} does nothing: {why}")
    return Settings(
        name=default_name if name is None else name,
        connection_name=name,
        binds=MappingProxyType(read_binds(values, engine_options, inherit, notes)),
        async_binds=MappingProxyType(read_async_binds(values)),
        session_options=MappingProxyType(values[SESSION_OPTIONS]),
        tracking=tracking,
        control=values[CONTROL]
        if switch is None or boolean(CONTROL, switch)
        else False,
        control_dir=values["SCOPEDSESSION_CONTROL_DIR"],
        snapshot_file=values["SCOPEDSESSION_SNAPSHOT_FILE"],
        held_long_after=values["SCOPEDSESSION_HELD_LONG_AFTER"],
        lost_work=values[LOST_WORK],
        many_statements=many,
        stacks=values["SCOPEDSESSION_STACKS"],
        show_sql=values["SCOPEDSESSION_SHOW_SQL"],
        notes=notes,
    )
