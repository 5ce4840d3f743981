"""Write the embedded glyph table from Debian's GNU Unifont.

    apt-get install fonts-unifont        # 1:15.0.01-2
    python scripts/build_unifont_table.py

The table has the glyphs of the Basic Multilingual Plane at the font's native size of 16 pixels; its
outlines drawn at any multiple of 16 pixels are the same pixels enlarged.
"""

from __future__ import annotations

import argparse
import lzma
from pathlib import Path

import numpy as np

from fastgrow._files import atomic_file, sha256_file, write_text
from fastgrow.substrate.fonts import FontFile
from fastgrow.substrate.glyphs import Glyphs
from fastgrow.substrate.unifont import MISSING, SIZE, TABLE

FONT = Path("/usr/share/fonts/opentype/unifont/unifont.otf")
DATA = Path(__file__).resolve().parent.parent / "fastgrow" / "data"
# No font of this plane has a glyph for the last code point: it shows the missing-glyph box.
WITHOUT_GLYPH = "\U0010ffff"
# LZMA position bits for columns of two bytes.
FILTERS = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "lc": 0, "lp": 1, "pb": 1}]


def pack(glyphs: Glyphs) -> bytes:
    """Return the packed table in the layout that `fastgrow.substrate.unifont` reads."""
    arrays = (
        glyphs.left.astype(np.int8),
        glyphs.width.astype(np.uint8),
        glyphs.top.astype(np.uint8),
        glyphs.height.astype(np.uint8),
        np.packbits(glyphs.ink.transpose(0, 2, 1) > 0, axis=2),
    )
    content = b"".join(array.tobytes() for array in arrays)
    return lzma.compress(content, lzma.FORMAT_XZ, lzma.CHECK_CRC64, filters=FILTERS)


def draw_table(font: Path) -> bytes:
    """Return the packed table of a font file."""
    characters = [chr(code) for code in range(MISSING)] + [WITHOUT_GLYPH]
    characters[0xD800:0xE000] = [WITHOUT_GLYPH] * 0x800  # surrogates are not characters
    return pack(FontFile(font).glyphs("".join(characters), SIZE))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--font", type=Path, default=FONT)
    options = parser.parse_args()
    with atomic_file(DATA / TABLE) as temporary:
        temporary.write_bytes(draw_table(options.font))
    sums = DATA / "SHA256SUMS"
    others = [line for line in sums.read_text().splitlines() if not line.endswith(f"  {TABLE}")]
    digest = f"{sha256_file(DATA / TABLE)}  {TABLE}"
    write_text(sums, "\n".join(sorted([*others, digest], key=lambda line: line.split()[1])) + "\n")
    print(f"{DATA / TABLE}: {(DATA / TABLE).stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
