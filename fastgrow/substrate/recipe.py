"""What turns a vocabulary into bits and bits into vectors."""

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
    """How the vectors of a vocabulary are made: from pictures, or from codes.

    Attributes:
        drawing: how tokens are drawn; not used with codes.
        font: a font file; None for the embedded Unifont.
        codes: name of the codes that stand in for pictures (`Code.parse`), or None.
        seed: of random codes.
        n_components: principal components that make a vector; None for as many as there are bits.
            Codes without "-float" have none: there the vectors are the bits.

    Raises:
        SubstrateError: a value out of range, or values that do not go together.
    """

    drawing: Drawing = DRAWINGS["default"]
    font: str | None = None
    codes: str | None = None
    seed: int = 0
    n_components: int | None = None

    def __post_init__(self) -> None:
        check_types(self.drawing, where="", error=SubstrateError)
        if self.codes is not None and self.font is not None:
            raise SubstrateError(f"codes {self.codes!r} are not drawn: they need no font")
        if self.n_components is not None:
            if not self.is_real:
                raise SubstrateError(
                    f"n_components={self.n_components}: the codes {self.codes!r} are used as they "
                    f"are; '{self.codes}-float' has components"
                )
            check_components(self.n_components, self.n_bits)

    @property
    def is_real(self) -> bool:
        """Whether PCA and normalisation follow; otherwise the vectors are the bits."""
        return self.codes is None or Code.parse(self.codes).real

    @property
    def n_bits(self) -> int:
        """Bits a token."""
        return self.drawing.cell**2 if self.codes is None else Code.parse(self.codes).n_bits

    @property
    def n_embed(self) -> int:
        """Width of the vectors."""
        return self.n_components or self.n_bits

    @property
    def parameters(self) -> dict[str, Any]:
        """What, beside vocabulary and bits, decides the vectors."""
        return {
            "source": "glyphs" if self.codes is None else "codes",
            "n_bits": self.n_bits,
            "n_components": self.n_embed if self.is_real else None,
        }

    def make_bits(self, tokens: Sequence[str]) -> np.ndarray:
        """Pictures or codes of the tokens: uint8 `[len(tokens), n_bits / 8]`.

        Raises:
            SubstrateError: the font cannot be read or lacks the size, or codes run out.
        """
        if self.codes is not None:
            return Code.parse(self.codes).bits(len(tokens), self.seed)
        source = Unifont() if self.font is None else FontFile(self.font)
        return draw_tokens(tokens, source, self.drawing)

    def to_json(self) -> dict[str, Any]:
        """The recipe as JSON values."""
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
