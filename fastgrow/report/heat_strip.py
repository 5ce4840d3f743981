"""A text whose tokens are coloured by the expert that gives each the highest probability."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fastgrow import _files
from fastgrow.compose.support import TokenSupport
from fastgrow.report.markup import render_part
from fastgrow.report.page import Report
from fastgrow.report.parts import Table

# The hues are multiples of the golden angle, so that consecutive experts differ clearly.
_GOLDEN_ANGLE = 137.508


@dataclass(frozen=True)
class HeatStrip:
    """Tokens, each in the colour of the expert that gave it the highest probability.

    The colour is stronger if the expert leads by more. The tooltip of a token lists the bits of all
    experts.

    Attributes:
        supports: results of `token_support`, at least one.
    """

    supports: Sequence[TokenSupport]

    def markdown(self) -> str:
        lead = dict.fromkeys(self.supports[0].bits, 0)
        for support in self.supports:
            lead[_winner(support)] += 1
        rows = [[name, str(count)] for name, count in lead.items()]
        return Table(["expert", "tokens with the highest probability"], rows).markdown()

    def html(self, folder: Path) -> str:
        return render_part("heat_strip", tokens=[_token(support) for support in self.supports])


@dataclass(frozen=True)
class SupportTable:
    """The mean bits and the share of tokens of each expert, and the key to the colours."""

    supports: Sequence[TokenSupport]

    def markdown(self) -> str:
        return Table(_HEADER, self._rows()).markdown()

    def html(self, folder: Path) -> str:
        *experts, ensemble = self._rows()
        coloured = [(_colour(place, 0.75), cells) for place, cells in enumerate(experts)]
        return render_part("support_table", header=_HEADER, experts=coloured, ensemble=ensemble)

    def _rows(self) -> list[list[str]]:
        rows = [[name, f"{bits:.2f}", f"{share:.0%}"] for name, bits, share in self._experts()]
        return [*rows, ["ensemble", f"{self._merged():.2f}", ""]]

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
    """Write an HTML page with a strip and its table.

    Args:
        supports: results of `token_support`, at least one.
        path: path of the HTML file.
        title: title of the page.
    """
    report = Report(title, [HeatStrip(supports), SupportTable(supports)])
    _files.write_text(path, report.html(path.parent))


_HEADER = ["expert", "bits per token", "share of tokens"]


def _winner(support: TokenSupport) -> str:
    return max(support.shares, key=lambda name: support.shares[name])


def _token(support: TokenSupport) -> dict[str, str]:
    names = list(support.bits)
    winner = _winner(support)
    floor = 1 / len(names)
    lead = (support.shares[winner] - floor) / (1 - floor) if len(names) > 1 else 0.0
    bits = [f"{name} {support.bits[name]:.1f} bits" for name in names]
    return {
        "text": support.text,
        "title": "; ".join([*bits, f"ensemble {support.merged_bits:.1f} bits"]),
        "colour": _colour(names.index(winner), 0.75 * lead),
    }


def _colour(place: int, strength: float) -> str:
    return f"hsl({place * _GOLDEN_ANGLE % 360:.0f} 80% var(--heat) / {strength:.2f})"
