"""For the tests of an application: databases that are afterwards as they were before.

:func:`isolate` is a context manager in which everything that the application writes is
rolled back at the end, whatever it commits.
"""

from __future__ import annotations

from ._isolation import isolate

__all__ = ["isolate"]
