"""Draw tokens as small black-and-white bitmaps, by the recipe of arXiv 2507.04886.

The characters of a token are drawn next to each other, each centred in a square cell. Then a fixed
distortion is applied: *easy* text (Latin, Greek, Cyrillic, Armenian) is rotated, shifted, speckled
and blurred; all other text is only speckled. Pixels darker than half of full white are ink. A token
of n characters is downsampled to one cell by keeping every n-th column.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from msgspec import Meta

from fastgrow._checked import FiniteFloat
from fastgrow.substrate import raster
from fastgrow.substrate.glyphs import GlyphSource, place_in_cells

Newline = Literal["blank", "glyph"]

_SEED = 42
_EASY = ((0x0000, 0x024F), (0x0370, 0x058F))
_BLUR = 0.5
# Number of pixels drawn at once, so that they fit in the processor's cache.
_BATCH = 1 << 19


@dataclass(frozen=True)
class Drawing:
    """How tokens are drawn; the defaults are those of bvv241-2-3.

    Attributes:
        cell: side length of the bitmap, and font size, in pixels.
        rotation: easy text is rotated by a fixed angle drawn from ±`rotation` degrees.
        shift: easy text is shifted by fixed offsets drawn from ±`shift` pixels.
        speckle: share of pixels of easy text that are set to black.
        plain_speckle: share of pixels of all other text that are set to black.
        newline: "blank" draws a newline as Pillow does, identical to a space; "glyph" draws the
            glyph of the font.
    """

    cell: Annotated[int, Meta(ge=8, le=128)] = 32
    rotation: FiniteFloat = 4.0
    shift: int = 2
    speckle: FiniteFloat = 0.01
    plain_speckle: FiniteFloat = 0.001
    newline: Newline = "blank"


def draw_tokens(tokens: Sequence[str], source: GlyphSource, drawing: Drawing) -> np.ndarray:
    """Draw the bitmaps of `tokens`, one bit per pixel.

    Returns:
        uint8 `[len(tokens), cell * cell / 8]`: 1 is ink; pixels are in `raster.polar_order`, the
        first in the most significant bit.
    """
    cell = drawing.cell
    order = raster.polar_order(cell)
    packed = np.zeros((len(tokens), -(-cell * cell // 8)), np.uint8)
    for members, codes in _by_length(tokens):
        easy = _is_easy(codes)
        for distort, of_kind in ((_Plain, ~easy), (_Easy, easy)):
            distortion = distort(drawing, codes.shape[1])
            rows = np.flatnonzero(of_kind)
            step = max(1, _BATCH // (cell * cell * codes.shape[1]))
            for start in range(0, len(rows), step):
                batch = rows[start : start + step]
                ink = distortion(_write(codes[batch], source, drawing))
                packed[members[batch]] = np.packbits(ink.reshape(-1, cell * cell)[:, order], axis=1)
    return packed


def unpack_bitmap(packed: np.ndarray, cell: int) -> np.ndarray:
    """Unpack one bitmap to bool `[cell, cell]` in row-major order."""
    bitmap = np.zeros(cell * cell, bool)
    bitmap[raster.polar_order(cell)] = np.unpackbits(packed, count=cell * cell)
    return bitmap.reshape(cell, cell)


def _by_length(tokens: Sequence[str]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the indices of all tokens of a length and their code points, uint32 `[n, length]`."""
    lengths = np.array([len(token) for token in tokens])
    for length in np.unique(lengths).tolist():
        members = np.flatnonzero(lengths == length)
        text = "".join(tokens[index] for index in members.tolist())
        yield members, np.frombuffer(text.encode("utf-32-le"), np.uint32).reshape(-1, length)


def _is_easy(codes: np.ndarray) -> np.ndarray:
    """Whether each row of code points has only characters of easy text, bool `[n]`."""
    inside = [(codes >= first) & (codes <= last) for first, last in _EASY]
    return np.logical_or.reduce(inside).all(axis=1)


def _write(codes: np.ndarray, source: GlyphSource, drawing: Drawing) -> np.ndarray:
    """Draw the characters of each token in a row of cells, uint8 `[n, cell, length * cell]`.

    Black is 0 and white is 255. Glyphs wider than their cell overlap the neighbouring cells.
    """
    cell, length = drawing.cell, codes.shape[1]
    characters, index = np.unique(codes, return_inverse=True)
    index = index.reshape(codes.shape)
    glyphs = source.glyphs("".join(map(chr, characters.tolist())), cell)
    cells, reach = place_in_cells(glyphs, cell)
    if drawing.newline == "blank":
        cells[characters == ord("\n")] = 0
    row = np.zeros((len(codes), cell, (length + 2 * reach) * cell), np.uint8)
    for position in range(length):
        around = row[:, :, position * cell : (position + 2 * reach + 1) * cell]
        np.maximum(around, cells[index[:, position]], out=around)
    return 255 - row[:, :, reach * cell : (reach + length) * cell]


def _speckles(share: float, cell: int, length: int) -> np.ndarray:
    """Return a mask of pixels to set to black in all tokens, bool `[cell, length * cell]`."""
    # The generator of the reference; numpy guarantees that its stream does not change.
    return np.random.RandomState(_SEED).rand(cell, length * cell) < share


def _sampled_columns(length: int) -> slice:
    """Return the columns of `length` cells that a nearest-neighbour resize to one cell keeps."""
    return slice(length // 2, None, length)


class _Plain:
    """The distortion of text that is not easy."""

    def __init__(self, drawing: Drawing, length: int) -> None:
        self._columns = _sampled_columns(length)
        speckles = _speckles(drawing.plain_speckle, drawing.cell, length)
        self._speckles = speckles[:, self._columns]

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        return (rows[:, :, self._columns] < 128) | self._speckles


class _Easy:
    """The distortion of easy text."""

    def __init__(self, drawing: Drawing, length: int) -> None:
        generator = random.Random(_SEED)
        angle = generator.uniform(-drawing.rotation, drawing.rotation)
        dx = generator.randint(-drawing.shift, drawing.shift)
        dy = generator.randint(-drawing.shift, drawing.shift)
        rotated = raster.rotation_sources(drawing.cell, length * drawing.cell, angle)
        self._sources = raster.shift_sources(rotated, dx, dy)
        self._speckles = _speckles(drawing.speckle, drawing.cell, length)
        self._columns = _sampled_columns(length)

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        images = raster.gather(rows, self._sources, outside=255)
        images[:, self._speckles] = 0
        images = raster.blur(images, _BLUR, axis=2)[:, :, self._columns]
        return raster.blur(images, _BLUR, axis=1) < 128
