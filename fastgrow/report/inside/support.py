"""The section about which expert supports which token."""

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
    """Add the section: a strip for each text, and a table for all texts together.

    Returns:
        For each expert, the text for which its share is largest.
    """
    report.heading("Which expert supports which token")
    supports: list[TokenSupport] = []
    best: dict[str, tuple[float, Excerpt]] = {}
    for excerpt in excerpts:
        try:
            found = token_support(ensemble, excerpt.text)
        except FastgrowError as error:
            report.note(f"No support can be shown for {excerpt.origin}: {error}.")
            continue
        report.heading(excerpt.origin[:1].upper() + excerpt.origin[1:], level=3)
        report.add(HeatStrip(found))
        supports += found
        for name in ensemble.names:
            share = sum(support.shares[name] for support in found) / len(found)
            if name not in best or share > best[name][0]:
                best[name] = share, excerpt
    if not supports:
        report.note("There is no text to attribute to the experts. Pass one with --text.")
        return {}
    report.add(SupportTable(supports))
    report.paragraph(
        "A token has the colour of the expert that gave it the highest probability. The colour is "
        "stronger if that expert leads by more. Hover over a token to see the bits of all experts. "
        "The share of an expert is its probability divided by the sum over all experts; it does "
        "not depend on the rule of the ensemble."
    )
    return {name: excerpt for name, (_, excerpt) in best.items()}
