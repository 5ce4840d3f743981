"""The vectorised drawing compared with the reference drawing, bit for bit."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
from literal import LiteralRecipe

from fastgrow.substrate.drawing import Drawing, draw_tokens, unpack_bitmap
from fastgrow.substrate.fonts import FontFile
from fastgrow.substrate.unifont import Unifont

DEJAVU = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
ABS = {"rotation": 7.0, "shift": 3, "speckle": 0.03}

# Every edge of the easy ranges, blank glyphs, marks that overlap their neighbours, very wide
# glyphs, a newline alone and between letters, and the long names of special tokens.
TOKENS = [
    *map(chr, (0x00, 0x0A, 0x20, 0x41, 0x7F, 0xA0, 0xE9, 0x24F, 0x250, 0x36F, 0x370, 0x416)),
    *map(chr, (0x52F, 0x530, 0x58F, 0x590, 0x5D0, 0x628, 0x905, 0x300, 0x20DD, 0x6C49, 0xFDFA)),
    *("the", "ab", "Жиз", "a汉", "汉字", "e\u0301a", "\u0301\u0302", "a\nb", "\n\n", "x\u20dda"),
    *("ﷺa", "кни", "αβγ", "tion ", "<pad>", "<special_token_57400>", "<unused_65535>"),
]


def literal_bits(renderer: LiteralRecipe, tokens: Sequence[str]) -> np.ndarray:
    return np.packbits(renderer.bits(tokens), axis=1)


@pytest.mark.parametrize(
    ("cell", "options"), [(24, {}), (32, {}), (64, ABS)], ids=["24", "bvv241-2-3", "bvv241-abs"]
)
def test_any_font_is_drawn_as_pillow_draws_it(cell: int, options: dict[str, Any]) -> None:
    expected = literal_bits(LiteralRecipe(DEJAVU, cell, **options), TOKENS)
    drawn = draw_tokens(TOKENS, FontFile(DEJAVU), Drawing(cell=cell, **options))
    differing = np.flatnonzero((drawn != expected).any(axis=1))
    assert [TOKENS[index] for index in differing] == []


def test_a_bitmap_does_not_depend_on_the_other_tokens() -> None:
    together = draw_tokens(TOKENS, Unifont(), Drawing())
    backwards = draw_tokens(TOKENS[::-1], Unifont(), Drawing())
    np.testing.assert_array_equal(together, backwards[::-1])
    for index, token in enumerate(TOKENS):
        np.testing.assert_array_equal(
            draw_tokens([token], Unifont(), Drawing())[0], together[index]
        )


def test_small_batches_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = draw_tokens(TOKENS, Unifont(), Drawing())
    monkeypatch.setattr("fastgrow.substrate.drawing._BATCH", 1)
    np.testing.assert_array_equal(draw_tokens(TOKENS, Unifont(), Drawing()), expected)


def test_global_random_states_are_unchanged() -> None:
    random.seed(7)
    np.random.seed(7)  # noqa: NPY002
    expected = random.random(), np.random.rand()  # noqa: NPY002
    random.seed(7)
    np.random.seed(7)  # noqa: NPY002
    draw_tokens(["a", "汉"], Unifont(), Drawing())
    assert (random.random(), np.random.rand()) == expected  # noqa: NPY002


def test_marks_overlap_the_neighbouring_cell() -> None:
    plain, marked = draw_tokens(["אב", "א\u05b8ב"], Unifont(), Drawing())
    assert (plain != marked).any()
    # U+20DD, an enclosing circle, extends far to the left; a single one is outside its cell.
    alone, after_letter = draw_tokens(["\u20dd", "x\u20dd"], Unifont(), Drawing(plain_speckle=0))
    letter = draw_tokens(["x\u3000"], Unifont(), Drawing(plain_speckle=0))[0]
    ink = unpack_bitmap(after_letter, 32) & ~unpack_bitmap(letter, 32)
    assert not unpack_bitmap(alone, 32)[:, 16:].any()
    assert ink[:, :16].any()


def test_newline_is_blank_or_has_its_glyph() -> None:
    blank, space = draw_tokens(["\n", " "], Unifont(), Drawing())
    np.testing.assert_array_equal(blank, space)
    shown = draw_tokens(["\n", "a\nb", " ", "ab"], Unifont(), Drawing(newline="glyph"))
    hidden = draw_tokens(["\n", "a\nb", " ", "ab"], Unifont(), Drawing())
    assert (shown != hidden).any(axis=1).tolist() == [True, True, False, False]


def test_unpacked_bitmap_equals_the_reference() -> None:
    packed = draw_tokens(["Ж", "汉字"], FontFile(DEJAVU), Drawing())
    renderer = LiteralRecipe(DEJAVU)
    for row, token in zip(packed, ["Ж", "汉字"], strict=True):
        np.testing.assert_array_equal(unpack_bitmap(row, 32), renderer.bitmap(token))
