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

_SETTINGS = ("pool_size", "max_overflow", "pool_timeout")

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
        server_total(page, total, report.silent)
    absent_workers(page, survey)
    return str(page)


def _advice(page: Page, advice: Advice) -> None:
    page.parts(title_of(advice), style="bold")
    for sentence in basis_of(advice):
        _say(page, sentence)
    if advice.recommended is not None:
        _recommended(page, advice.bind, advice.recommended)
    if advice.recommended is not None and advice.warnings:
        page.line()
    _warnings(page, advice.warnings)
    page.line()


def title_of(advice: Advice) -> list[str]:
    """Name the bind, its database, its workers and their pools."""
    workers = count(advice.workers, "worker")
    return [f"{advice.bind}:", f"{advice.url},", f"{workers},", _pool(advice)]


def basis_of(advice: Advice) -> list[str]:
    """Say what was measured, and why nothing is recommended, if so."""
    said = []
    if advice.measured is not None:
        said.append(f"Measured: {measured_as(advice.measured, advice.workers)}")
    if advice.recommended is None:
        said.append(f"No recommendation: {advice.problem}.")
    return said


def _pool(advice: Advice) -> str:
    """Name the pool and its current settings."""
    if advice.size is None:
        return advice.pool_class
    most = "any number" if advice.max is None else f"at most {advice.max}"
    wait = "" if advice.pool_timeout is None else f", timeout {advice.pool_timeout:g} s"
    return f"{advice.pool_class} of {advice.size}, {most}{wait}"


def _recommended(page: Page, bind: str, found: Recommended) -> None:
    page.line()
    values = values_of(found)
    for (name, value), reason in zip(values.items(), found.reasons, strict=True):
        page.parts([f"{name:12}  {value:4} ", *reason.split()], indent=2, hang=20)
    page.line()
    for line in lines_to_paste(bind, found):
        page.line(f"  {line}")
    page.line()
    page.line("  or in the environment, for app.config.from_prefixed_env():")
    for line in variables_to_paste(bind, found):
        page.line(f"  {line}")


def values_of(found: Recommended) -> dict[str, int]:
    """Return the recommended settings by name."""
    return {name: getattr(found, name) for name in _SETTINGS}


def lines_to_paste(bind: str, found: Recommended) -> list[str]:
    """Return the lines for a configuration file."""
    options = values_of(found)
    content = json.dumps(options)[1:-1]
    if bind == "default":
        return ["SQLALCHEMY_ENGINE_OPTIONS = {", f"    {content},", "}"]
    return [
        f"SQLALCHEMY_BINDS = {{{json.dumps(bind)}: {{",
        '    "url": ...,  # as it is',
        f"    {content},",
        "}}",
    ]


def variables_to_paste(bind: str, found: Recommended) -> list[str]:
    """Return the environment variables for a bind's options.

    For a bind other than the default, it needs a bind that is configured as a dict.
    """
    prefix = "FLASK_SQLALCHEMY_ENGINE_OPTIONS"
    if bind != "default":
        prefix = f"FLASK_SQLALCHEMY_BINDS__{bind}"
    return [f"{prefix}__{name}={value}" for name, value in values_of(found).items()]


def server_total(page: Page, total: ServerTotal, silent: int) -> None:
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
