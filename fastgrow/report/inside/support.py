"""Which expert carried which token, on the page."""

from __future__ import annotations

from collections.abc import Sequence

from fastgrow.compose import Ensemble, TokenSupport, token_support
from fastgrow.errors import FastgrowError
from fastgrow.report.heat_strip import HeatStrip, SupportTable
from fastgrow.report.inside.excerpts import Excerpt
from fastgrow.report.page import Report


def add_support(
    report: Report, ensemble: Ensemble, excerpts: Sequence[Excerpt]
) -> dict[str, Excerpt]:
    """The section: a strip for each text, and a table for all together.

    Returns:
        For each expert the text of which it has the largest share.
    """
    report.heading("Which expert carried which token")
    supports: list[TokenSupport] = []
    best: dict[str, tuple[float, Excerpt]] = {}
    for excerpt in excerpts:
        try:
            found = token_support(ensemble, excerpt.text)
        except FastgrowError as error:
            report.note(f"Of {excerpt.origin} nothing can be shown: {error}.")
            continue
        report.heading(excerpt.origin[:1].upper() + excerpt.origin[1:], level=3)
        report.add(HeatStrip(found))
        supports += found
        for name in ensemble.names:
            share = sum(support.shares[name] for support in found) / len(found)
            if name not in best or share > best[name][0]:
                best[name] = share, excerpt
    if not supports:
        report.note("There is no text at hand to divide among the experts; give one by --text.")
        return {}
    report.add(SupportTable(supports))
    report.paragraph(
        "A token has the colour of the expert that gave it the most probability, the stronger the "
        "more that one is ahead. Point at a token for every expert's bits. The share is each "
        "expert's probability over the sum of all, whatever the rule of the ensemble."
    )
    return {name: excerpt for name, (_, excerpt) in best.items()}
