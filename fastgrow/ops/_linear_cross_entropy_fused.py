"""`linear_cross_entropy` with its gradients made beside the loss, some rows of logits at a time.

The gradient of a row's logits is at hand when its loss is, so making the products with it there
saves keeping the logits or making them again: three products, where recomputing takes four. The
gradient of the loss, one number, is multiplied in afterwards.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from fastgrow.ops import _linear_lse_chunked, _logit_tiles
from fastgrow.ops._heads import Heads
from fastgrow.ops._linear_cross_entropy_rows import gradients_fit, losses_of, reduced
from fastgrow.ops._linear_lse_autograd import empty_gradients, empty_terms, heads_from
from fastgrow.ops._linear_lse_chunked import add_products, clear_without_rows
from fastgrow.ops.core import triton_support
from fastgrow.ops.core.dispatch import Answer
from fastgrow.ops.core.registration import refuse_double_backward

# Logits held at a time: 32 MB in float32. Fewer rows make the products inefficient, more leave the
# caches without saving any.
CHUNK_ELEMENTS, MIN_ROWS, MAX_ROWS = 1 << 23, 16, 256


def can_serve(
    heads: Heads,
    targets: Tensor,
    ignore_index: int,
    reduction: str,
    label_smoothing: float,
    z_loss: float,
) -> Answer:
    """The verifier."""
    if _makes_rows(heads, reduction):
        return _linear_lse_chunked.can_serve(heads, targets, label_smoothing > 0)
    if triton_support.can_run(heads.h[0])[0]:
        return gradients_fit(heads)
    return _linear_lse_chunked.can_serve(heads, targets, False)


def pays(
    heads: Heads,
    targets: Tensor,
    ignore_index: int,
    reduction: str,
    label_smoothing: float,
    z_loss: float,
) -> Answer:
    """Where there are logits enough to save."""
    if triton_support.can_run(heads.h[0])[0] and not _makes_rows(heads, reduction):
        return _linear_lse_chunked.saves(heads)
    return _linear_lse_chunked.pays(heads, targets, label_smoothing > 0)


def _makes_rows(heads: Heads, reduction: str) -> bool:
    """Whether rows' losses have gradients of their own, which are not known beside the loss."""
    return reduction == "none" and heads.need_grad()


def linear_cross_entropy_vendor(
    heads: Heads,
    targets: Tensor,
    ignore_index: int,
    reduction: str,
    label_smoothing: float,
    z_loss: float,
) -> Tensor:
    """The library's products on some rows at a time; the logits are never in memory at once."""
    if _makes_rows(heads, reduction):
        check_targets(targets, ignore_index, heads.vocabulary)
        terms = _linear_lse_chunked.linear_lse_gather_vendor(heads, targets, label_smoothing > 0)
        return losses_of(terms, heads, targets, ignore_index, label_smoothing, z_loss)
    settings = (ignore_index, reduction == "mean", label_smoothing, z_loss)
    heads = heads.autocast() if triton_support.can_run(heads.h[0])[0] else heads.rounded()
    with torch.autocast(heads.device.type, enabled=False):
        if heads.need_grad():
            loss: Tensor = _FusedLoss.apply(targets, settings, len(heads.h), *heads.tensors())
            return loss
        losses, _ = torch.ops.fastgrow.linear_cross_entropy_fused(
            heads.h, heads.weight, heads.bias, targets, *settings, [False] * len(heads.tensors())
        )
        return reduced(losses, targets, ignore_index, reduction)


def check_targets(targets: Tensor, ignore_index: int, vocabulary: int) -> None:
    """On a CPU, where it costs no synchronisation, refuse targets out of range."""
    if targets.device.type != "cpu" or torch.compiler.is_compiling():
        return
    outside = (targets < 0) | (targets >= vocabulary)
    if bool((outside & (targets != ignore_index)).any()):
        raise IndexError("target out of range")


class _FusedLoss(torch.autograd.Function):
    """Sum or mean of the losses; its gradients are ready when it returns."""

    @staticmethod
    def forward(
        ctx: Any,
        targets: Tensor,
        settings: tuple[int, bool, float, float],
        count: int,
        *tensors: Tensor,
    ) -> Tensor:
        heads = heads_from(tensors, count)
        losses, gradients = torch.ops.fastgrow.linear_cross_entropy_fused(
            heads.h, heads.weight, heads.bias, targets, *settings, list(ctx.needs_input_grad[3:])
        )
        ctx.save_for_backward(*gradients)
        ignore_index, mean, *_ = settings
        return reduced(losses, targets, ignore_index, "mean" if mean else "sum")

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        refuse_double_backward("linear_cross_entropy")
        needs = ctx.needs_input_grad[3:]
        gradients = zip(ctx.saved_tensors, needs, strict=True)
        return (None, None, None, *((g * grad).to(g.dtype) if n else None for g, n in gradients))


_library = torch.library.Library("fastgrow", "FRAGMENT")
_library.define(
    "linear_cross_entropy_fused(Tensor[] h, Tensor[] weight, Tensor? bias, Tensor targets, "
    "int ignore_index, bool mean, float label_smoothing, float z_loss, bool[] needs) -> "
    "(Tensor, Tensor[])"
)


@torch.library.register_fake("fastgrow::linear_cross_entropy_fused", lib=_library)
def _fake(
    h: list[Tensor], weight: list[Tensor], bias: Tensor | None, *rest: Any
) -> tuple[Tensor, list[Tensor]]:
    return empty_terms(h[0], False)[0], empty_gradients(Heads(h, weight, bias), rest[-1])


def _fused(
    h: list[Tensor],
    weight: list[Tensor],
    bias: Tensor | None,
    targets: Tensor,
    ignore_index: int,
    mean: bool,
    label_smoothing: float,
    z_loss: float,
    needs: list[bool],
) -> tuple[Tensor, list[Tensor]]:
    """Each row's loss, and the gradients of their sum or mean."""
    heads = Heads(h, weight, bias)
    check_targets(targets, ignore_index, heads.vocabulary)
    settings = (ignore_index, mean, label_smoothing, z_loss)
    if triton_support.can_run(h[0])[0]:
        from fastgrow.ops import _linear_cross_entropy_cublas

        return _linear_cross_entropy_cublas.fused(heads, targets, *settings, needs)
    return _by_torch(heads, targets, *settings, needs)


for _key in ("CPU", "CUDA"):
    _library.impl("linear_cross_entropy_fused", _fused, _key)


def shares(targets: Tensor, ignore_index: int, mean: bool, dtype: torch.dtype) -> Tensor:
    """By how much each row counts in the loss, [N]."""
    kept = targets != ignore_index
    counts = kept.to(dtype)
    return counts / kept.sum().clamp(min=1) if mean else counts


def chunks(heads: Heads) -> Iterator[tuple[slice, Tensor]]:
    """Rows, and their logits in memory that the next ones take over."""
    n, vocabulary = heads.rows, heads.vocabulary
    size = max(MIN_ROWS, min(MAX_ROWS, CHUNK_ELEMENTS // vocabulary, n))
    buffer = heads.h[0].new_empty(size, vocabulary)
    for start in range(0, n, size):
        rows = slice(start, min(start + size, n))
        z = buffer[: rows.stop - rows.start]
        if heads.bias is None:
            torch.mm(heads.h[0][rows], heads.weight[0].T, out=z)
        else:
            torch.addmm(heads.bias, heads.h[0][rows], heads.weight[0].T, out=z)
        for h, weight in zip(heads.h[1:], heads.weight[1:], strict=True):
            z.addmm_(h[rows], weight.T)
        yield rows, z


def exponentials(z: Tensor) -> tuple[Tensor, Tensor]:
    """Logits to exp(z − pivot) in place; their sums, and the log-sum-exp of the logits."""
    pivot = z.amax(1)
    # A row of infinities has no pivot that would leave numbers.
    pivot = torch.where(pivot.isfinite(), pivot, 0)
    sums = z.sub_(pivot[:, None]).exp_().sum(1)
    return sums, pivot + sums.log()


def _by_torch(
    heads: Heads,
    targets: Tensor,
    ignore_index: int,
    mean: bool,
    label_smoothing: float,
    z_loss: float,
    needs: list[bool],
) -> tuple[Tensor, list[Tensor]]:
    smooth = label_smoothing > 0
    gradients = empty_gradients(heads, needs)
    if not any(needs):
        terms = _logit_tiles.terms(heads, targets, smooth)
        losses = losses_of(terms, heads, targets, ignore_index, label_smoothing, z_loss)
        return losses, gradients
    lse, target_logit, means = empty_terms(heads.h[0], smooth)
    everything = slice(0, heads.vocabulary)
    here, index = _logit_tiles.targets_in(targets, everything)
    share = shares(targets, ignore_index, mean, heads.dtype)
    on_target = torch.where(here, (label_smoothing - 1) * share, 0)[:, None]
    for rows, z in chunks(heads):
        target_logit[rows] = z.gather(1, index[rows]).squeeze(1)
        if smooth:
            torch.mean(z, 1, out=means[rows])
        sums, lse[rows] = exponentials(z)
        # Of dz = factor · z; a row that counts nothing has none. In others a 0, which is a rounded
        # number as every other, would leave nothing to divide the target's part by.
        of_lse = 1 + 2 * z_loss * lse[rows]
        of_lse = torch.where(of_lse == 0, torch.finfo(z.dtype).eps, of_lse)
        factor = share[rows] * of_lse / sums
        inverse = torch.where(factor == 0, 0, 1 / factor)[:, None]
        if smooth:
            z.sub_(inverse * (share[rows, None] * (label_smoothing / heads.vocabulary)))
        z.scatter_add_(1, index[rows], inverse * on_target[rows])
        add_products(heads, gradients, needs, rows, everything, z, factor)
    terms = (lse, target_logit, means)
    losses = losses_of(terms, heads, targets, ignore_index, label_smoothing, z_loss)
    return losses, clear_without_rows(heads, gradients)
