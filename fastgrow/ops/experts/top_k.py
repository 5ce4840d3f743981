"""The most likely tokens under K experts' averaged logits, without the averages in memory.

    z = sum_k  weights[k] / temperatures[k] * logits[k]

Of equal numbers the one of the lower index comes first, natively; torch promises no order. NaN
comes before every number.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fastgrow.errors import argument_error
from fastgrow.ops.core.dispatch import Implementation, Operation
from fastgrow.ops.core.registration import operator
from fastgrow.ops.experts.logit_lists import (
    MeanCall,
    Numbers,
    averaged,
    can_serve,
    example_call,
    mean_call,
    pays,
    run_extension,
)


class TopKCall(NamedTuple):
    """`mean_top_k`, or `mean_argmax` for k = 1."""

    mean: MeanCall
    k: int


def mean_argmax(
    logits: Sequence[Tensor],
    weights: Numbers | None = None,
    *,
    temperatures: Numbers | None = None,
    impl: str | None = None,
) -> Tensor:
    """The most likely token of each row under the experts' averaged logits.

    Args:
        logits: K tensors [..., V] of one shape, dtype (fp32, bf16, fp16 or fp64) and device; each
            may have its own strides.
        weights: K numbers or a tensor [K]; 1/K each by default. Or [..., K], one for each row and
            expert. Zero takes the expert out, whatever its logits are.
        temperatures: like the weights; expert k's logits are divided by the k-th.
        impl: force `eager`, `native`, …

    Returns:
        [...] int64.

    Raises:
        ArgumentError: an argument does not fit; the message names the expert's position.
    """
    mean = mean_call("mean_argmax", logits, weights, temperatures)
    return ARGMAX(TopKCall(mean, 1), impl)


def mean_top_k(
    logits: Sequence[Tensor],
    k: int,
    weights: Numbers | None = None,
    *,
    temperatures: Numbers | None = None,
    impl: str | None = None,
) -> tuple[Tensor, Tensor]:
    """The k largest of the experts' averaged logits in each row, largest first.

    Args:
        logits: K tensors [..., V] of one shape, dtype (fp32, bf16, fp16 or fp64) and device; each
            may have its own strides.
        k: how many, 1 to V.
        weights: K numbers, or a tensor [K] that may require a gradient; 1/K each by default. Or
            [..., K], one for each row and expert. Zero takes the expert out, whatever its logits
            are; the gradients of that weight and of these logits are zero.
        temperatures: like the weights; expert k's logits are divided by the k-th.
        impl: force `eager`, `native`, …

    Returns:
        values [..., k], float32 (float64 for float64 logits), and token ids [..., k] int64.

    Raises:
        ArgumentError: an argument does not fit; the message names the expert's position.
    """
    mean = mean_call("mean_top_k", logits, weights, temperatures)
    columns = mean.logits[0].shape[-1]
    if not 1 <= k <= columns:
        raise argument_error("mean_top_k", "k", f"in [1, {columns}]", k)
    return TOP_K(TopKCall(mean, k), impl)


def _eager_top_k(call: TopKCall) -> tuple[Tensor, Tensor]:
    """The formula; the mean is in memory."""
    values, ids = averaged(call.mean).topk(call.k, dim=-1)
    return values, ids


def _native_top_k(call: TopKCall) -> tuple[Tensor, Tensor]:
    """One pass over the logits (csrc/cpu/top_k.cpp, csrc/cuda/reductions.cu)."""
    return native_top_k(*call.mean.constants(), call.k)


def _like(logits: list[Tensor], scale: Tensor, k: int) -> tuple[Tensor, Tensor]:
    shape = (*logits[0].shape[:-1], k)
    return scale.new_empty(shape), scale.new_empty(shape, dtype=torch.int64)


@operator(_like)
def native_top_k(logits: list[Tensor], scale: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Values and token ids; on a GPU for k = 1 alone."""
    values, ids = _like(logits, scale, k)
    # A part's largest is a column (int64) and a value, padded to 16 bytes.
    run_extension("mean_top_k_out", logits, scale, k, values, ids, part_bytes=16)
    return values, ids


def _example(device: torch.device) -> TopKCall:
    return TopKCall(example_call(device), 1)


TOP_K = Operation(
    "mean_top_k",
    (
        Implementation(
            "native",
            _native_top_k,
            lambda call: can_serve(call, constant_on=("cpu",), k=call.k),
        ),
        Implementation("eager", _eager_top_k),
    ),
    _example,
)
ARGMAX = Operation(
    "mean_argmax",
    (
        Implementation(
            "native",
            lambda call: _native_top_k(call)[1].squeeze(-1),
            lambda call: can_serve(call, ("cpu", "cuda")),
            pays,
        ),
        Implementation("eager", lambda call: averaged(call.mean).argmax(-1)),
    ),
    _example,
)
