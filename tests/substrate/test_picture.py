"""The image of a text's glyph bitmaps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastgrow.errors import SubstrateError
from fastgrow.substrate import Substrate, draw_glyph_sheet, glyph_sheet


@pytest.fixture(scope="module")
def substrate() -> Substrate:
    return Substrate.build(characters="Aж汉the")


def test_each_token_is_drawn_enlarged_in_its_place(substrate: Substrate) -> None:
    sheet = draw_glyph_sheet(substrate, "Aж汉A", columns=3)
    height, width = sheet.shape[0] // 2, sheet.shape[1] // 3
    for index, token in enumerate("Aж汉A"):
        row, column = divmod(index, 3)
        tile = sheet[row * height : (row + 1) * height, column * width : (column + 1) * width]
        picture = tile[17 : 17 + 256, 17 : 17 + 256]
        np.testing.assert_array_equal(picture[4::8, 4::8] == 0, substrate.bitmap(token))
        assert (tile[17 + 257 :] < 255).any()
    assert (sheet[height:, width:] == 255).all()


def test_label_names_code_points_and_id(substrate: Substrate) -> None:
    one, other = draw_glyph_sheet(substrate, "A"), draw_glyph_sheet(substrate, "ж")
    assert (one[-48:] != other[-48:]).any()
    token = substrate.encode("the")
    assert len(token) == 1
    assert draw_glyph_sheet(substrate, "the").shape == one.shape


def test_file_is_a_png_of_the_sheet(substrate: Substrate, tmp_path: Path) -> None:
    glyph_sheet(substrate, "Aж汉", tmp_path / "glyphs.png")
    with Image.open(tmp_path / "glyphs.png") as image:
        assert image.format == "PNG"
        np.testing.assert_array_equal(np.array(image), draw_glyph_sheet(substrate, "Aж汉"))
    assert [path.name for path in tmp_path.iterdir()] == ["glyphs.png"]


def test_texts_that_cannot_be_drawn(substrate: Substrate, tmp_path: Path) -> None:
    with pytest.raises(SubstrateError, match="empty"):
        glyph_sheet(substrate, "", tmp_path / "glyphs.png")
    with pytest.raises(SubstrateError, match="unknown character 'Я'"):
        glyph_sheet(substrate, "Я", tmp_path / "glyphs.png")
    with pytest.raises(SubstrateError, match=r"glyphs\.txt: expected the name of an image file"):
        glyph_sheet(substrate, "A", tmp_path / "glyphs.txt")
    with pytest.raises(SubstrateError, match="has no glyph bitmaps"):
        glyph_sheet(Substrate.build(characters="A", codes="id-16"), "A", tmp_path / "glyphs.png")
    assert list(tmp_path.iterdir()) == []
