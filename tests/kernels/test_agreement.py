"""Results that differ only by rounding are accepted as equal, and others are not."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

agreement = pytest.importorskip("fastgrow.kernels.agreement", reason="triton is not installed")

BF16, F16, F32 = torch.bfloat16, torch.float16, torch.float32
WIDTH, KEYS = 32, 512


def attended(dtype: torch.dtype, block: int, seen: int = 0) -> tuple[Tensor, Tensor, None]:
    """Causal attention in blocks of keys and lse, with the roundings of the kernels.

    Args:
        seen: number of keys after its own that a query sees by mistake.
    """
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(4, KEYS, WIDTH, generator=generator).to(dtype) for _ in range(3))
    mask = torch.ones(KEYS, KEYS).triu(1 + seen).bool()
    scores = (q.float() @ k.float().mT * WIDTH**-0.5).masked_fill(mask, -1e30)
    pivot, total, out = torch.full((4, KEYS, 1), -1e30), torch.zeros(4, KEYS, 1), torch.zeros(1)
    for part, values in zip(scores.split(block, -1), v.float().split(block, 1), strict=True):
        higher = torch.maximum(pivot, part.amax(-1, keepdim=True))
        weights, shrink = (part - higher).exp(), (pivot - higher).exp()
        total = total * shrink + weights.sum(-1, keepdim=True)
        out = out * shrink + weights.to(dtype).float() @ values
        pivot = higher
    return (out / total).to(dtype), (pivot + total.log())[..., 0], None


@pytest.mark.parametrize("dtype", [BF16, F16, F32], ids=str)
def test_other_tiles_agree_and_one_key_too_many_does_not(dtype: torch.dtype) -> None:
    reference = agreement.Reference()
    assert reference.difference(attended(dtype, 64)) == ""
    assert reference.difference(attended(dtype, 16)) == ""
    assert reference.difference(attended(dtype, 128)) == ""
    assert "of 65536 elements of result 0" in reference.difference(attended(dtype, 64, seen=1))


def of(change: Callable[[Tensor], object], dtype: torch.dtype = BF16) -> str:
    """Return the difference that is reported after a change of one of two results."""
    x = torch.randn(300, 64, generator=torch.Generator().manual_seed(1)).to(dtype)
    reference = agreement.Reference()
    reference.difference([x.clone(), (None, x.clone())])
    changed = x.clone()
    change(changed)
    return reference.difference([x, (None, changed)])


@pytest.mark.parametrize("dtype", [BF16, F16, F32], ids=str)
def test_little_things_that_are_wrong_are_seen(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Several parts, the last one smaller.
    monkeypatch.setattr(agreement, "PART", 64 * 128)
    assert of(lambda x: None, dtype) == ""
    assert of(lambda x: x.mul_(1 + torch.finfo(dtype).eps), dtype) == ""
    assert of(lambda x: x[299, 60:].zero_(), dtype) == "4 of 19200 elements of result 1"
    assert of(lambda x: x[7, 3].fill_(float("nan")), dtype) == "1 of 19200 elements of result 1"
    assert of(lambda x: x[128, 0].fill_(float("inf")), dtype) == "1 of 19200 elements of result 1"
    assert of(lambda x: x[5].copy_(x[6].clone()), dtype).endswith(" elements of result 1")


def test_what_is_not_finite_at_first_says_nothing_of_others() -> None:
    x = torch.randn(64, 64)
    x[3], x[4] = float("inf"), float("nan")
    y = x.clone()
    y[3] = 1.0
    reference = agreement.Reference()
    assert reference.difference(x) == ""
    assert reference.difference(y.clone()) == ""
    y[5, 0] += 1.0
    assert reference.difference(y) == "1 of 4096 elements of result 0"


def test_a_row_of_rounding_errors_alone_may_be_anything_as_small() -> None:
    x = torch.randn(64, 64).to(BF16)
    x[0] *= 1e-7
    y = x.clone()
    y[0] *= -3
    reference = agreement.Reference()
    assert reference.difference(x) == reference.difference(y) == ""


def test_terms_that_cancel_leave_their_rounding_errors() -> None:
    """In a row of large numbers within a result of small ones."""
    x = torch.randn(4096, 64) * 1e-3
    x[0] = 1.0
    x[0, 0] = 0.0
    y = x.clone()
    y[0, 0] = torch.finfo(BF16).eps
    reference = agreement.Reference()
    assert reference.difference(x.to(BF16)) == reference.difference(y.to(BF16)) == ""


def test_one_large_element_may_be_rounded_as_coarsely_as_its_size() -> None:
    x = torch.randn(256, 256)
    x[0, 0] = 1e6
    y = x.clone()
    y[0, 0] *= 1 + torch.finfo(BF16).eps * 2
    reference = agreement.Reference()
    assert reference.difference(x.to(BF16)) == reference.difference(y.to(BF16)) == ""


@pytest.mark.parametrize("other", [torch.zeros(4), torch.zeros(3, dtype=BF16), None, (1.0,)])
def test_another_kind_of_result_is_another_one(other: object) -> None:
    reference = agreement.Reference()
    assert reference.difference(torch.zeros(3)) == ""
    assert "instead of [((3,), torch.float32)]" in reference.difference(other)


def test_memory_that_a_launch_leaves_as_it_was_is_not_its_result() -> None:
    out = torch.randn(8, 8)
    right = out.clone()
    reference = agreement.Reference()
    assert reference.difference((out, torch.zeros(0))) == ""
    out[:4] = right[:4]
    assert reference.difference((out, torch.zeros(0))) == "32 of 64 elements of result 0"
    out.copy_(right)
    assert reference.difference((out, torch.zeros(0))) == ""


def test_products_in_tf32_may_differ_by_its_roundings(monkeypatch: pytest.MonkeyPatch) -> None:
    def change(x: Tensor) -> Tensor:
        return x.mul_(1 + 2**-10)

    assert of(change, F32)
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: "high")
    assert of(change, F32) == ""
