"""From bits to frozen vectors: principal components, each row of unit length."""

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

# Bits unpacked at once by each thread: 16 MB of float32.
_BATCH = 1 << 22
# Loadings this close to the largest count as the largest too: rounding cannot decide between them.
_TIE = 1e-6


def principal_axes(packed: np.ndarray, n_bits: int, n_components: int) -> np.ndarray:
    """The directions along which rows of bits vary most, by falling variance.

    An axis is free in its sign, and axes of one variance are free to turn among themselves: which
    of them an eigensolver returns depends on the machine. Here an axis's largest loading is
    positive, and axes of one variance are those of `_fixed_basis`. Axes along which the rows do not
    vary are all zeros.

    Args:
        packed: uint8 `[V, n_bits / 8]`, the first bit in the highest place.
        n_bits: bits in a row.
        n_components: axes to keep, at most `n_bits`.

    Returns:
        float32 `[n_bits, n_components]`, orthonormal columns but for the zeros.

    Raises:
        SubstrateError: `n_components` out of range.
    """
    check_components(n_components, n_bits)
    # Sums of products of bits are whole numbers below 2^24: exact in float32, in any order.
    together = np.zeros((n_bits, n_bits), np.float64)
    for products in _over_batches(lambda rows, _: rows.T @ rows, packed, n_bits):
        together += products
    mean = np.diagonal(together) / len(packed)
    covariance = together / len(packed) - np.outer(mean, mean)
    # The eigensolver's threads wait for each other thousands of times: on a busy machine two took
    # ten seconds where one takes a quarter of a second.
    with threadpool_limits(1, "blas"):
        variance, axes = np.linalg.eigh(covariance)
    variance, axes = variance[::-1], axes[:, ::-1]
    # Variances this close are equal but for rounding.
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
    """An orthonormal basis of the columns' span that depends on the span alone.

    Its first vector is, of all unit vectors in the span, the one with the largest loading on any
    one bit; the next is so among those orthogonal to the first, and so on.
    """
    basis = np.empty_like(axes)
    projection = axes @ axes.T
    for column in basis.T:
        bit = _first_largest(np.sqrt(np.abs(np.diagonal(projection))))
        column[:] = projection[bit] / np.sqrt(projection[bit, bit])
        projection -= np.outer(column, column)
    return basis


def _first_largest(sizes: np.ndarray) -> np.ndarray:
    """The place of each column's largest, the first of those that only rounding tells apart."""
    return (sizes >= sizes.max(axis=0) * (1 - _TIE)).argmax(axis=0)


def principal_table(packed: np.ndarray, axes: np.ndarray) -> np.ndarray:
    """The visual table of arXiv 2507.04886: PCA of the bits, then L2-normalised rows.

    Rows of equal bits are equal to the last digit.

    Args:
        packed: uint8 `[V, n_bits / 8]`.
        axes: float32 `[n_bits, n_components]`, of `principal_axes`.

    Returns:
        float32 `[V, n_components]`; a row that does not differ from the mean is zeros.
    """
    n_bits, n_components = axes.shape
    ones = np.zeros(n_bits, np.float64)
    for sums in _over_batches(lambda rows, _: rows.sum(axis=0), packed, n_bits):
        ones += sums
    centre = (ones / len(packed) @ axes).astype(np.float32)
    table = np.empty((len(packed), n_components), np.float32)
    # Distinct rows alone are projected, since a matrix product may round equal rows differently: it
    # adds in another order at the edge of a block than in its middle.
    first = first_equal_rows(packed)
    is_first = first == np.arange(len(packed))
    distinct, repeated = np.flatnonzero(is_first), np.flatnonzero(~is_first)
    # A shorter vector may be the product's rounding alone.
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
    """For every row of bytes, the first row that is equal to it: int64 `[V]`."""
    rows = np.ascontiguousarray(packed).view(np.dtype((np.void, packed.shape[1]))).ravel()
    _, first, group = np.unique(rows, return_index=True, return_inverse=True)
    return first[group]


def binary_table(packed: np.ndarray, n_bits: int) -> np.ndarray:
    """The bits themselves, 0 and 1, as float32 `[V, n_bits]`."""
    return np.unpackbits(packed, axis=1, count=n_bits).astype(np.float32)


def check_components(n_components: int, n_bits: int) -> None:
    """Refuse a number of components that `n_bits` bits do not have."""
    if not 1 <= n_components <= n_bits:
        raise SubstrateError(
            f"n_components={n_components}: rows of {n_bits:,} bits have 1 to {n_bits:,} components"
        )


def _over_batches(
    function: Callable[[np.ndarray, slice], T], packed: np.ndarray, n_bits: int
) -> Iterator[T]:
    """`function(rows, place)` of each batch of unpacked rows, in order, on all processors.

    A batch is one thread's work from end to end, so the results do not depend on how many threads
    there are.
    """
    step = max(1, _BATCH // n_bits)
    places = [slice(start, start + step) for start in range(0, len(packed), step)]
    n_threads = min(len(places), os.cpu_count() or 1)

    def of(place: slice) -> T:
        return function(binary_table(packed[place], n_bits), place)

    with threadpool_limits(1, "blas"), ThreadPoolExecutor(n_threads) as pool:
        yield from pool.map(of, places)
