"""Code that implementations of operations on linear heads share.

Every call on heads starts with the fields h, weight and bias. Their logits, and the products with
the logits' gradient, are computed a part at a time.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from fastgrow.errors import argument_error
from fastgrow.kernels.calls import HeadLossCall, KlCall, LseCall, LseGradientCall
from fastgrow.ops.core.checks import outside
from fastgrow.ops.core.dtypes import compute_dtype, in_dtype, wide_dtype
from fastgrow.ops.core.registration import distinct, forbid_double_backward, needs_gradient

HeadsCall = LseCall | LseGradientCall | HeadLossCall | KlCall
C = TypeVar("C", LseCall, HeadLossCall, KlCall)
REDUCTIONS = ("mean", "sum", "none")


def check_reduction(operation: str, reduction: str) -> None:
    """Raise an error if a reduction is not one of `REDUCTIONS`."""
    if reduction not in REDUCTIONS:
        raise argument_error(
            operation, "reduction", f"one of {', '.join(REDUCTIONS)}", repr(reduction)
        )


def reduced(losses: Tensor, targets: Tensor, ignore_index: int, reduction: str) -> Tensor:
    """Reduce the losses of rows, which are zero for ignored targets.

    The mean is over the targets that are not ignored; NaN if all are ignored, as in torch.
    """
    if reduction == "none":
        return losses
    total = losses.sum()
    return total / (targets != ignore_index).sum() if reduction == "mean" else total


def loss_of(losses: Tensor, call: HeadLossCall) -> Tensor:
    """Reduce the losses of rows as the call requests."""
    return reduced(losses, call.targets, call.ignore_index, call.reduction)


def tensors(call: HeadsCall) -> list[Tensor | None]:
    """Return all tensors that may have a gradient: each h, each weight and the bias."""
    return [*call.h, *call.weight, call.bias]


def autocast_dtype(call: HeadsCall) -> torch.dtype:
    """Return the dtype of the products: autocast's if it is on."""
    h = call.h[0]
    return compute_dtype(h) if torch.is_autocast_enabled(h.device.type) else h.dtype


def in_autocast(call: C) -> C:
    """Return the call with heads converted to autocast's dtype if it is on."""
    if not torch.is_autocast_enabled(call.h[0].device.type):
        return call
    return _converted(call, compute_dtype(call.h[0]))


def rounded(call: C) -> C:
    """Return the call with heads rounded as under autocast, but in their original dtype."""
    narrow = in_autocast(call)
    return call if narrow is call else _converted(narrow, call.h[0].dtype)


def _converted(call: C, dtype: torch.dtype) -> C:
    return call._replace(
        h=[x.to(dtype) for x in call.h],
        weight=[w.to(dtype) for w in call.weight],
        bias=in_dtype(call.bias, dtype),
    )


def terms_call(call: HeadLossCall) -> LseCall:
    """Return the `linear_lse_gather` call that a loss is computed from."""
    return LseCall(*call[:4], call.label_smoothing > 0)


def empty_terms(call: LseCall) -> tuple[Tensor, Tensor, Tensor]:
    """Allocate lse, target logit, and mean logit if it is needed."""
    n = call.h[0].shape[0]
    allocate = functools.partial(call.h[0].new_empty, dtype=wide_dtype(call.h[0].dtype))
    return allocate(n), allocate(n), allocate(n if call.with_mean else 0)


def empty_gradients(
    call: HeadsCall,
    needs: Sequence[bool],
    *,
    of_h: torch.dtype | None = None,
    of_others: torch.dtype | None = None,
) -> list[Tensor]:
    """Allocate the gradients of each h, each weight and the bias; empty ones if not needed.

    Without rows they are zeros, because nothing will be written to them.

    Args:
        of_h, of_others: dtypes of the gradients; None for those of the tensors.
    """
    rows = call.h[0].shape[0]
    # A symbolic number of rows is not compared, to avoid a guard.
    allocate = Tensor.new_zeros if isinstance(rows, int) and rows == 0 else Tensor.new_empty
    found = []
    for k, (x, needed) in enumerate(zip(tensors(call), needs, strict=True)):
        like = call.h[0] if x is None else x
        dtype = of_h if k < len(call.h) else of_others
        found.append(allocate(like, like.shape if needed else (0,), dtype=dtype or like.dtype))
    return found


def finished(call: HeadsCall, gradients: list[Tensor]) -> list[Tensor]:
    """Convert the sums to the dtypes of the tensors that they are gradients of."""
    pairs = zip(gradients, tensors(call), strict=True)
    return [g if x is None else g.to(x.dtype) for g, x in pairs]


def losses_of(terms: tuple[Tensor, Tensor, Tensor], call: HeadLossCall) -> Tensor:
    """Return each row's loss; 0 if the target is ignored, NaN if it is out of range."""
    lse, target_logit, mean = terms
    smoothing, targets = call.label_smoothing, call.targets
    expected = (1 - smoothing) * target_logit + smoothing * mean if smoothing else target_logit
    losses = lse - expected
    if call.z_loss:
        losses = losses + call.z_loss * lse.square()
    wrong = (targets < 0) | (targets >= call.weight[0].shape[0])
    return losses.masked_fill(wrong, float("nan")).masked_fill(targets == call.ignore_index, 0.0)


def targets_in(targets: Tensor, columns: slice) -> tuple[Tensor, Tensor]:
    """Return which targets are in a tile, and their column index [rows, 1], 0 for the others."""
    here = (targets >= columns.start) & (targets < columns.stop)
    return here, torch.where(here, targets - columns.start, 0).long()[:, None]


def check_targets_in_range(call: HeadLossCall) -> None:
    """On a CPU, where no synchronisation is needed, raise an error for targets out of range."""
    is_read = call.targets.device.type == "cpu" and not torch.compiler.is_compiling()
    if is_read and outside(call.targets, 0, call.weight[0].shape[0], call.ignore_index).any():
        raise IndexError("target out of range")


def row_shares(call: HeadLossCall, dtype: torch.dtype) -> Tensor:
    """Return the weight of each row in the loss, [N]."""
    kept = call.targets != call.ignore_index
    counts = kept.to(dtype)
    return counts / kept.sum().clamp(min=1) if call.reduction == "mean" else counts


def differentiated(call: HeadsCall) -> bool:
    """Whether autograd needs any gradient of the heads."""
    return needs_gradient(*call.h, *call.weight, call.bias)


def parts_of(count: int, size: int) -> list[slice]:
    """Return slices of `size` that cover range(count); the last may be shorter."""
    return [slice(start, min(start + size, count)) for start in range(0, count, max(size, 1))]


def part(x: Tensor, run: slice) -> Tensor:
    """Return x[run], or x itself if that is all of it, which saves host time."""
    return x if run.stop - run.start == x.shape[0] else x[run]


def tiles_of(
    call: HeadsCall, height: int, width: int, dtype: torch.dtype
) -> Iterator[tuple[slice, slice, Tensor]]:
    """Yield rows, columns, and memory for their logits; each tile reuses the same memory.

    All columns of the first rows come first, then those of the next rows.
    """
    memory = call.h[0].new_empty(height, width, dtype=dtype)
    for rows in parts_of(call.h[0].shape[0], height):
        for columns in parts_of(call.weight[0].shape[0], width):
            shape = rows.stop - rows.start, columns.stop - columns.start
            whole = shape == memory.shape
            # A contiguous part of the memory; a view of all of it would cost host time.
            z = memory if whole else memory.view(-1)[: shape[0] * shape[1]].view(shape)
            yield rows, columns, z


def fill_logits(
    z: Tensor, call: HeadsCall, rows: slice, columns: slice, bias: Tensor | None = None
) -> None:
    """Write the logits of some rows and columns into `z`, whose dtype may be wider than theirs."""
    if bias is not None:
        z.copy_(bias)
    for k, (h, weight) in enumerate(zip(call.h, call.weight, strict=True)):
        first = k == 0 and bias is None
        a, b = part(h, rows), part(weight, columns).T
        if a.dtype == z.dtype or a.device.type == "cuda":
            accumulate(z, a, b, first=first)
        else:
            # Rounded as in the formula: a wide copy of the weight would take more memory than `z`.
            (z.copy_ if first else z.add_)(a @ b)


def add_products(
    call: HeadsCall,
    gradients: list[Tensor],
    needs: Sequence[bool],
    rows: slice,
    columns: slice,
    dz: Tensor,
    factor: Tensor | None = None,
) -> None:
    """Add the products with the logits' gradient of one tile to the gradients that are needed.

    Args:
        dz: [rows, columns], rounded to the heads' dtype for the products; may be overwritten.
        factor: [rows], still to be multiplied into `dz`; multiplied into the smaller h and dh
            instead if nothing is rounded.
    """
    count, first, dtype = len(call.h), rows.start == 0, call.h[0].dtype
    if factor is not None and dz.dtype != dtype:
        dz, factor = dz.mul_(factor[:, None]), None
    if needs[-1]:
        of_bias = part(gradients[-1], columns)
        total = dz.sum(0, dtype=of_bias.dtype) if factor is None else dz.T @ factor
        of_bias.copy_(total if first else of_bias + total)
    dz = dz.to(dtype)
    for k, (h, weight) in enumerate(zip(call.h, call.weight, strict=True)):
        if needs[k]:
            dh = part(gradients[k], rows)
            accumulate(dh, dz, part(weight, columns), first=columns.start == 0)
            if factor is not None and columns.stop == weight.shape[0]:
                dh.mul_(factor[:, None])
        if needs[count + k]:
            some = part(h, rows) if factor is None else part(h, rows) * factor[:, None]
            accumulate(part(gradients[count + k], columns), dz.T, some, first=first)


def accumulate(total: Tensor, a: Tensor, b: Tensor, *, first: bool) -> None:
    """Compute total += a · b, or total = a · b for the first product.

    A float32 total of half-precision products is not rounded to half precision in between.
    """
    if a.dtype == total.dtype:
        if first:
            torch.mm(a, b, out=total)
        else:
            total.addmm_(a, b)
    elif a.device.type != "cuda":
        accumulate(total, a.to(total.dtype), b.to(total.dtype), first=first)
    elif first:
        torch.mm(a, b, out_dtype=total.dtype, out=total)
    elif _adds_in_float32(a.device, a.dtype):
        torch.addmm(total, a, b, out_dtype=total.dtype, out=total)
    else:
        total += torch.mm(a, b, out_dtype=total.dtype)


@functools.cache
def _adds_in_float32(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether this torch version adds half-precision products to a float32 matrix in one call."""
    a = torch.zeros(16, 16, dtype=dtype, device=device)
    total = torch.zeros(16, 16, device=device)
    try:
        torch.addmm(total, a, a, out_dtype=torch.float32, out=total)
    except (RuntimeError, TypeError):
        return False
    return True


def differentiable_heads(
    operation: str,
    record: type[Any],
    forward: Callable[..., Any],
    backward: Callable[..., Sequence[Tensor | None]],
) -> Callable[..., Any]:
    """`differentiable` of core/registration.py for a call on heads, whose tensors are in lists.

    With `create_graph=True` it raises an error in the first backward: gradients that were computed
    with the loss have no graph that could raise it later.

    Args:
        backward: returns the gradients of `tensors(call)`.
    """

    def run_forward(ctx: Any, *values: Any) -> Any:
        *flat, count = values
        return forward(ctx, record(flat[:count], flat[count : 2 * count], *flat[2 * count :]))

    def run_backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        forbid_double_backward(operation)
        found = backward(ctx, *gradients)
        return (*found, *[None] * (len(ctx.needs_input_grad) - len(found)))

    members = {"forward": staticmethod(run_forward), "backward": staticmethod(run_backward)}
    function: Any = type("DifferentiableHeads", (torch.autograd.Function,), members)
    return lambda h, weight, *rest: function.apply(*distinct((*h, *weight, *rest)), len(h))


def loss_with_gradients(
    operation: str,
    record: type[Any],
    operator: Callable[..., tuple[Tensor, list[Tensor]]],
    reduce: Callable[[Tensor, Any], Tensor],
) -> Callable[[Any], Tensor]:
    """Return a function that computes a loss and its gradients together.

    In the backward pass the gradients are multiplied by the gradient of the loss itself.

    Args:
        operator: computes from `(*call, needs)` the rows' losses and the gradients of the reduced
            loss with respect to `tensors(call)`; empty tensors for those not needed.
        reduce: computes the reduced loss from `(losses, call)`. Single rows' losses get no
            gradients.
    """

    def forward(ctx: Any, call: Any) -> Tensor:
        losses, gradients = operator(*call, list(ctx.needs_input_grad[: len(tensors(call))]))
        ctx.save_for_backward(*gradients)
        return reduce(losses, call)

    def backward(ctx: Any, grad: Tensor) -> list[Tensor | None]:
        # Autograd converts them to the dtypes of their tensors.
        ready = zip(ctx.saved_tensors, ctx.needs_input_grad, strict=False)
        return [g * grad if needed else None for g, needed in ready]

    with_gradients = differentiable_heads(operation, record, forward, backward)

    def run(call: Any) -> Tensor:
        with torch.autocast(call.h[0].device.type, enabled=False):
            if differentiated(call):
                return with_gradients(*call)
            return reduce(operator(*call, [False] * len(tensors(call)))[0], call)

    return run


def like_loss(call: HeadLossCall, needs: list[bool]) -> tuple[Tensor, list[Tensor]]:
    """Return empty results of an operator that computes rows' losses and gradients of the loss."""
    return empty_terms(terms_call(call))[0], empty_gradients(call, needs)


def like_gradients(call: LseGradientCall) -> list[Tensor]:
    """Return empty results of an operator that computes gradients."""
    return empty_gradients(call, call.needs)


def differentiable_terms(forward: Callable[..., Any], backward: Callable[..., Any]) -> Any:
    """Return `linear_lse_gather` from two operators, of an `LseCall` and an `LseGradientCall`.

    The inputs and one number per row are saved for the backward pass, which recomputes the logits,
    a part at a time. With p = softmax(z) their gradient is

        dz_nv = dlse_n · p_nv + dmean_n / V + dtarget_n · [v = target_n]
    """

    def run_forward(ctx: Any, call: LseCall) -> tuple[Tensor, Tensor, Tensor]:
        lse, target, mean = forward(*call)
        ctx.save_for_backward(*tensors(call), call.targets, lse)
        ctx.count, ctx.with_mean = len(call.h), call.with_mean
        return lse, target, mean

    def run_backward(ctx: Any, dlse: Tensor, dtarget: Tensor, dmean: Tensor) -> list[Tensor | None]:
        count, needs = ctx.count, list(ctx.needs_input_grad[: 2 * ctx.count + 1])
        *heads, bias, targets, lse = ctx.saved_tensors
        found = backward(
            *(heads[:count], heads[count:], bias, targets, lse),
            *(dlse.contiguous(), dtarget.contiguous()),
            dmean.contiguous() if ctx.with_mean else None,
            needs,
        )
        return [g if needed else None for g, needed in zip(found, needs, strict=True)]

    return differentiable_heads("linear_lse_gather", LseCall, run_forward, run_backward)
