"""The one table of configuration keys: parser, default, type and meaning of each.

``docs/config.md`` prints the same table, and a test compares the two.
"""

from __future__ import annotations

import os
import re
import typing as t
from collections.abc import Callable
from collections.abc import Collection
from collections.abc import Mapping
from functools import partial

from ..errors import ConfigError
from .options import ENGINE_OPTION_NAMES
from .options import engine_options
from .options import SESSION_FLAGS
from .options import session_options
from .values import boolean
from .values import choice
from .values import chosen
from .values import echo
from .values import file_name
from .values import integer
from .values import is_on
from .values import kind
from .values import mapping
from .values import optional_seconds
from .values import seconds
from .values import text

PREFIX = "SCOPEDSESSION_"
URI = "SQLALCHEMY_DATABASE_URI"
BINDS = "SQLALCHEMY_BINDS"
ASYNC_BINDS = "SQLALCHEMY_ASYNC_BINDS"
ENGINE_OPTIONS = "SQLALCHEMY_ENGINE_OPTIONS"
SESSION_OPTIONS = "SQLALCHEMY_SESSION_OPTIONS"
CONTROL = "SCOPEDSESSION_CONTROL"
LOST_WORK = "SCOPEDSESSION_LOST_WORK"
MANY_STATEMENTS = "SCOPEDSESSION_MANY_STATEMENTS"

#: Other extensions' keys begin so, too.
_SHARED_PREFIX = "SQLALCHEMY_"
_WANTED_IF_TRUE = (
    "SQLALCHEMY_COMMIT_ON_TEARDOWN",
    "SQLALCHEMY_RECORD_QUERIES",
    "SQLALCHEMY_TRACK_MODIFICATIONS",
)
_NOT_OURS = {
    **{
        f"{_SHARED_PREFIX}{name.upper()}": f"does nothing. Set {key}[{name!r}] instead."
        for key, names in (
            (ENGINE_OPTIONS, ENGINE_OPTION_NAMES),
            (SESSION_OPTIONS, SESSION_FLAGS),
        )
        for name in names
    },
    "SQLALCHEMY_ASYNC_ENGINES": "belongs to Flask-SQLAlchemy-Lite, and does nothing"
    f" here. Set {ASYNC_BINDS} instead, besides {URI} or {BINDS}.",
    "SQLALCHEMY_COMMIT_ON_TEARDOWN": "does nothing: no request is committed when it"
    " ends. Call db.session.commit() in the views that write.",
    "SQLALCHEMY_ENGINES": "belongs to Flask-SQLAlchemy-Lite, and does nothing here."
    f" Set {URI} and {BINDS} instead.",
    "SQLALCHEMY_NATIVE_UNICODE": "does nothing: SQLAlchemy 2 has no such option, since"
    " every driver takes Unicode. Remove it.",
    "SQLALCHEMY_RECORD_QUERIES": "belongs to Flask-SQLAlchemy, and does nothing here.",
    "SQLALCHEMY_TRACK_MODIFICATIONS": "belongs to Flask-SQLAlchemy, and does nothing"
    " here.",
}


class Key(t.NamedTuple):
    """How one key is read, and what the documentation says about it."""

    parse: Callable[[str, t.Any], t.Any]
    """Takes the key's name, for error messages, and the configured value."""
    default: t.Any
    type: str
    """The type, and the unit of a number."""
    meaning: str
    shown: str | None = None
    """The default in words, where it is not a plain value."""
    in_debug: t.Any = None
    """The default in debug mode, if it is another one."""
    takes_none: bool = False
    """Whether ``None`` is a value, and not the same as a missing key."""

    @property
    def default_text(self) -> str:
        """The default, as the documentation prints it."""
        if self.shown is not None:
            return self.shown
        debug = "" if self.in_debug is None else f", `{self.in_debug}` in debug mode"
        return f"`{self.default!r}`{debug}"


def read_keys(config: Mapping[str, t.Any]) -> dict[str, t.Any]:
    """Return the value of every key of the table: parsed, or its default.

    :raises ConfigError: A value is wrong; the message names the key.
    """
    debug = is_on(config, "DEBUG")
    is_on(config, "TESTING")  # refuses a text that is no truth value
    return {name: read_key(config, name, debug) for name in KEYS}


def read_key(config: Mapping[str, t.Any], name: str, debug: bool = False) -> t.Any:
    """Return the value of one key: parsed, or its default.

    :raises ConfigError: The value is wrong.
    """
    key, value = KEYS[name], chosen(config, name)
    if value is not None or (key.takes_none and config.get(name, "") is None):
        return key.parse(name, value)
    return key.in_debug if debug and key.in_debug is not None else key.default


def unread_keys(
    config: Mapping[str, t.Any], others: Collection[str] = ()
) -> tuple[str, ...]:
    """Return a sentence on each key that looks like one of ours and does nothing.

    :param others: More keys that have a meaning.
    :raises ConfigError: It is a misspelt one.
    """
    sentences = []
    for name in map(str, config):
        if name in KEYS or name in others:
            continue
        if name.startswith(PREFIX):
            raise _unknown(name, _near(name, PREFIX, 0.6))
        if name.startswith(_SHARED_PREFIX):
            sentences.append(_unread(config, name))
    return tuple(filter(None, sentences))


def _unread(config: Mapping[str, t.Any], name: str) -> str:
    value = chosen(config, name)
    if value is None or (name in _WANTED_IF_TRUE and not is_on(config, name)):
        return ""
    if name in _NOT_OURS:
        return f"{name} {_NOT_OURS[name]}"
    near = _near(name, _SHARED_PREFIX, 0.8)
    # One like SQLALCHEMY_DATABASE_URI_TEST is the application's own.
    if near and not re.search(rf"_{near.removeprefix(_SHARED_PREFIX)}(_|$)", name):
        raise _unknown(name, near)
    return f"{name} is not a key of this version, and does nothing here."


def _near(name: str, prefix: str, cutoff: float) -> str | None:
    import difflib

    ours = {key.removeprefix(prefix): key for key in KEYS if key.startswith(prefix)}
    rest = name.removeprefix(prefix).upper()
    near = difflib.get_close_matches(rest, ours, 1, cutoff)
    return ours[near[0]] if near else None


def _unknown(name: str, near: str | None) -> ConfigError:
    hint = f" Did you mean {near}?" if near else ""
    return ConfigError(f"{name} is not a key of this version.{hint}")


def changed_keys(config: Mapping[str, t.Any], before: Mapping[str, t.Any]) -> list[str]:
    """Return the keys that were set to another value since they were read.

    :param before: What :func:`remember` returned then.
    """
    return [key for key in KEYS if config.get(key) not in (None, before[key])]


def remember(config: Mapping[str, t.Any]) -> dict[str, t.Any]:
    """Return what is configured, in dicts that no later change reaches."""
    return {key: _copied(config.get(key)) for key in KEYS}


def _copied(value: t.Any) -> t.Any:
    if isinstance(value, Mapping):
        return {name: _copied(each) for name, each in value.items()}
    return value


# -- parsers of a single key ---------------------------------------------------


def _as_given(_: str, value: object) -> object:
    return value  # parsed with the bind that it is for


def _binds(where: str, value: object) -> object:
    if not isinstance(value, Mapping):
        raise ConfigError(f"{where} must map names to URLs, not be {kind(value)}.")
    return value


def _path(where: str, value: object) -> str:
    path = text(where, os.fsdecode(value) if isinstance(value, os.PathLike) else value)
    return file_name(where, path)


def _name(where: str, value: object) -> str:
    return file_name(where, text(where, value))


def _pragmas(where: str, value: object) -> dict[str, str]:
    pragmas = {}
    for name, given in mapping(where, value).items():
        word = ("ON" if given else "OFF") if isinstance(given, bool) else str(given)
        # SQLite takes no parameters in a PRAGMA, so only plain words are safe.
        plain = re.fullmatch(r"\w+(\.\w+)?", name) and re.fullmatch(r"-?[\w.]+", word)
        if given is None or not plain:
            raise ConfigError(
                f"{where} needs plain names and plain values, such as"
                " {'journal_mode': 'WAL'}."
            )
        pragmas[name] = word
    return pragmas


# -- the table -----------------------------------------------------------------

KEYS: Mapping[str, Key] = {
    URI: Key(
        *(_as_given, None, "`str`, `URL` or `dict`"),
        "URL of the bind `default`",
        shown="none; this or `SQLALCHEMY_BINDS` is required",
    ),
    BINDS: Key(
        *(_binds, {}, "`dict`"),
        "more databases: the name of each bind, and its URL and engine options",
    ),
    ASYNC_BINDS: Key(
        *(_binds, {}, "`dict`"),
        "databases of `db.async_session`: as `SQLALCHEMY_BINDS`, with async drivers",
    ),
    ENGINE_OPTIONS: Key(
        *(engine_options, {}, "`dict`"),
        "options for `create_engine()`",
    ),
    SESSION_OPTIONS: Key(
        *(session_options, {}, "`dict`"),
        "options for the sessionmaker",
    ),
    "SQLALCHEMY_ECHO": Key(
        *(echo, False, '`bool` or `"debug"`'),
        "log each SQL statement",
    ),
    "SCOPEDSESSION_NAME": Key(
        *(_name, None, "`str`"),
        "which deployment this is",
        shown="the application's name and the real path of its folder",
    ),
    "SCOPEDSESSION_TRACKING": Key(
        *(boolean, True, "`bool`"),
        "keep track of connections and sessions",
    ),
    CONTROL: Key(
        *(boolean, None, "`bool`"),
        "answer the status commands",
        shown="`True`, but not while `TESTING`",
    ),
    "SCOPEDSESSION_CONTROL_DIR": Key(
        *(_path, None, "`str`, a path"),
        "directory of the control sockets",
        shown="`<tmp>/flask-scopedsession-<uid>/<hash of the name>`",
    ),
    "SCOPEDSESSION_SNAPSHOT_FILE": Key(
        *(boolean, True, "`bool`"),
        "write a last snapshot when there is trouble",
    ),
    "SCOPEDSESSION_HELD_LONG_AFTER": Key(
        *(partial(seconds, least=0.1), 15.0, "`float`, seconds, at least 0.1"),
        "report a connection that is checked out for longer",
    ),
    LOST_WORK: Key(
        *(choice("warn", "raise", "ignore"), "warn", "`str`"),
        "what happens if a scope ends well but with uncommitted changes",
        shown='`"warn"`',
    ),
    MANY_STATEMENTS: Key(
        *(partial(integer, least=0), 0, "`int`, at least 0; 0 is off"),
        "report a request, command or job that sends more statements",
        in_debug=100,
    ),
    "SCOPEDSESSION_PING_IDLE_AFTER": Key(
        *(optional_seconds, 0.5, "`float`, seconds, at least 0; or `None`, never"),
        "test a pooled connection that was idle for longer before it is used",
        shown="`0.5`; SQLite is not tested",
        takes_none=True,
    ),
    "SCOPEDSESSION_FAIR_POOL": Key(
        *(boolean, True, "`bool`"),
        "a returned connection goes to the thread that has waited longest",
    ),
    "SCOPEDSESSION_STACKS": Key(
        *(boolean, False, "`bool`"),
        "record where each connection was checked out",
        in_debug=True,
    ),
    "SCOPEDSESSION_SHOW_SQL": Key(
        *(boolean, False, "`bool`"),
        "show the text of statements, never their parameters",
        in_debug=True,
    ),
    "SCOPEDSESSION_SQLITE_PRAGMAS": Key(
        *(_pragmas, {}, "`dict`"),
        "pragmas to run on each new SQLite connection",
    ),
    "SCOPEDSESSION_SQLITE_BEGIN": Key(
        *(choice("DEFERRED", "IMMEDIATE"), None, "`str`"),
        "how a transaction begins on SQLite",
        shown="none, the driver's behaviour",
    ),
}
