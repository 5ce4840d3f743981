"""Token codes that show nothing of a token: the digits of its id, or random bits.

They are the controls of arXiv 2507.04886 and 2507.07129 for what the glyphs contribute.
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
    """A kind of code.

    Attributes:
        random: random unique bits; otherwise the binary digits of the id, the highest first.
        n_bits: bits in a code.
        real: PCA and L2 normalisation turn the bits into real numbers ("float" in the paper).
    """

    random: bool
    n_bits: int
    real: bool

    @classmethod
    def parse(cls, name: str) -> Code:
        """Read a name such as "id-16" or "random-256-float".

        Raises:
            SubstrateError: no such code.
        """
        match = re.fullmatch(r"(.+?)(-float)?", name)
        if match is None or match[1] not in CODES:
            raise SubstrateError(
                f"no codes {name!r}; there are {', '.join(CODES)}, each also with '-float' behind"
            )
        kind, bits = match[1].split("-")
        return cls(kind == "random", int(bits), match[2] is not None)

    def bits(self, n_tokens: int, seed: int) -> np.ndarray:
        """Codes of the ids 0 to `n_tokens` - 1, all different: uint8 `[n_tokens, n_bits / 8]`.

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
    """Different rows of random bytes.

    They are cut from the stream of SHAKE-256, which is the same on every machine for ever; rows
    that came before are passed over.
    """
    drawn = 2 * n_rows
    while True:
        stream = hashlib.shake_256(f"fastgrow codes {seed}".encode()).digest(drawn * n_bytes)
        # Sorting numbers is many times faster than sorting strings of bytes.
        rows = np.frombuffer(stream, f"u{n_bytes}" if n_bytes in (2, 8) else f"V{n_bytes}")
        first = np.sort(np.unique(rows, return_index=True)[1])
        if len(first) >= n_rows:
            return np.frombuffer(rows[first[:n_rows]].tobytes(), np.uint8).reshape(n_rows, n_bytes)
        drawn *= 2
