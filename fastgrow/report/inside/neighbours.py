"""Nearest glyphs: what looks alike to a model, by the cosine of the frozen vectors."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fastgrow.report.page import Report
from fastgrow.report.parts import Table

DEFAULT = "Aж汉"
# With the character itself two full rows of four on a phone.
_NEAREST = 7
_MOST = 12


@dataclass(frozen=True)
class Neighbour:
    """A token and how near it is.

    Attributes:
        token: its characters.
        cosine: between its frozen vector and that of the token asked for, which has 1.
        bitmap: its picture, bool [cell, cell]; None for a substrate of codes.
    """

    token: str
    cosine: float
    bitmap: np.ndarray | None


def nearest(substrate: Any, table: np.ndarray, token: str, k: int = _NEAREST) -> list[Neighbour]:
    """The token itself and the k whose vectors have the largest cosine with its own.

    Args:
        substrate: whose `table` it is; special tokens are left out.
        table: [V, n_embed] float, the frozen vectors.
        token: in the vocabulary.
        k: how many neighbours.

    Returns:
        The token, then its neighbours, the nearest first, of equal ones that with the lower id;
        the token alone where its vector is zero.
    """
    ids = substrate.vocabulary.ids
    own = ids[token]
    lengths = np.linalg.norm(table, axis=1)
    here = [Neighbour(token, 1.0, _bitmap(substrate, own))]
    if lengths[own] == 0:
        return here
    # Each row's sum by itself: a matrix product may round equal rows differently.
    cosine = np.einsum("ij,j->i", table, table[own]) / np.where(lengths > 0, lengths, 1)
    cosine /= lengths[own]
    cosine[[own, *substrate.vocabulary.specials.values()]] = -np.inf
    cosine[lengths == 0] = -np.inf
    # Rounded: the last digits depend on the machine, and equal pictures are to keep their order.
    order = np.argsort(-np.round(cosine, 5), kind="stable")[:k].tolist()
    tokens = substrate.vocabulary.tokens
    near = [i for i in order if np.isfinite(cosine[i])]
    return here + [Neighbour(tokens[i], float(cosine[i]), _bitmap(substrate, i)) for i in near]


@dataclass(frozen=True)
class GlyphRow:
    """A token's picture, and those of its neighbours behind it."""

    neighbours: Sequence[Neighbour]

    def markdown(self) -> str:
        rows = [[_name(n.token), f"{n.cosine:.3f}"] for n in self.neighbours]
        return Table(["token", "cosine"], rows).markdown()

    def html(self, folder: Path) -> str:
        items = []
        for place, near in enumerate(self.neighbours):
            picture = "" if near.bitmap is None else glyph_svg(near.bitmap)
            said = f"<br>{near.cosine:.3f}" if place else ""
            items.append(f"<li>{picture}<b>{html.escape(_name(near.token))}</b>{said}</li>")
        return f'<ul class="glyphs">{"".join(items)}</ul>'


def glyph_svg(bitmap: np.ndarray) -> str:
    """A picture as SVG in the colour of the text around it.

    Args:
        bitmap: bool [height, width], True is ink.
    """
    height, width = bitmap.shape
    path = []
    for y, row in enumerate(bitmap):
        edges = np.flatnonzero(np.diff(np.concatenate([[0], row.astype(np.int8), [0]])))
        for start, end in edges.reshape(-1, 2).tolist():
            path.append(f"M{start} {y}h{end - start}v1h{start - end}z")
    return (
        f'<svg viewBox="0 0 {width} {height}" shape-rendering="crispEdges" aria-hidden="true">'
        f'<path fill="currentColor" d="{"".join(path)}"/></svg>'
    )


def add_neighbours(report: Report, substrate: Any, wished: str | None) -> None:
    """The section of a model on a substrate."""
    report.heading("Nearest glyphs")
    known = substrate.vocabulary.ids
    characters = list(dict.fromkeys(DEFAULT if wished is None else wished))
    unknown = [c for c in characters if c not in known]
    found = [c for c in characters if c in known][:_MOST]
    if unknown and wished is not None:
        report.note(f"Not in this vocabulary: {', '.join(map(_name, unknown))}.")
    if not found and wished is None:
        found = [t for t in substrate.vocabulary.tokens if len(t) == 1 and t.isalpha()][:3]
    if not found:
        report.note("There is no character to show; name some by --neighbours.")
        return
    coded = substrate.recipe.codes is not None
    report.paragraph(
        "What is near by the cosine of the frozen vectors, below each the cosine. "
        + (
            f"The vectors are codes ({substrate.recipe.codes}), not pictures: nearness means "
            "nothing for reading."
            if coded
            else "Those of cosine 1 look the same to the model."
        )
    )
    if len([c for c in characters if c in known]) > _MOST:
        report.note(f"Only the first {_MOST} characters are shown.")
    for character in found:
        row = nearest(substrate, substrate.table, character)
        report.add(GlyphRow(row))
        if len(row) == 1:
            report.paragraph(f"{_name(character)} draws nothing, so nothing is near it.")


def _bitmap(substrate: Any, id_: int) -> np.ndarray | None:
    return None if substrate.recipe.codes is not None else substrate.bitmap(id_)


def _name(token: str) -> str:
    if len(token) != 1:
        return token if token.isprintable() else repr(token)
    point = f"U+{ord(token):04X}"
    return f"{token} {point}" if token.isprintable() and not token.isspace() else point
