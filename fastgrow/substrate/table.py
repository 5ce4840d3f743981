"""From bits to frozen vectors: principal components, each row of unit length."""

from __future__ import annotations

import numpy as np

from fastgrow.errors import SubstrateError

# Rows unpacked at once: 32 MB of float32 at 1,024 bits.
_ROWS = 8192


def principal_table(packed: np.ndarray, n_bits: int, n_components: int) -> np.ndarray:
    """The visual table of arXiv 2507.04886: PCA of the bits, then L2-normalised rows.

    Signs are fixed so that each axis has its largest loading positive; axes along which the rows do
    not vary give zeros.

    Args:
        packed: uint8 `[V, n_bits / 8]`, the first bit in the highest place.
        n_bits: bits in a row.
        n_components: columns to keep, at most `n_bits`, by falling variance.

    Returns:
        float32 `[V, n_components]`.

    Raises:
        SubstrateError: `n_components` out of range.
    """
    if not 1 <= n_components <= n_bits:
        raise SubstrateError(
            f"n_components={n_components}: rows of {n_bits:,} bits have 1 to {n_bits:,} components"
        )
    mean, axes = _principal_axes(packed, n_bits)
    axes = axes[:, :n_components]
    table = np.empty((len(packed), n_components), np.float32)
    offset = (mean @ axes).astype(np.float32)
    rotation = axes.astype(np.float32)
    for start in range(0, len(packed), _ROWS):
        rows = _unpack(packed[start : start + _ROWS], n_bits)
        projected = np.matmul(rows, rotation, out=table[start : start + _ROWS])
        projected -= offset
    return _normalise(table)


def binary_table(packed: np.ndarray, n_bits: int) -> np.ndarray:
    """The bits themselves, 0 and 1, as float32 `[V, n_bits]`."""
    return _unpack(packed, n_bits)


def _principal_axes(packed: np.ndarray, n_bits: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean `[n_bits]` and principal axes `[n_bits, n_bits]` in columns, float64."""
    # Sums of products of bits are whole numbers below 2^24: exact in float32, in any order.
    together = np.zeros((n_bits, n_bits), np.float64)
    for start in range(0, len(packed), _ROWS):
        rows = _unpack(packed[start : start + _ROWS], n_bits)
        together += rows.T @ rows
    mean = np.diagonal(together) / len(packed)
    covariance = together / len(packed) - np.outer(mean, mean)
    variance, axes = np.linalg.eigh(covariance)
    variance, axes = variance[::-1], axes[:, ::-1]
    largest = np.abs(axes).argmax(axis=0)
    axes = axes * np.sign(axes[largest, np.arange(n_bits)])
    noise = variance <= variance[0] * n_bits * np.finfo(np.float64).eps
    return mean, np.where(noise, 0.0, axes)


def _unpack(packed: np.ndarray, n_bits: int) -> np.ndarray:
    return np.unpackbits(packed, axis=1, count=n_bits).astype(np.float32)


def _normalise(table: np.ndarray) -> np.ndarray:
    """Divide each row by its length, in place; a row of zeros stays."""
    length = np.sqrt(np.einsum("ij,ij->i", table, table))[:, None]
    table /= np.where(length > 0, length, 1)
    return table
