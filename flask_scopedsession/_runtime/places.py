"""Which line of the application's own code a thread is at. No locals, no source."""

from __future__ import annotations

import inspect
import os
import sysconfig
import types
import typing as t

from .stacks import RawFrame

_HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep
_LIBRARIES = tuple(
    {
        os.path.realpath(path) + os.sep
        for name in ("stdlib", "platstdlib", "purelib", "platlib")
        if (path := sysconfig.get_path(name))
    }
)
_PACKAGES = (f"{os.sep}site-packages{os.sep}", f"{os.sep}dist-packages{os.sep}")


class Places:
    """Names places in one application's code as ``path:line function``."""

    def __init__(self, root_path: str) -> None:
        self._root = os.path.realpath(root_path) + os.sep
        self._project = os.path.dirname(self._root.rstrip(os.sep)) + os.sep
        self._labels: dict[str, str | None] = {}

    def innermost(self, raw: t.Iterable[RawFrame]) -> str | None:
        """Return the innermost of the app's own places in a stack."""
        places = (self._place(code, line) for code, line in raw)
        return next((place for place in places if place is not None), None)

    def stack(self, raw: t.Iterable[RawFrame]) -> tuple[str, ...]:
        """Return the app's own places of a recorded stack, innermost first."""
        places = (self._place(code, line) for code, line in raw)
        return tuple(place for place in places if place is not None)

    def definition(self, view: t.Callable[..., t.Any] | None) -> str | None:
        """Return where a view is defined."""
        view = getattr(view, "view_class", view)
        if view is None:
            return None
        view = inspect.unwrap(view)
        code = getattr(view, "__code__", None)
        if code is not None:
            return self._place(code, code.co_firstlineno)
        # A class-based view: its dispatching method is the nearest thing.
        for name in ("dispatch_request", "get", "post"):
            code = getattr(vars(view).get(name), "__code__", None)
            if code is not None:
                return self._place(code, code.co_firstlineno)
        return None

    def _place(self, code: types.CodeType, line: int | None) -> str | None:
        filename = code.co_filename
        if filename not in self._labels:
            self._labels[filename] = self._label(filename)
        label = self._labels[filename]
        return None if label is None else f"{label}:{line} {code.co_name}"

    def _label(self, filename: str) -> str | None:
        path = os.path.realpath(filename)
        if filename.startswith("<") or path.startswith(_HERE):
            return None
        if path.startswith(self._root):
            inside = path[len(self._root) - 1 :]
            if any(mark in inside for mark in _PACKAGES):
                return None  # a virtual environment inside the application's folder
            return path[len(self._root) :]
        if not path.startswith(self._project) or path.startswith(_LIBRARIES):
            return None
        if any(mark in path for mark in _PACKAGES):
            return None
        return os.path.relpath(path, self._root)
