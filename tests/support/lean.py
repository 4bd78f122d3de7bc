"""Run a program as Python does, in less time than its imports usually take.

``python lean.py script.py ARGS`` and ``python lean.py -m module ARGS``. For a program
that lets gevent patch the standard library, ``python lean.py --gevent script.py ARGS``.

A short process that imports Flask and SQLAlchemy spends most of its time on that, and
on garbage collections that find nothing: while it imports them, and when it ends. Here
they are imported first, and collections leave them out. What the program makes is
collected as always. ``-m flask`` does not import commands of other distributions.
"""

import gc
import runpy
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

#: The path of this file.
LEAN = __file__

_entry_points: Any = metadata.entry_points


def import_libraries() -> None:
    """Import what most programs need, and leave it out of garbage collections."""
    gc.disable()
    import flask.cli  # noqa: F401
    import sqlalchemy.orm  # noqa: F401

    gc.freeze()
    gc.enable()


def entry_points(**params: Any) -> Any:
    """Return the entry points; as commands of Flask, only those of this package."""
    found = _entry_points(**params)
    if params.get("group") != "flask.commands":
        return found
    return [each for each in found if each.value.startswith("flask_scopedsession.")]


if __name__ == "__main__":
    del sys.argv[0]
    if sys.argv[0] == "--gevent":
        del sys.argv[0]
        import gevent.monkey

        gevent.monkey.patch_all()
    is_module = sys.argv[0] == "-m"
    sys.path[0] = str(Path.cwd() if is_module else Path(sys.argv[0]).parent)
    import_libraries()
    metadata.entry_points = entry_points
    if is_module:
        runpy.run_module(sys.argv.pop(1), run_name="__main__", alter_sys=True)
    else:
        __file__ = sys.argv[0]
        program = compile(Path(__file__).read_bytes(), __file__, "exec", 0, True)
        exec(program)  # in this module: its names last until the process ends
