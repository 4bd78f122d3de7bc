"""A page that shows the pools and sessions of all workers of this host.

``_blueprint``  its routes, and who may see them.
``_content``    what is on it, in the words of the status commands.
``_tables``     the form of its tables.
``_rows``       the rows about pools, holders and waiters.
``_advised``    the advice of ``pool-advise``.
``_drawings``   the histograms.
"""

from __future__ import annotations

from ._blueprint import dashboard

__all__ = ["dashboard"]
