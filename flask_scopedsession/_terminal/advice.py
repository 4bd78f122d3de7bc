"""What ``pool-advise`` prints."""

from __future__ import annotations

import json
import typing as t

from .._advice.reasons import measured_as
from .._format import count
from ..snapshot import Survey
from .page import Page
from .sections import absent_workers
from .sections import start

if t.TYPE_CHECKING:
    from .._advice.report import Advice
    from .._advice.report import AdviceWarning
    from .._advice.report import Recommended
    from .._advice.report import Report
    from .._advice.report import ServerTotal

_SETTINGS: tuple[str, ...] = ("pool_size", "max_overflow", "pool_timeout")

#: The query for a server's limit, by the name of its dialect.
_ASK = {
    "postgresql": "SHOW max_connections",
    "mysql": "SELECT @@max_connections",
    "mariadb": "SELECT @@max_connections",
}


def render_advice(survey: Survey, report: Report) -> str:
    """Return what ``pool-advise`` prints."""
    page, found = start(survey)
    if not found:
        return str(page)
    for advice in report.advice:
        _advice(page, advice)
    if not report.advice:
        page.line("No worker has reported a pool.")
    for total in report.servers:
        _server(page, total, report.silent)
    absent_workers(page, survey)
    return str(page)


def _advice(page: Page, advice: Advice) -> None:
    workers = count(advice.workers, "worker")
    title = [f"{advice.bind}:", f"{advice.url},", f"{workers},", _pool(advice)]
    page.parts(title, style="bold")
    if advice.measured is not None:
        _say(page, f"Measured: {measured_as(advice.measured, advice.workers)}")
    if advice.recommended is not None:
        _recommended(page, advice.bind, advice.recommended)
    else:
        _say(page, f"No recommendation: {advice.problem}.")
    if advice.recommended is not None and advice.warnings:
        page.line()
    _warnings(page, advice.warnings)
    page.line()


def _pool(advice: Advice) -> str:
    """Name the pool and its current settings."""
    if advice.size is None:
        return advice.pool_class
    most = "any number" if advice.max is None else f"at most {advice.max}"
    wait = "" if advice.pool_timeout is None else f", timeout {advice.pool_timeout:g} s"
    return f"{advice.pool_class} of {advice.size}, {most}{wait}"


def _recommended(page: Page, bind: str, found: Recommended) -> None:
    page.line()
    values = (found.pool_size, found.max_overflow, found.pool_timeout)
    for name, value, reason in zip(_SETTINGS, values, found.reasons, strict=True):
        page.parts([f"{name:12}  {value:4} ", *reason.split()], indent=2, hang=20)
    page.line()
    options: dict[str, int] = dict(zip(_SETTINGS, values, strict=True))
    for line in _pasted(bind, options):
        page.line(f"  {line}")
    page.line()
    page.line("  or in the environment, for app.config.from_prefixed_env():")
    for name, value in options.items():
        page.line(f"  {_variable(bind)}__{name}={value}")


def _pasted(bind: str, options: t.Mapping[str, int]) -> list[str]:
    """Return the lines for a configuration file."""
    content = json.dumps(options)[1:-1]
    if bind == "default":
        return ["SQLALCHEMY_ENGINE_OPTIONS = {", f"    {content},", "}"]
    return [
        f"SQLALCHEMY_BINDS = {{{json.dumps(bind)}: {{",
        '    "url": ...,  # as it is',
        f"    {content},",
        "}}",
    ]


def _variable(bind: str) -> str:
    """Return the environment variable for a bind's options.

    For a bind other than the default, it needs a bind that is configured as a dict.
    """
    if bind == "default":
        return "FLASK_SQLALCHEMY_ENGINE_OPTIONS"
    return f"FLASK_SQLALCHEMY_BINDS__{bind}"


def _server(page: Page, total: ServerTotal, silent: int) -> None:
    """Compare what all workers may open on one server with what it accepts."""
    now = "any number of connections"
    if total.now is not None:
        now = f"at most {count(total.now, 'connection')}"
    end = "," if total.has_advice else "."
    parts = [
        f"{total.server}:",
        f"{count(total.workers, 'worker')} may open {now}{end}",
    ]
    if total.has_advice:
        advised = "any number" if total.advised is None else str(total.advised)
        parts.append(f"and {advised} as advised.")
    if total.limit is not None:
        parts.append(f"The server accepts {total.limit}.")
    page.parts(parts, style="bold")
    if silent:
        _say(
            page,
            f"{count(silent, 'worker')} did not answer; assumed to be like the others.",
        )
    if total.limit is None:
        ask = _ASK.get(total.server.partition(":")[0])
        how = f"'{ask}' shows the limit" if ask else "Look up the limit"
        _say(page, f"{how}; pass it as --max-connections. Other hosts connect, too.")
    _warnings(page, total.warnings)


def _warnings(page: Page, warnings: t.Iterable[AdviceWarning]) -> None:
    for warning in warnings:
        _say(page, f"Warning: {warning.text}", "yellow")


def _say(page: Page, text: str, style: str = "") -> None:
    """Add a sentence that can be broken anywhere."""
    page.parts(text.split(), indent=2, hang=2, style=style)
