"""Glyphs of TTF, OTF or BDF font files, rendered by FreeType."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from fastgrow.errors import SubstrateError
from fastgrow.substrate.glyphs import Glyphs


class FontFile:
    """A font file as a source of glyphs.

    Characters that the font does not contain get its missing-glyph box. A bitmap font has fixed
    sizes: the largest size that divides the requested size is used, and each pixel is enlarged.
    There is no text shaping: each character is one glyph.

    Args:
        path: a TTF, OTF, BDF or other font file that FreeType can read.

    Raises:
        SubstrateError: the file is missing or is not a font.
    """

    def __init__(self, path: Path | str) -> None:
        import freetype

        self.path = Path(path)
        if not self.path.is_file():
            raise SubstrateError(f"{self.path}: no such font file")
        try:
            self._face = freetype.Face(str(self.path))
        except freetype.FT_Exception as error:
            raise SubstrateError(f"{self.path}: FreeType cannot read this font ({error})") from None

    def glyphs(self, characters: str, size: int) -> Glyphs:
        """See `GlyphSource.glyphs`.

        Raises:
            SubstrateError: a bitmap font has no size that divides `size`.
        """
        factor = self._set_size(size)
        drawn = [self._draw(character) for character in characters]
        boxes = np.array([box for _, box in drawn], np.int32).reshape(-1, 4)
        left, width, top, height = boxes.T
        rows, columns = int(height.max(initial=0)), int(width.max(initial=0))
        ink = np.zeros((len(drawn), rows, columns), np.uint8)
        for canvas, (bitmap, _) in zip(ink, drawn, strict=True):
            canvas[: bitmap.shape[0], : bitmap.shape[1]] = bitmap
        return Glyphs(ink, left, width, top, height).scaled(factor)

    def _set_size(self, size: int) -> int:
        """Select the font size to render at, and return the factor to enlarge the glyphs by."""
        if self._face.is_scalable:
            self._face.set_pixel_sizes(0, size)
            return 1
        heights = [round(strike.y_ppem / 64) for strike in self._face.available_sizes]
        usable = [height for height in heights if height and size % height == 0]
        if not usable:
            raise SubstrateError(
                f"{self.path}: a bitmap font of {heights} pixels; none of these divides the "
                f"requested size of {size} pixels"
            )
        self._face.select_size(heights.index(max(usable)))
        return size // max(usable)

    def _draw(self, character: str) -> tuple[np.ndarray, tuple[int, int, int, int]]:
        """Return the glyph's box as a uint8 bitmap and as (left, width, top, height)."""
        import freetype

        self._face.load_char(character, freetype.FT_LOAD_RENDER)
        slot, bitmap = self._face.glyph, self._face.glyph.bitmap
        # The box includes the pen's start, the advance and the baseline, as in Pillow.
        left = min(0, slot.bitmap_left)
        right = max(round(slot.advance.x / 64), slot.bitmap_left + bitmap.width)
        above = max(0, slot.bitmap_top)
        below = max(0, bitmap.rows - slot.bitmap_top)
        box = np.zeros((above + below, right - left), np.uint8)
        y, x = above - slot.bitmap_top, slot.bitmap_left - left
        box[y : y + bitmap.rows, x : x + bitmap.width] = _coverage(bitmap)
        ascender = -(-self._face.size.ascender // 64)
        return box, (left, right - left, ascender - above, above + below)


def _coverage(bitmap: Any) -> np.ndarray:
    """Convert a 1-bit or greyscale FreeType bitmap to uint8 `[rows, width]`, 0 to 255."""
    import freetype

    if not bitmap.rows or not bitmap.width:
        return np.zeros((bitmap.rows, bitmap.width), np.uint8)
    lines = np.array(bitmap.buffer, np.uint8).reshape(bitmap.rows, bitmap.pitch)
    if bitmap.pixel_mode == freetype.FT_PIXEL_MODE_MONO:
        return np.unpackbits(lines, axis=1)[:, : bitmap.width] * np.uint8(255)
    return lines[:, : bitmap.width]
