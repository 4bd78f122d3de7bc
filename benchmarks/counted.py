"""Requests in a process whose instructions valgrind counts."""

from __future__ import annotations

import gc
import operator
import sys

from .instructions import prepared
from .worker import Bench
from .worker import Job


def main() -> None:
    """Run ``WORKLOAD SETTING CONTESTANT N FOLDER``."""
    workload, setting, key, n, folder = sys.argv[1:]
    bench = Bench(Job(key, prepared(folder), {}, folder))
    bench.ready()
    run = bench.slice(workload, setting)
    run(min(100, int(n)))  # CPython specializes code in the first steps
    gc.collect()
    gc.disable()
    # Python 3.10 does not have it. See COUNTED_WITHIN.
    vars(operator)["call"](run, int(n))


if __name__ == "__main__":
    main()
