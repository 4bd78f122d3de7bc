"""The name ``flask_sqlalchemy`` for the modules of this package."""

from __future__ import annotations

import sys
import types
import typing as t
from importlib import import_module

from ..errors import SetupError

_REAL = "flask_sqlalchemy"
_HERE = __package__ or ""
_SUBMODULES = (
    *("cli", "extension", "model", "pagination", "query"),
    *("record_queries", "session", "table", "track_modifications"),
)


def install_as_flask_sqlalchemy() -> None:
    """Let ``import flask_sqlalchemy`` find this package, for libraries that do so.

    Call it before the application's other imports, or at least before
    ``SQLAlchemy()``. Where Flask-SQLAlchemy itself was imported by a library, the names
    that modules have of it are replaced by ours.

    :raises SetupError: Flask-SQLAlchemy is in use: a module has an extension object or
        a subclass of its classes. The message says which.
    """
    ours = {"": import_module(_HERE)}
    for name in _SUBMODULES:
        ours[f".{name}"] = import_module(f"{_HERE}.{name}")
    real = {
        name: module
        for name, module in sys.modules.items()
        if name.partition(".")[0] == _REAL and not _is_ours(module)
    }
    if real:
        _replace(real, ours)
    for name in real:
        del sys.modules[name]
    sys.modules.update({_REAL + name: module for name, module in ours.items()})


def _is_ours(module: types.ModuleType) -> bool:
    return module.__name__.startswith(_HERE)


def _replace(
    real: t.Mapping[str, types.ModuleType], ours: t.Mapping[str, types.ModuleType]
) -> None:
    """Replace the names that modules have of the real package by ours."""
    found = []
    for name, module in list(sys.modules.items()):
        if name in real:
            continue
        for key, value in list(getattr(module, "__dict__", {}).items()):
            _refuse_use(name, key, value)
            if _of_real(value):
                found.append((module, key, _counterpart(name, key, value, ours)))
    for module, key, value in found:
        setattr(module, key, value)
    name = "track_modifications"
    for signal in ("models_committed", "before_models_committed"):
        # Who has connected to theirs by now hears ours.
        theirs = getattr(real.get(f"{_REAL}.{name}"), signal, None)
        if theirs is not None:
            getattr(ours[f".{name}"], signal).connect(theirs.send, weak=False)


def _of_real(value: t.Any) -> bool:
    """Whether a value is defined by the real package, or is a module of it."""
    # By type() and not by isinstance(), which would ask a lazy object.
    kind = type(value)
    if issubclass(kind, types.ModuleType):
        return str(value.__name__).partition(".")[0] == _REAL
    defined = issubclass(kind, (type, types.FunctionType))
    return defined and str(value.__module__).partition(".")[0] == _REAL


def _counterpart(
    module: str, key: str, value: t.Any, ours: t.Mapping[str, types.ModuleType]
) -> object:
    if isinstance(value, types.ModuleType):
        mine: object = ours.get(value.__name__.removeprefix(_REAL))
    else:
        place = ours.get(value.__module__.removeprefix(_REAL))
        mine = getattr(place, value.__name__, None)
    if mine is None:
        raise _in_use(f"{module}.{key} is {value!r}, which has no counterpart here")
    return mine


def _refuse_use(module: str, key: str, value: t.Any) -> None:
    if issubclass(type(value), type):
        parents = value.__mro__[1:]
        if not _of_real(value) and any(map(_of_real, parents)):
            raise _in_use(f"the class {module}.{key} inherits from it")
    elif _of_real(type(value)):
        raise _in_use(f"{module}.{key} is an object of it")


def _in_use(why: str) -> SetupError:
    return SetupError(
        f"Flask-SQLAlchemy was imported and is in use: {why}. Call"
        " install_as_flask_sqlalchemy() before that module is imported, at the top of"
        " the module that your application is started from."
    )
