"""Nearest glyphs: tokens whose vectors in the token table have the largest cosine similarity."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from fastgrow.report.markup import render_part
from fastgrow.report.page import Report
from fastgrow.report.parts import Table

DEFAULT = "Aж汉"
# Together with the character itself these are two full rows of four on a phone.
_NEAREST = 7
_MOST = 12


@dataclass(frozen=True)
class Neighbour:
    """A token and its similarity to another token.

    Attributes:
        token: characters of the token.
        cosine: cosine similarity of the two vectors; 1 for the other token itself.
        bitmap: glyph of the token, bool [cell, cell]; None for a substrate of codes.
    """

    token: str
    cosine: float
    bitmap: np.ndarray | None


def nearest(substrate: Any, table: np.ndarray, token: str, k: int = _NEAREST) -> list[Neighbour]:
    """Return the token itself and the k tokens with the largest cosine similarity to it.

    Args:
        substrate: substrate of the vectors. Its special tokens are left out.
        table: vectors of the tokens, float [V, n_embed].
        token: a token of the vocabulary.
        k: number of neighbours.

    Returns:
        The token, then its neighbours in order of descending cosine, and of ascending id among
        equal ones. Only the token itself if its vector is zero.
    """
    ids = substrate.vocabulary.ids
    own = ids[token]
    lengths = np.linalg.norm(table, axis=1)
    here = [Neighbour(token, 1.0, _bitmap(substrate, own))]
    if lengths[own] == 0:
        return here
    # Each row is summed separately: a matrix product may round equal rows differently.
    cosine = np.einsum("ij,j->i", table, table[own]) / np.where(lengths > 0, lengths, 1)
    cosine /= lengths[own]
    cosine[[own, *substrate.vocabulary.specials.values()]] = -np.inf
    cosine[lengths == 0] = -np.inf
    # Rounded, because the last digits depend on the machine, which would reorder equal glyphs.
    order = np.argsort(-np.round(cosine, 5), kind="stable")[:k].tolist()
    tokens = substrate.vocabulary.tokens
    near = [i for i in order if np.isfinite(cosine[i])]
    return here + [Neighbour(tokens[i], float(cosine[i]), _bitmap(substrate, i)) for i in near]


@dataclass(frozen=True)
class GlyphRow:
    """The glyph of a token, followed by those of its neighbours."""

    neighbours: Sequence[Neighbour]

    def markdown(self) -> str:
        rows = [[_name(n.token), f"{n.cosine:.3f}"] for n in self.neighbours]
        return Table(["token", "cosine"], rows).markdown()

    def html(self, folder: Path) -> str:
        tokens = [
            {
                "name": _name(near.token),
                "cosine": f"{near.cosine:.3f}",
                "picture": "" if near.bitmap is None else glyph_svg(near.bitmap),
            }
            for near in self.neighbours
        ]
        return render_part("glyphs", tokens=tokens)


def glyph_svg(bitmap: np.ndarray) -> Markup:
    """Return a bitmap as SVG in the colour of the text around it.

    Args:
        bitmap: bool [height, width], True for ink.
    """
    height, width = bitmap.shape
    path = []
    for y, row in enumerate(bitmap):
        edges = np.flatnonzero(np.diff(np.concatenate([[0], row.astype(np.int8), [0]])))
        for start, end in edges.reshape(-1, 2).tolist():
            path.append(f"M{start} {y}h{end - start}v1h{start - end}z")
    return render_part("glyph", width=width, height=height, path="".join(path))


def add_neighbours(report: Report, substrate: Any, requested: str | None) -> None:
    """Add the section about the nearest glyphs.

    Args:
        report: report to add to.
        substrate: substrate of the model.
        requested: characters whose neighbours are shown; None selects some of the vocabulary.
    """
    report.heading("Nearest glyphs")
    known = substrate.vocabulary.ids
    characters = list(dict.fromkeys(DEFAULT if requested is None else requested))
    unknown = [c for c in characters if c not in known]
    found = [c for c in characters if c in known][:_MOST]
    if unknown and requested is not None:
        report.note(f"Not in this vocabulary: {', '.join(map(_name, unknown))}.")
    if not found and requested is None:
        found = [t for t in substrate.vocabulary.tokens if len(t) == 1 and t.isalpha()][:3]
    if not found:
        report.note("There is no character to show. Pass characters with --neighbours.")
        return
    coded = substrate.recipe.codes is not None
    report.paragraph(
        "The tokens whose vectors in the token table have the largest cosine similarity to that of "
        "the first token. The cosine is shown below each token. "
        + (
            f"The vectors are codes ({substrate.recipe.codes}), not glyphs, so a high similarity "
            "does not mean that the characters look alike."
            if coded
            else "Tokens with cosine 1 look the same to the model."
        )
    )
    if len([c for c in characters if c in known]) > _MOST:
        report.note(f"Only the first {_MOST} characters are shown.")
    for character in found:
        row = nearest(substrate, substrate.table, character)
        report.add(GlyphRow(row))
        if len(row) == 1:
            report.paragraph(f"{_name(character)} has an empty glyph, so it has no neighbours.")


def _bitmap(substrate: Any, id_: int) -> np.ndarray | None:
    return None if substrate.recipe.codes is not None else substrate.bitmap(id_)


def _name(token: str) -> str:
    if len(token) != 1:
        return token if token.isprintable() else repr(token)
    point = f"U+{ord(token):04X}"
    return f"{token} {point}" if token.isprintable() and not token.isspace() else point
