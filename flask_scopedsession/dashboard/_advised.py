"""The advice of ``pool-advise`` on the pools of one bind."""

from __future__ import annotations

from dataclasses import dataclass

from .._advice.report import Advice
from .._terminal import advice as advice_page
from ._tables import Table
from ._tables import table_of


@dataclass(frozen=True)
class Advised:
    """The advice on the pools of one bind."""

    title: str
    said: tuple[str, ...]
    settings: Table | None
    to_paste: tuple[str, ...]
    variables: tuple[str, ...]
    warnings: tuple[str, ...]


def advised(advice: Advice) -> Advised:
    """Return what the page says of the advice."""
    found = advice.recommended
    settings: Table | None = None
    to_paste: list[str] = []
    variables: list[str] = []
    if found is not None:
        to_paste = advice_page.lines_to_paste(advice.bind, found)
        variables = advice_page.variables_to_paste(advice.bind, found)
        values = advice_page.values_of(found).items()
        rows = [
            (name, str(value), reason)
            for (name, value), reason in zip(values, found.reasons, strict=True)
        ]
        columns = ("SETTING", ">VALUE", "WHY")
        settings = table_of(f"advice-{advice.bind}", "Recommended", columns, rows)
    return Advised(
        title=" ".join(advice_page.title_of(advice)),
        said=tuple(advice_page.basis_of(advice)),
        settings=settings,
        to_paste=tuple(to_paste),
        variables=tuple(variables),
        warnings=tuple(f"Warning: {warning.text}" for warning in advice.warnings),
    )
