"""Attention's tables, positions and lengths at any address; values near its bounds."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from harness import DEVICE
from torch import Tensor

from fastgrow.ops import attention, rope_table

BATCH, LENGTH, DIM = 2, 40, 32


def heads(seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(BATCH, 2, LENGTH, DIM, generator=generator).to(DEVICE, dtype)


def table() -> tuple[Tensor, Tensor]:
    return rope_table(2 * LENGTH, DIM, device=DEVICE)


def every_second(x: Tensor) -> Tensor:
    """The same content, two elements apart."""
    return torch.stack([x, torch.zeros_like(x)], -1)[..., 0]


def repeated(x: int) -> Tensor:
    return torch.tensor([x], dtype=torch.int32, device=DEVICE).expand(BATCH)


def columns(x: Tensor) -> Tensor:
    return x.T.contiguous().T


def wider(x: Tensor) -> Tensor:
    return torch.cat([x, torch.zeros_like(x)], 1)[:, : x.shape[1]]


def positions(rows: int) -> Tensor:
    return torch.arange(LENGTH, device=DEVICE).flip(0).expand(rows, LENGTH).contiguous()


CASES: dict[str, Callable[[], dict[str, Any]]] = {
    "one row of positions": lambda: {"position_ids": positions(1)},
    "positions apart": lambda: {"position_ids": every_second(positions(BATCH)[0])},
    "rows of positions apart": lambda: {"position_ids": every_second(positions(BATCH))},
    "lengths of one number": lambda: {"lengths": repeated(30)},
    "starts of a column": lambda: {
        "starts": torch.tensor([[3, 99], [20, 99]], dtype=torch.int32, device=DEVICE)[:, 0]
    },
    "a table by columns": lambda: {"rope": tuple(map(columns, table()))},
    "cosines in a wider table": lambda: {"rope": (wider(table()[0]), table()[1])},
    "a table in bf16": lambda: {"rope": tuple(x.bfloat16() for x in table())},
}


@pytest.mark.parametrize("case", CASES)
def test_metadata_may_stand_anywhere(case: str) -> None:
    options = {"rope": table()} | CASES[case]()
    q, k, v = (heads(seed).requires_grad_() for seed in range(3))
    results = {}
    for impl in ("triton", "eager"):
        y = attention(q, k, v, impl=impl, **options)
        results[impl] = (y.detach(), *torch.autograd.grad(y.square().sum(), (q, k, v)))
    torch.testing.assert_close(results["triton"], results["eager"], rtol=1e-4, atol=1e-4)


def test_a_window_of_any_size() -> None:
    q, k, v = (heads(seed).requires_grad_() for seed in range(3))
    for window in (LENGTH, 2**31 - 1, sys.maxsize):
        y = attention(q, k, v, window=window, impl="triton")
        expected = attention(q, k, v, impl="triton")
        for got, want in zip(
            torch.autograd.grad(y.sum(), (q, k, v)),
            torch.autograd.grad(expected.sum(), (q, k, v)),
            strict=True,
        ):
            torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("size", [1e25, 1e-25])
@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("part", [4.6, 6.5])
def test_large_and_small_values(part: float, sign: float, size: float) -> None:
    """Scores of 30 and 61 in log2: within the bound of the path without a maximum, and beyond."""
    q = torch.zeros(1, 1, 128, DIM, dtype=torch.bfloat16, device=DEVICE)
    q[..., 0] = part
    k = sign * q
    v = (heads(2)[:1, :1, :1].expand(1, 1, 128, DIM).double() * size).bfloat16()
    y = attention(q, k, v, scale=1.0, impl="triton")
    truth = attention(q.double(), k.double(), v.double(), scale=1.0, impl="eager")
    assert y.isfinite().all()
    torch.testing.assert_close(y.double() / size, truth / size, rtol=2**-7, atol=0)


def test_fp32_products_follow_torch_s_newer_switch(monkeypatch: pytest.MonkeyPatch) -> None:
    from fastgrow.kernels.common import dot_precision

    def refuses() -> str:
        raise RuntimeError("mix of the legacy and new APIs")

    monkeypatch.setattr(torch, "get_float32_matmul_precision", refuses)
    before = torch.backends.cuda.matmul.fp32_precision
    try:
        for setting, given in (("tf32", "tf32"), ("ieee", "ieee")):
            torch.backends.cuda.matmul.fp32_precision = setting
            assert dot_precision(torch.float32) == given
            assert dot_precision(torch.bfloat16) == "ieee"
    finally:
        torch.backends.cuda.matmul.fp32_precision = before
