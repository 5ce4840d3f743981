"""Glyphs of single characters, and their positions in a row of square cells."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np


@dataclass(frozen=True)
class Glyphs:
    """Black-and-white or greyscale glyphs of `n` characters at one size.

    The box of a glyph includes its ink, the pen's start, the advance and the baseline. It extends
    from `left` (0, or negative if the ink starts before the pen) over `width` pixels, and from
    `top` (measured down from the ascender) over `height` pixels.

    Attributes:
        ink: uint8 `[n, rows, columns]`, coverage 0 to 255, each box aligned to the top left corner.
        left, width, top, height: int32 `[n]`, in pixels.
    """

    ink: np.ndarray
    left: np.ndarray
    width: np.ndarray
    top: np.ndarray
    height: np.ndarray

    def __len__(self) -> int:
        return len(self.ink)

    def take(self, rows: np.ndarray) -> Glyphs:
        """Return the glyphs at the integer indices `rows`, in that order."""
        return Glyphs(
            self.ink[rows], self.left[rows], self.width[rows], self.top[rows], self.height[rows]
        )

    def scaled(self, factor: int) -> Glyphs:
        """Return the glyphs with each pixel enlarged to `factor` x `factor` pixels."""
        return Glyphs(
            self.ink.repeat(factor, axis=1).repeat(factor, axis=2),
            self.left * factor,
            self.width * factor,
            self.top * factor,
            self.height * factor,
        )


class GlyphSource(Protocol):
    """Protocol of a font that renders the glyphs of characters at a size in pixels."""

    def glyphs(self, characters: str, size: int) -> Glyphs:
        """Return the glyphs of `characters`, in order, at `size` pixels per em."""


def place_in_cells(glyphs: Glyphs, cell: int) -> tuple[np.ndarray, int]:
    """Centre each glyph's box in a cell; wider glyphs extend into the neighbouring cells.

    A box is placed at x = (cell - width) // 2 and y = (cell - height) // 2 of its cell
    (arXiv 2507.04886; its top bearing cancels). Ink above or below the cell is cropped.

    Returns:
        (ink, reach): uint8 `[n, cell, (2 * reach + 1) * cell]`, the glyph's cell with `reach`
        neighbouring cells on either side; `reach` is the number that the widest glyph requires.
    """
    rows, columns = glyphs.ink.shape[1:]
    x = (cell - glyphs.width) // 2 + glyphs.left
    y = (cell - glyphs.height) // 2
    beyond = np.maximum(-x, x + glyphs.width - cell).max(initial=0)
    reach = -(-int(beyond) // cell)
    placed = np.zeros((len(glyphs), cell, (2 * reach + 1) * cell), np.uint8)
    # There are only a few hundred distinct positions: a slice for each is faster than an index for
    # each pixel.
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
