"""Requests in a process whose instructions valgrind counts."""

from __future__ import annotations

import gc
import sys

from .instructions import prepared
from .worker import Bench
from .worker import Job


def main() -> None:
    """Run ``WORKLOAD CONTESTANT N FOLDER``."""
    workload, key, n, folder = sys.argv[1:]
    bench = Bench(Job(key, prepared(folder), {}, folder))
    bench.ready()
    run = bench.slice(workload, "")
    run(5)
    # Otherwise a collection may run in one of the two processes only.
    gc.collect()
    gc.disable()
    run(int(n))


if __name__ == "__main__":
    main()
