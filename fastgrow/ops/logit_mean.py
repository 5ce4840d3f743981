"""Weighted mean of K logit tensors in one pass over memory.

    mean[..., v] = sum_k  weights[k] / temperatures[k] * logits[k][..., v]

The weights are used as they are: they may be negative and need not sum to one. The sum runs in
fp32 (fp64 for fp64 logits) in the order of the experts, and is rounded once. NaN and infinities
follow the formula; in particular weight 0 times infinity is NaN.

This is the merge rule of "Growing Transformers" (arXiv 2507.07129), where all weights are 1/K.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastgrow import _native
from fastgrow.ops._check import FLOATS, check_float, describe, refuse
from fastgrow.ops._dispatch import Operation, Verdict

NAME = "logit_mean"
MAX_EXPERTS = 64


def logit_mean(
    logits: Sequence[Tensor],
    weights: Sequence[float] | Tensor | None = None,
    *,
    temperatures: Sequence[float] | Tensor | None = None,
    dtype: torch.dtype | None = None,
    out: Tensor | None = None,
    impl: str | None = None,
) -> Tensor:
    """Weighted mean of the logits of K experts.

    Args:
        logits: K tensors [..., V] of one shape, dtype (fp32, bf16, fp16 or fp64) and device; each
            may have its own strides.
        weights: K numbers, or a tensor [K] that may require a gradient; 1/K each by default.
        temperatures: K numbers or a tensor [K]; expert k's logits are divided by the k-th.
        dtype: of the result; the logits' by default. fp64 goes with fp64 logits only.
        out: written to and returned; must have the result's shape and dtype and need no gradient.
        impl: force `eager`, `native`, …

    Returns:
        Tensor [..., V].

    Raises:
        ArgumentError: an argument does not fit; the message names the expert's position.
    """
    logits = list(logits)
    _check_logits(logits)
    dtype = dtype or (logits[0].dtype if out is None else out.dtype)
    _check_dtype(logits[0].dtype, dtype)
    scale = _scale(logits, weights, temperatures)
    if out is not None:
        _check_out(out, logits, scale, dtype)
    result: Tensor = OPERATION(logits, scale, dtype, out, impl=impl)
    return result


def _check_logits(logits: list[Tensor]) -> None:
    if not logits:
        raise refuse(NAME, "logits", "the tensors of at least one expert", "none")
    for k, x in enumerate(logits):
        argument = f"logits[{k}]"
        if not isinstance(x, Tensor):
            raise refuse(NAME, argument, "a tensor", f"a {type(x).__name__}")
        check_float(NAME, argument, x)
        if x.dim() == 0:
            raise refuse(NAME, argument, "of shape [..., V]", "a scalar")
        first = logits[0]
        if (x.shape, x.dtype, x.device) != (first.shape, first.dtype, first.device):
            raise refuse(NAME, argument, f"{describe(first)} as logits[0]", describe(x))


def _check_dtype(given: torch.dtype, wanted: torch.dtype) -> None:
    if wanted not in FLOATS or (wanted == torch.float64) != (given == torch.float64):
        expected = "float64" if given == torch.float64 else "float32, bfloat16 or float16"
        raise refuse(NAME, "dtype", f"{expected} for {given} logits", wanted)


def _check_out(out: Tensor, logits: list[Tensor], scale: Tensor, dtype: torch.dtype) -> None:
    first = logits[0]
    if (out.shape, out.dtype, out.device) != (first.shape, dtype, first.device):
        expected = f"of shape {list(first.shape)}, {dtype} on {first.device}"
        raise refuse(NAME, "out", expected, describe(out))
    if torch.is_grad_enabled() and any(x.requires_grad for x in (out, scale, *logits)):
        got = "arguments that require a gradient, which a result written in place cannot have"
        raise refuse(NAME, "out", "None", got)


def accumulator_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype that sums of `dtype` numbers run in."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def _scale(
    logits: list[Tensor],
    weights: Sequence[float] | Tensor | None,
    temperatures: Sequence[float] | Tensor | None,
) -> Tensor:
    """weights / temperatures, [K] in the accumulator's dtype on the logits' device."""
    numbers = [1 / len(logits)] * len(logits) if weights is None else weights
    scale = _vector("weights", numbers, logits)
    if temperatures is not None:
        scale = scale / _vector("temperatures", temperatures, logits)
    return scale


def _vector(name: str, numbers: Sequence[float] | Tensor, logits: list[Tensor]) -> Tensor:
    shape = list(numbers.shape) if isinstance(numbers, Tensor) else [len(numbers)]
    if shape != [len(logits)]:
        expected = f"{len(logits)} numbers, one for each expert"
        raise refuse(NAME, name, expected, f"shape {shape}")
    dtype, device = accumulator_dtype(logits[0].dtype), logits[0].device
    if isinstance(numbers, Tensor):
        return numbers.to(device=device, dtype=dtype).contiguous()
    return torch.tensor(numbers, dtype=dtype, device=device)


def _example(device: torch.device) -> tuple[tuple[Any, ...], dict[str, Any]]:
    logits = [torch.empty(1, 8, device=device) for _ in range(2)]
    return (logits, torch.empty(2, device=device), torch.float32, None), {}


OPERATION = Operation(NAME, example=_example)


@OPERATION.implementation("eager")
def eager(logits: list[Tensor], scale: Tensor, dtype: torch.dtype, out: Tensor | None) -> Tensor:
    """The formula in plain PyTorch: one pass over memory for every operation in it."""
    total = scale[0] * logits[0].to(scale.dtype)
    for k in range(1, len(logits)):
        total = total + scale[k] * logits[k].to(scale.dtype)
    return total.to(dtype) if out is None else out.copy_(total)


def _verify_native(
    logits: list[Tensor], scale: Tensor, dtype: torch.dtype, out: Tensor | None
) -> Verdict:
    if logits[0].device.type != "cpu":
        return False, f"it has no kernel for {logits[0].device.type} tensors"
    if not _native.CPU.loaded:
        return False, _native.CPU.reason
    if len(logits) > MAX_EXPERTS:
        return False, f"it takes at most {MAX_EXPERTS} experts, got {len(logits)}"
    for x in logits if out is None else [*logits, out]:
        if x.shape[-1] > 1 and x.stride(-1) != 1:
            return False, "a tensor's last dimension is not contiguous"
    return True, ""


@OPERATION.implementation("native", verify=_verify_native)
def native(logits: list[Tensor], scale: Tensor, dtype: torch.dtype, out: Tensor | None) -> Tensor:
    """One pass over memory (csrc/cpu/logit_mean.cpp)."""
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
    torch.ops.fastgrow_native.logit_mean_out(logits, scale, mean)
    return mean


def _mean_out_cpu(logits: list[Tensor], scale: Tensor, out: Tensor) -> None:
    torch.ops.fastgrow_native.logit_mean_out(logits, scale, out)


_library.impl("logit_mean", _mean_cpu, "CPU")
_library.impl("logit_mean_out", _mean_out_cpu, "CPU")


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
            d_scale = torch.stack([(wide * x).sum() for x in logits])
        d_logits = [
            (scale[k] * wide).to(ctx.logits_dtype) if needed else None
            for k, needed in enumerate(ctx.needs_input_grad[2:])
        ]
        return d_scale, None, *d_logits
