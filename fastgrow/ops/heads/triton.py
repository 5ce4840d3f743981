"""`linear_lse_gather` with Triton kernels, and `linear_cross_entropy` from its results.

Reduction, z-loss and label smoothing are a formula of [N] numbers, differentiated by autograd; then
follows the backward of `linear_lse_gather`, which recomputes the logits.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastgrow.kernels.calls import HeadLossCall, LseCall, LseGradientCall
from fastgrow.ops.core.registration import launched_by, operator
from fastgrow.ops.heads.heads import (
    add_products,
    differentiable_terms,
    differentiated,
    empty_gradients,
    empty_terms,
    finished,
    in_autocast,
    like_gradients,
    loss_of,
    losses_of,
    terms_call,
    tiles_of,
)

# Gradients of logits that are stored at a time: 128 MB in half precision. Slices of fewer than a
# few thousand tokens would make the products with them inefficient.
SLICE_ELEMENTS, MIN_WORDS = 1 << 26, 2048


def linear_lse_gather(call: LseCall) -> tuple[Tensor, Tensor, Tensor]:
    """Run the kernels of fastgrow.kernels.linear_lse."""
    call = in_autocast(call)
    return (_differentiable if differentiated(call) else linear_lse_triton)(*call)


def linear_cross_entropy(call: HeadLossCall) -> Tensor:
    """Compute the loss from the log-sum-exp of each row and its target's logit."""
    return loss_of(losses_of(linear_lse_gather(terms_call(call)), call), call)


# A function decorated with `launched_by` only makes empty results, for torch.compile; the launcher
# in fastgrow.kernels computes them.
@launched_by("linear_lse.forward")
def linear_lse_triton(call: LseCall) -> tuple[Tensor, Tensor, Tensor]:
    """Return lse, target_logit, and the mean logit or an empty tensor."""
    return empty_terms(call)


@operator(like_gradients)
def linear_lse_triton_backward(call: LseGradientCall) -> list[Tensor]:
    """Compute dz of one slice of the vocabulary at a time, and the products with it.

    A slice has all rows, so its part of dW is one product; dh is a sum over the slices.
    """
    from fastgrow.kernels.linear_lse import logits_gradient, readable

    n, vocabulary = call.h[0].shape[0], call.weight[0].shape[0]
    size = min(vocabulary, max(MIN_WORDS, SLICE_ELEMENTS // max(n, 1) // 256 * 256))
    # In half precision a sum over slices needs a wider dtype than the gradient's.
    gradients = empty_gradients(call, call.needs, of_h=torch.float32 if size < vocabulary else None)
    of_heads = readable(call)
    for rows, words, dz in tiles_of(call, n, size, call.h[0].dtype):
        sums = logits_gradient(of_heads, words.start, dz, with_sums=call.needs[-1])
        # All gradients except the bias's, which the kernel sums up.
        add_products(call, gradients, [*call.needs[:-1], False], rows, words, dz)
        if sums is not None:
            gradients[-1][words] = sums
    return finished(call, gradients)


_differentiable = differentiable_terms(linear_lse_triton, linear_lse_triton_backward)
