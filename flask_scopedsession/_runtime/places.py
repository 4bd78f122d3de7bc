"""Frames as ``path:line function`` of the application's code. No locals, no source."""

from __future__ import annotations

import inspect
import os
import sysconfig
import typing as t
from functools import cache

from .stacks import get_frame
from .stacks import own_frames
from .stacks import RawFrame

_HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep
_PACKAGES = (f"{os.sep}site-packages{os.sep}", f"{os.sep}dist-packages{os.sep}")

#: By the root of an application: what its files, and those of others, are called.
_labels: dict[str, dict[str, str | None]] = {}


@cache
def _libraries() -> tuple[str, ...]:
    """Return where Python and its packages are installed."""
    paths = map(sysconfig.get_path, ("stdlib", "platstdlib", "purelib", "platlib"))
    return tuple({os.path.realpath(path) + os.sep for path in paths if path})


class Places:
    """Names places in one application's code as ``path:line function``."""

    def __init__(self, root_path: str) -> None:
        self._root = os.path.realpath(root_path) + os.sep
        self._project = os.path.dirname(self._root.rstrip(os.sep)) + os.sep
        self._labels = _labels.setdefault(self._root, {})

    def innermost(self, raw: t.Iterable[RawFrame]) -> str | None:
        """Return the innermost place of the app's own code in a stack."""
        return next(self._places(raw), None)

    def here(self) -> str | None:
        """Return the place of the app's own code that the calling thread is at.

        In a template of Jinja, that is the line of the template.
        """
        labels = self._labels
        for frame in own_frames(None if get_frame is None else get_frame(1)):
            # Most frames are of libraries, which is known by now.
            if labels.get(frame.f_code.co_filename, "") is not None:
                line = frame.f_lineno
                template = frame.f_globals.get("__jinja_template__")
                if template is not None and line is not None:
                    line = template.get_corresponding_lineno(line)
                found = self.innermost([(frame.f_code, line)])
                if found is not None:
                    return found
        return None

    def stack(self, raw: t.Iterable[RawFrame]) -> tuple[str, ...]:
        """Return all places of the app's own code in a stack, innermost first."""
        return tuple(self._places(raw))

    def definition(self, view: t.Callable[..., t.Any] | None) -> str | None:
        """Return where a view function is defined, or a view class its first method."""
        view = getattr(view, "view_class", view)
        if view is None:
            return None
        view = inspect.unwrap(view)
        own = getattr(view, "__dict__", {})  # a built-in function has none
        methods = (own.get(name) for name in ("dispatch_request", "get", "post"))
        codes = (getattr(each, "__code__", None) for each in (view, *methods))
        code = next((each for each in codes if each is not None), None)
        return None if code is None else self.innermost([(code, None)])

    def _places(self, raw: t.Iterable[RawFrame]) -> t.Iterator[str]:
        for code, line in raw:
            filename = code.co_filename
            if filename not in self._labels:
                self._labels[filename] = self._label(filename)
            label = self._labels[filename]
            if label is not None:
                # A frame that has just ended may have no line any more.
                yield f"{label}:{line or code.co_firstlineno} {code.co_name}"

    def _label(self, filename: str) -> str | None:
        path = os.path.realpath(filename)
        if filename.startswith("<") or path.startswith(_HERE):
            return None
        if path.startswith(self._root):
            inside = path[len(self._root) - 1 :]
            if any(mark in inside for mark in _PACKAGES):
                return None  # a virtual environment in the application's folder
            return path[len(self._root) :]
        if not path.startswith(self._project) or path.startswith(_libraries()):
            return None
        if any(mark in path for mark in _PACKAGES):
            return None
        return os.path.relpath(path, self._root)
