"""Frozen readings of pools, sessions and workers, and their JSON.

The names are those of the JSON, schema 1. Seconds are floats and end in ``_s``;
counters since the worker's start end in ``_total``. What a pool class cannot
know is ``None`` in Python and ``null`` in JSON, never 0. The fields of one reading
are read one after another while the process goes on, so they may not add up.
"""

from __future__ import annotations

from .._buckets import BUCKET_BOUNDS
from .._buckets import STATEMENT_BOUNDS
from ._histogram import Histogram
from ._readings import BusyMinute
from ._readings import ConfiguredPool
from ._readings import DatabaseTotal
from ._readings import DatabaseURL
from ._readings import Holder
from ._readings import LostWorkCount
from ._readings import Origin
from ._readings import PoolSnapshot
from ._readings import PoolTimeout
from ._readings import SCHEMA
from ._readings import SearchedDirectory
from ._readings import SessionSnapshot
from ._readings import SharedUse
from ._readings import Silent
from ._readings import Survey
from ._readings import ThreadPlace
from ._readings import ViewUse
from ._readings import Waiter
from ._readings import WorkerSnapshot

__all__ = [
    "BUCKET_BOUNDS",
    "SCHEMA",
    "STATEMENT_BOUNDS",
    "BusyMinute",
    "ConfiguredPool",
    "DatabaseTotal",
    "DatabaseURL",
    "Histogram",
    "Holder",
    "LostWorkCount",
    "Origin",
    "PoolSnapshot",
    "PoolTimeout",
    "SearchedDirectory",
    "SessionSnapshot",
    "SharedUse",
    "Silent",
    "Survey",
    "ThreadPlace",
    "ViewUse",
    "Waiter",
    "WorkerSnapshot",
]
