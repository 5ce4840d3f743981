"""Glyphs of single characters, and their places in a row of square cells."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np


@dataclass(frozen=True)
class Glyphs:
    """The black-and-white or grey glyphs of `n` characters at one size.

    A glyph has a box that takes in its ink, the pen's start, the advance and the baseline: it runs
    from `left` (0, or negative where the ink starts before the pen) for `width` pixels and from
    `top` (below the ascender) for `height`.

    Attributes:
        ink: uint8 `[n, rows, columns]`, coverage 0 to 255, each box flush with the top left corner.
        left, width, top, height: int32 `[n]`, pixels.
    """

    ink: np.ndarray
    left: np.ndarray
    width: np.ndarray
    top: np.ndarray
    height: np.ndarray

    def __len__(self) -> int:
        return len(self.ink)

    def take(self, rows: np.ndarray) -> Glyphs:
        """The glyphs at `rows` (integers), in that order."""
        return Glyphs(
            self.ink[rows], self.left[rows], self.width[rows], self.top[rows], self.height[rows]
        )

    def scaled(self, factor: int) -> Glyphs:
        """The same glyphs with each pixel drawn as `factor` x `factor` pixels."""
        return Glyphs(
            self.ink.repeat(factor, axis=1).repeat(factor, axis=2),
            self.left * factor,
            self.width * factor,
            self.top * factor,
            self.height * factor,
        )


class GlyphSource(Protocol):
    """A font: hands out glyphs of characters at a size in pixels."""

    def glyphs(self, characters: str, size: int) -> Glyphs:
        """Glyphs of `characters`, in order, at `size` pixels to the em."""


def place_in_cells(glyphs: Glyphs, cell: int) -> tuple[np.ndarray, int]:
    """Centre each glyph's box in a cell of its own; what juts out falls into the neighbours.

    A box stands at x = (cell - width) // 2 and y = (cell - height) // 2 of its cell
    (arXiv 2507.04886; its top bearing cancels). Ink above or below the cell is lost.

    Returns:
        (ink, reach): uint8 `[n, cell, (2 * reach + 1) * cell]`, the glyph's own cell in the middle
        of `reach` neighbours on either side; the furthest glyph needs them all.
    """
    rows, columns = glyphs.ink.shape[1:]
    x = (cell - glyphs.width) // 2 + glyphs.left
    y = (cell - glyphs.height) // 2
    beyond = np.maximum(-x, x + glyphs.width - cell).max(initial=0)
    reach = -(-int(beyond) // cell)
    placed = np.zeros((len(glyphs), cell, (2 * reach + 1) * cell), np.uint8)
    # Boxes come in a few hundred places, so a slice for each place beats an index for each pixel.
    places, group = np.unique(np.stack([x, y], axis=1), axis=0, return_inverse=True)
    order = np.argsort(group.ravel(), kind="stable")
    ends = np.cumsum(np.bincount(group.ravel(), minlength=len(places)))
    for (left, top), members in zip(places.tolist(), np.split(order, ends[:-1]), strict=True):
        left += reach * cell
        right, bottom = min(left + columns, placed.shape[2]), min(top + rows, cell)
        row, column = max(0, -top), max(0, -left)
        placed[members, top + row : bottom, left + column : right] = glyphs.ink[
            members, row : bottom - top, column : right - left
        ]
    return placed, reach
