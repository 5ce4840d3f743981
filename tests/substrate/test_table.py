"""Principal components and unit rows, against numpy's singular values in float64."""

from __future__ import annotations

import numpy as np
import pytest

from fastgrow.errors import SubstrateError
from fastgrow.substrate.codes import Code
from fastgrow.substrate.table import binary_table, principal_axes, principal_table


def random_bits(n_rows: int, n_bits: int, seed: int = 0) -> np.ndarray:
    """Packed bits with different variances, so that the axes are well separated."""
    generator = np.random.default_rng(seed)
    share = np.linspace(0.05, 0.5, n_bits)
    return np.packbits(generator.random((n_rows, n_bits)) < share, axis=1)


def make_table(packed: np.ndarray, n_bits: int, n_components: int) -> np.ndarray:
    return principal_table(packed, principal_axes(packed, n_bits, n_components))


def expected_table(packed: np.ndarray, n_bits: int, n_components: int) -> np.ndarray:
    rows = np.unpackbits(packed, axis=1, count=n_bits).astype(np.float64)
    rows -= rows.mean(axis=0)
    axes = np.linalg.svd(rows, full_matrices=False)[2].T[:, :n_components]
    axes *= np.sign(axes[np.abs(axes).argmax(axis=0), np.arange(axes.shape[1])])
    table = rows @ axes
    return table / np.linalg.norm(table, axis=1, keepdims=True)


# Tolerance for projections of up to 64 bits with weights of at most 1 in float32.
TOLERANCE = 5e-6


@pytest.mark.parametrize(
    ("n_rows", "n_bits", "n_components"), [(3000, 64, 64), (3000, 64, 10), (5000, 49, 20)]
)
def test_table_is_pca_with_unit_rows(n_rows: int, n_bits: int, n_components: int) -> None:
    packed = random_bits(n_rows, n_bits)
    table = make_table(packed, n_bits, n_components)
    assert table.dtype == np.float32
    expected = expected_table(packed, n_bits, n_components)
    np.testing.assert_allclose(table, expected, rtol=0, atol=TOLERANCE)


def test_fewer_rows_than_bits_leave_the_remaining_columns_zero() -> None:
    packed = random_bits(9, 64)
    table = make_table(packed, 64, 64)
    assert not table[:, 8:].any()
    assert table[:, :8].any(axis=0).all()
    np.testing.assert_allclose(np.linalg.norm(table, axis=1), 1, atol=1e-6)
    # Nine points span eight axes, so the angles between them are kept.
    rows = np.unpackbits(packed, axis=1).astype(np.float64)
    rows -= rows.mean(axis=0)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    np.testing.assert_allclose(table @ table.T, rows @ rows.T, atol=TOLERANCE)


def test_largest_loading_of_each_axis_is_positive() -> None:
    axes = principal_axes(random_bits(3000, 64), 64, 64)
    assert (axes[np.abs(axes).argmax(axis=0), np.arange(64)] > 0).all()


def test_tied_loadings_give_the_first_of_them_the_positive_sign() -> None:
    # Bit 0 and bit 1 are opposite, bit 2 is rare: the first axis is (1, -1, ...) / sqrt(2).
    bits = np.array([[1, 0, 0, 0, 0, 0, 0, 0], [0, 1, 0, 0, 0, 0, 0, 0]] * 50, np.uint8)
    bits[3, 2] = 1
    axis = principal_axes(np.packbits(bits, axis=1), 8, 1)[:, 0]
    assert axis[0] == pytest.approx(0.5**0.5, abs=1e-3)
    assert axis[1] == pytest.approx(-(0.5**0.5), abs=1e-3)


def test_axes_of_equal_variance_do_not_depend_on_the_eigensolver(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Ids below 129: the lowest bits of the codes all have the same variance.
    packed = Code.parse("id-16").bits(129, seed=0)
    expected = principal_axes(packed, 16, 16)
    solve = np.linalg.eigh

    def turned(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        variance, axes = solve(matrix)
        equal = np.flatnonzero(np.isclose(variance, variance[-2], rtol=1e-9, atol=0))
        assert len(equal) == 6
        turn = np.linalg.qr(np.random.default_rng(1).normal(size=(6, 6)))[0]
        axes[:, equal] = axes[:, equal] @ turn
        return variance, axes

    monkeypatch.setattr("numpy.linalg.eigh", turned)
    axes = principal_axes(packed, 16, 16)
    np.testing.assert_allclose(axes, expected, rtol=0, atol=1e-6)
    np.testing.assert_allclose(axes[:, :8].T @ axes[:, :8], np.eye(8), atol=1e-6)


def test_rows_equal_to_the_mean_are_zeros() -> None:
    packed = np.packbits(np.ones((4, 16), np.uint8), axis=1)
    assert not make_table(packed, 16, 16).any()


def test_a_row_that_equals_the_mean_up_to_rounding_is_zeros() -> None:
    # The loadings of the second half cancel those of the first half, summed in a different order.
    generator = np.random.default_rng(0)
    half = generator.random(512, np.float32)
    axis = np.concatenate([half, -generator.permutation(half)])[:, None] / np.float32(18.5)
    bits = np.zeros((4, 1024), np.uint8)
    bits[1, :512] = bits[2, 512:] = bits[3] = 1
    table = principal_table(np.packbits(bits, axis=1), axis)
    assert table.ravel().tolist() == [0, 1, -1, 0]


def test_equal_rows_are_equal_at_every_position(monkeypatch: pytest.MonkeyPatch) -> None:
    # Batches of eight rows and a last one of one row, which a BLAS treats as a vector.
    packed = random_bits(40, 256)
    order = np.random.default_rng(1).permutation(np.repeat(np.arange(40), 9))
    monkeypatch.setattr("fastgrow.substrate.table._BATCH", 256 * 8)
    table = make_table(packed[np.append(order, 0)], 256, 100)
    distinct = table[np.argsort(order)[::9]]
    np.testing.assert_array_equal(table[:-1], distinct[order])
    np.testing.assert_array_equal(table[-1], distinct[0])
    assert len(np.unique(table, axis=0)) == 40


def test_number_of_threads_changes_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    packed = random_bits(5000, 256)
    monkeypatch.setattr("fastgrow.substrate.table._BATCH", 256 * 500)
    tables = []
    for n_threads in (1, 3):
        monkeypatch.setattr("os.cpu_count", lambda n=n_threads: n)
        tables.append(make_table(packed, 256, 100))
    np.testing.assert_array_equal(tables[0], tables[1])
    assert (np.abs(tables[0]).max(axis=1) > 0).all()


def test_binary_table_is_the_bits() -> None:
    packed = np.array([[0b10110000], [0b00000001]], np.uint8)
    assert binary_table(packed, 8).tolist() == [[1, 0, 1, 1, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0, 0, 1]]


@pytest.mark.parametrize("n_components", [0, -1, 65])
def test_number_of_components_is_checked(n_components: int) -> None:
    with pytest.raises(SubstrateError, match=rf"n_components={n_components}: .* 1 to 64"):
        principal_axes(random_bits(10, 64), 64, n_components)
