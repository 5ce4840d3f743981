"""Image of the glyph bitmaps of a text's tokens."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fastgrow._files import atomic_file
from fastgrow.errors import SubstrateError
from fastgrow.substrate.substrate import Substrate
from fastgrow.substrate.unifont import SIZE, Unifont

_PAPER, _INK, _FRAME, _LABEL = 255, 0, 200, 90
_SIDE = 256
_MARGIN = 16
_COLUMNS = 8


def draw_glyph_sheet(substrate: Substrate, text: str, *, columns: int = _COLUMNS) -> np.ndarray:
    """Draw the enlarged bitmaps of a text's tokens, each with the token's name and id below it.

    Args:
        substrate: a substrate of glyph bitmaps.
        text: text to encode into tokens.
        columns: number of bitmaps in a row.

    Returns:
        uint8 `[height, width]`, from 0 (black) to 255 (white).

    Raises:
        SubstrateError: the text is empty or has an unknown character, or the substrate is made of
            codes.
    """
    ids = substrate.encode(text)
    if not ids:
        raise SubstrateError("the text to draw is empty")
    tiles = [_tile(substrate, id_) for id_ in ids]
    blank = np.full_like(tiles[0], _PAPER)
    width = min(columns, len(tiles))
    tiles += [blank] * (-len(tiles) % width)
    rows = [np.concatenate(tiles[i : i + width], axis=1) for i in range(0, len(tiles), width)]
    return np.concatenate(rows, axis=0)


def glyph_sheet(
    substrate: Substrate, text: str, path: Path | str, *, columns: int = _COLUMNS
) -> None:
    """Write the image of `draw_glyph_sheet` to a file. The file's suffix selects the format.

    Raises:
        SubstrateError: see `draw_glyph_sheet`; or the suffix is not that of an image format.
        OSError: the file cannot be written.
    """
    from PIL import Image

    path = Path(path)
    image = Image.fromarray(draw_glyph_sheet(substrate, text, columns=columns))
    format_ = Image.registered_extensions().get(path.suffix.lower())
    if format_ is None:
        raise SubstrateError(f"{path}: expected the name of an image file, such as {path.stem}.png")
    with atomic_file(path) as temporary:
        image.save(temporary, format=format_)


def _tile(substrate: Substrate, id_: int) -> np.ndarray:
    """Draw one enlarged bitmap in a frame, with two lines of text below it."""
    bitmap = substrate.bitmap(id_)
    scale = max(1, _SIDE // len(bitmap))
    picture = np.where(bitmap, _INK, _PAPER).astype(np.uint8).repeat(scale, 0).repeat(scale, 1)
    framed = np.pad(picture, 1, constant_values=_FRAME)
    token = substrate.vocabulary.tokens[id_]
    width = framed.shape[1]
    points = " ".join(f"U+{ord(character):04X}" for character in token)
    lines = [_line(points if len(token) <= 3 else token, width), _line(f"id {id_}", width)]
    column = np.concatenate([framed, np.full((_MARGIN // 2, width), _PAPER, np.uint8), *lines])
    return np.pad(column, _MARGIN, constant_values=_PAPER)


def _line(text: str, width: int) -> np.ndarray:
    """Draw a centred line of text in the embedded font, uint8 `[16, width]`."""
    glyphs = Unifont().glyphs(text, SIZE)
    line = np.full((SIZE, int(glyphs.width.sum())), _PAPER, np.uint8)
    pen = 0
    for ink, advance, top, height in zip(
        glyphs.ink, glyphs.width.tolist(), glyphs.top.tolist(), glyphs.height.tolist(), strict=True
    ):
        line[top : top + height, pen : pen + advance][ink[:height, :advance] > 0] = _LABEL
        pen += advance
    line = line[:, :width]
    before = (width - line.shape[1]) // 2
    return np.pad(line, ((0, 0), (before, width - line.shape[1] - before)), constant_values=_PAPER)
