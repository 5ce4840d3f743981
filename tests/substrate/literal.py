"""The author's recipe written out with Pillow, one token at a time.

It is the reference for the vectorised drawing, and shares no code with it. If the papers leave a
choice open, it follows the author's tokenizer-building notebooks (repository AVBochkov/Embeddings):

- the steps are rotate, shift, speckle, blur, threshold, resize, flatten, in that order;
- rotation is Pillow's default (nearest neighbour, about the centre, same size) filled with white;
- the shift pastes onto a new white canvas;
- angle and shifts of text that is not easy are drawn from empty ranges, so it is not moved;
- after the threshold the image has mode "1", for which every resize is by nearest neighbours;
- a character is drawn with `ImageDraw.text`, which draws nothing for a newline.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

WHITE, BLACK = 255, 0


def is_easy(text: str) -> bool:
    return all(
        0x0000 <= ord(character) <= 0x024F
        or 0x0370 <= ord(character) <= 0x052F
        or 0x0530 <= ord(character) <= 0x058F
        for character in text
    )


class LiteralRecipe:
    """Draws tokens with one font; `cell` is both the side of a cell and the font's size.

    The defaults are bvv241-2-3; bvv241-abs has cell 64, rotation 7, shift 3 and speckle 0.03.
    """

    def __init__(
        self,
        font: Path | str,
        cell: int = 32,
        rotation: float = 4,
        shift: int = 2,
        speckle: float = 0.01,
    ) -> None:
        layout = ImageFont.Layout.BASIC
        self.font = ImageFont.truetype(str(font), cell, layout_engine=layout)
        self.cell, self.rotation, self.shift, self.speckle = cell, rotation, shift, speckle

    def write(self, text: str) -> Image.Image:
        canvas = Image.new("L", (self.cell * len(text), self.cell), color=WHITE)
        pen = ImageDraw.Draw(canvas)
        for index, character in enumerate(text):
            x0, y0, x1, y1 = self.font.getbbox(character)
            x = index * self.cell + (self.cell - (x1 - x0)) // 2
            y = (self.cell - (y1 - y0)) // 2 - y0
            pen.text((x, y), character, fill=BLACK, font=self.font)
        return canvas

    def distort(self, image: Image.Image, easy: bool) -> Image.Image:
        rotation, shift = (self.rotation, self.shift) if easy else (0, 0)
        random.seed(42)
        np.random.seed(42)  # noqa: NPY002
        image = image.rotate(random.uniform(-rotation, rotation), expand=False, fillcolor=WHITE)
        dx = random.randint(-shift, shift)
        dy = random.randint(-shift, shift)
        moved = Image.new("L", image.size, color=WHITE)
        moved.paste(image, (dx, dy))
        pixels = np.array(moved)
        mask = np.random.rand(*pixels.shape) < (self.speckle if easy else 0.001)  # noqa: NPY002
        pixels[mask] = BLACK
        image = Image.fromarray(pixels)
        if easy:
            image = image.filter(ImageFilter.GaussianBlur(radius=0.5))
        return image.point(lambda value: BLACK if value < 128 else WHITE, mode="1")

    def draw(self, text: str) -> Image.Image:
        image = self.distort(self.write(text), is_easy(text))
        if image.size != (self.cell, self.cell):
            image = image.resize((self.cell, self.cell), Image.Resampling.BILINEAR)
        return image

    def flatten(self, image: Image.Image) -> list[int]:
        width, height = image.size
        pixels = image.load()
        assert pixels is not None
        places = []
        for y in range(height):
            for x in range(width):
                from_x, from_y = x - width / 2, y - height / 2
                places.append((math.hypot(from_x, from_y), math.atan2(from_y, from_x), x, y))
        places.sort()
        return [0 if pixels[x, y] else 1 for _, _, x, y in places]

    def bitmap(self, text: str) -> np.ndarray:
        """Bitmap of one token, bool `[cell, cell]` in row-major order; True is ink."""
        return ~np.array(self.draw(text))

    def bits(self, texts: Iterable[str]) -> np.ndarray:
        """Flattened bitmaps, uint8 `[n, cell * cell]`: 1 is ink."""
        return np.array([self.flatten(self.draw(text)) for text in texts], np.uint8)
