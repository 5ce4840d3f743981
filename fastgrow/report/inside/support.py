"""Which expert carried which token, on the page."""

from __future__ import annotations

from collections.abc import Sequence

from fastgrow.compose import Ensemble, token_support
from fastgrow.errors import FastgrowError
from fastgrow.report.heat_strip import HeatStrip, SupportTable
from fastgrow.report.inside.excerpts import Excerpt
from fastgrow.report.page import Report


def add_support(report: Report, ensemble: Ensemble, excerpts: Sequence[Excerpt]) -> None:
    """The section: a strip for each text, and a table for all together."""
    report.heading("Which expert carried which token")
    supports = []
    for excerpt in excerpts:
        try:
            found = token_support(ensemble, excerpt.text)
        except FastgrowError as error:
            report.note(f"Of {excerpt.origin} nothing can be shown: {error}.")
            continue
        report.heading(excerpt.origin[:1].upper() + excerpt.origin[1:], level=3)
        report.add(HeatStrip(found))
        supports += found
    if not supports:
        report.note("There is no text at hand to divide among the experts; give one by --text.")
        return
    report.add(SupportTable(supports))
    report.paragraph(
        "A token has the colour of the expert that gave it the most probability, the stronger the "
        "more that one is ahead. Point at a token for every expert's bits. The share is each "
        "expert's probability over the sum of all, whatever the rule of the ensemble."
    )
