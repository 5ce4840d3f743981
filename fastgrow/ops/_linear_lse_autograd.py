"""Gradients of `linear_lse_gather`, for whichever kernels make its products.

A backend is a pair of torch.library operators `fastgrow::linear_lse_<backend>` and
`fastgrow::linear_lse_<backend>_backward`. With p = softmax(z) the logits' gradient is

    dz_nv = dlse_n · p_nv + dmean_n / V + dtarget_n · [v = target_n]

and the backward pass makes the logits again, a part at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastgrow.ops._heads import Heads
from fastgrow.ops.core.registration import refuse_double_backward

_library = torch.library.Library("fastgrow", "FRAGMENT")

Forward = Callable[..., tuple[Tensor, Tensor, Tensor]]
Backward = Callable[..., list[Tensor]]


def register(backend: str, forward: Forward, backward: Backward) -> None:
    """Define a backend's two operators.

    Args:
        backend: its name in the operators' names.
        forward: `(heads, targets, with_mean)` to lse, target logit and mean logit (or an empty
            tensor).
        backward: `(heads, targets, lse, dlse, dtarget, dmean, needs)` to the gradients in the order
            of `needs`: each h, each weight, the bias; empty ones for those not needed.
    """
    name = f"linear_lse_{backend}"
    _library.define(
        f"{name}(Tensor[] h, Tensor[] weight, Tensor? bias, Tensor targets, bool with_mean) -> "
        "(Tensor, Tensor, Tensor)"
    )
    _library.define(
        f"{name}_backward(Tensor[] h, Tensor[] weight, Tensor? bias, Tensor targets, Tensor lse, "
        "Tensor dlse, Tensor dtarget, Tensor? dmean, bool[] needs) -> Tensor[]"
    )

    def run_forward(
        h: list[Tensor], weight: list[Tensor], bias: Tensor | None, *rest: Any
    ) -> tuple[Tensor, Tensor, Tensor]:
        return forward(Heads(h, weight, bias), *rest)

    def run_backward(
        h: list[Tensor], weight: list[Tensor], bias: Tensor | None, *rest: Any
    ) -> list[Tensor]:
        return backward(Heads(h, weight, bias), *rest)

    for key in ("CPU", "CUDA"):
        _library.impl(name, run_forward, key)
        _library.impl(f"{name}_backward", run_backward, key)
    torch.library.register_fake(f"fastgrow::{name}", _fake_forward, lib=_library)
    torch.library.register_fake(f"fastgrow::{name}_backward", _fake_backward, lib=_library)


def empty_terms(h: Tensor, with_mean: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Room for lse, target logit and mean logit."""
    dtype = torch.float64 if h.dtype == torch.float64 else torch.float32
    n = h.shape[0]
    lse, target, mean = (h.new_empty(size, dtype=dtype) for size in (n, n, n if with_mean else 0))
    return lse, target, mean


def empty_gradients(heads: Heads, needs: list[bool]) -> list[Tensor]:
    """Room for the gradients that are needed; an operator returns as many tensors always."""
    return [
        x.new_empty(x.shape if needed else (0,))
        for x, needed in zip(heads.tensors(), needs, strict=True)
    ]


def _fake_forward(
    h: list[Tensor], weight: list[Tensor], bias: Tensor | None, targets: Tensor, with_mean: bool
) -> tuple[Tensor, Tensor, Tensor]:
    return empty_terms(h[0], with_mean)


def _fake_backward(
    h: list[Tensor], weight: list[Tensor], bias: Tensor | None, *rest: Any
) -> list[Tensor]:
    return empty_gradients(Heads(h, weight, bias), rest[-1])


def terms(
    backend: str, heads: Heads, targets: Tensor, with_mean: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Run a backend, with gradients where they are needed."""
    if heads.need_grad():
        found: tuple[Tensor, Tensor, Tensor] = _Terms.apply(
            backend, targets, with_mean, len(heads.h), *heads.tensors()
        )
        return found
    operator = getattr(torch.ops.fastgrow, f"linear_lse_{backend}")
    return operator(heads.h, heads.weight, heads.bias, targets, with_mean)


def heads_from(tensors: tuple[Tensor, ...] | list[Tensor], count: int) -> Heads:
    """The inverse of `Heads.tensors`."""
    bias = tensors[2 * count] if len(tensors) > 2 * count else None
    return Heads(list(tensors[:count]), list(tensors[count : 2 * count]), bias)


class _Terms(torch.autograd.Function):
    """Keeps the inputs and one number a row."""

    @staticmethod
    def forward(
        ctx: Any, backend: str, targets: Tensor, with_mean: bool, count: int, *tensors: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        heads = heads_from(tensors, count)
        operator = getattr(torch.ops.fastgrow, f"linear_lse_{backend}")
        lse, target, mean = operator(heads.h, heads.weight, heads.bias, targets, with_mean)
        ctx.save_for_backward(targets, lse, *tensors)
        ctx.backend, ctx.with_mean, ctx.count = backend, with_mean, count
        return lse, target, mean

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        refuse_double_backward("linear_lse_gather")
        dlse, dtarget, dmean = gradients
        targets, lse, *tensors = ctx.saved_tensors
        heads = heads_from(tensors, ctx.count)
        needs = list(ctx.needs_input_grad[4:])
        operator = getattr(torch.ops.fastgrow, f"linear_lse_{ctx.backend}_backward")
        found = operator(
            *(heads.h, heads.weight, heads.bias, targets, lse),
            *(dlse.contiguous(), dtarget.contiguous()),
            dmean.contiguous() if ctx.with_mean else None,
            needs,
        )
        return (
            *(None, None, None, None),
            *(g if needed else None for g, needed in zip(found, needs, strict=True)),
        )
