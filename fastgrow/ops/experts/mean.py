"""Weighted mean of K logit tensors, and helpers of all operations on several experts.

    mean[..., v] = sum_k  weights[k] / temperatures[k] * logits[k][..., v]

The weights are not normalised: they may be negative and need not sum to one. Sums are accumulated
in fp32 (fp64 for fp64 logits), in the order of the experts, and rounded once. NaN and infinities
follow the formula, except that a weight of zero excludes the expert, even if its logits are NaN or
infinite: they are not multiplied by zero, and the gradients of that weight and of these logits are
zero. This holds for weights given as numbers, as a tensor [K], or as [..., K], one for each row and
expert. In the mean above an infinite temperature has the same effect as a weight of zero.

This is the merge rule of "Growing Transformers" (arXiv 2507.07129), where all weights are 1/K. The
`native` implementation takes one pass over memory.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastgrow import _native
from fastgrow.errors import argument_error, describe
from fastgrow.ops.core.checks import check_float
from fastgrow.ops.core.dispatch import Answer, Implementation, Operation
from fastgrow.ops.core.dtypes import FLOATS
from fastgrow.ops.core.extension import on_gpu, run_extension
from fastgrow.ops.core.measured import native_pays
from fastgrow.ops.core.registration import needs_gradient, operator

MAX_EXPERTS = 64
# The extension keeps each row's candidates in a heap on a CPU and in a buffer on a GPU. With more
# candidates, sorting would be faster.
MAX_K = {"cpu": 1024, "cuda": 64}
# (1 / _LARGE) / _LARGE is still above zero in float32.
_LARGE = 2.0**63

Numbers = Sequence[float] | Tensor


class MeanCall(NamedTuple):
    """Arguments of the mean above; every operation's call has one as its field `mean`.

    Args:
        logits: K tensors [..., V] of one shape, dtype and device.
        scale: weights / temperatures, [K] or [..., K], in the dtype of the sums.
        all_present: no factor is zero, as far as the host can tell without reading a tensor.
    """

    logits: list[Tensor]
    scale: Tensor
    all_present: bool


class LogitMeanCall(NamedTuple):
    """A call of `logit_mean`, with the dtype of the result and optionally `out` of that dtype."""

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
    """Return the weighted mean of the logits of K experts.

    Args:
        logits: K tensors [..., V] of one shape, dtype (fp32, bf16, fp16 or fp64) and device; their
            strides may differ.
        weights: K numbers, a tensor [K], or a tensor [..., K] with one weight for each row and
            expert; tensors may require a gradient. Default: 1/K each. A weight of zero excludes the
            expert, even if its logits are NaN or infinite; the gradients of that weight and of
            these logits are zero.
        temperatures: K numbers or a tensor, like `weights`; the logits of expert k are divided by
            temperatures[k]. Default: 1 each.
        dtype: dtype of the result; the logits' by default. fp64 requires fp64 logits.
        out: tensor to write the result to, which is returned; must have the result's shape and
            dtype, and no argument may require a gradient.
        impl: force an implementation, such as `eager` or `native`.

    Returns:
        Tensor [..., V].

    Raises:
        ArgumentError: an argument has a wrong shape, dtype, device or value; the message names the
            expert's position.
    """
    name = "logit_mean"
    mean = mean_call(name, logits, weights, temperatures, may_be_empty=True)
    first = mean.logits[0]
    dtype = dtype or (first.dtype if out is None else out.dtype)
    if dtype not in FLOATS or (dtype == torch.float64) != (first.dtype == torch.float64):
        expected = "float64" if first.dtype == torch.float64 else "float32, bfloat16 or float16"
        raise argument_error(name, "dtype", f"{expected} for {first.dtype} logits", dtype)
    if out is not None:
        if (out.shape, out.dtype, out.device) != (first.shape, dtype, first.device):
            expected = f"of shape {list(first.shape)}, {dtype} on {first.device}"
            raise argument_error(name, "out", expected, describe(out))
        if needs_gradient(out, mean.scale, *mean.logits):
            expected = "None if an argument requires a gradient"
            raise argument_error(name, "out", expected, describe(out))
    return _OPERATION(LogitMeanCall(mean, dtype, out), impl)


def _eager_mean(call: LogitMeanCall) -> Tensor:
    """The formula in plain PyTorch: one pass over memory for each of its operations."""
    total = averaged(call.mean)
    return total.to(call.dtype) if call.out is None else call.out.copy_(total)


def _native_mean(call: LogitMeanCall) -> Tensor:
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
    """Return the mean in newly allocated memory (csrc/cpu/fresh_memory.h depends on this)."""
    mean = _like(logits, scale, dtype)
    run_extension("logit_mean_out", logits, scale, mean, True)
    return mean


@operator(lambda logits, scale, out: None, writes="out")
def native_logit_mean_out(logits: list[Tensor], scale: Tensor, out: Tensor) -> None:
    """Write the mean to memory of the caller."""
    run_extension("logit_mean_out", logits, scale, out, False)


class _LogitMean(torch.autograd.Function):
    """d logits[k] = scale[k] · g and d scale[k] = sum(g · logits[k]), zero for excluded experts.

    The backward is plain PyTorch, so that it can be differentiated again.
    """

    @staticmethod
    def forward(ctx: Any, scale: Tensor, dtype: torch.dtype, *logits: Tensor) -> Tensor:
        ctx.logits_dtype = logits[0].dtype
        # The logits are large: they are saved only if the weights need a gradient.
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
                (wide * zeroed_if_excluded(x, factor)).sum(rows)
                for x, factor in zip(logits, each, strict=True)
            ]
            d_scale = torch.stack(d_factors, dim=-1)
        d_logits = [
            (factor * wide).to(ctx.logits_dtype) if needed else None
            for factor, needed in zip(each, for_logits, strict=True)
        ]
        return d_scale, None, *d_logits


def mean_call(
    operation: str,
    logits: Sequence[Tensor],
    weights: Numbers | None,
    temperatures: Numbers | None,
    *,
    may_be_empty: bool = False,
) -> MeanCall:
    """Check the arguments that the operations have in common and return them as a record."""
    checked = check_logits(operation, logits, may_be_empty)
    scale = numbers(operation, "weights", weights, checked, 1 / len(checked))
    if temperatures is not None:
        scale = scale / numbers(operation, "temperatures", temperatures, checked, 1)
    return MeanCall(checked, scale, without_zero(weights, temperatures))


def check_logits(operation: str, logits: Sequence[Tensor], may_be_empty: bool) -> list[Tensor]:
    """Return the logits as a list; raise an error if shapes, dtypes or devices differ.

    Args:
        may_be_empty: whether an empty vocabulary, V = 0, is allowed. No token can be chosen or
            predicted from it.
    """
    logits = list(logits)
    if not logits:
        raise argument_error(operation, "logits", "the tensors of at least one expert", "none")
    first = logits[0]
    for k, x in enumerate(logits):
        argument = f"logits[{k}]"
        if not isinstance(x, Tensor):
            raise argument_error(operation, argument, "a tensor", f"a {type(x).__name__}")
        check_float(operation, argument, x)
        if x.dim() == 0:
            raise argument_error(operation, argument, "of shape [..., V]", "a scalar")
        if x.shape != first.shape or x.dtype != first.dtype or x.device != first.device:
            expected = f"{describe(first)} as logits[0]"
            raise argument_error(operation, argument, expected, describe(x))
    if first.shape[-1] == 0 and not may_be_empty:
        expected = "of shape [..., V] with V > 0"
        raise argument_error(operation, "logits[0]", expected, describe(first))
    return logits


def numbers(
    operation: str, argument: str, values: Numbers | None, logits: list[Tensor], default: float
) -> Tensor:
    """Return one number for each expert, [K], or for each row and expert, [..., K], as a tensor."""
    first, k = logits[0], len(logits)
    # The accumulation dtype: float32, or float64.
    dtype, device = torch.promote_types(first.dtype, torch.float32), first.device
    if values is None:
        return torch.full((k,), default, dtype=dtype, device=device)
    shape = list(values.shape) if isinstance(values, Tensor) else [len(values)]
    if shape not in ([k], [*first.shape[:-1], k]):
        by_row = f", or of shape {[*first.shape[:-1], k]}" if first.dim() > 1 else ""
        expected = f"{k} numbers, one for each expert{by_row}"
        raise argument_error(operation, argument, expected, f"shape {shape}")
    if isinstance(values, Tensor):
        return values.to(device=device, dtype=dtype).contiguous()
    if all(value == values[0] for value in values):
        # Filled on the device: a copy from the host would synchronise, and CUDA graphs forbid it.
        return torch.full(shape, values[0], dtype=dtype, device=device)
    return torch.tensor(values, dtype=dtype, device=device)


def without_zero(weights: Numbers | None, temperatures: Numbers | None) -> bool:
    """Whether no factor is zero; False for tensors, whose values are not read."""
    if isinstance(weights, Tensor) or isinstance(temperatures, Tensor):
        return False
    smallest = 1.0 if weights is None else min(map(abs, weights))
    largest = 1.0 if temperatures is None else max(map(abs, temperatures))
    return smallest >= 1 / _LARGE and largest <= _LARGE


def averaged(call: MeanCall) -> Tensor:
    """Return the mean by the formula above in plain PyTorch, in the dtype of the factors."""
    terms = (
        # If no expert is excluded, masking would be a useless pass over memory.
        factor * (x if call.all_present else zeroed_if_excluded(x, factor))
        for x, factor in zip(call.logits, factors(call.scale), strict=True)
    )
    return functools.reduce(torch.add, terms)


def factors(scale: Tensor) -> Sequence[Tensor]:
    """Return the K factors, [1] or [..., 1] each, to multiply logits by."""
    return scale.unsqueeze(-1).unbind(-2)


def zeroed_if_excluded(logits: Tensor, factor: Tensor) -> Tensor:
    """Return the logits with zeros where the factor is zero, so that no product is 0 · inf.

    Masking the product instead would be enough for the mean, but not for the factor's gradient.
    """
    return logits.masked_fill(factor == 0, 0)


def can_serve(
    call: Any, *, constant: bool = False, k: int | None = None, out: Tensor | None = None
) -> Answer:
    """Whether the extension can serve a call.

    Args:
        constant: whether the extension has no gradients for the operation.
        k: number of candidates of each row that are needed.
        out: the tensor to write to, if it is given, of the logits' shape.
    """
    logits, scale, _ = call.mean
    first = logits[0]
    device = "cuda" if on_gpu(first) else first.device.type
    if device not in MAX_K:
        return False, f"it has no kernel for {device} tensors"
    if constant and needs_gradient(
        *logits, scale, *[field for field in call if isinstance(field, Tensor)]
    ):
        return False, "it has no gradients"
    if k is not None and k > MAX_K[device]:
        return False, f"it finds at most {MAX_K[device]} candidates, not {k}"
    if len(logits) > MAX_EXPERTS:
        return False, f"it supports at most {MAX_EXPERTS} experts, got {len(logits)}"
    if device == "cuda" and first.dtype == torch.float64:
        return False, "it has no kernel for float64 on a GPU"
    for x in (*logits, out):
        if x is not None and x.shape[-1] > 1 and x.stride(-1) != 1:
            return False, "a tensor's last dimension is not contiguous"
        if x is not None and device == "cuda" and _count_spacings(x) > 2:
            return False, "a tensor's rows have more than two different strides"
    extension = _native.CUDA if device == "cuda" else _native.CPU
    return extension.loaded, "" if extension.loaded else extension.reason


def _count_spacings(x: Tensor) -> int:
    """Return the number of leading dimensions left after merging the contiguous ones."""
    leading = [(n, s) for n, s in zip(x.shape[:-1], x.stride()[:-1], strict=True) if n != 1]
    gaps = sum(outer != size * inner for (_, outer), (size, inner) in itertools.pairwise(leading))
    return gaps + bool(leading)


# Operations whose results have no gradients, even if the logits require them.
_CHOICES = ("mean_argmax", "mean_sample")


def pays(operation: str) -> Callable[[Any], Answer]:
    """Return the function `pays` of an operation's `native` implementation: see `native_pays`."""

    def answer(call: Any) -> Answer:
        logits, scale, _ = call.mean
        if not on_gpu(logits[0]):
            return True, ""
        tensors = [*logits, scale, *[field for field in call if isinstance(field, Tensor)]]
        differentiated = operation not in _CHOICES and needs_gradient(*tensors)
        return native_pays(operation, logits, differentiated)

    return answer


def example_call(device: torch.device) -> MeanCall:
    """Return a call with two experts, for `Operation`'s examples."""
    logits = [torch.empty(1, 8, device=device) for _ in range(2)]
    return MeanCall(logits, torch.empty(2, device=device), True)


_OPERATION = Operation(
    "logit_mean",
    (
        Implementation(
            "native",
            _native_mean,
            lambda call: can_serve(call, out=call.out),
            pays("logit_mean"),
        ),
        Implementation("eager", _eager_mean),
    ),
    lambda device: LogitMeanCall(example_call(device), torch.float32, None),
)
