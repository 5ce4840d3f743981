"""The embedded font: the Basic Multilingual Plane of GNU Unifont 15.0.01, one bit per pixel.

`scripts/build_unifont_table.py` writes the table from Debian's package. It consists of five arrays
of 65,537 rows, one for each code point and the last for missing characters: left int8, width uint8,
top uint8, height uint8, and sixteen columns of sixteen pixels, leftmost column first and topmost
pixel in the most significant bit (columns compress better than rows by a fifth).
"""

from __future__ import annotations

import functools

import numpy as np

from fastgrow import data
from fastgrow.errors import SubstrateError
from fastgrow.substrate.glyphs import Glyphs

TABLE = "unifont-15.0.01-bmp.xz"
SIZE = 16
MISSING = 0x10000
_ROWS = MISSING + 1


class Unifont:
    """The embedded font as a source of glyphs, at multiples of its 16 pixels.

    Characters outside the Basic Multilingual Plane are drawn as the font's missing-glyph box, as
    with the font file itself.
    """

    def glyphs(self, characters: str, size: int) -> Glyphs:
        """See `GlyphSource.glyphs`.

        Raises:
            SubstrateError: `size` is not a multiple of 16.
        """
        if size <= 0 or size % SIZE:
            raise SubstrateError(
                f"cell={size}: the embedded Unifont can be drawn in multiples of {SIZE} pixels; "
                "use a font file (font=) for other sizes"
            )
        codes = np.frombuffer(characters.encode("utf-32-le"), np.uint32)
        return _table().take(np.minimum(codes, MISSING)).scaled(size // SIZE)


@functools.cache
def _table() -> Glyphs:
    content = data.read(TABLE)
    boxes = np.frombuffer(content, np.uint8, 4 * _ROWS).reshape(4, _ROWS)
    columns = np.frombuffer(content, np.uint8, offset=4 * _ROWS).reshape(_ROWS, SIZE, SIZE // 8)
    ink = np.unpackbits(columns, axis=2).transpose(0, 2, 1) * np.uint8(255)
    left = boxes[0].view(np.int8).astype(np.int32)
    width, top, height = boxes[1:].astype(np.int32)
    return Glyphs(ink, left, width, top, height)
