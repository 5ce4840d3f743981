"""Attention on values made to break it, row by row: huge scores, equal keys, NaN and infinities.

Forward, backward and decoding, against the formula in fp64 over the keys that each query sees.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from harness import DEVICE, EPS, assert_rows_accurate
from torch import Tensor

from fastgrow.kernels import attention_tiles
from fastgrow.ops import attention, rope, rope_table

F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
INF, NAN = float("inf"), float("nan")
DIM = 32
# Two tiles of queries and of keys, so that whole blocks are skipped, and a short last one.
TRAINING = (70, 70)
# Several of the blocks that decoding reads at a time, in any dtype, and a short last one.
DECODING = (3, 22 + 8 * max(attention_tiles.block_n_of(DIM, dtype) for dtype in (F32, BF16, F16)))
SCALE = 0.25
Inputs = tuple[Tensor, Tensor, Tensor]


def huge_scores(q: Tensor, k: Tensor, v: Tensor) -> None:
    q *= 50


def equal_keys(q: Tensor, k: Tensor, v: Tensor) -> None:
    k[:] = k[:, :, :1]


def very_small_and_very_large_values(q: Tensor, k: Tensor, v: Tensor) -> None:
    v[:, :, ::2] *= 1e-3
    v[:, :, 1::2] *= 1e3


def scores_below_any_usual_pivot(q: Tensor, k: Tensor, v: Tensor) -> None:
    q[..., 0], k[..., 0] = 2e16, -1e16


def infinite_value(q: Tensor, k: Tensor, v: Tensor) -> None:
    v[0, 0, 40, 0], v[0, 0, 66, 3] = INF, -INF


def infinities_that_meet(q: Tensor, k: Tensor, v: Tensor) -> None:
    v[0, 0, 40, 0], v[0, 0, 66, 0] = INF, -INF


def value_that_is_no_number(q: Tensor, k: Tensor, v: Tensor) -> None:
    v[0, 0, 66, 5] = NAN


def infinite_key(q: Tensor, k: Tensor, v: Tensor) -> None:
    k[0, 0, 40, 1] = INF


def key_that_no_query_wants(q: Tensor, k: Tensor, v: Tensor) -> None:
    """A key with a score of -inf for all queries: its weight is 0, all results are finite."""
    q[..., 1] = q[..., 1].abs() + 0.1
    k[0, 0, 66, 1] = -INF


def no_key_that_a_query_wants(q: Tensor, k: Tensor, v: Tensor) -> None:
    """Every score that is seen is -inf, which is different from seeing no key."""
    q[..., 1] = q[..., 1].abs() + 0.1
    k[..., 1] = -INF


def first_key_alone_unwanted(q: Tensor, k: Tensor, v: Tensor) -> None:
    q[..., 1] = q[..., 1].abs() + 0.1
    k[0, 0, 0, 1] = -INF


def infinite_query(q: Tensor, k: Tensor, v: Tensor) -> None:
    q[0, 0, -2, 0] = -INF


def query_that_is_no_number(q: Tensor, k: Tensor, v: Tensor) -> None:
    q[0, 0, 1, 4] = NAN


FINITE = [huge_scores, equal_keys, very_small_and_very_large_values, scores_below_any_usual_pivot]
NO_NUMBERS = [
    infinite_value,
    infinities_that_meet,
    value_that_is_no_number,
    infinite_key,
    key_that_no_query_wants,
    no_key_that_a_query_wants,
    first_key_alone_unwanted,
    infinite_query,
    query_that_is_no_number,
]


def make(change: Callable[..., None], lengths: tuple[int, int], dtype: torch.dtype) -> Inputs:
    generator = torch.Generator().manual_seed(3)
    queries, keys = lengths
    q, k, v = (torch.randn(1, 1, t, DIM, generator=generator) for t in (queries, keys, keys))
    change(q, k, v)
    return q.to(DEVICE, dtype), k.to(DEVICE, dtype), v.to(DEVICE, dtype)


def over_what_is_seen(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The formula, one query after the other, only over the keys that it sees."""
    before = k.shape[2] - q.shape[2]
    rows = []
    for i in range(q.shape[2]):
        seen = slice(before + i + 1)
        scores = (q[:, :, i, None] @ k[:, :, seen].mT) * SCALE
        rows.append(scores.softmax(-1) @ v[:, :, seen])
    return torch.cat(rows, 2)


def uncertainties(
    q: Tensor, k: Tensor, v: Tensor, d_out: Tensor, dtype: torch.dtype = F32
) -> list[Tensor]:
    """Return the uncertainty in fp32 of each element of out, dq, dk and dv (in fp64).

    A score of size s, computed twice, gives a weight w the uncertainty w · s · eps, and each
    product of w with a number, and of dout with v, is rounded. So with a = |dout| · |v|ᵀ and
    the gradient of a score ds = w ∘ (dout · vᵀ − Σ w ∘ dout · vᵀ):

        u(w) = eps · w (s + 1)      u(ds) = u(w) ∘ (a + Σ w ∘ a) + w · ½ eps(dtype) · |out| · |dout|

    where the last comes from `out`, which is rounded to `dtype` before δ = out · dout is taken.
    """
    q, k, v, d_out = (x.nan_to_num(0.0, 0.0, 0.0) for x in (q, k, v, d_out))
    visible = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device)
    visible = visible.tril(k.shape[2] - q.shape[2])
    w = ((q @ k.mT) * SCALE).masked_fill(~visible, -INF).softmax(-1)
    size = SCALE * q.norm(dim=-1, keepdim=True) * k.norm(dim=-1)[..., None, :]
    u = EPS * w * (size.masked_fill(~visible, 0.0).amax(-1, keepdim=True) + 1)
    a = d_out.abs() @ v.abs().mT
    u_scores = u * (a + (w * a).sum(-1, keepdim=True))
    products = ((w @ v).abs() * d_out.abs()).sum(-1, keepdim=True)
    u_scores += w * (torch.finfo(dtype).eps / 2) * products
    return [
        u @ v.abs(),
        SCALE * u_scores @ k.abs(),
        SCALE * u_scores.mT @ q.abs(),
        u.mT @ d_out.abs(),
    ]


def with_gradients(function: Callable[..., Tensor], inputs: Inputs, d_out: Tensor) -> list[Tensor]:
    leaves = [x.detach().requires_grad_() for x in inputs]
    out = function(*leaves)
    return [out.detach(), *torch.autograd.grad(out, leaves, d_out)]


def check_training(change: Callable[..., None], dtype: torch.dtype) -> None:
    inputs = make(change, TRAINING, dtype)
    d_out = torch.randn(inputs[0].shape, generator=torch.Generator().manual_seed(4))
    d_out = d_out.to(DEVICE, dtype)
    wide = [x.double() for x in inputs]
    results = [
        with_gradients(lambda *x, i=impl: attention(*x, scale=SCALE, impl=i), inputs, d_out)
        for impl in ("triton", "eager")
    ]
    truths = with_gradients(over_what_is_seen, tuple(wide), d_out.double())
    unknown = uncertainties(*wide, d_out.double(), dtype)
    for row in zip(("out", "dq", "dk", "dv"), *results, truths, unknown, strict=True):
        assert_rows_accurate(*row)


def check_inference(
    change: Callable[..., None], lengths: tuple[int, int], dtype: torch.dtype
) -> None:
    q, k, v = make(change, lengths, dtype)
    assert attention_tiles.can_decode(q, k) == (lengths == DECODING)
    result, eager = (attention(q, k, v, scale=SCALE, impl=i) for i in ("triton", "eager"))
    wide = q.double(), k.double(), v.double()
    unknown = uncertainties(*wide, wide[0])[0]
    assert_rows_accurate("out", result, eager, over_what_is_seen(*wide), unknown)


@pytest.mark.parametrize("change", [*FINITE, *NO_NUMBERS], ids=lambda f: f.__name__)
def test_forward_and_backward(change: Callable[..., None]) -> None:
    check_training(change, F32)


@pytest.mark.parametrize("change", [*FINITE, *NO_NUMBERS], ids=lambda f: f.__name__)
def test_decoding(change: Callable[..., None]) -> None:
    check_inference(change, DECODING, F32)


@pytest.mark.slow
@pytest.mark.parametrize("change", NO_NUMBERS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("dtype", [BF16, F16], ids=str)
def test_in_half_precision(change: Callable[..., None], dtype: torch.dtype) -> None:
    check_training(change, dtype)
    check_inference(change, TRAINING, dtype)
    check_inference(change, DECODING, dtype)


@pytest.mark.parametrize("change", [equal_keys, infinite_value, infinite_query, infinite_key])
def test_without_a_running_maximum(change: Callable[..., None]) -> None:
    """bf16 with rotated keys, whose norms allow to leave it out, or not where one is infinite."""
    q, k, v = make(change, TRAINING, BF16)
    table = rope_table(k.shape[2], k.shape[3], device=DEVICE)
    result, eager = (
        attention(q, k, v, rope=table, scale=SCALE, impl=i) for i in ("triton", "eager")
    )
    wide = (table[0].double(), table[1].double())
    q, k, v = rope(q.double(), wide), rope(k.double(), wide), v.double()
    assert_rows_accurate(
        "out", result, eager, over_what_is_seen(q, k, v), uncertainties(q, k, v, q)[0]
    )
