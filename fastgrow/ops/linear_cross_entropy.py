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

from fastgrow.ops._check import (
    check_float,
    check_ids,
    check_like,
    describe,
    refuse,
    refuse_double_backward,
)
from fastgrow.ops._debug import check_range, out_of_range
from fastgrow.ops._dispatch import Operation, Verdict

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
            a CPU, and elsewhere under FASTGROW_DEBUG=1, also a target out of range.
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
    check_range(name, "targets", targets, 0, weight.shape[0], ignore=ignore_index)
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


# Logits held at a time by the chunked implementation, twice: 64 MB in float32. Fewer rows make the
# products inefficient, more leave the caches without saving any.
_CHUNK_ELEMENTS, _MIN_ROWS, _MAX_ROWS = 1 << 23, 16, 256

torch.library.define(
    "fastgrow::linear_cross_entropy_chunked",
    "(Tensor h, Tensor weight, Tensor targets, Tensor? bias, int ignore_index, bool mean, "
    "bool need_dh, bool need_dweight, bool need_dbias) -> (Tensor, Tensor, Tensor, Tensor)",
    tags=(torch.Tag.needs_fixed_stride_order,),
)


@torch.library.impl("fastgrow::linear_cross_entropy_chunked", "CPU")
def _chunked(
    h: Tensor,
    weight: Tensor,
    targets: Tensor,
    bias: Tensor | None,
    ignore_index: int,
    mean: bool,
    need_dh: bool,
    need_dweight: bool,
    need_dbias: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Each row's loss, and the gradients of their sum or mean, some rows of logits at a time.

    The gradient of a row's logits, softmax − one-hot, is at hand when its loss is; making the
    products with it there saves keeping or recomputing the logits.
    """
    n, vocabulary = h.shape[0], weight.shape[0]
    kept = targets != ignore_index
    indices = torch.where(kept, targets, 0)
    if bool(((indices < 0) | (indices >= vocabulary)).any()):
        raise IndexError("target out of range")
    losses, dh, dweight, dbias = _chunked_outputs(
        h, weight, targets, bias, ignore_index, mean, need_dh, need_dweight, need_dbias
    )
    dweight.zero_()
    dbias.zero_()
    share = kept.to(h.dtype)
    if mean:
        share = share / kept.sum().clamp(min=1)
    rows = max(_MIN_ROWS, min(_MAX_ROWS, _CHUNK_ELEMENTS // max(vocabulary, 1), n))
    logits, log_probabilities = h.new_empty(2, rows, vocabulary)
    for start in range(0, n, rows):
        part = slice(start, start + rows)
        some, index = h[part], indices[part, None]
        z, p = logits[: len(some)], log_probabilities[: len(some)]
        if bias is None:
            torch.mm(some, weight.T, out=z)
        else:
            torch.addmm(bias, some, weight.T, out=z)
        torch.log_softmax(z, 1, out=p)
        losses[part] = torch.where(kept[part], -p.gather(1, index).squeeze(1), 0)
        if not (need_dh or need_dweight or need_dbias):
            continue
        weights = share[part, None]
        dz = p.exp_().mul_(weights).scatter_add_(1, index, -weights)
        if need_dh:
            torch.mm(dz, weight, out=dh[part])
        if need_dweight:
            dweight.addmm_(dz.T, some)
        if need_dbias:
            dbias += dz.sum(0)
    return losses, dh, dweight, dbias


@torch.library.register_fake("fastgrow::linear_cross_entropy_chunked")
def _chunked_outputs(
    h: Tensor,
    weight: Tensor,
    targets: Tensor,
    bias: Tensor | None,
    ignore_index: int,
    mean: bool,
    need_dh: bool,
    need_dweight: bool,
    need_dbias: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    # An operator returns the same number of tensors always; gradients not asked for are empty.
    return (
        h.new_empty(h.shape[0]),
        h.new_empty(h.shape if need_dh else (0,)),
        h.new_empty(weight.shape if need_dweight else (0,)),
        h.new_empty(weight.shape[:1] if need_dbias else (0,)),
    )


class _ChunkedLoss(torch.autograd.Function):
    """Sum or mean of the losses; its gradients are ready when it returns."""

    @staticmethod
    def forward(
        ctx: Any,
        h: Tensor,
        weight: Tensor,
        targets: Tensor,
        bias: Tensor | None,
        ignore_index: int,
        mean: bool,
    ) -> Tensor:
        needs = ctx.needs_input_grad
        losses, *gradients = torch.ops.fastgrow.linear_cross_entropy_chunked(
            h, weight, targets, bias, ignore_index, mean, needs[0], needs[1], needs[3]
        )
        ctx.save_for_backward(*gradients)
        return _reduce(losses, targets, ignore_index, "mean" if mean else "sum")

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        refuse_double_backward("linear_cross_entropy")
        dh, dweight, dbias = ctx.saved_tensors
        needs = ctx.needs_input_grad
        return (
            dh * grad if needs[0] else None,
            dweight * grad if needs[1] else None,
            None,
            dbias * grad if needs[3] else None,
            None,
            None,
        )


def _reduce(losses: Tensor, targets: Tensor, ignore_index: int, reduction: str) -> Tensor:
    if reduction == "none":
        return losses
    total = losses.sum()
    return total / (targets != ignore_index).sum() if reduction == "mean" else total


def _may_chunk(
    h: Tensor,
    weight: Tensor,
    targets: Tensor,
    bias: Tensor | None,
    ignore_index: int,
    reduction: str,
    label_smoothing: float,
    z_loss: float,
) -> Verdict:
    if h.device.type != "cpu" or h.dtype not in (torch.float32, torch.float64):
        return False, f"it serves float32 and float64 on a CPU, not {h.dtype} on {h.device.type}"
    if torch.is_autocast_enabled("cpu"):
        return False, "autocast is on"
    if label_smoothing or z_loss:
        return False, "label smoothing and z-loss are not served"
    if reduction == "none" and _needs_grad(h, weight, bias):
        return False, "gradients of single rows' losses are not served"
    return True, ""


@_OPERATION.implementation("vendor", verify=_may_chunk)
def linear_cross_entropy_vendor(
    h: Tensor,
    weight: Tensor,
    targets: Tensor,
    bias: Tensor | None,
    ignore_index: int,
    reduction: str,
    label_smoothing: float,
    z_loss: float,
) -> Tensor:
    """The library's products on some rows at a time; the logits are never in memory at once."""
    rows, flat = h.reshape(-1, h.shape[-1]), targets.reshape(-1).long()
    if _needs_grad(h, weight, bias):
        return _ChunkedLoss.apply(rows, weight, flat, bias, ignore_index, reduction == "mean")
    losses, *_ = torch.ops.fastgrow.linear_cross_entropy_chunked(
        rows, weight, flat, bias, ignore_index, False, False, False, False
    )
    return _reduce(losses, flat, ignore_index, reduction).view(
        targets.shape if reduction == "none" else ()
    )


def _needs_grad(*tensors: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
