"""The head's product and the cross-entropy of its logits, as one operation.

    z      = h · weightᵀ + bias
    lse    = log Σ_v exp(z_v)
    loss_n = (1 − s) · (lse − z_target) + s · (lse − mean_v z_v) + z_loss · lse²

with s the label smoothing. `mean` divides by the number of targets that are not `ignore_index`.
With K heads, z is the weighted sum of their logits, as in `linear_lse_gather`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastgrow.errors import argument_error
from fastgrow.ops import _linear_cross_entropy_fused, _linear_cross_entropy_rows
from fastgrow.ops._heads import Heads, Mix, Tensors, as_heads
from fastgrow.ops.core.checks import check_range, out_of_range
from fastgrow.ops.core.legacy import Operation

NAME = "linear_cross_entropy"
REDUCTIONS = ("mean", "sum", "none")


def linear_cross_entropy(
    h: Tensors,
    weight: Tensors,
    targets: Tensor,
    bias: Tensor | Sequence[Tensor | None] | None = None,
    *,
    mix: Mix | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    impl: str | None = None,
) -> Tensor:
    """Cross-entropy of the targets under the logits h · weightᵀ + bias, in nats.

    Args:
        h: [..., d] float; or a list of K, which may differ in d, and may be float32 beside weights
            of half precision: each is rounded to their dtype after it is mixed.
        weight: [V, d]; or a list of K, used where they lie.
        targets: [...] int64 or int32, the leading shape of `h`; each in [0, V) or `ignore_index`.
        bias: [V], or None; or a list of K of these.
        mix: with lists, K numbers, a tensor [K] or [..., K] by which the logits of the K heads are
            multiplied before they are added; 1/K each by default.
        ignore_index: targets of this value count nothing and get no gradient.
        reduction: `mean` (NaN if every target is ignored, as torch has it), `sum` or `none`.
        label_smoothing: share of the target spread evenly over the vocabulary, in [0, 1].
        z_loss: weight of the squared log-partition (PaLM, arXiv 2204.02311, §5).
        impl: force an implementation.

    Returns:
        A scalar, or the shape of `targets` for `none`; float32 for half-precision inputs. On a GPU
        a target out of range makes its row's loss NaN.

    Raises:
        ArgumentError: an unknown reduction, smoothing out of range, shapes, dtypes or devices
            that do not go together; on a CPU, and elsewhere under FASTGROW_DEBUG=1, also a target
            out of range.
    """
    if reduction not in REDUCTIONS:
        raise argument_error(NAME, "reduction", f"one of {', '.join(REDUCTIONS)}", repr(reduction))
    if not 0 <= label_smoothing <= 1:
        raise argument_error(NAME, "label_smoothing", "in [0, 1]", label_smoothing)
    heads = as_heads(NAME, h, weight, bias, mix, targets)
    check_range(NAME, "targets", targets, 0, heads.vocabulary, ignore=ignore_index)
    arguments = (
        *(heads, targets.reshape(-1), ignore_index, reduction),
        *(float(label_smoothing), float(z_loss)),
    )
    if torch.compiler.is_compiling():
        loss = _OPERATION(*arguments, impl=impl)
    else:
        try:
            loss = _OPERATION(*arguments, impl=impl)
        except IndexError:
            raise out_of_range(NAME, "targets", targets, heads.vocabulary, ignore_index) from None
    return loss.view(targets.shape) if reduction == "none" else loss


def _example(device: torch.device) -> tuple[tuple[Any, ...], dict[str, Any]]:
    h, targets = torch.zeros(2, 32, device=device), torch.zeros(2, dtype=torch.int64, device=device)
    heads = Heads([h], [torch.zeros(64, 32, device=device)], None)
    return (heads, targets, -100, "mean", 0.0, 0.0), {}


_OPERATION = Operation(NAME, example=_example)


@_OPERATION.implementation("eager")
def linear_cross_entropy_eager(
    heads: Heads,
    targets: Tensor,
    ignore_index: int,
    reduction: str,
    label_smoothing: float,
    z_loss: float,
) -> Tensor:
    """The formula, as it stands: all logits are in memory at once."""
    logits = heads.logits()
    loss = F.cross_entropy(
        logits,
        targets.long(),
        ignore_index=ignore_index,
        reduction=reduction,
        label_smoothing=label_smoothing,
    )
    if z_loss:
        kept = targets != ignore_index
        squares = torch.where(kept, logits.logsumexp(-1).square(), 0)
        if reduction == "none":
            return loss + z_loss * squares
        total = squares.sum()
        loss = loss + z_loss * (total / kept.sum() if reduction == "mean" else total)
    return loss


_OPERATION.implementation(
    "vendor",
    verify=_linear_cross_entropy_fused.can_serve,
    pays=_linear_cross_entropy_fused.pays,
)(_linear_cross_entropy_fused.linear_cross_entropy_vendor)
_OPERATION.implementation(
    "triton",
    verify=_linear_cross_entropy_rows.can_serve,
    pays=_linear_cross_entropy_rows.pays,
)(_linear_cross_entropy_rows.linear_cross_entropy_triton)
