"""The substrate: vocabulary, tokenizer and frozen token vectors. Does not import torch."""

from fastgrow.substrate.drawing import Drawing
from fastgrow.substrate.picture import draw_glyph_sheet, glyph_sheet
from fastgrow.substrate.recipe import Recipe
from fastgrow.substrate.substrate import Substrate
from fastgrow.substrate.tokenizer import Tokenizer
from fastgrow.substrate.vocabulary import Vocabulary

__all__ = [
    "Drawing",
    "Recipe",
    "Substrate",
    "Tokenizer",
    "Vocabulary",
    "draw_glyph_sheet",
    "glyph_sheet",
]
