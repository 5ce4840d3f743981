"""`linear_kl` on a GPU: cuBLAS matrix products, and the extension's kernels on their logits.

While `chunked` takes about ten passes over the logits of student and teachers, the extension takes
two (csrc/cuda/logit_kl.cu): one for the losses, and one that replaces the student's logits by their
gradient in place.
"""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor

from fastgrow.kernels.calls import KlCall
from fastgrow.ops.core.dispatch import Answer
from fastgrow.ops.core.extension import extension_of, on_gpu, run_extension
from fastgrow.ops.core.measured import native_pays
from fastgrow.ops.core.registration import operator
from fastgrow.ops.heads import chunked
from fastgrow.ops.heads.heads import (
    add_products,
    autocast_dtype,
    differentiated,
    loss_with_gradients,
    parts_of,
)

MAX_TEACHERS = 64
# Logits of one model that are stored at a time: 128 MiB in half precision, with enough rows for
# efficient products.
CHUNK_ELEMENTS = 1 << 26
# Bytes that a thread block writes per part of a row (`Divergence` in logit_kl.cu).
_DIVERGENCE_BYTES = 24


def can_serve(call: KlCall) -> Answer:
    """Whether the extension can serve a call."""
    h, extension = call.h[0], extension_of(call.h[0])
    if not on_gpu(h):
        return False, f"it has no kernel for {h.device.type} tensors"
    if autocast_dtype(call) == torch.float64:
        return False, "it has no kernel for float64 on a GPU"
    if len(call.teacher_h) > MAX_TEACHERS:
        return False, f"it supports at most {MAX_TEACHERS} teachers, got {len(call.teacher_h)}"
    answer = chunked.can_differentiate(call)
    return answer if extension.loaded or not answer[0] else (False, extension.reason)


def pays(call: KlCall) -> Answer:
    """Whether the automatic choice should use it: see `native_pays`."""
    return native_pays("linear_kl", call.h, differentiated(call))


@operator(chunked.like_kl)
def native_linear_kl(call: KlCall, needs: list[bool]) -> tuple[Tensor, list[Tensor]]:
    """Return each row's loss, and the gradients of the sum over the rows that count."""
    losses, gradients = chunked.like_kl(call, needs)
    vocabulary, T = call.weight[0].shape[0], call.temperature
    # Filled on the device: a copy from the host would synchronise.
    scale = torch.stack([losses.new_full((), share / T) for share in call.shares])
    for rows in parts_of(len(losses), max(1, CHUNK_ELEMENTS // vocabulary)):
        z = F.linear(call.h[0][rows], call.weight[0], call.bias)
        teachers = [
            F.linear(h[rows], weight, bias)
            for h, weight, bias in zip(
                call.teacher_h, call.teacher_weight, call.teacher_bias, strict=True
            )
        ]
        log_sums = losses.new_empty(len(z), 2)
        run_extension(
            *("logit_kl_out", teachers, scale, z, 1 / T, losses[rows], log_sums),
            part_bytes=(_DIVERGENCE_BYTES,),
        )
        if any(needs):
            of_rows = T * call.counts[rows].to(losses.dtype)
            run_extension("logit_kl_gradient_", teachers, scale, z, 1 / T, log_sums, of_rows)
            add_products(call, gradients, needs, rows, slice(0, vocabulary), z)
    return losses.mul_(T**2), gradients


_kl = loss_with_gradients("linear_kl", KlCall, native_linear_kl, chunked.rows_or_sum)

linear_kl = functools.partial(chunked.linear_kl, kl=_kl)
