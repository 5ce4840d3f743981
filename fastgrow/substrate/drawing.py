"""Draw tokens as small black-and-white pictures, by the recipe of arXiv 2507.04886.

The characters of a token stand side by side, each centred in a square cell. A constant distortion
follows; *easy* text (Latin, Greek, Cyrillic, Armenian) is rotated, shifted, speckled and blurred,
everything else is only speckled. What has less than half of full white is ink. A row of more than
one cell is then squeezed into one by taking every n-th column.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from msgspec import Meta

from fastgrow.substrate import raster
from fastgrow.substrate.glyphs import GlyphSource, place_in_cells

Newline = Literal["blank", "glyph"]

_SEED = 42
_EASY = ((0x0000, 0x024F), (0x0370, 0x058F))
_BLUR = 0.5
# Pixels drawn at once: small enough to stay in the processor's cache.
_BATCH = 1 << 19


@dataclass(frozen=True)
class Drawing:
    """How tokens are drawn; the defaults are those of bvv241-2-3.

    Attributes:
        cell: side of the picture, and the size of the font, in pixels.
        rotation: easy text is rotated by a constant drawn from ±`rotation` degrees.
        shift: easy text is moved by constants drawn from ±`shift` pixels.
        speckle: share of black pixels thrown on easy text.
        plain_speckle: the same for all other text.
        newline: "blank" as Pillow draws it, where it cannot be told from a space, or its "glyph".
    """

    cell: Annotated[int, Meta(ge=8, le=128)] = 32
    rotation: float = 4.0
    shift: int = 2
    speckle: float = 0.01
    plain_speckle: float = 0.001
    newline: Newline = "blank"


def draw_tokens(tokens: Sequence[str], source: GlyphSource, drawing: Drawing) -> np.ndarray:
    """The pictures of `tokens`, one bit a pixel.

    Returns:
        uint8 `[len(tokens), cell * cell / 8]`: 1 is ink; pixels in `raster.polar_order`, the first
        in the highest bit.
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
    """One packed picture as bool `[cell, cell]`, row by row."""
    bitmap = np.zeros(cell * cell, bool)
    bitmap[raster.polar_order(cell)] = np.unpackbits(packed, count=cell * cell)
    return bitmap.reshape(cell, cell)


def _by_length(tokens: Sequence[str]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Indices of the tokens of each length, and their code points uint32 `[n, length]`."""
    lengths = np.array([len(token) for token in tokens])
    for length in np.unique(lengths).tolist():
        members = np.flatnonzero(lengths == length)
        text = "".join(tokens[index] for index in members.tolist())
        yield members, np.frombuffer(text.encode("utf-32-le"), np.uint32).reshape(-1, length)


def _is_easy(codes: np.ndarray) -> np.ndarray:
    """Which rows of code points hold nothing but easy ones."""
    inside = [(codes >= first) & (codes <= last) for first, last in _EASY]
    return np.logical_or.reduce(inside).all(axis=1)


def _write(codes: np.ndarray, source: GlyphSource, drawing: Drawing) -> np.ndarray:
    """Rows of cells, black on white: uint8 `[n, cell, length * cell]`.

    Ink that juts out of its cell lies over the neighbour's.
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
    """The pixels that turn black, bool `[cell, length * cell]`: the same ones in every token."""
    # The reference's generator, whose stream numpy has promised to keep.
    return np.random.RandomState(_SEED).rand(cell, length * cell) < share


def _sampled_columns(length: int) -> slice:
    """The columns that a resize to nearest neighbours keeps of `length` cells."""
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
