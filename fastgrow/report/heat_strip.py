"""A text in which colour tells the expert that supports each token: one HTML file."""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path

from fastgrow import _files
from fastgrow.compose.support import TokenSupport

# Hues around the circle by the golden angle: neighbours in the list are far apart in colour.
_GOLDEN_ANGLE = 137.508
_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 56rem; margin: 2rem auto; padding: 0 1rem;
       color: #1b1b1b; background: #fff; }
.strip { font-size: 1.35rem; line-height: 2; white-space: pre-wrap; overflow-wrap: anywhere; }
.strip span { padding: .1em 0; border-radius: .15em; }
.key { display: inline-block; width: 1em; height: 1em; border-radius: .2em;
       vertical-align: -.15em; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .7rem; border-bottom: 1px solid #ddd; text-align: right; }
th:first-child, td:first-child { text-align: left; }
"""


def write_heat_strip(supports: Sequence[TokenSupport], path: Path, *, title: str) -> None:
    """Write the page.

    A token takes the colour of the expert that gave it the most probability, the stronger the more
    that one is ahead; it shows every expert's bits when pointed at. A table below has the means.

    Args:
        supports: of `token_support`, at least one.
        path: of the HTML file.
        title: of the page.
    """
    names = list(supports[0].bits)
    _files.write_text(
        path,
        "<!doctype html>\n"
        '<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style></head><body>\n"
        f"<h1>{html.escape(title)}</h1>\n"
        f'<p class="strip">{"".join(_span(support, names) for support in supports)}</p>\n'
        f"{_table(supports, names)}</body></html>\n",
    )


def _span(support: TokenSupport, names: Sequence[str]) -> str:
    winner = max(names, key=lambda name: support.shares[name])
    floor = 1 / len(names)
    lead = (support.shares[winner] - floor) / (1 - floor) if len(names) > 1 else 0.0
    bits = [f"{name} {support.bits[name]:.1f} bits" for name in names]
    said = html.escape("; ".join([*bits, f"together {support.merged_bits:.1f}"]))
    colour = _colour(names.index(winner), 0.75 * lead)
    return f'<span style="background: {colour}" title="{said}">{html.escape(support.text)}</span>'


def _table(supports: Sequence[TokenSupport], names: Sequence[str]) -> str:
    rows = []
    for place, name in enumerate(names):
        bits = sum(support.bits[name] for support in supports) / len(supports)
        share = sum(support.shares[name] for support in supports) / len(supports)
        key = f'<span class="key" style="background: {_colour(place, 0.75)}"></span>'
        rows.append(f"<tr><td>{key} {html.escape(name)}</td><td>{bits:.2f}</td>"
                    f"<td>{share:.0%}</td></tr>")  # fmt: skip
    merged = sum(support.merged_bits for support in supports) / len(supports)
    rows.append(f"<tr><td>together</td><td>{merged:.2f}</td><td></td></tr>")
    head = "<tr><th>expert</th><th>bits a token</th><th>share of tokens</th></tr>"
    return f"<table>{head}{''.join(rows)}</table>\n"


def _colour(place: int, strength: float) -> str:
    return f"hsl({place * _GOLDEN_ANGLE % 360:.0f} 80% 55% / {strength:.2f})"
