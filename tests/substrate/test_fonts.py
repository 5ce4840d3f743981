"""Glyphs of font files, and the embedded Unifont."""

from __future__ import annotations

import lzma
import runpy
from importlib import resources
from pathlib import Path

import matplotlib
import numpy as np
import pytest

from fastgrow.errors import SubstrateError
from fastgrow.substrate.fonts import FontFile
from fastgrow.substrate.glyphs import Glyphs, place_in_cells
from fastgrow.substrate.unifont import TABLE, Unifont

ROOT = Path(__file__).resolve().parents[2]
DEJAVU = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"

BDF = """STARTFONT 2.1
FONT -test-Small-Medium-R-Normal--8-80-75-75-C-80-ISO10646-1
SIZE 8 75 75
FONTBOUNDINGBOX 8 8 0 -1
STARTPROPERTIES 3
FONT_ASCENT 7
FONT_DESCENT 1
PIXEL_SIZE 8
ENDPROPERTIES
CHARS 1
STARTCHAR corner
ENCODING 65
SWIDTH 1000 0
DWIDTH 8 0
BBX 3 4 1 0
BITMAP
80
80
80
E0
ENDCHAR
ENDFONT
"""


def art(bitmap: np.ndarray) -> list[str]:
    return ["".join("#" if pixel else "." for pixel in row) for row in bitmap]


def test_unifont_draws_the_known_a() -> None:
    glyphs = Unifont().glyphs("A", 16)
    box = (glyphs.left[0], glyphs.width[0], glyphs.top[0], glyphs.height[0])
    assert box == (0, 8, 4, 10)
    assert art(glyphs.ink[0, :10, :8]) == [
        "...##...",
        "..#..#..",
        "..#..#..",
        ".#....#.",
        ".#....#.",
        ".######.",
        ".#....#.",
        ".#....#.",
        ".#....#.",
        ".#....#.",
    ]


def test_unifont_scales_by_whole_factors_only() -> None:
    small, large = Unifont().glyphs("ж汉\u0301", 16), Unifont().glyphs("ж汉\u0301", 48)
    np.testing.assert_array_equal(large.ink, small.ink.repeat(3, 1).repeat(3, 2))
    assert large.left.tolist() == (3 * small.left).tolist()
    assert small.left[2] < 0  # a combining mark stands before the pen
    with pytest.raises(SubstrateError, match=r"cell=20: .* multiples of 16 pixels"):
        Unifont().glyphs("a", 20)


def test_unifont_has_one_glyph_for_missing_characters() -> None:
    glyphs = Unifont().glyphs("\U0001f600\U00010400\ue000A", 16)
    assert (glyphs.ink[0] == glyphs.ink[1]).all()
    assert (glyphs.ink[0] == glyphs.ink[2]).all()
    assert (glyphs.ink[0] != glyphs.ink[3]).any()


def test_embedded_table_is_small() -> None:
    folder = resources.files("fastgrow") / "data"
    assert len((folder / TABLE).read_bytes()) < 1_000_000
    assert "SIL Open Font License" in (folder / "unifont-OFL-1.1.txt").read_text()


def test_bitmap_font_is_enlarged_from_the_size_that_divides(tmp_path: Path) -> None:
    path = tmp_path / "small.bdf"
    path.write_text(BDF)
    glyphs = FontFile(path).glyphs("A", 16)
    assert (glyphs.left[0], glyphs.width[0], glyphs.top[0], glyphs.height[0]) == (0, 16, 6, 8)
    rows = [".#......", ".#......", ".#......", ".###...."]
    doubled = ["".join(2 * pixel for pixel in row) for row in rows for _ in range(2)]
    assert art(glyphs.ink[0]) == doubled
    with pytest.raises(SubstrateError, match=r"small\.bdf: .*none of these divides .* 20 pixels"):
        FontFile(path).glyphs("A", 20)


def test_font_errors_name_the_file(tmp_path: Path) -> None:
    with pytest.raises(SubstrateError, match=r"absent\.ttf: no such font file"):
        FontFile(tmp_path / "absent.ttf")
    (tmp_path / "text.ttf").write_text("no font")
    with pytest.raises(SubstrateError, match=r"text\.ttf: FreeType cannot read this font"):
        FontFile(tmp_path / "text.ttf")


def box_glyph(left: int, width: int, height: int) -> Glyphs:
    """A glyph whose whole box is ink."""
    ink = np.full((1, height, width), 255, np.uint8)
    return Glyphs(ink, *(np.array([n], np.int32) for n in (left, width, 0, height)))


def test_boxes_are_centred_and_extend_into_neighbours() -> None:
    placed, reach = place_in_cells(box_glyph(left=0, width=3, height=5), 8)
    assert reach == 0
    rows, columns = np.nonzero(placed[0])
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (1, 5, 2, 4)

    placed, reach = place_in_cells(box_glyph(left=-6, width=4, height=12), 8)
    assert (reach, placed.shape) == (1, (1, 8, 24))
    rows, columns = np.nonzero(placed[0])
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (0, 7, 4, 7)

    _, reach = place_in_cells(box_glyph(left=0, width=40, height=1), 8)
    assert reach == 2


@pytest.mark.acceptance
def test_embedded_table_is_debians_font(unifont_file: Path) -> None:
    characters = "".join(chr(code) for code in range(0x10000) if not 0xD800 <= code < 0xE000)
    embedded, drawn = (font.glyphs(characters, 16) for font in (Unifont(), FontFile(unifont_file)))
    for name in ("ink", "left", "width", "top", "height"):
        np.testing.assert_array_equal(getattr(embedded, name), getattr(drawn, name), err_msg=name)


@pytest.mark.acceptance
def test_script_makes_the_embedded_table(unifont_file: Path) -> None:
    script = runpy.run_path(str(ROOT / "scripts" / "build_unifont_table.py"))
    made = script["draw_table"](unifont_file)
    shipped = (resources.files("fastgrow") / "data" / TABLE).read_bytes()
    # The compressed bytes may change with the library; the content may not.
    assert lzma.decompress(made) == lzma.decompress(shipped)
