"""W8: memory that is not released after many requests or dropped applications."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable

import psutil
import sqlalchemy as sa
from flask import Flask

from . import apps

#: Seconds in which threads notice that an application is gone; ours checks every two.
_NOTICED = 2.5


def after_requests(app: Flask, warm_up: int, count: int) -> dict[str, float]:
    """Return the growth of the process over `count` requests."""
    request = apps.environ("/W2")
    for _ in range(warm_up):
        apps.call(app, request)
    before = _resident_kib()
    for _ in range(count):
        apps.call(app, request)
    return {"requests_kib": _resident_kib() - before}


def after_apps(
    make_app: Callable[[], Flask], warm_up: int, count: int
) -> dict[str, float]:
    """Return what is left of `count` applications that nothing refers to."""
    _make_and_drop(make_app, warm_up)
    before = _resident_kib(), _living(Flask), _living(sa.Engine)
    _make_and_drop(make_app, count)
    after = _resident_kib(), _living(Flask), _living(sa.Engine)
    grown = (a - b for a, b in zip(after, before, strict=True))
    return dict(zip(("apps_kib", "apps_left", "engines_left"), grown, strict=True))


def _make_and_drop(make_app: Callable[[], Flask], count: int) -> None:
    request = apps.environ("/W2")
    for _ in range(count):
        apps.call(make_app(), request)
    gc.collect()
    time.sleep(_NOTICED)


def _living(kind: type) -> int:
    gc.collect()
    return sum(isinstance(each, kind) for each in gc.get_objects())


def _resident_kib() -> float:
    gc.collect()
    return float(psutil.Process().memory_info().rss / 1024)
