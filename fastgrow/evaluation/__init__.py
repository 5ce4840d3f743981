"""Measuring models: bits per character and its reference predictors."""

from fastgrow.evaluation.bits import (
    BitsPerCharacter,
    bits_per_character,
    uniform_bits,
    unigram_bits,
)

__all__ = ["BitsPerCharacter", "bits_per_character", "uniform_bits", "unigram_bits"]
