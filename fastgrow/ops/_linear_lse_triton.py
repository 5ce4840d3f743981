"""`linear_lse_gather` by Triton kernels: when they serve, and the products of the backward pass."""

from __future__ import annotations

import torch
from torch import Tensor

from fastgrow.ops import _linear_lse_autograd
from fastgrow.ops._heads import Heads
from fastgrow.ops._linear_lse_autograd import empty_gradients
from fastgrow.ops.core import triton_support
from fastgrow.ops.core.dispatch import Answer
from fastgrow.ops.core.products import accumulate

MAX_HEADS = 8
# Gradients of logits held at a time: 128 MB in half precision. Slices of fewer than some thousand
# words would make the products with them inefficient.
SLICE_ELEMENTS, MIN_WORDS = 1 << 26, 2048


def can_serve(heads: Heads, targets: Tensor, with_mean: bool) -> Answer:
    """The verifier."""
    ok, reason = triton_support.can_run(heads.h[0])
    if not ok:
        return False, reason
    if len(heads.h) > MAX_HEADS:
        return False, f"it takes at most {MAX_HEADS} products, got {len(heads.h)}"
    return True, ""


def pays(heads: Heads, targets: Tensor, with_mean: bool) -> Answer:
    """By reasoning, not measured: half-precision products run on the matrix units.

    Rows that load slowly, at no multiple of 16 elements, do so too: all logits are the alternative.
    """
    ok, reason = triton_support.pays_on(heads.h[0])
    if ok and heads.autocast_dtype == torch.float32:
        return False, "the library's float32 products are faster"
    return ok, reason


def linear_lse_gather_triton(
    heads: Heads, targets: Tensor, with_mean: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The kernels of fastgrow.kernels.linear_lse."""
    return _linear_lse_autograd.terms("triton", heads.autocast(), targets, with_mean)


def _forward(heads: Heads, targets: Tensor, with_mean: bool) -> tuple[Tensor, Tensor, Tensor]:
    from fastgrow.kernels.linear_logits import product
    from fastgrow.kernels.linear_lse import forward

    pairs = product(heads.h, heads.weight, heads.bias)
    return forward(pairs, targets.contiguous(), with_mean=with_mean)


def _backward(
    heads: Heads,
    targets: Tensor,
    lse: Tensor,
    dlse: Tensor,
    dtarget: Tensor,
    dmean: Tensor | None,
    needs: list[bool],
) -> list[Tensor]:
    """dz of a slice of the vocabulary, and the products with it.

    A slice has all rows, so its part of dW is one product; dh is a sum over the slices.
    """
    from fastgrow.kernels.linear_logits import product
    from fastgrow.kernels.linear_lse_backward import logits_gradient

    gradients = empty_gradients(heads, needs)
    n, vocabulary, count = heads.rows, heads.vocabulary, len(heads.h)
    if n == 0:
        for gradient in gradients:
            gradient.zero_()
        return gradients
    pairs = product(heads.h, heads.weight, heads.bias)
    needs_bias = heads.bias is not None and needs[-1]
    size = min(vocabulary, max(MIN_WORDS, SLICE_ELEMENTS // n // 256 * 256))
    workspace = heads.h[0].new_empty(n * size)
    # In half precision a sum over slices needs a wider place than the gradient's.
    wide = torch.float32 if size < vocabulary else heads.dtype
    totals = {k: torch.empty_like(gradients[k], dtype=wide) for k in range(count) if needs[k]}
    for first in range(0, vocabulary, size):
        words = slice(first, min(first + size, vocabulary))
        width = words.stop - first
        dz = workspace[: n * width].view(n, width)
        sums = logits_gradient(
            *(pairs, targets.contiguous(), lse, dlse, dtarget, dmean, first, dz),
            with_sums=needs_bias,
        )
        for k, total in totals.items():
            accumulate(total, dz, heads.weight[k][words], first=first == 0)
        for k in range(count):
            if needs[count + k]:
                torch.mm(dz.T, heads.h[k], out=gradients[count + k][words])
        if sums is not None:
            gradients[-1][words] = sums
    for k, total in totals.items():
        gradients[k] = total.to(heads.dtype)
    return gradients


_linear_lse_autograd.register("triton", _forward, _backward)
