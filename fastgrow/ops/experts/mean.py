"""Weighted mean of K logit tensors in one pass over memory.

    mean[..., v] = sum_k  weights[k] / temperatures[k] * logits[k][..., v]

The weights are used as they are: they may be negative and need not sum to one. The sum runs in
fp32 (fp64 for fp64 logits) in the order of the experts, and is rounded once. NaN and infinities
follow the formula, except that a weight of zero takes the expert out.

This is the merge rule of "Growing Transformers" (arXiv 2507.07129), where all weights are 1/K.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastgrow.errors import argument_error, describe
from fastgrow.ops.core.dispatch import Implementation, Operation
from fastgrow.ops.core.dtypes import FLOATS
from fastgrow.ops.core.registration import operator
from fastgrow.ops.experts.logit_lists import (
    MeanCall,
    Numbers,
    averaged,
    can_serve,
    example_call,
    factors,
    mean_call,
    pays,
    run_extension,
    taken_out,
)


class LogitMeanCall(NamedTuple):
    """`logit_mean` in a dtype, or written to `out`, which has that dtype."""

    mean: MeanCall
    dtype: torch.dtype
    out: Tensor | None


def logit_mean(
    logits: Sequence[Tensor],
    weights: Numbers | None = None,
    *,
    temperatures: Numbers | None = None,
    dtype: torch.dtype | None = None,
    out: Tensor | None = None,
    impl: str | None = None,
) -> Tensor:
    """Weighted mean of the logits of K experts.

    Args:
        logits: K tensors [..., V] of one shape, dtype (fp32, bf16, fp16 or fp64) and device; each
            may have its own strides.
        weights: K numbers, or a tensor [K] that may require a gradient; 1/K each by default. Or
            [..., K], one for each row and expert. Zero takes the expert out, whatever its logits
            are; the gradients of that weight and of these logits are zero.
        temperatures: like the weights; expert k's logits are divided by the k-th.
        dtype: of the result; the logits' by default. fp64 goes with fp64 logits only.
        out: written to and returned; must have the result's shape and dtype and need no gradient.
        impl: force `eager`, `native`, …

    Returns:
        Tensor [..., V].

    Raises:
        ArgumentError: an argument does not fit; the message names the expert's position.
    """
    mean = mean_call("logit_mean", logits, weights, temperatures, may_be_empty=True)
    dtype = dtype or (mean.logits[0].dtype if out is None else out.dtype)
    _check_dtype(mean.logits[0].dtype, dtype)
    if out is not None:
        _check_out(out, mean, dtype)
    return _OPERATION(LogitMeanCall(mean, dtype, out), impl)


def _check_dtype(given: torch.dtype, wanted: torch.dtype) -> None:
    if wanted not in FLOATS or (wanted == torch.float64) != (given == torch.float64):
        expected = "float64" if given == torch.float64 else "float32, bfloat16 or float16"
        raise argument_error("logit_mean", "dtype", f"{expected} for {given} logits", wanted)


def _check_out(out: Tensor, mean: MeanCall, dtype: torch.dtype) -> None:
    first = mean.logits[0]
    if (out.shape, out.dtype, out.device) != (first.shape, dtype, first.device):
        expected = f"of shape {list(first.shape)}, {dtype} on {first.device}"
        raise argument_error("logit_mean", "out", expected, describe(out))
    if torch.is_grad_enabled() and any(x.requires_grad for x in (out, mean.scale, *mean.logits)):
        got = "arguments that require a gradient, which a result written in place cannot have"
        raise argument_error("logit_mean", "out", "None", got)


def _eager(call: LogitMeanCall) -> Tensor:
    """The formula in plain PyTorch: one pass over memory for every operation in it."""
    total = averaged(call.mean)
    return total.to(call.dtype) if call.out is None else call.out.copy_(total)


def _native(call: LogitMeanCall) -> Tensor:
    """One pass over memory (csrc/cpu/logit_mean.cpp, csrc/cuda/logit_mean.cu)."""
    (logits, scale, _), dtype, out = call
    if out is not None:
        native_logit_mean_out(logits, scale, out)
        return out
    return _LogitMean.apply(scale, dtype, *logits)


def _like(logits: list[Tensor], scale: Tensor, dtype: torch.dtype) -> Tensor:
    return logits[0].new_empty(logits[0].shape, dtype=dtype)


@operator(_like)
def native_logit_mean(logits: list[Tensor], scale: Tensor, dtype: torch.dtype) -> Tensor:
    """The mean in memory that is new, which the extension is told."""
    mean = _like(logits, scale, dtype)
    run_extension("logit_mean_out", logits, scale, mean, True)
    return mean


@operator(lambda logits, scale, out: None, writes="out")
def native_logit_mean_out(logits: list[Tensor], scale: Tensor, out: Tensor) -> None:
    """The mean in memory that the caller gives."""
    run_extension("logit_mean_out", logits, scale, out, False)


class _LogitMean(torch.autograd.Function):
    """d logits[k] = scale[k] · g and d scale[k] = sum(g · logits[k]), zero where the expert is out.

    The backward is plain PyTorch, so that it can be differentiated again.
    """

    @staticmethod
    def forward(ctx: Any, scale: Tensor, dtype: torch.dtype, *logits: Tensor) -> Tensor:
        ctx.logits_dtype = logits[0].dtype
        # The logits are large: they are kept only where the weights want a gradient.
        ctx.save_for_backward(scale, *(logits if ctx.needs_input_grad[0] else ()))
        return native_logit_mean(logits, scale, dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        scale, *logits = ctx.saved_tensors
        for_scale, _, *for_logits = ctx.needs_input_grad
        wide = gradients[0].to(scale.dtype)
        each = factors(scale)
        d_scale = None
        if for_scale:
            rows = -1 if scale.dim() > 1 else None
            d_factors = [
                (wide * taken_out(x, factor)).sum(rows)
                for x, factor in zip(logits, each, strict=True)
            ]
            d_scale = torch.stack(d_factors, dim=-1)
        d_logits = [
            (factor * wide).to(ctx.logits_dtype) if wanted else None
            for factor, wanted in zip(each, for_logits, strict=True)
        ]
        return d_scale, None, *d_logits


_OPERATION = Operation(
    "logit_mean",
    (
        Implementation(
            "native",
            _native,
            lambda call: can_serve(call, ("cpu", "cuda"), out=call.out),
            pays,
        ),
        Implementation("eager", _eager),
    ),
    lambda device: LogitMeanCall(example_call(device), torch.float32, None),
)
