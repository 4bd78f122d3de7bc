"""For the tests of an application: databases that are afterwards as they were before.

:func:`isolate` is a context manager in which everything that the application writes is
rolled back at the end, whatever it commits. :func:`database_for_worker` gives each
process of pytest-xdist a database of its own.
"""

from __future__ import annotations

from ._isolation import isolate
from ._workers import database_for_worker

__all__ = ["database_for_worker", "isolate"]
