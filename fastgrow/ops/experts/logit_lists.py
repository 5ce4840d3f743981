"""K logit tensors and their factors: what the operations over several experts share.

    mean[..., v] = sum_k  weights[k] / temperatures[k] * logits[k][..., v]

The weights are used as they are: they may be negative and need not sum to one. Sums run in fp32
(fp64 for fp64 logits), in the order of the experts. NaN and infinities follow the formula, except
that a weight of zero takes the expert out, whatever its logits are: they are not multiplied by
zero, and the gradients of that weight and of these logits are zero. It makes no difference whether
the weights are numbers, a tensor [K], or [..., K], one for each row and expert. In the mean above
an infinite temperature is as good as a weight of zero.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastgrow import _native
from fastgrow.errors import argument_error, describe
from fastgrow.ops.core.checks import check_float
from fastgrow.ops.core.dispatch import Answer
from fastgrow.ops.core.dtypes import FLOATS, wide_dtype
from fastgrow.ops.core.registration import needs_gradient

MAX_EXPERTS = 64
# The extension has each row's candidates in a heap: small, or sorting would be the better way.
MAX_K = 1024
# The quotient of its reciprocal and itself is not yet zero in float32.
_LARGE = 2.0**63
_SUM_DTYPES = {dtype: wide_dtype(dtype) for dtype in FLOATS}

Numbers = Sequence[float] | Tensor


class MeanCall(NamedTuple):
    """The mean above; every operation's call has one as its field `mean`.

    Args:
        logits: K tensors [..., V] of one shape, dtype and device.
        scale: weights / temperatures, [K] or [..., K], in the dtype of the sums.
        all_present: the host knows that no factor is zero.
    """

    logits: list[Tensor]
    scale: Tensor
    all_present: bool

    def constants(self) -> tuple[list[Tensor], Tensor]:
        """Logits and factors for an operator of token ids, which have no gradient."""
        logits = [x.detach() if x.requires_grad else x for x in self.logits]
        return logits, self.scale.detach() if self.scale.requires_grad else self.scale


def mean_call(
    operation: str,
    logits: Sequence[Tensor],
    weights: Numbers | None,
    temperatures: Numbers | None,
    *,
    may_be_empty: bool = False,
) -> MeanCall:
    """Check the arguments that the operations have in common; see `check_logits`."""
    checked = check_logits(operation, logits, may_be_empty)
    scale = numbers(operation, "weights", weights, checked, 1 / len(checked))
    if temperatures is not None:
        scale = scale / numbers(operation, "temperatures", temperatures, checked, 1)
    return MeanCall(checked, scale, without_zero(weights, temperatures))


def check_logits(operation: str, logits: Sequence[Tensor], may_be_empty: bool) -> list[Tensor]:
    """The logits of K experts; refuse what is not of one shape, dtype and device.

    Args:
        may_be_empty: whether a vocabulary of nothing will do, in which nothing can be chosen or
            predicted.
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
        kind = (x.shape, x.dtype, x.device)
        if k == 0:
            expected = kind
        elif kind != expected:
            raise argument_error(
                operation, argument, f"{describe(first)} as logits[0]", describe(x)
            )
    if first.shape[-1] == 0 and not may_be_empty:
        raise argument_error(
            operation, "logits[0]", "of shape [..., V] with V > 0", describe(first)
        )
    return logits


def numbers(
    operation: str, argument: str, values: Numbers | None, logits: list[Tensor], default: float
) -> Tensor:
    """A number for each expert, [K], or for each row and expert, [..., K], as a tensor."""
    first, k = logits[0], len(logits)
    dtype, device = _SUM_DTYPES[first.dtype], first.device
    if values is None:
        return torch.full((k,), default, dtype=dtype, device=device)
    shape = list(values.shape) if isinstance(values, Tensor) else [len(values)]
    if shape not in ([k], [*first.shape[:-1], k]):
        expected = f"{k} numbers, one for each expert"
        if first.dim() > 1:
            expected += f", or of shape {[*first.shape[:-1], k]}"
        raise argument_error(operation, argument, expected, f"shape {shape}")
    if isinstance(values, Tensor):
        return values.to(device=device, dtype=dtype).contiguous()
    if all(value == values[0] for value in values):
        # Filled where it is: a copy from the host waits for the device, and no graph may hold one.
        return torch.full(shape, values[0], dtype=dtype, device=device)
    return torch.tensor(values, dtype=dtype, device=device)


def without_zero(weights: Numbers | None, temperatures: Numbers | None) -> bool:
    """Whether the host knows that no factor is zero; what a tensor holds is not read."""
    if isinstance(weights, Tensor) or isinstance(temperatures, Tensor):
        return False
    smallest = 1.0 if weights is None else min(map(abs, weights))
    largest = 1.0 if temperatures is None else max(map(abs, temperatures))
    return smallest >= 1 / _LARGE and largest <= _LARGE


def averaged(call: MeanCall) -> Tensor:
    """The mean in plain PyTorch, in the dtype of the factors: the formula above."""
    terms = (
        # Where the host knows that there is nothing to take out, this would be a pass for nothing.
        factor * (x if call.all_present else taken_out(x, factor))
        for x, factor in zip(call.logits, factors(call.scale), strict=True)
    )
    return functools.reduce(torch.add, terms)


def factors(scale: Tensor) -> Sequence[Tensor]:
    """K factors as they multiply logits, [1] or [..., 1]."""
    return scale.unsqueeze(-1).unbind(-2)


def taken_out(logits: Tensor, factor: Tensor) -> Tensor:
    """Logits that are zero where the factor is, so that no product with them is 0 · inf.

    The product's result would do for the mean, but not for the gradient of the factor.
    """
    return logits.masked_fill(factor == 0, 0)


def can_serve(
    call: Any,
    devices: tuple[str, ...] = ("cpu",),
    *,
    constant_on: tuple[str, ...] = (),
    k: int | None = None,
    out: Tensor | None = None,
) -> Answer:
    """Whether the extension can serve a call.

    Args:
        devices: types of the devices that it has a kernel of the operation for.
        constant_on: those of them on which it gives no gradients.
        k: how many candidates of each row are asked for.
        out: what it is to write to, if that is given, of the logits' shape.
    """
    logits, scale, _ = call.mean
    device = logits[0].device.type
    if device not in devices:
        return False, f"it has no kernel for {device} tensors"
    if device in constant_on:
        others = [field for field in call if isinstance(field, Tensor)]
        if needs_gradient(*logits, scale, *others):
            return False, "it gives no gradients"
    if k is not None and k > MAX_K:
        return False, f"it finds at most {MAX_K} candidates, not {k}"
    extension = _native.CPU if device == "cpu" else _native.CUDA
    if not extension.loaded:
        return False, extension.reason
    if len(logits) > MAX_EXPERTS:
        return False, f"it takes at most {MAX_EXPERTS} experts, got {len(logits)}"
    if device == "cuda" and logits[0].dtype == torch.float64:
        return False, "it has no kernel for float64 on a GPU"
    for x in (*logits, out):
        if x is not None and x.shape[-1] > 1 and x.stride(-1) != 1:
            return False, "a tensor's last dimension is not contiguous"
        if x is not None and device == "cuda" and not _has_one_row_stride(x):
            return False, "a tensor's rows are not evenly spaced"
    return True, ""


def _has_one_row_stride(x: Tensor) -> bool:
    leading = [(n, s) for n, s in zip(x.shape[:-1], x.stride()[:-1], strict=True) if n != 1]
    return all(outer == size * inner for (_, outer), (size, inner) in itertools.pairwise(leading))


def pays(call: Any) -> Answer:
    """The kernels for a GPU have been compiled and not yet measured: they run when asked for."""
    on_cpu = call.mean.logits[0].device.type == "cpu"
    return on_cpu, "" if on_cpu else "it has not been measured on a GPU"


def run_extension(
    name: str, logits: list[Tensor], scale: Tensor, *others: Any, part_bytes: int = 0
) -> None:
    """Call an operator of the extension, which exists for a CPU, a GPU or both.

    Args:
        name: of the operator.
        logits, scale, others: its arguments.
        part_bytes: what a GPU's first kernel leaves to the second for a part of a row; 0 where
            there is one kernel.
    """
    # Factors are [K], or [N, K] with the rows counted through.
    scale = scale if scale.dim() == 1 else scale.reshape(-1, scale.shape[-1]).contiguous()
    if logits[0].is_cuda:
        parts = (_row_parts(logits[0], part_bytes),) if part_bytes else ()
        getattr(torch.ops.fastgrow_cuda, name)(logits, scale, *parts, *others)
    else:
        getattr(torch.ops.fastgrow_native, name)(logits, scale, *others)


def _row_parts(logits: Tensor, part_bytes: int) -> Tensor:
    # Few rows are cut into parts, so that there are blocks enough, though not below 4,096 columns.
    rows, columns = logits.shape[:-1].numel(), logits.shape[-1]
    parts = max(1, min(1024 // max(rows, 1), columns // 4096))
    return logits.new_empty(rows * parts * part_bytes, dtype=torch.uint8)


def example_call(device: torch.device) -> MeanCall:
    """Two experts and their factors, for `Operation`'s examples."""
    logits = [torch.empty(1, 8, device=device) for _ in range(2)]
    return MeanCall(logits, torch.empty(2, device=device), True)
