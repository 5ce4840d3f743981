"""How far one linear head's predictions are from those of a teacher, for distillation.

    z_n = h_n · weightᵀ + bias                                       the student's logits
    t_n = Σ_k w_k · (h_k,n · weight_kᵀ + bias_k)                     the teacher's, of K heads
    p   = softmax(t / T),  q = softmax(z / T)
    loss_n = T² · Σ_v p_v · (log p_v − log q_v)                      T² · KL(p ‖ q), in nats

with T the temperature; T² keeps the size of gradients (Hinton et al. 2015, arXiv 1503.02531, §2).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastgrow.errors import argument_error, describe
from fastgrow.ops.core.checks import check_float, check_like
from fastgrow.ops.core.dispatch import Answer
from fastgrow.ops.core.dtypes import has_autocast
from fastgrow.ops.core.legacy import Operation
from fastgrow.ops.core.products import accumulate
from fastgrow.ops.core.registration import refuse_double_backward

Head = tuple[Tensor, Tensor, Tensor | None]
REDUCTIONS = ("mean", "sum", "none")


def linear_kl(
    h: Tensor,
    weight: Tensor,
    teacher: Sequence[Head],
    bias: Tensor | None = None,
    *,
    teacher_weights: Sequence[float] | None = None,
    counts: Tensor | None = None,
    temperature: float = 1.0,
    reduction: str = "mean",
    impl: str | None = None,
) -> Tensor:
    """Divergence of a student's predictions from a teacher's; only the student gets gradients.

    Args:
        h: [..., d] float, the student's hidden states.
        weight: [V, d].
        teacher: K heads (h_k [..., d_k], weight_k [V, d_k], bias_k [V] or None), whose weighted
            logits teach; of the student's dtype and device.
        bias: [V], optional.
        teacher_weights: w_k; 1/K each without.
        counts: [...] bool, which rows count; all without.
        temperature: T > 0.
        reduction: `mean` over the rows that count (NaN if none does), `sum`, or `none`.
        impl: force an implementation.

    Returns:
        A scalar, or the leading shape of `h` for `none`; float32 for half-precision inputs.

    Raises:
        ArgumentError: an option out of range, or shapes, dtypes or devices that do not go together.
    """
    name = "linear_kl"
    if reduction not in REDUCTIONS:
        raise argument_error(name, "reduction", f"one of {', '.join(REDUCTIONS)}", repr(reduction))
    if not temperature > 0:
        raise argument_error(name, "temperature", "above 0", temperature)
    check_float(name, "h", h)
    if h.dim() == 0:
        raise argument_error(name, "h", "of shape [..., d]", describe(h))
    if weight.dim() != 2 or weight.shape[1] != h.shape[-1]:
        raise argument_error(name, "weight", f"of shape [V, {h.shape[-1]}]", describe(weight))
    check_like(name, "weight", weight, tuple(weight.shape), h)
    check_like(name, "bias", bias, (weight.shape[0],), weight)
    if not teacher:
        raise argument_error(name, "teacher", "at least one head", "none")
    shares = [1 / len(teacher)] * len(teacher) if teacher_weights is None else [*teacher_weights]
    if len(shares) != len(teacher):
        raise argument_error(name, "teacher_weights", f"{len(teacher)} numbers", len(shares))
    for k, (hidden, head, head_bias) in enumerate(teacher):
        if hidden.dim() == 0:
            raise argument_error(name, f"teacher[{k}][0]", "of shape [..., d_k]", describe(hidden))
        check_like(name, f"teacher[{k}][0]", hidden, (*h.shape[:-1], hidden.shape[-1]), h)
        check_like(name, f"teacher[{k}][1]", head, (weight.shape[0], hidden.shape[-1]), hidden)
        check_like(name, f"teacher[{k}][2]", head_bias, (weight.shape[0],), head)
    if counts is not None and (counts.shape != h.shape[:-1] or counts.dtype != torch.bool):
        raise argument_error(
            name, "counts", f"a bool tensor {list(h.shape[:-1])}", describe(counts)
        )
    result: Tensor = _OPERATION(
        h, weight, bias, [*teacher], shares, counts, float(temperature), reduction, impl=impl
    )
    return result


def _example(device: torch.device) -> tuple[tuple[Any, ...], dict[str, Any]]:
    h, weight = torch.zeros(2, 32, device=device), torch.zeros(64, 32, device=device)
    return (h, weight, None, [(h, weight, None)], [1.0], None, 1.0, "mean"), {}


_OPERATION = Operation("linear_kl", example=_example)


@_OPERATION.implementation("eager")
def linear_kl_eager(
    h: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    teacher: list[Head],
    teacher_weights: list[float],
    counts: Tensor | None,
    temperature: float,
    reduction: str,
) -> Tensor:
    """The formula, as it stands: all logits are in memory at once, the teacher's too."""
    with torch.no_grad():
        heads = zip(teacher, teacher_weights, strict=True)
        merged = sum(_wide(F.linear(*head)) * w for head, w in heads)
        log_p = F.log_softmax(merged / temperature, -1)  # type: ignore[arg-type]
        p = log_p.exp()
    log_q = F.log_softmax(_wide(F.linear(h, weight, bias)) / temperature, -1)
    # Where p is 0 its logarithm is −inf, and the term is 0.
    losses = (torch.where(p > 0, log_p - log_q, 0) * p).sum(-1)
    return _reduce(temperature**2 * losses, counts, reduction)


def _wide(logits: Tensor) -> Tensor:
    return logits if logits.dtype == torch.float64 else logits.float()


def _reduce(losses: Tensor, counts: Tensor | None, reduction: str) -> Tensor:
    if counts is not None:
        losses = torch.where(counts, losses, 0)
    if reduction == "none":
        return losses
    total = losses.sum()
    if reduction == "sum":
        return total
    return total / (losses.numel() if counts is None else counts.sum())


# Logits held at a time, for student and teacher each: 32 MB in float32.
_CHUNK_ELEMENTS, _MIN_ROWS, _MAX_ROWS = 1 << 23, 16, 256

torch.library.define(
    "fastgrow::linear_kl_chunked",
    "(Tensor h, Tensor weight, Tensor? bias, Tensor[] teacher_h, Tensor[] teacher_weight, "
    "Tensor?[] teacher_bias, float[] teacher_weights, Tensor scale, float temperature, "
    "bool need_dh, bool need_dweight, bool need_dbias) -> (Tensor, Tensor, Tensor, Tensor)",
)


@torch.library.impl("fastgrow::linear_kl_chunked", ("CPU", "CUDA"))
def _chunked(
    h: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    teacher_h: list[Tensor],
    teacher_weight: list[Tensor],
    teacher_bias: list[Tensor | None],
    teacher_weights: list[float],
    scale: Tensor,
    temperature: float,
    need_dh: bool,
    need_dweight: bool,
    need_dbias: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Each row's loss, and the gradients of Σ_n scale_n · loss_n, some rows of logits at a time.

    dz_n = scale_n · T · (q_n − p_n) is at hand when the loss is.
    """
    losses, dh, dweight, dbias = _outputs(
        h, weight, bias, teacher_h, teacher_weight, teacher_bias, teacher_weights, scale,
        temperature, need_dh, need_dweight, need_dbias,
    )  # fmt: skip
    dweight.zero_()
    dbias.zero_()
    n, vocabulary = h.shape[0], weight.shape[0]
    rows = max(_MIN_ROWS, min(_MAX_ROWS, _CHUNK_ELEMENTS // max(vocabulary, 1)))
    for start in range(0, n, rows):
        part = slice(start, start + rows)
        some = h[part]
        q = _wide(F.linear(some, weight, bias)).div_(temperature).log_softmax(-1)
        merged = torch.zeros_like(q)
        heads = zip(teacher_h, teacher_weight, teacher_bias, teacher_weights, strict=True)
        for hidden, head, head_bias, share in heads:
            merged.add_(_wide(F.linear(hidden[part], head, head_bias)), alpha=share)
        log_p = merged.div_(temperature).log_softmax(-1)
        p = log_p.exp()
        terms = torch.where(p > 0, log_p.sub_(q), 0).mul_(p)
        losses[part] = temperature**2 * terms.sum(-1)
        if not (need_dh or need_dweight or need_dbias):
            continue
        dz = q.exp_().sub_(p).mul_(temperature * scale[part, None])
        if need_dbias:
            dbias += dz.sum(0)
        narrow = dz.to(h.dtype)
        if need_dh:
            torch.mm(narrow, weight, out=dh[part])
        if need_dweight:
            accumulate(dweight, narrow.T, some, first=False)
    return losses, dh, dweight, dbias


@torch.library.register_fake("fastgrow::linear_kl_chunked")
def _outputs(
    h: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    teacher_h: list[Tensor],
    teacher_weight: list[Tensor],
    teacher_bias: list[Tensor | None],
    teacher_weights: list[float],
    scale: Tensor,
    temperature: float,
    need_dh: bool,
    need_dweight: bool,
    need_dbias: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    # An operator returns the same number of tensors always; gradients not asked for are empty.
    wide = torch.float64 if h.dtype == torch.float64 else torch.float32
    return (
        h.new_empty(h.shape[0], dtype=wide),
        h.new_empty(h.shape if need_dh else (0,)),
        h.new_empty(weight.shape if need_dweight else (0,), dtype=wide),
        h.new_empty(weight.shape[:1] if need_dbias else (0,), dtype=wide),
    )


class _ChunkedLoss(torch.autograd.Function):
    """Σ_n scale_n · loss_n; its gradients are ready when it returns."""

    @staticmethod
    def forward(
        ctx: Any, h: Tensor, weight: Tensor, bias: Tensor | None, scale: Tensor, *rest: Any
    ) -> Tensor:
        teacher, shares, temperature = rest
        needs = ctx.needs_input_grad
        losses, *gradients = _run(
            h, weight, bias, teacher, shares, scale, temperature, (needs[0], needs[1], needs[2])
        )
        ctx.save_for_backward(*gradients)
        ctx.dtypes = (h.dtype, weight.dtype, weight.dtype)
        # A row that does not count may hold anything.
        return torch.where(scale != 0, losses * scale, 0).sum()

    @staticmethod
    def backward(ctx: Any, *grad: Tensor) -> tuple[Tensor | None, ...]:
        refuse_double_backward("linear_kl")
        gradients = [
            (gradient * grad[0]).to(dtype) if needed else None
            for gradient, dtype, needed in zip(
                ctx.saved_tensors, ctx.dtypes, ctx.needs_input_grad[:3], strict=True
            )
        ]
        return (*gradients, None, None, None, None)


def _run(
    h: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    teacher: list[Head],
    shares: list[float],
    scale: Tensor,
    temperature: float,
    needs: tuple[bool, bool, bool],
) -> tuple[Tensor, ...]:
    hidden = [head[0].reshape(-1, head[0].shape[-1]).detach() for head in teacher]
    outputs: tuple[Tensor, ...] = torch.ops.fastgrow.linear_kl_chunked(
        h, weight, bias, hidden, [head[1].detach() for head in teacher],
        [None if head[2] is None else head[2].detach() for head in teacher],
        shares, scale, temperature, *needs,
    )  # fmt: skip
    return outputs


def _may_chunk(
    h: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    teacher: list[Head],
    teacher_weights: list[float],
    counts: Tensor | None,
    temperature: float,
    reduction: str,
) -> Answer:
    if reduction == "none" and _needs_grad(h, weight, bias):
        return False, "gradients of single rows' losses are not served"
    return True, ""


@_OPERATION.implementation("vendor", verify=_may_chunk)
def linear_kl_vendor(
    h: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    teacher: list[Head],
    teacher_weights: list[float],
    counts: Tensor | None,
    temperature: float,
    reduction: str,
) -> Tensor:
    """The library's products on some rows at a time; no logits are ever in memory at once."""
    h, weight, bias = _under_autocast(h, weight, bias)
    teacher = [_under_autocast(*head) for head in teacher]
    rows = h.reshape(-1, h.shape[-1])
    wide = torch.float64 if h.dtype == torch.float64 else torch.float32
    every = h.new_ones(rows.shape[0], dtype=wide)
    scale = every if counts is None else counts.reshape(-1).to(wide)
    if reduction == "none":
        losses, *_ = _run(
            rows, weight, bias, teacher, teacher_weights, scale, temperature, (False,) * 3
        )
        return _reduce(losses.view(h.shape[:-1]), counts, reduction)
    total: Tensor = _ChunkedLoss.apply(
        rows, weight, bias, scale, teacher, teacher_weights, temperature
    )
    if reduction == "sum":
        return total
    # Divided last: without a row that counts it is 0 / 0, as in `_reduce`.
    return total / (rows.shape[0] if counts is None else counts.sum())


def _under_autocast(h: Tensor, weight: Tensor, bias: Tensor | None) -> Head:
    """A head in autocast's dtype where it is on; it leaves float64 alone, as for F.linear."""
    kind = h.device.type
    if not (has_autocast(kind) and torch.is_autocast_enabled(kind)):
        return h, weight, bias
    dtype = torch.get_autocast_dtype(kind)

    def cast(tensor: Tensor) -> Tensor:
        return tensor if tensor.dtype == torch.float64 else tensor.to(dtype)

    return cast(h), cast(weight), None if bias is None else cast(bias)


def _needs_grad(*tensors: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
