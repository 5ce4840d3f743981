"""Embedding lookup with repeated features, and ids out of range."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fastgrow import ops
from fastgrow.errors import ArgumentError


def test_rows_with_each_feature_repeated() -> None:
    table = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    assert ops.embedding(torch.tensor([1, 0]), table, repeat=3).tolist() == [
        [3, 3, 3, 4, 4, 4],
        [1, 1, 1, 2, 2, 2],
    ]
    assert torch.equal(
        ops.embedding(torch.tensor([[1, 0]], dtype=torch.int32), table)[0, 0], table[1]
    )


def test_gradient_of_a_trainable_table() -> None:
    table = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    ids = torch.tensor([[1, 1], [3, 0]])
    assert torch.autograd.gradcheck(lambda t: ops.embedding(ids, t, repeat=2), (table,))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ids": torch.tensor([[0, 2], [5, 9]])}, r"ids must be in \[0, 4\), got 5 at \[1, 0\]"),
        ({"ids": torch.tensor([-1])}, r"ids must be in \[0, 4\), got -1 at \[0\]"),
        ({"ids": torch.tensor([1.0])}, "ids must be an int64 or int32"),
        ({"ids": torch.tensor([1], device="meta")}, "ids must be on cpu"),
        ({"table": torch.zeros(4)}, r"table must be of shape \[V, n_embed\]"),
        ({"repeat": 0}, "repeat must be at least 1, got 0"),
    ],
)
def test_bad_input(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        ops.embedding(**({"ids": torch.tensor([1]), "table": torch.zeros(4, 3)} | change))
