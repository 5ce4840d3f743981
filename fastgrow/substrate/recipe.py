"""The recipe that turns the tokens of a vocabulary into bits, and the bits into vectors."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastgrow._checked import check_types
from fastgrow.errors import SubstrateError
from fastgrow.substrate.codes import Code
from fastgrow.substrate.drawing import Drawing, draw_tokens
from fastgrow.substrate.fonts import FontFile
from fastgrow.substrate.table import check_components
from fastgrow.substrate.unifont import Unifont

DRAWINGS = {
    "default": Drawing(),
    "bvv241-2-3": Drawing(),
    "bvv241-max": Drawing(rotation=7.0, shift=3, speckle=0.03),
    "bvv241-abs": Drawing(cell=64, rotation=7.0, shift=3, speckle=0.03),
}


@dataclass(frozen=True)
class Recipe:
    """How the vectors of a vocabulary are made: from glyph bitmaps or from codes.

    Attributes:
        drawing: how tokens are drawn; not used with codes.
        font: path of a font file; None for the embedded Unifont.
        codes: name of the codes to use instead of glyph bitmaps (`Code.parse`); None for bitmaps.
        seed: random seed of random codes.
        n_components: number of principal components, the width of the vectors; None for the number
            of bits. Not available for codes without "-float", whose vectors are the bits.

    Raises:
        SubstrateError: a value is out of range, or values cannot be combined.
    """

    drawing: Drawing = DRAWINGS["default"]
    font: str | None = None
    codes: str | None = None
    seed: int = 0
    n_components: int | None = None

    def __post_init__(self) -> None:
        check_types(self.drawing, where="", error=SubstrateError)
        if self.codes is not None and self.font is not None:
            raise SubstrateError(
                f"codes={self.codes!r} cannot be combined with font=, because codes are not drawn"
            )
        if self.n_components is not None:
            if not self.is_real:
                raise SubstrateError(
                    f"n_components={self.n_components}: the codes {self.codes!r} have no principal "
                    f"components; use '{self.codes}-float'"
                )
            check_components(self.n_components, self.n_bits)

    @property
    def is_real(self) -> bool:
        """Whether PCA and L2 normalisation are applied; otherwise the vectors are the bits."""
        return self.codes is None or Code.parse(self.codes).real

    @property
    def n_bits(self) -> int:
        """Number of bits per token."""
        return self.drawing.cell**2 if self.codes is None else Code.parse(self.codes).n_bits

    @property
    def n_embed(self) -> int:
        """Width of the vectors."""
        return self.n_components or self.n_bits

    @property
    def parameters(self) -> dict[str, Any]:
        """The parameters that determine the vectors, in addition to the vocabulary and the bits."""
        return {
            "source": "glyphs" if self.codes is None else "codes",
            "n_bits": self.n_bits,
            "n_components": self.n_embed if self.is_real else None,
        }

    def make_bits(self, tokens: Sequence[str]) -> np.ndarray:
        """Return the glyph bitmaps or codes of tokens, uint8 `[len(tokens), n_bits / 8]`.

        Raises:
            SubstrateError: the font cannot be read or does not have the size, or there are fewer
                codes than tokens.
        """
        if self.codes is not None:
            return Code.parse(self.codes).bits(len(tokens), self.seed)
        source = Unifont() if self.font is None else FontFile(self.font)
        return draw_tokens(tokens, source, self.drawing)

    def to_json(self) -> dict[str, Any]:
        """Return the recipe as JSON values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Recipe:
        """Inverse of `to_json`.

        Raises:
            SubstrateError: `content` is not a recipe.
        """
        try:
            return cls(**{**content, "drawing": Drawing(**content["drawing"])})
        except (KeyError, TypeError) as error:
            raise SubstrateError(f"not a recipe of a substrate ({error})") from None
