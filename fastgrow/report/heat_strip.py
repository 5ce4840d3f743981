"""A text in which colour tells the expert that supports each token."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fastgrow import _files
from fastgrow.compose.support import TokenSupport
from fastgrow.report.page import Report
from fastgrow.report.parts import Table

# Hues around the circle by the golden angle: neighbours in the list are far apart in colour.
_GOLDEN_ANGLE = 137.508


@dataclass(frozen=True)
class HeatStrip:
    """Tokens, each in the colour of the expert that gave it the most probability.

    The colour is the stronger the more that expert is ahead. A token that is pointed at shows every
    expert's bits.

    Attributes:
        supports: of `token_support`, at least one.
    """

    supports: Sequence[TokenSupport]

    def markdown(self) -> str:
        lead = dict.fromkeys(self.supports[0].bits, 0)
        for support in self.supports:
            lead[_winner(support)] += 1
        rows = [[name, str(count)] for name, count in lead.items()]
        return Table(["expert", "tokens it gave the most"], rows).markdown()

    def html(self, folder: Path) -> str:
        return f'<p class="strip">{"".join(map(_span, self.supports))}</p>'


@dataclass(frozen=True)
class SupportTable:
    """Each expert's mean bits and its share of the tokens; it is the key to the colours, too."""

    supports: Sequence[TokenSupport]

    def markdown(self) -> str:
        rows = [[name, f"{bits:.2f}", f"{share:.0%}"] for name, bits, share in self._experts()]
        rows.append(["together", f"{self._merged():.2f}", ""])
        return Table(_HEADER, rows).markdown()

    def html(self, folder: Path) -> str:
        rows = []
        for place, (name, bits, share) in enumerate(self._experts()):
            key = f'<span class="key" style="background: {_colour(place, 0.75)}"></span>'
            rows.append(
                f"<tr><td>{key}{html.escape(name)}</td><td>{bits:.2f}</td><td>{share:.0%}</td></tr>"
            )
        rows.append(f"<tr><td>together</td><td>{self._merged():.2f}</td><td></td></tr>")
        head = "".join(f"<th>{name}</th>" for name in _HEADER)
        body = "".join(rows)
        return f'<div class="wide"><table><tr>{head}</tr>{body}</table></div>'

    def _experts(self) -> list[tuple[str, float, float]]:
        n = len(self.supports)
        return [
            (name, sum(s.bits[name] for s in self.supports) / n,
             sum(s.shares[name] for s in self.supports) / n)
            for name in self.supports[0].bits
        ]  # fmt: skip

    def _merged(self) -> float:
        return sum(support.merged_bits for support in self.supports) / len(self.supports)


def write_heat_strip(supports: Sequence[TokenSupport], path: Path, *, title: str) -> None:
    """Write a page of one strip and its table.

    Args:
        supports: of `token_support`, at least one.
        path: of the HTML file.
        title: of the page.
    """
    report = Report(title, [HeatStrip(supports), SupportTable(supports)])
    _files.write_text(path, report.html(path.parent))


_HEADER = ["expert", "bits a token", "share of tokens"]


def _winner(support: TokenSupport) -> str:
    return max(support.shares, key=lambda name: support.shares[name])


def _span(support: TokenSupport) -> str:
    names = list(support.bits)
    winner = _winner(support)
    floor = 1 / len(names)
    lead = (support.shares[winner] - floor) / (1 - floor) if len(names) > 1 else 0.0
    bits = [f"{name} {support.bits[name]:.1f} bits" for name in names]
    said = html.escape("; ".join([*bits, f"together {support.merged_bits:.1f}"]))
    colour = _colour(names.index(winner), 0.75 * lead)
    return f'<span style="background: {colour}" title="{said}">{html.escape(support.text)}</span>'


def _colour(place: int, strength: float) -> str:
    return f"hsl({place * _GOLDEN_ANGLE % 360:.0f} 80% var(--heat) / {strength:.2f})"
