"""Token codes without visual information: the binary digits of the id, or random bits.

They are the controls of arXiv 2507.04886 and 2507.07129 that measure what glyphs contribute.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass

import numpy as np

from fastgrow.errors import SubstrateError

RANDOM_BITS = (16, 64, 256, 1024)
CODES = ("id-16", *(f"random-{bits}" for bits in RANDOM_BITS))


@dataclass(frozen=True)
class Code:
    """A kind of token code.

    Attributes:
        random: True for random unique bits; False for the binary digits of the id, most
            significant first.
        n_bits: number of bits in a code.
        real: whether the bits are converted to real vectors by PCA and L2 normalisation ("float"
            in the paper).
    """

    random: bool
    n_bits: int
    real: bool

    @classmethod
    def parse(cls, name: str) -> Code:
        """Parse a name such as "id-16" or "random-256-float".

        Raises:
            SubstrateError: there is no such code.
        """
        match = re.fullmatch(r"(.+?)(-float)?", name)
        if match is None or match[1] not in CODES:
            raise SubstrateError(
                f"no codes {name!r}; expected one of {', '.join(CODES)}, each also with the suffix "
                "'-float'"
            )
        kind, bits = match[1].split("-")
        return cls(kind == "random", int(bits), match[2] is not None)

    def bits(self, n_tokens: int, seed: int) -> np.ndarray:
        """Return distinct codes of the ids 0 … `n_tokens` - 1: uint8 `[n_tokens, n_bits / 8]`.

        Raises:
            SubstrateError: there are fewer codes than tokens.
        """
        if n_tokens > 1 << self.n_bits:
            raise SubstrateError(
                f"{n_tokens:,} tokens need more than the {1 << self.n_bits:,} codes of "
                f"{self.n_bits} bits"
            )
        if self.random:
            return _random_rows(n_tokens, self.n_bits // 8, seed)
        return np.arange(n_tokens, dtype=">u2").view(np.uint8).reshape(n_tokens, 2)


def _random_rows(n_rows: int, n_bytes: int, seed: int) -> np.ndarray:
    """Return distinct rows of random bytes.

    They are taken from the output of SHAKE-256, which is the same on every machine; repeated rows
    are skipped.
    """
    drawn = 2 * n_rows
    while True:
        stream = hashlib.shake_256(f"fastgrow codes {seed}".encode()).digest(drawn * n_bytes)
        # Sorting integers is many times faster than sorting byte strings.
        rows = np.frombuffer(stream, f"u{n_bytes}" if n_bytes in (2, 8) else f"V{n_bytes}")
        first = np.sort(np.unique(rows, return_index=True)[1])
        if len(first) >= n_rows:
            return np.frombuffer(rows[first[:n_rows]].tobytes(), np.uint8).reshape(n_rows, n_bytes)
        drawn *= 2
