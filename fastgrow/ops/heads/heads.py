"""What implementations of operations on linear heads share.

Every call on heads begins with the fields h, weight and bias. Their logits are made a part at a
time, and so are the products with the logits' gradient.
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
from fastgrow.ops.core.registration import distinct, needs_gradient, refuse_double_backward

HeadsCall = LseCall | LseGradientCall | HeadLossCall | KlCall
C = TypeVar("C", LseCall, HeadLossCall, KlCall)
REDUCTIONS = ("mean", "sum", "none")


def check_reduction(operation: str, reduction: str) -> None:
    """Refuse a reduction that is none of `REDUCTIONS`."""
    if reduction not in REDUCTIONS:
        raise argument_error(
            operation, "reduction", f"one of {', '.join(REDUCTIONS)}", repr(reduction)
        )


def reduced(losses: Tensor, targets: Tensor, ignore_index: int, reduction: str) -> Tensor:
    """Losses of rows, zero where the target is ignored, to the loss asked for.

    The mean is over the targets that are not ignored; NaN without any, as torch has it.
    """
    if reduction == "none":
        return losses
    total = losses.sum()
    return total / (targets != ignore_index).sum() if reduction == "mean" else total


def loss_of(losses: Tensor, call: HeadLossCall) -> Tensor:
    """Losses of rows to the loss that a call asks for."""
    return reduced(losses, call.targets, call.ignore_index, call.reduction)


def tensors(call: HeadsCall) -> list[Tensor | None]:
    """Everything that may have a gradient: each h, each weight and the bias."""
    return [*call.h, *call.weight, call.bias]


def autocast_dtype(call: HeadsCall) -> torch.dtype:
    """Of the products: autocast's where it is on."""
    h = call.h[0]
    return compute_dtype(h) if torch.is_autocast_enabled(h.device.type) else h.dtype


def in_autocast(call: C) -> C:
    """The call with heads in autocast's dtype where it is on."""
    if not torch.is_autocast_enabled(call.h[0].device.type):
        return call
    return _converted(call, compute_dtype(call.h[0]))


def rounded(call: C) -> C:
    """The call with heads as autocast rounds them, in the dtype they have."""
    narrow = in_autocast(call)
    return call if narrow is call else _converted(narrow, call.h[0].dtype)


def _converted(call: C, dtype: torch.dtype) -> C:
    return call._replace(
        h=[x.to(dtype) for x in call.h],
        weight=[w.to(dtype) for w in call.weight],
        bias=in_dtype(call.bias, dtype),
    )


def terms_call(call: HeadLossCall) -> LseCall:
    """What a loss is made of."""
    return LseCall(*call[:4], call.label_smoothing > 0)


def empty_terms(call: LseCall) -> tuple[Tensor, Tensor, Tensor]:
    """Room for lse, target logit, and mean logit where it is wanted."""
    n = call.h[0].shape[0]
    room = functools.partial(call.h[0].new_empty, dtype=wide_dtype(call.h[0].dtype))
    return room(n), room(n), room(n if call.with_mean else 0)


def empty_gradients(
    call: HeadsCall,
    needs: Sequence[bool],
    *,
    of_h: torch.dtype | None = None,
    of_others: torch.dtype | None = None,
) -> list[Tensor]:
    """Room for each h, each weight and the bias, where needed; an operator returns as many always.

    Without rows they are zeros: there will be nothing to write.

    Args:
        of_h, of_others: dtypes; those of the tensors without.
    """
    rows = call.h[0].shape[0]
    # A symbolic number of rows is not asked for its value.
    room = Tensor.new_zeros if isinstance(rows, int) and rows == 0 else Tensor.new_empty
    found = []
    for k, (x, needed) in enumerate(zip(tensors(call), needs, strict=True)):
        like = call.h[0] if x is None else x
        dtype = of_h if k < len(call.h) else of_others
        found.append(room(like, like.shape if needed else (0,), dtype=dtype or like.dtype))
    return found


def finished(call: HeadsCall, gradients: list[Tensor]) -> list[Tensor]:
    """Sums in the dtypes of what they are gradients of."""
    pairs = zip(gradients, tensors(call), strict=True)
    return [g if x is None else g.to(x.dtype) for g, x in pairs]


def losses_of(terms: tuple[Tensor, Tensor, Tensor], call: HeadLossCall) -> Tensor:
    """Each row's loss; 0 where the target is ignored, NaN where it is out of range."""
    lse, target_logit, mean = terms
    smoothing, targets = call.label_smoothing, call.targets
    expected = (1 - smoothing) * target_logit + smoothing * mean if smoothing else target_logit
    losses = lse - expected
    if call.z_loss:
        losses = losses + call.z_loss * lse.square()
    wrong = (targets < 0) | (targets >= call.weight[0].shape[0])
    return losses.masked_fill(wrong, float("nan")).masked_fill(targets == call.ignore_index, 0.0)


def targets_in(targets: Tensor, columns: slice) -> tuple[Tensor, Tensor]:
    """Which targets lie in a tile, and an index [rows, 1] that is safe for the others too."""
    here = (targets >= columns.start) & (targets < columns.stop)
    return here, torch.where(here, targets - columns.start, 0).long()[:, None]


def check_targets_in_range(call: HeadLossCall) -> None:
    """On a CPU, where it costs no synchronisation, refuse targets out of range."""
    is_read = call.targets.device.type == "cpu" and not torch.compiler.is_compiling()
    if is_read and outside(call.targets, 0, call.weight[0].shape[0], call.ignore_index).any():
        raise IndexError("target out of range")


def row_shares(call: HeadLossCall, dtype: torch.dtype) -> Tensor:
    """By how much each row counts in the loss, [N]."""
    kept = call.targets != call.ignore_index
    counts = kept.to(dtype)
    return counts / kept.sum().clamp(min=1) if call.reduction == "mean" else counts


def differentiated(call: HeadsCall) -> bool:
    """Will autograd ask for any gradient of the heads?"""
    return needs_gradient(*call.h, *call.weight, call.bias)


def parts_of(count: int, size: int) -> list[slice]:
    """Runs of `size` that cover the first `count` of something; the last may be shorter."""
    return [slice(start, min(start + size, count)) for start in range(0, count, max(size, 1))]


def part(x: Tensor, run: slice) -> Tensor:
    """x[run]; x itself where that is all, which costs the host nothing."""
    return x if run.stop - run.start == x.shape[0] else x[run]


def tiles_of(
    call: HeadsCall, height: int, width: int, dtype: torch.dtype
) -> Iterator[tuple[slice, slice, Tensor]]:
    """Some rows and columns, and memory for their logits, which those of the next will take over.

    All columns of the first rows come first, then those of the next rows.
    """
    memory = call.h[0].new_empty(height, width, dtype=dtype)
    for rows in parts_of(call.h[0].shape[0], height):
        for columns in parts_of(call.weight[0].shape[0], width):
            shape = rows.stop - rows.start, columns.stop - columns.start
            whole = shape == memory.shape
            # A part of it, as close together; asking for all of it would cost the host a little.
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
            # Rounded as the formula's are: a wide copy of the weight would take more than `z`.
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
    """What the gradient of these rows' and columns' logits adds to each gradient that is needed.

    Args:
        dz: [rows, columns], rounded to the heads' dtype for the products; may be overwritten.
        factor: [rows], still to be multiplied into `dz`; multiplied into the smaller h and dh where
            nothing is rounded.
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
    """total += a · b, or total = a · b for the first of them.

    A float32 total of half-precision products is not rounded to half precision on the way.
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
    """Whether this torch adds half-precision products to a float32 matrix in one call."""
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
    """`differentiable` of core/registration.py, for a call on heads, whose tensors are in lists.

    With `create_graph=True` it raises at once: gradients that are made beside the loss depend on
    nothing that could say so later.

    Args:
        backward: gives the gradients of `tensors(call)`.
    """

    def run_forward(ctx: Any, *values: Any) -> Any:
        *flat, count = values
        return forward(ctx, record(flat[:count], flat[count : 2 * count], *flat[2 * count :]))

    def run_backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        refuse_double_backward(operation)
        found = backward(ctx, *gradients)
        return (*found, *[None] * (len(ctx.needs_input_grad) - len(found)))

    members = {"forward": staticmethod(run_forward), "backward": staticmethod(run_backward)}
    function: Any = type("DifferentiableHeads", (torch.autograd.Function,), members)
    return lambda h, weight, *rest: function.apply(*distinct((*h, *weight, *rest)), len(h))


def beside_its_gradients(
    operation: str,
    record: type[Any],
    operator: Callable[..., tuple[Tensor, list[Tensor]]],
    reduce: Callable[[Tensor, Any], Tensor],
) -> Callable[[Any], Tensor]:
    """A loss whose gradients are ready when it is; that of the loss itself is multiplied in later.

    Args:
        operator: gives, of `(*call, needs)`, the rows' losses, and the gradients of the loss that
            is asked for by `tensors(call)`; empty ones for those not needed.
        reduce: gives that loss, of `(losses, call)`. Single rows' losses get no gradients.
    """

    def forward(ctx: Any, call: Any) -> Tensor:
        losses, gradients = operator(*call, list(ctx.needs_input_grad[: len(tensors(call))]))
        ctx.save_for_backward(*gradients)
        return reduce(losses, call)

    def backward(ctx: Any, grad: Tensor) -> list[Tensor | None]:
        # Autograd rounds them to the dtypes of their tensors.
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
    """What an operator gives that makes rows' losses, and the gradients of the loss asked for."""
    return empty_terms(terms_call(call))[0], empty_gradients(call, needs)


def like_gradients(call: LseGradientCall) -> list[Tensor]:
    """What an operator gives for its backward pass."""
    return empty_gradients(call, call.needs)


def differentiable_terms(forward: Callable[..., Any], backward: Callable[..., Any]) -> Any:
    """`linear_lse_gather` by two operators, of an `LseCall` and of an `LseGradientCall`.

    Kept are the inputs and one number a row; the backward pass makes the logits again, a part at a
    time. With p = softmax(z) their gradient is

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
