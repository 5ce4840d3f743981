"""The Triton implementation of `lora_linear`: when it serves, its ops and its gradients."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastgrow.ops.core import triton_support
from fastgrow.ops.core.dispatch import Answer
from fastgrow.ops.core.registration import refuse_double_backward

# Beside cuBLAS's product, adding the low-rank one reads and writes the output once more. With F the
# speed of the product, W that of the memory and K the contracted width, this takes 2 · F / (K · W)
# of the product's time: about 300 / K on an H200 in bf16, by its data sheet. A portable kernel may
# give up a fifth of the product's speed.
MAX_WIDTH, MAX_RANK = 1024, 64
# Fewer tiles of 128 x 128 than an H200 has multiprocessors leave some of them idle, where cuBLAS
# splits the contraction.
MIN_OUTPUT = 132 * 128 * 128


def is_frozen(
    x: Tensor, weight: Tensor, a: Tensor, b: Tensor, bias: Tensor | None, scale: float
) -> Answer:
    """Whether the layer under the low-rank part asks for no gradient."""
    trains = weight.requires_grad or (bias is not None and bias.requires_grad)
    if torch.is_grad_enabled() and trains:
        return False, "weight or bias requires a gradient, which eager alone gives"
    return True, ""


def _under_autocast(
    x: Tensor, weight: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The layer's tensors in autocast's dtype, where it is on; it leaves float64 alone."""
    kind = x.device.type
    if not torch.is_autocast_enabled(kind) or x.dtype == torch.float64:
        return x, weight, bias
    dtype = torch.get_autocast_dtype(kind)
    return x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)


def can_serve(
    x: Tensor, weight: Tensor, a: Tensor, b: Tensor, bias: Tensor | None, scale: float
) -> Answer:
    """The verifier."""
    ok, reason = triton_support.can_run(x)
    return is_frozen(x, weight, a, b, bias, scale) if ok else (ok, reason)


def pays(
    x: Tensor, weight: Tensor, a: Tensor, b: Tensor, bias: Tensor | None, scale: float
) -> Answer:
    """Where the pass over the output that is saved outweighs cuBLAS: by reasoning, not measured."""
    ok, reason = triton_support.pays_on(x)
    if not ok:
        return False, reason
    if _under_autocast(x, weight, bias)[0].dtype == torch.float32:
        return False, "cuBLAS's float32 products are faster"
    width, rank = weight.shape[1], a.shape[0]
    if width % 16 or weight.shape[0] % 16:
        return False, "widths that are no multiples of 16 load slowly"
    if torch.is_grad_enabled() and x.requires_grad:
        width = max(width, weight.shape[0])
    if width > MAX_WIDTH:
        return False, f"of products over {width} features the low-rank part is too small a share"
    if rank > MAX_RANK:
        return False, f"a low-rank part of rank {rank} is no small addition"
    if x.numel() // max(x.shape[-1], 1) * weight.shape[0] < MIN_OUTPUT:
        return False, "the output has too few tiles for the GPU"
    return True, "the low-rank part costs no pass over the output"


def lora_linear_triton(
    x: Tensor, weight: Tensor, a: Tensor, b: Tensor, bias: Tensor | None, scale: float
) -> Tensor:
    """The kernels of fastgrow.kernels.lora."""
    x, weight, bias = _under_autocast(x, weight, bias)
    rows = x.reshape(-1, x.shape[-1])
    y: Tensor
    if torch.is_grad_enabled() and (x.requires_grad or a.requires_grad or b.requires_grad):
        needed = (x.requires_grad, a.requires_grad, b.requires_grad)
        y = _LoraLinear.apply(rows, weight, a, b, bias, scale, needed)
    else:
        y, _ = torch.ops.fastgrow.lora_linear_forward(rows, weight, a, b, bias, scale)
    return y.view(*x.shape[:-1], weight.shape[0])


_library = torch.library.Library("fastgrow", "FRAGMENT")
_library.define(
    "lora_linear_forward(Tensor x, Tensor weight, Tensor a, Tensor b, Tensor? bias, float scale) "
    "-> (Tensor, Tensor)"
)
_library.define(
    "lora_linear_backward(Tensor dy, Tensor? x, Tensor? u, Tensor? weight, Tensor a, Tensor b, "
    "float scale) -> (Tensor, Tensor, Tensor)"
)


def _forward(
    x: Tensor, weight: Tensor, a: Tensor, b: Tensor, bias: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    from fastgrow.kernels.lora import forward

    return forward(x, weight, a, b, bias, scale)


def _backward(
    dy: Tensor,
    x: Tensor | None,
    u: Tensor | None,
    weight: Tensor | None,
    a: Tensor,
    b: Tensor,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    from fastgrow.kernels.lora import backward

    dx, da, db = backward(dy, x, u, weight, a, b, scale)
    nothing = _nothing(dy, a)
    return (
        nothing[0] if dx is None else dx,
        nothing[1] if da is None else da,
        nothing[2] if db is None else db,
    )


for _key in ("CPU", "CUDA"):
    _library.impl("lora_linear_forward", _forward, _key)
    _library.impl("lora_linear_backward", _backward, _key)


def _nothing(dy: Tensor, a: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    # An operator returns the same number of tensors always; gradients not asked for are empty.
    return dy.new_empty(0), a.new_empty(0), a.new_empty(0)


@torch.library.register_fake("fastgrow::lora_linear_forward", lib=_library)
def _(
    x: Tensor, weight: Tensor, a: Tensor, b: Tensor, bias: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape[0], weight.shape[0]), x.new_empty(x.shape[0], a.shape[0])


@torch.library.register_fake("fastgrow::lora_linear_backward", lib=_library)
def _(
    dy: Tensor,
    x: Tensor | None,
    u: Tensor | None,
    weight: Tensor | None,
    a: Tensor,
    b: Tensor,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    dx, da, db = _nothing(dy, a)
    if weight is not None:
        dx = dy.new_empty(dy.shape[0], weight.shape[1])
    return (
        dx,
        da if x is None else a.new_empty(a.shape),
        db if u is None else b.new_empty(b.shape),
    )


class _LoraLinear(torch.autograd.Function):
    """Keeps x for a's gradient and u for b's, each only where that is wanted."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        a: Tensor,
        b: Tensor,
        bias: Tensor | None,
        scale: float,
        needed: tuple[bool, bool, bool],
    ) -> Tensor:
        y, u = torch.ops.fastgrow.lora_linear_forward(x, weight, a, b, bias, scale)
        for_x, for_a, for_b = needed
        ctx.save_for_backward(
            x if for_a else None, u if for_b else None, weight if for_x else None, a, b
        )
        ctx.scale = scale
        result: Tensor = y
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        refuse_double_backward("lora_linear")
        (dy,) = gradients
        x, u, weight, a, b = ctx.saved_tensors
        dx, da, db = torch.ops.fastgrow.lora_linear_backward(dy, x, u, weight, a, b, ctx.scale)
        return (
            None if weight is None else dx,
            None,
            None if x is None else da,
            None if u is None else db,
            None,
            None,
            None,
        )
