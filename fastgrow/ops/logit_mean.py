"""Weighted mean of K logit tensors in one pass over memory.

    mean[..., v] = sum_k  weights[k] / temperatures[k] * logits[k][..., v]

The weights are used as they are: they may be negative and need not sum to one. The sum runs in
fp32 (fp64 for fp64 logits) in the order of the experts, and is rounded once. NaN and infinities
follow the formula; in particular weight 0 times infinity is NaN. Weights given for every row are
the exception: a zero among them takes the expert out of the row.

This is the merge rule of "Growing Transformers" (arXiv 2507.07129), where all weights are 1/K.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastgrow.errors import argument_error, describe
from fastgrow.ops._experts import (
    Numbers,
    averaged,
    check_logits,
    example_logits,
    factors,
    pays_native,
    row_factors,
    verify_native,
)
from fastgrow.ops.core.dispatch import Answer
from fastgrow.ops.core.dtypes import FLOATS
from fastgrow.ops.core.legacy import Operation

NAME = "logit_mean"


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
            [..., K], one for each row and expert, where zero takes the expert out of the row.
        temperatures: like the weights; expert k's logits are divided by the k-th.
        dtype: of the result; the logits' by default. fp64 goes with fp64 logits only.
        out: written to and returned; must have the result's shape and dtype and need no gradient.
        impl: force `eager`, `native`, …

    Returns:
        Tensor [..., V].

    Raises:
        ArgumentError: an argument does not fit; the message names the expert's position.
    """
    logits = list(logits)
    check_logits(NAME, logits)
    dtype = dtype or (logits[0].dtype if out is None else out.dtype)
    _check_dtype(logits[0].dtype, dtype)
    scale = factors(NAME, logits, weights, temperatures)
    if out is not None:
        _check_out(out, logits, scale, dtype)
    result: Tensor = OPERATION(logits, scale, dtype, out, impl=impl)
    return result


def _check_dtype(given: torch.dtype, wanted: torch.dtype) -> None:
    if wanted not in FLOATS or (wanted == torch.float64) != (given == torch.float64):
        expected = "float64" if given == torch.float64 else "float32, bfloat16 or float16"
        raise argument_error(NAME, "dtype", f"{expected} for {given} logits", wanted)


def _check_out(out: Tensor, logits: list[Tensor], scale: Tensor, dtype: torch.dtype) -> None:
    first = logits[0]
    if (out.shape, out.dtype, out.device) != (first.shape, dtype, first.device):
        expected = f"of shape {list(first.shape)}, {dtype} on {first.device}"
        raise argument_error(NAME, "out", expected, describe(out))
    if torch.is_grad_enabled() and any(x.requires_grad for x in (out, scale, *logits)):
        got = "arguments that require a gradient, which a result written in place cannot have"
        raise argument_error(NAME, "out", "None", got)


def _example(device: torch.device) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return (*example_logits(device), torch.float32, None), {}


OPERATION = Operation(NAME, example=_example)


@OPERATION.implementation("eager")
def eager(logits: list[Tensor], scale: Tensor, dtype: torch.dtype, out: Tensor | None) -> Tensor:
    """The formula in plain PyTorch: one pass over memory for every operation in it."""
    total = averaged(logits, scale)
    return total.to(dtype) if out is None else out.copy_(total)


def _verify_native(
    logits: list[Tensor], scale: Tensor, dtype: torch.dtype, out: Tensor | None
) -> Answer:
    return verify_native(logits, out, devices=("cpu", "cuda"))


@OPERATION.implementation("native", verify=_verify_native, pays=pays_native)
def native(logits: list[Tensor], scale: Tensor, dtype: torch.dtype, out: Tensor | None) -> Tensor:
    """One pass over memory (csrc/cpu/logit_mean.cpp, csrc/cuda/logit_mean.cu)."""
    if out is not None:
        torch.ops.fastgrow.logit_mean_out(logits, scale, out)
        return out
    mean: Tensor = _LogitMean.apply(scale, dtype, *logits)
    return mean


_library = torch.library.Library("fastgrow", "FRAGMENT")
_library.define("logit_mean(Tensor[] logits, Tensor scale, ScalarType dtype) -> Tensor")
_library.define("logit_mean_out(Tensor[] logits, Tensor scale, Tensor(a!) out) -> ()")


@torch.library.register_fake("fastgrow::logit_mean", lib=_library)
def _(logits: list[Tensor], scale: Tensor, dtype: torch.dtype) -> Tensor:
    return logits[0].new_empty(logits[0].shape, dtype=dtype)


@torch.library.register_fake("fastgrow::logit_mean_out", lib=_library)
def _(logits: list[Tensor], scale: Tensor, out: Tensor) -> None:
    return None


def _mean_cpu(logits: list[Tensor], scale: Tensor, dtype: torch.dtype) -> Tensor:
    mean = logits[0].new_empty(logits[0].shape, dtype=dtype)
    torch.ops.fastgrow_native.logit_mean_out(logits, row_factors(scale), mean, True)
    return mean


def _mean_out_cpu(logits: list[Tensor], scale: Tensor, out: Tensor) -> None:
    torch.ops.fastgrow_native.logit_mean_out(logits, row_factors(scale), out, False)


def _mean_cuda(logits: list[Tensor], scale: Tensor, dtype: torch.dtype) -> Tensor:
    mean = logits[0].new_empty(logits[0].shape, dtype=dtype)
    torch.ops.fastgrow_cuda.logit_mean_out(logits, row_factors(scale), mean)
    return mean


def _mean_out_cuda(logits: list[Tensor], scale: Tensor, out: Tensor) -> None:
    torch.ops.fastgrow_cuda.logit_mean_out(logits, row_factors(scale), out)


_library.impl("logit_mean", _mean_cpu, "CPU")
_library.impl("logit_mean_out", _mean_out_cpu, "CPU")
_library.impl("logit_mean", _mean_cuda, "CUDA")
_library.impl("logit_mean_out", _mean_out_cuda, "CUDA")


class _LogitMean(torch.autograd.Function):
    """d logits[k] = scale[k] · g and d scale[k] = sum(g · logits[k]).

    The backward is plain PyTorch, so that it can be differentiated again.
    """

    @staticmethod
    def forward(ctx: Any, scale: Tensor, dtype: torch.dtype, *logits: Tensor) -> Tensor:
        ctx.logits_dtype = logits[0].dtype
        # The logits are large: they are kept only where the weights want a gradient.
        ctx.save_for_backward(scale, *(logits if ctx.needs_input_grad[0] else ()))
        mean: Tensor = torch.ops.fastgrow.logit_mean(logits, scale, dtype)
        return mean

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        scale, *logits = ctx.saved_tensors
        wide = gradient.to(scale.dtype)
        d_scale = None
        if ctx.needs_input_grad[0]:
            d_scale = _d_scale(wide, scale, logits)
        per_row = scale.dim() > 1
        d_logits = [
            ((scale[..., k, None] if per_row else scale[k]) * wide).to(ctx.logits_dtype)
            if needed
            else None
            for k, needed in enumerate(ctx.needs_input_grad[2:])
        ]
        return d_scale, None, *d_logits


def _d_scale(gradient: Tensor, scale: Tensor, logits: list[Tensor]) -> Tensor:
    if scale.dim() == 1:
        return torch.stack([(gradient * x).sum() for x in logits])
    sums = torch.stack([(gradient * x).sum(-1) for x in logits], dim=-1)
    return sums.masked_fill(scale == 0, 0)
