"""Attention of few queries over a cache, split over the keys, against the eager formula."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from harness import DEVICE, assert_accurate, smoke
from torch import Tensor

from fastgrow.kernels import attention_tiles
from fastgrow.ops import attention, rope_table

F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16


def ids(*numbers: int) -> Tensor:
    return torch.tensor(numbers, dtype=torch.int32, device=DEVICE)


def keys_for(dim: int, dtype: torch.dtype) -> int:
    """Several blocks of what the kernel reads at a time, which depends on the device, and a bit."""
    return 8 * attention_tiles.block_n_of(dim, dtype) + 22


KEYS = keys_for(32, F32)
CASES = [
    ({}, F32, {}),
    ({"queries": 5, "dim": 24, "rotated": 16}, F32, {}),
    smoke({"heads": 8, "kv_heads": 2, "queries": 3}, BF16, {}),
    ({"dim": 128}, F16, {"k_rotated": True}),
    ({"batch": 3, "queries": 2}, F32, {"lengths": ids(1, KEYS, 70), "k_rotated": True}),
    ({"batch": 2, "queries": 4}, F32, {"starts": ids(0, KEYS - 1)}),
    ({"queries": 8}, F32, {"window": 20}),
    ({"queries": 3, "rotated": 0}, F32, {"causal": False}),
    ({"batch": 2}, F32, {"lengths": ids(4, KEYS), "window": 9, "starts": ids(1, 100)}),
]


def attend(q: Tensor, k: Tensor, v: Tensor, rotated: int, impl: str, **options: Any) -> Tensor:
    table = rope_table(k.shape[2], rotated, device=DEVICE) if rotated else None
    if table is not None and q.dtype == torch.float64:
        table = (table[0].double(), table[1].double())
    return attention(q, k, v, rope=table, impl=impl, **options)


@pytest.mark.parametrize(("shape", "dtype", "options"), CASES)
def test_agrees_with_truth(
    shape: dict[str, int], dtype: torch.dtype, options: dict[str, Any]
) -> None:
    batch, dim, kv_heads = shape.get("batch", 1), shape.get("dim", 32), shape.get("kv_heads", 1)
    keys = keys_for(dim, dtype)
    sizes = (shape.get("heads", 2), shape.get("queries", 1)), (kv_heads, keys), (kv_heads, keys)
    q, k, v = (torch.randn(batch, h, t, dim, device=DEVICE).to(dtype) for h, t in sizes)
    assert attention_tiles.can_decode(q, k)
    split = attention_tiles.split_of(dim, dtype)
    runs, _ = attention_tiles.runs_of_keys(batch * kv_heads, keys, split, q.device)
    assert runs > 1, "the case does not split its keys"
    rotated = shape.get("rotated", dim)
    truth = attend(q.double(), k.double(), v.double(), rotated, "eager", **options)
    eager = attend(q, k, v, rotated, "eager", **options)
    assert_accurate("out", attend(q, k, v, rotated, "triton", **options), eager, truth)


def test_unwritten_part_of_a_cache_is_never_read() -> None:
    q = torch.randn(2, 1, 1, 32, device=DEVICE)
    k, v = (torch.randn(2, 1, KEYS, 32, device=DEVICE) for _ in range(2))
    assert attention_tiles.can_decode(q, k)
    lengths = ids(3, 77)
    expected = attention(q, k, v, lengths=lengths, impl="triton")
    for row, length in enumerate(lengths.tolist()):
        k[row, :, length:], v[row, :, length:] = float("nan"), float("nan")
    assert torch.equal(attention(q, k, v, lengths=lengths, impl="triton"), expected)


def test_result_does_not_depend_on_the_split_beyond_rounding(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    q, k, v = (torch.randn(1, 2, t, 32, device=DEVICE) for t in (1, KEYS, KEYS))
    assert attention_tiles.can_decode(q, k)
    split = attention(q, k, v, impl="triton")
    monkeypatch.setattr(attention_tiles, "MAX_RUNS", 1)
    torch.testing.assert_close(attention(q, k, v, impl="triton"), split, rtol=1e-5, atol=1e-6)
