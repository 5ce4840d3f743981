"""Compute frozen token vectors from bits: principal components with rows of unit length."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import TypeVar

import numpy as np
from threadpoolctl import threadpool_limits

from fastgrow.errors import SubstrateError

T = TypeVar("T")

# Number of bits that each thread unpacks at once: 16 MB of float32.
_BATCH = 1 << 22
# Loadings within this relative distance of the largest count as ties, so that rounding does not
# decide between them.
_TIE = 1e-6


def principal_axes(packed: np.ndarray, n_bits: int, n_components: int) -> np.ndarray:
    """Compute the principal axes of rows of bits, in descending order of variance.

    The sign of an axis is arbitrary, and axes of equal variance can be rotated among each other;
    which ones an eigensolver returns depends on the machine. Here the largest loading of each axis
    is positive, and axes of equal variance are those of `_fixed_basis`. Axes of zero variance are
    set to zero.

    Args:
        packed: uint8 `[V, n_bits / 8]`, the first bit in the most significant position.
        n_bits: number of bits in a row.
        n_components: number of axes to return, at most `n_bits`.

    Returns:
        float32 `[n_bits, n_components]`, with columns that are orthonormal or zero.

    Raises:
        SubstrateError: `n_components` is out of range.
    """
    check_components(n_components, n_bits)
    # Sums of products of bits are integers below 2^24, which float32 sums exactly in any order.
    together = np.zeros((n_bits, n_bits), np.float64)
    for products in _over_batches(lambda rows, _: rows.T @ rows, packed, n_bits):
        together += products
    mean = np.diagonal(together) / len(packed)
    covariance = together / len(packed) - np.outer(mean, mean)
    # The eigensolver's threads synchronize thousands of times: on a busy machine two threads took
    # ten seconds, and one thread takes a quarter of a second.
    with threadpool_limits(1, "blas"):
        variance, axes = np.linalg.eigh(covariance)
    variance, axes = variance[::-1], axes[:, ::-1]
    # Variances that differ by less than this are equal up to rounding.
    rounding = variance[0] * n_bits * np.finfo(np.float64).eps
    n_varying = int((variance > rounding).sum())
    starts = np.flatnonzero(-np.diff(variance[:n_varying], prepend=np.inf) > rounding)
    for start, stop in pairwise([*starts.tolist(), n_varying]):
        if stop - start > 1:
            axes[:, start:stop] = _fixed_basis(axes[:, start:stop])
    axes = axes * np.sign(axes[_first_largest(np.abs(axes)), np.arange(n_bits)])
    axes[:, n_varying:] = 0
    return axes[:, :n_components].astype(np.float32)


def _fixed_basis(axes: np.ndarray) -> np.ndarray:
    """Return an orthonormal basis of the columns' span that depends only on the span.

    The first vector is the unit vector in the span with the largest loading on any single bit. Each
    further vector is chosen in the same way among the unit vectors orthogonal to all before it.
    """
    basis = np.empty_like(axes)
    projection = axes @ axes.T
    for column in basis.T:
        bit = _first_largest(np.sqrt(np.abs(np.diagonal(projection))))
        column[:] = projection[bit] / np.sqrt(projection[bit, bit])
        projection -= np.outer(column, column)
    return basis


def _first_largest(sizes: np.ndarray) -> np.ndarray:
    """Return the index of each column's largest value; the first one among ties (`_TIE`)."""
    return (sizes >= sizes.max(axis=0) * (1 - _TIE)).argmax(axis=0)


def principal_table(packed: np.ndarray, axes: np.ndarray) -> np.ndarray:
    """Compute the visual table of arXiv 2507.04886: PCA of the bits, then L2-normalised rows.

    Rows of equal bits are bit-identical.

    Args:
        packed: uint8 `[V, n_bits / 8]`.
        axes: float32 `[n_bits, n_components]`, from `principal_axes`.

    Returns:
        float32 `[V, n_components]`; a row that equals the mean is zero.
    """
    n_bits, n_components = axes.shape
    ones = np.zeros(n_bits, np.float64)
    for sums in _over_batches(lambda rows, _: rows.sum(axis=0), packed, n_bits):
        ones += sums
    centre = (ones / len(packed) @ axes).astype(np.float32)
    table = np.empty((len(packed), n_components), np.float32)
    # Only distinct rows are projected, because a matrix product may round equal rows differently:
    # the order of summation at the edge of a tile may differ from that in its middle.
    first = first_equal_rows(packed)
    is_first = first == np.arange(len(packed))
    distinct, repeated = np.flatnonzero(is_first), np.flatnonzero(~is_first)
    # A shorter vector may consist of rounding errors only.
    shortest = n_bits * np.finfo(np.float32).eps

    def project(rows: np.ndarray, place: slice) -> None:
        vectors = rows @ axes - centre
        length = np.sqrt(np.einsum("ij,ij->i", vectors, vectors))[:, None]
        vectors *= length > shortest
        table[distinct[place]] = vectors / np.where(length > shortest, length, 1)

    for _ in _over_batches(project, packed[distinct], n_bits):
        pass
    table[repeated] = table[first[repeated]]
    return table


def first_equal_rows(packed: np.ndarray) -> np.ndarray:
    """Return the index of the first row equal to each row of bytes, int64 `[V]`."""
    rows = np.ascontiguousarray(packed).view(np.dtype((np.void, packed.shape[1]))).ravel()
    _, first, group = np.unique(rows, return_index=True, return_inverse=True)
    return first[group]


def binary_table(packed: np.ndarray, n_bits: int) -> np.ndarray:
    """Return the bits, 0 and 1, as float32 `[V, n_bits]`."""
    return np.unpackbits(packed, axis=1, count=n_bits).astype(np.float32)


def check_components(n_components: int, n_bits: int) -> None:
    """Check that the number of components is from 1 to `n_bits`."""
    if not 1 <= n_components <= n_bits:
        raise SubstrateError(f"n_components={n_components}: expected 1 to {n_bits:,} (one per bit)")


def _over_batches(
    function: Callable[[np.ndarray, slice], T], packed: np.ndarray, n_bits: int
) -> Iterator[T]:
    """Yield `function(rows, place)` for each batch of unpacked rows, in order, using all CPU cores.

    Each batch is processed by a single thread, so that results do not depend on the number of
    threads.
    """
    step = max(1, _BATCH // n_bits)
    places = [slice(start, start + step) for start in range(0, len(packed), step)]
    n_threads = min(len(places), os.cpu_count() or 1)

    def of(place: slice) -> T:
        return function(binary_table(packed[place], n_bits), place)

    with threadpool_limits(1, "blas"), ThreadPoolExecutor(n_threads) as pool:
        yield from pool.map(of, places)
