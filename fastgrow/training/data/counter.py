"""Counter-based random numbers: the i-th number is a pure function of (seed, i).

Shuffles and choices made this way need no generator state. A resumed run gets the same number for
the same index, on every machine and with every version of numpy.
"""

from __future__ import annotations

import hashlib

import numpy as np

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)


def derive_key(*parts: int | str) -> np.uint64:
    """Hash a seed and labels into one 64-bit key; different parts give unrelated keys."""
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in parts)
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return np.uint64(int.from_bytes(digest, "little"))


def random_bits(key: np.uint64, indices: np.ndarray) -> np.ndarray:
    """Return 64 random bits for each index (SplitMix64, Steele, Lea and Flood 2014).

    Args:
        key: from `derive_key`.
        indices: integers >= 0, any shape.

    Returns:
        uint64 array of the shape of `indices`.
    """
    with np.errstate(over="ignore"):
        state = key + (np.asarray(indices).astype(np.uint64) + np.uint64(1)) * _GOLDEN
        state = (state ^ (state >> np.uint64(30))) * _MIX_1
        state = (state ^ (state >> np.uint64(27))) * _MIX_2
        return state ^ (state >> np.uint64(31))


def permutation(key: np.uint64, size: int) -> np.ndarray:
    """Return a random permutation of 0 … size - 1, int64."""
    return np.argsort(random_bits(key, np.arange(size)), kind="stable")


def uniform(key: np.uint64, indices: np.ndarray) -> np.ndarray:
    """Return uniform float64 numbers in [0, 1), one for each index."""
    return (random_bits(key, indices) >> np.uint64(11)).astype(np.float64) * 2.0**-53
