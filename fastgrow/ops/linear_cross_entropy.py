"""The head's product and the cross-entropy of its logits, as one operation.

    z      = h · weightᵀ + bias
    lse    = log Σ_v exp(z_v)
    loss_n = (1 − s) · (lse − z_target) + s · (lse − mean_v z_v) + z_loss · lse²

with s the label smoothing. `mean` divides by the number of targets that are not `ignore_index`.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastgrow.ops._check import check_float, check_ids, check_like, describe, refuse
from fastgrow.ops._dispatch import Operation
from fastgrow.ops.embedding import out_of_range

REDUCTIONS = ("mean", "sum", "none")


def linear_cross_entropy(
    h: Tensor,
    weight: Tensor,
    targets: Tensor,
    bias: Tensor | None = None,
    *,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    impl: str | None = None,
) -> Tensor:
    """Cross-entropy of the targets under the logits h · weightᵀ + bias, in nats.

    Args:
        h: [..., d] float.
        weight: [V, d].
        targets: [...] int64 or int32, the leading shape of `h`; each in [0, V) or `ignore_index`.
        bias: [V], optional.
        ignore_index: targets of this value count nothing and get no gradient.
        reduction: `mean` (NaN if every target is ignored, as torch has it), `sum` or `none`.
        label_smoothing: share of the target spread evenly over the vocabulary.
        z_loss: weight of the squared log-partition (PaLM, arXiv 2204.02311, §5).
        impl: force an implementation.

    Returns:
        A scalar, or the shape of `targets` for `none`; float32 for half-precision inputs.

    Raises:
        ArgumentError: an unknown reduction, shapes, dtypes or devices that do not go together; on
            a CPU also a target out of range.
    """
    name = "linear_cross_entropy"
    if reduction not in REDUCTIONS:
        raise refuse(name, "reduction", f"one of {', '.join(REDUCTIONS)}", repr(reduction))
    check_float(name, "h", h)
    check_ids(name, "targets", targets)
    if weight.dim() != 2 or weight.shape[1] != h.shape[-1]:
        raise refuse(name, "weight", f"of shape [V, {h.shape[-1]}]", describe(weight))
    check_like(name, "weight", weight, tuple(weight.shape), h)
    check_like(name, "bias", bias, (weight.shape[0],), weight)
    if targets.shape != h.shape[:-1] or targets.device != h.device:
        expected = f"of shape {list(h.shape[:-1])} on {h.device}"
        raise refuse(name, "targets", expected, describe(targets))
    arguments = (h, weight, targets, bias, ignore_index, reduction, label_smoothing, z_loss)
    if torch.compiler.is_compiling():
        return _OPERATION(*arguments, impl=impl)
    try:
        return _OPERATION(*arguments, impl=impl)
    except IndexError:
        raise out_of_range(name, "targets", targets, weight.shape[0], ignore_index) from None


def _example(device: torch.device) -> tuple[tuple[Any, ...], dict[str, Any]]:
    h, targets = torch.zeros(2, 32, device=device), torch.zeros(2, dtype=torch.int64, device=device)
    return (h, torch.zeros(64, 32, device=device), targets, None, -100, "mean", 0.0, 0.0), {}


_OPERATION = Operation("linear_cross_entropy", example=_example)


@_OPERATION.implementation("eager")
def linear_cross_entropy_eager(
    h: Tensor,
    weight: Tensor,
    targets: Tensor,
    bias: Tensor | None,
    ignore_index: int,
    reduction: str,
    label_smoothing: float,
    z_loss: float,
) -> Tensor:
    """The formula, as it stands: all logits are in memory at once."""
    logits = F.linear(h, weight, bias).reshape(-1, weight.shape[0])
    if logits.dtype != torch.float64:
        logits = logits.float()
    flat = targets.flatten().long()
    loss = F.cross_entropy(
        logits,
        flat,
        ignore_index=ignore_index,
        reduction=reduction,
        label_smoothing=label_smoothing,
    )
    if z_loss:
        kept = flat != ignore_index
        squares = torch.where(kept, logits.logsumexp(-1).square(), 0)
        if reduction == "none":
            loss = loss + z_loss * squares
        else:
            total = squares.sum()
            loss = loss + z_loss * (total / kept.sum() if reduction == "mean" else total)
    return loss.view(targets.shape) if reduction == "none" else loss
