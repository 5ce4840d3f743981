"""Operations on heads with the library's matrix products, a part of the logits at a time.

`linear_lse_gather` computes the logits tile by tile. A tile has enough rows for efficient products,
and few enough columns of the vocabulary to stay in the caches, where the exponentials are computed
next. On a CPU the compiled extension computes these in one pass (csrc/cpu/logit_tile.cpp); without
the extension, and on other devices, torch operations do.

`linear_cross_entropy` and `linear_kl` compute their gradients together with the loss, all columns
of some rows at a time. The gradient of a row's logits is available as soon as its loss is. Using it
immediately avoids storing or recomputing the logits: this takes three matrix products, recomputing
would take four. The gradient of the loss itself, a scalar, is multiplied in afterwards.

In half precision logits and sums over rows are float32, and the gradient of the logits is rounded
to half precision for the products with it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from fastgrow import _native
from fastgrow.kernels.calls import HeadLossCall, KlCall, LseCall, LseGradientCall
from fastgrow.ops.core.dispatch import Answer
from fastgrow.ops.core.dtypes import compute_dtype, in_dtype, wide_dtype, widened
from fastgrow.ops.core.registration import operator
from fastgrow.ops.heads import reference
from fastgrow.ops.heads.heads import (
    HeadsCall,
    add_products,
    check_targets_in_range,
    differentiable_terms,
    differentiated,
    empty_gradients,
    empty_terms,
    fill_logits,
    finished,
    in_autocast,
    like_gradients,
    like_loss,
    loss_of,
    loss_with_gradients,
    losses_of,
    parts_of,
    rounded,
    row_shares,
    targets_in,
    terms_call,
    tiles_of,
)

# Logits of a tile: 8 MB in float32 on a CPU. A GPU needs larger tiles.
TILE_ELEMENTS, TILE_ELEMENTS_ON_GPU, TILE_ROWS = 1 << 21, 1 << 23, 2048
# Logits of whole rows that are stored at a time: 32 MB in float32. Fewer rows make the products
# inefficient; more rows exceed the caches without any benefit.
CHUNK_ELEMENTS, MIN_ROWS, MAX_ROWS = 1 << 23, 16, 256


def linear_lse_gather(call: LseCall) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the results tile by tile, reusing the memory of the logits.

    Under autocast h and weight are rounded as for the formula, but not the logits.
    """
    call = rounded(call)
    with torch.autocast(call.h[0].device.type, enabled=False):
        return (_differentiable if differentiated(call) else linear_lse_chunked)(*call)


def tiles(call: HeadsCall) -> Iterator[tuple[slice, slice, Tensor, Tensor | None]]:
    """Yield rows, columns, their logits without the bias, and the columns' bias if there is one."""
    h = call.h[0]
    height = max(1, min(TILE_ROWS, h.shape[0]))
    elements = TILE_ELEMENTS if h.device.type == "cpu" else TILE_ELEMENTS_ON_GPU
    width = max(1, min(call.weight[0].shape[0], elements // height))
    bias = None if call.bias is None else widened(call.bias).contiguous()
    for rows, columns, z in tiles_of(call, height, width, wide_dtype(h.dtype)):
        fill_logits(z, call, rows, columns)
        yield rows, columns, z, None if bias is None else bias[columns]


@operator(empty_terms)
def linear_lse_chunked(call: LseCall) -> tuple[Tensor, Tensor, Tensor]:
    """Return lse, target_logit, and the mean logit or an empty tensor."""
    targets = call.targets.long().contiguous()
    return (_native_terms if _native_serves(call) else _torch_terms)(call, targets)


def _native_serves(call: HeadsCall) -> bool:
    h = call.h[0]
    return _native.CPU.loaded and h.device.type == "cpu" and h.dtype != torch.float64


def _native_terms(call: LseCall, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    # The largest logit, the sum of exponentials relative to it, and the plain sum.
    sums = torch.tensor([float("-inf"), 0.0, 0.0], dtype=torch.float64).repeat(len(targets), 1)
    target_logit = torch.zeros(len(targets))
    for rows, columns, z, bias in tiles(call):
        torch.ops.fastgrow_native.logit_tile_add_log_sums(
            z, bias, targets[rows], columns.start, sums[rows], target_logit[rows]
        )
    top, mass, total = sums.unbind(1)
    lse = torch.where(top.isfinite(), top, 0) + mass.log()
    mean = total / call.weight[0].shape[0] if call.with_mean else total[:0]
    return lse.float(), target_logit, mean.float()


def _torch_terms(call: LseCall, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    vocabulary = call.weight[0].shape[0]
    lse, target_logit, mean = (x.zero_() for x in empty_terms(call))
    parts: list[Tensor] = []
    for rows, columns, z, bias in tiles(call):
        z = _with_bias(z, bias)
        here, index = targets_in(targets[rows], columns)
        target_logit[rows] += torch.where(here, z.gather(1, index).squeeze(1), 0)
        if call.with_mean:
            mean[rows] += z.sum(1) / vocabulary
        parts.append(z.logsumexp(1))
        if columns.stop == vocabulary:
            lse[rows] = torch.stack(parts).logsumexp(0)
            parts.clear()
    return lse, target_logit, mean


@operator(like_gradients)
def linear_lse_chunked_backward(call: LseGradientCall) -> list[Tensor]:
    """Return the gradients in the order of `needs`: each h, each weight, the bias."""
    wide = wide_dtype(call.h[0].dtype)
    targets = call.targets.long().contiguous()
    found = empty_gradients(call, call.needs, of_h=wide, of_others=wide)
    of_each = None if call.dmean is None else call.dmean / call.weight[0].shape[0]
    gradient_ = (
        torch.ops.fastgrow_native.logit_tile_gradient_ if _native_serves(call) else _torch_gradient_
    )
    for rows, columns, z, bias in tiles(call):
        each = None if of_each is None else of_each[rows]
        gradient_(
            *(z, bias, targets[rows], columns.start),
            *(call.lse[rows], call.dlse[rows], call.dtarget[rows], each),
        )
        add_products(call, found, call.needs, rows, columns, z)
    return finished(call, found)


_differentiable = differentiable_terms(linear_lse_chunked, linear_lse_chunked_backward)


def _with_bias(z: Tensor, bias: Tensor | None) -> Tensor:
    return z if bias is None else z.add_(bias)


def _torch_gradient_(
    z: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    first_column: int,
    lse: Tensor,
    of_lse: Tensor,
    of_target: Tensor,
    of_each: Tensor | None,
) -> None:
    """The extension's `logit_tile_gradient_` in torch operations."""
    # The log-sum-exp of a row whose logits are all −inf has no gradient.
    pivot = torch.where(lse == float("-inf"), 0, lse)[:, None]
    dz = _with_bias(z, bias).sub_(pivot).exp_().mul_(of_lse[:, None])
    if of_each is not None:
        dz.add_(of_each[:, None])
    here, index = targets_in(targets, slice(first_column, first_column + z.shape[1]))
    dz.scatter_add_(1, index, torch.where(here, of_target, 0)[:, None])


def rows_at_a_time(rows: int, vocabulary: int) -> int:
    """Return the number of rows whose logits are stored at a time."""
    return max(MIN_ROWS, min(MAX_ROWS, CHUNK_ELEMENTS // vocabulary, rows))


def linear_cross_entropy(call: HeadLossCall) -> Tensor:
    """Compute loss and gradients together, a part of the rows at a time.

    Two cases go through `linear_lse_gather` instead: single rows' losses, whose incoming gradients
    are not known yet, and float16, whose gradients would underflow before a loss scale is applied.
    """
    is_half = call.h[0].dtype == torch.float16
    if (call.reduction == "none" or is_half) and differentiated(call):
        check_targets_in_range(call)
        return loss_of(losses_of(linear_lse_gather(terms_call(call)), call), call)
    return _cross_entropy(rounded(call))


@operator(like_loss)
def linear_cross_entropy_chunked(
    call: HeadLossCall, needs: list[bool]
) -> tuple[Tensor, list[Tensor]]:
    """Return each row's loss, and the gradients of their sum or mean."""
    check_targets_in_range(call)
    targets, smoothing = call.targets, call.label_smoothing
    if not any(needs):
        terms = linear_lse_chunked(*terms_call(call))
        return losses_of(terms, call), empty_gradients(call, needs)
    n, vocabulary, wide = len(targets), call.weight[0].shape[0], wide_dtype(call.h[0].dtype)
    gradients = empty_gradients(call, needs, of_others=wide)
    lse, target_logit, means = terms = empty_terms(terms_call(call))
    here, index = targets_in(targets, slice(0, vocabulary))
    share = row_shares(call, wide)
    on_target = torch.where(here, (smoothing - 1) * share, 0)[:, None]
    for rows, words, z in tiles_of(call, rows_at_a_time(n, vocabulary), vocabulary, wide):
        fill_logits(z, call, rows, words, call.bias)
        target_logit[rows] = z.gather(1, index[rows]).squeeze(1)
        if smoothing > 0:
            torch.mean(z, 1, out=means[rows])
        pivot = z.amax(1)
        # If the largest logit is infinite, subtracting it would give NaN.
        pivot = torch.where(pivot.isfinite(), pivot, 0)
        sums = z.sub_(pivot[:, None]).exp_().sum(1)
        lse[rows] = pivot + sums.log()
        # dz = factor · z; the factor of an ignored row is 0. In other rows 1 + 2 · z_loss · lse
        # could be rounded to 0, and the target's part could not be divided by it.
        of_lse = 1 + 2 * call.z_loss * lse[rows]
        of_lse = torch.where(of_lse == 0, torch.finfo(z.dtype).eps, of_lse)
        factor = share[rows] * of_lse / sums
        inverse = torch.where(factor == 0, 0, 1 / factor)[:, None]
        if smoothing > 0:
            z.sub_(inverse * (share[rows, None] * (smoothing / vocabulary)))
        z.scatter_add_(1, index[rows], inverse * on_target[rows])
        add_products(call, gradients, needs, rows, words, z, factor)
    return losses_of(terms, call), finished(call, gradients)


_cross_entropy = loss_with_gradients(
    "linear_cross_entropy", HeadLossCall, linear_cross_entropy_chunked, loss_of
)


def can_differentiate(call: KlCall) -> Answer:
    """Whether the gradients that a call needs can be computed together with the loss."""
    if call.reduction == "none" and differentiated(call):
        return False, "it does not support gradients of single rows' losses"
    return True, ""


def linear_kl(call: KlCall, kl: Callable[[KlCall], Tensor] | None = None) -> Tensor:
    """Compute loss and gradients a part of the rows at a time, without storing all logits.

    Args:
        kl: computes the rows' losses, or their sum and its gradients; by default in torch.
    """
    dtype = compute_dtype(call.h[0])
    call = in_autocast(call)._replace(
        teacher_h=[t.to(dtype) for t in call.teacher_h],
        teacher_weight=[w.to(dtype) for w in call.teacher_weight],
        teacher_bias=[in_dtype(b, dtype) for b in call.teacher_bias],
    )
    loss = (kl or _kl)(call)
    # Divided last: if no row counts this is 0 / 0 = NaN, as in the formula.
    return loss / call.counts.sum() if call.reduction == "mean" else loss


def like_kl(call: KlCall, needs: list[bool]) -> tuple[Tensor, list[Tensor]]:
    wide = wide_dtype(call.h[0].dtype)
    return (
        # `len` would specialise a symbolic number of rows.
        call.h[0].new_empty(call.h[0].shape[0], dtype=wide),
        empty_gradients(call, needs, of_others=wide),
    )


@operator(like_kl)
def linear_kl_chunked(call: KlCall, needs: list[bool]) -> tuple[Tensor, list[Tensor]]:
    """Return each row's loss, and the gradients of the sum over the rows that count.

    dz_n = T · (q_n − p_n) is available when the loss is.
    """
    losses, gradients = like_kl(call, needs)
    vocabulary, T = call.weight[0].shape[0], call.temperature
    for rows in parts_of(len(losses), rows_at_a_time(len(losses), vocabulary)):
        some = call._replace(
            h=[x[rows] for x in call.h], teacher_h=[x[rows] for x in call.teacher_h]
        )
        q = reference.logits(some).div_(T).log_softmax(-1)
        log_p = reference.teacher_logits(some).div_(T).log_softmax(-1)
        p = log_p.exp()
        losses[rows] = T**2 * torch.where(p > 0, log_p.sub_(q), 0).mul_(p).sum(-1)
        if any(needs):
            dz = q.exp_().sub_(p).mul_(T * call.counts[rows, None].to(q.dtype))
            add_products(call, gradients, needs, rows, slice(0, vocabulary), dz)
    return losses, gradients


def rows_or_sum(losses: Tensor, call: KlCall) -> Tensor:
    # The loss of a row that does not count may be NaN.
    losses = torch.where(call.counts, losses, 0)
    return losses if call.reduction == "none" else losses.sum()


_kl = loss_with_gradients("linear_kl", KlCall, linear_kl_chunked, rows_or_sum)
