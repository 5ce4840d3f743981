"""Rotary positions: the formula, relative positions, position ids, bad input."""

from __future__ import annotations

import pytest
import torch

from fastgrow import ops
from fastgrow.errors import ArgumentError


def rotate_as_complex(x: torch.Tensor, positions: torch.Tensor, base: float) -> torch.Tensor:
    """Feature pairs (i, i + D/2) as complex numbers, times exp(i · position · frequency)."""
    half = x.shape[-1] // 2
    frequency = base ** (-torch.arange(half, dtype=torch.float64) / half)
    turn = torch.polar(torch.ones(half, dtype=torch.float64), frequency * positions[..., None])
    z = torch.complex(x[..., :half], x[..., half:]) * turn
    return torch.cat([z.real, z.imag], dim=-1)


def double_table(positions: int, dim: int) -> ops.RopeTable:
    cos, sin = ops.rope_table(positions, dim)
    return cos.double(), sin.double()


def test_rotates_feature_pairs_by_position() -> None:
    x = torch.randn(2, 3, 5, 8, dtype=torch.float64)
    y = ops.rope(x, double_table(40, 8), offset=30)
    expected = rotate_as_complex(x, torch.arange(30, 35).double(), 10000.0)
    # The table itself is rounded to float32.
    torch.testing.assert_close(y, expected, atol=1e-6, rtol=0)


def test_products_depend_only_on_the_distance() -> None:
    q, k = torch.randn(2, 1, 1, 1, 64, dtype=torch.float64)
    table = double_table(2000, 64)

    def product(i: int, j: int) -> float:
        return float((ops.rope(q, table, offset=i) * ops.rope(k, table, offset=j)).sum())

    assert product(1907, 1900) == pytest.approx(product(7, 0), abs=1e-5)
    assert product(8, 0) != pytest.approx(product(7, 0), abs=1e-3)


def test_position_ids_choose_rows_of_the_table() -> None:
    x = torch.randn(2, 3, 4, 8)
    table = ops.rope_table(50, 8)
    ids = torch.tensor([[3, 1, 4, 1], [5, 9, 2, 6]])
    y = ops.rope(x, table, ids)
    for b in range(2):
        for t in range(4):
            one = ops.rope(x[b : b + 1, :, t : t + 1], table, offset=int(ids[b, t]))
            torch.testing.assert_close(y[b, :, t], one[0, :, 0], atol=0, rtol=0)
    torch.testing.assert_close(ops.rope(x, table, ids[0])[1], ops.rope(x[1:], table, ids[:1])[0])


def test_partial_rotation_keeps_the_other_features() -> None:
    x = torch.randn(1, 2, 5, 12)
    table = ops.rope_table(5, 8)
    y = ops.rope(x, table)
    torch.testing.assert_close(y[..., :8], ops.rope(x[..., :8], table), atol=0, rtol=0)
    assert torch.equal(y[..., 8:], x[..., 8:])


def test_gradient() -> None:
    x = torch.randn(1, 2, 3, 6, dtype=torch.float64, requires_grad=True)
    table = double_table(9, 4)
    assert torch.autograd.gradcheck(lambda x: ops.rope(x, table, offset=4), (x,))


@pytest.mark.parametrize(
    ("shape", "dim", "position_ids", "message"),
    [
        ((2, 5, 8), 8, None, r"rope: x must be of shape \[B, H, T, D\], got \[2, 5, 8\]"),
        ((1, 2, 5, 8), 10, None, "R ≤ 8"),
        ((1, 2, 17, 8), 8, None, r"at least 17 positions, got \[16, 4\]"),
        ((1, 2, 5, 8), 8, torch.zeros(4, dtype=torch.int64), r"shape \[5\] or \[1, 5\]"),
        ((1, 2, 5, 8), 8, torch.zeros(5), "int64 or int32"),
    ],
)
def test_bad_input(
    shape: tuple[int, ...], dim: int, position_ids: torch.Tensor | None, message: str
) -> None:
    with pytest.raises(ArgumentError, match=message):
        ops.rope(torch.randn(shape), ops.rope_table(16, dim), position_ids)
