"""K logit tensors and their factors: what the operations over several experts share.

    mean[..., v] = sum_k  weights[k] / temperatures[k] * logits[k][..., v]

The weights are used as they are: they may be negative and need not sum to one. Sums run in fp32
(fp64 for fp64 logits), in the order of the experts. NaN and infinities follow the formula: weight 0
times infinity is NaN. Only where weights are given for every row does a weight of zero say that the
expert takes no part in that row; it is then skipped, whatever its logits are.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from fastgrow import _native
from fastgrow.errors import argument_error, describe
from fastgrow.ops.core.checks import check_float, check_ids
from fastgrow.ops.core.dispatch import Answer

MAX_EXPERTS = 64

Numbers = Sequence[float] | Tensor


def check_logits(operation: str, logits: list[Tensor]) -> None:
    """Refuse what is not K floating-point tensors of one shape, dtype and device."""
    if not logits:
        raise argument_error(operation, "logits", "the tensors of at least one expert", "none")
    for k, x in enumerate(logits):
        argument = f"logits[{k}]"
        if not isinstance(x, Tensor):
            raise argument_error(operation, argument, "a tensor", f"a {type(x).__name__}")
        check_float(operation, argument, x)
        if x.dim() == 0:
            raise argument_error(operation, argument, "of shape [..., V]", "a scalar")
        first = logits[0]
        if (x.shape, x.dtype, x.device) != (first.shape, first.dtype, first.device):
            raise argument_error(
                operation, argument, f"{describe(first)} as logits[0]", describe(x)
            )


def check_vocabulary(operation: str, logits: list[Tensor]) -> None:
    """Refuse an empty vocabulary: nothing in it could be chosen or predicted."""
    if logits[0].shape[-1] == 0:
        raise argument_error(
            operation, "logits[0]", "of shape [..., V] with V > 0", describe(logits[0])
        )


def check_targets(operation: str, logits: list[Tensor], targets: Tensor) -> None:
    """Refuse targets that are not one index for each row of the logits."""
    check_ids(operation, "targets", targets)
    first = logits[0]
    if targets.shape != first.shape[:-1] or targets.device != first.device:
        expected = f"of shape {list(first.shape[:-1])} on {first.device}"
        raise argument_error(operation, "targets", expected, describe(targets))


def accumulator_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype that sums of `dtype` numbers run in."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def factors(
    operation: str, logits: list[Tensor], weights: Numbers | None, temperatures: Numbers | None
) -> Tensor:
    """weights / temperatures in the accumulator's dtype, [K] or [..., K]."""
    scale = weights_of(operation, logits, weights)
    if temperatures is not None:
        scale = scale / numbers(operation, "temperatures", temperatures, logits)
    return scale


def weights_of(operation: str, logits: list[Tensor], weights: Numbers | None) -> Tensor:
    """The weights, 1/K each where none are given."""
    given = [1 / len(logits)] * len(logits) if weights is None else weights
    return numbers(operation, "weights", given, logits)


def numbers(operation: str, argument: str, values: Numbers, logits: list[Tensor]) -> Tensor:
    """A number for each expert, [K], or for each row and expert, [..., K], as a tensor."""
    first, k = logits[0], len(logits)
    shape = list(values.shape) if isinstance(values, Tensor) else [len(values)]
    if shape not in ([k], [*first.shape[:-1], k]):
        expected = f"{k} numbers, one for each expert"
        if first.dim() > 1:
            expected += f", or of shape {[*first.shape[:-1], k]}"
        raise argument_error(operation, argument, expected, f"shape {shape}")
    dtype, device = accumulator_dtype(first.dtype), first.device
    if isinstance(values, Tensor):
        return values.to(device=device, dtype=dtype).contiguous()
    if all(value == values[0] for value in values):
        # Filled where it is: a copy from the host waits for the device, and no graph may hold one.
        return torch.full(shape, values[0], dtype=dtype, device=device)
    return torch.tensor(values, dtype=dtype, device=device)


def averaged(logits: Sequence[Tensor], scale: Tensor) -> Tensor:
    """The mean in plain PyTorch, in the accumulator's dtype: the formula above."""
    total = _term(logits[0], scale, 0)
    for k in range(1, len(logits)):
        total = total + _term(logits[k], scale, k)
    return total


def _term(logits: Tensor, scale: Tensor, k: int) -> Tensor:
    wide = logits.to(scale.dtype)
    if scale.dim() == 1:
        return scale[k] * wide
    factor = scale[..., k, None]
    # Taken out before it is multiplied, so that the gradient of the factor is not 0 · inf either.
    return factor * wide.masked_fill(factor == 0, 0)


def verify_native(
    logits: Sequence[Tensor], *others: Tensor | None, devices: tuple[str, ...] = ("cpu",)
) -> Answer:
    """Whether the extension can read the logits, and `others` of their shape.

    Args:
        devices: types of the devices that it has a kernel of the operation for.
    """
    device = logits[0].device.type
    if device not in devices:
        return False, f"it has no kernel for {device} tensors"
    extension = _native.CPU if device == "cpu" else _native.CUDA
    if not extension.loaded:
        return False, extension.reason
    if len(logits) > MAX_EXPERTS:
        return False, f"it takes at most {MAX_EXPERTS} experts, got {len(logits)}"
    if device == "cuda" and logits[0].dtype == torch.float64:
        return False, "it has no kernel for float64 on a GPU"
    for x in (*logits, *others):
        if x is not None and x.shape[-1] > 1 and x.stride(-1) != 1:
            return False, "a tensor's last dimension is not contiguous"
        if x is not None and device == "cuda" and not _has_one_row_stride(x):
            return False, "a tensor's rows are not evenly spaced"
    return True, ""


def _has_one_row_stride(x: Tensor) -> bool:
    leading = [(n, s) for n, s in zip(x.shape[:-1], x.stride()[:-1], strict=True) if n != 1]
    return all(outer == size * inner for (_, outer), (size, inner) in itertools.pairwise(leading))


def verify_native_constant(
    logits: Sequence[Tensor], *others: Tensor, devices: tuple[str, ...] = ("cpu",)
) -> Answer:
    """The same, for an operation whose native form has no gradient; `others` are its parameters."""
    if torch.is_grad_enabled() and any(x.requires_grad for x in (*logits, *others)):
        return False, "it gives no gradients"
    return verify_native(logits, devices=devices)


def pays_native(logits: Sequence[Tensor], *_: object) -> Answer:
    """The kernels for a GPU have been compiled and not yet measured: they run when asked for."""
    on_cpu = logits[0].device.type == "cpu"
    return on_cpu, "" if on_cpu else "it has not been measured on a GPU"


def row_factors(scale: Tensor) -> Tensor:
    """Factors as the extension takes them: [K], or [N, K] with the rows counted through."""
    return scale if scale.dim() == 1 else scale.reshape(-1, scale.shape[-1]).contiguous()


def example_logits(device: torch.device) -> tuple[list[Tensor], Tensor]:
    """Two experts and their factors, for `Operation`'s examples."""
    return [torch.empty(1, 8, device=device) for _ in range(2)], torch.empty(2, device=device)
