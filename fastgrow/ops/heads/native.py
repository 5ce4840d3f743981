"""`linear_kl` on a GPU: the library's products, and the extension's passes over their logits.

Where `chunked` takes some ten passes of torch's over the logits of student and teachers, the
extension takes two (csrc/cuda/logit_kl.cu): one for the losses, one that turns the student's logits
into their gradient where they are. Products stay the library's.
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
    beside_its_gradients,
    differentiated,
    parts_of,
)

MAX_TEACHERS = 64
# Logits of one model at a time: 128 MiB in half precision, of rows enough for efficient products.
CHUNK_ELEMENTS = 1 << 26
# What a block leaves of a part of a row (`Divergence` in logit_kl.cu).
_DIVERGENCE_BYTES = 24


def can_serve(call: KlCall) -> Answer:
    """Whether the extension can serve a call."""
    h, extension = call.h[0], extension_of(call.h[0])
    if not on_gpu(h):
        return False, f"it has no kernel for {h.device.type} tensors"
    if autocast_dtype(call) == torch.float64:
        return False, "it has no kernel for float64 on a GPU"
    if len(call.teacher_h) > MAX_TEACHERS:
        return False, f"it takes at most {MAX_TEACHERS} teachers, got {len(call.teacher_h)}"
    answer = chunked.can_differentiate(call)
    return answer if extension.loaded or not answer[0] else (False, extension.reason)


def pays(call: KlCall) -> Answer:
    """Whether the automatic choice should take it: see `native_pays`."""
    return native_pays("linear_kl", call.h, differentiated(call))


@operator(chunked.like_kl)
def native_linear_kl(call: KlCall, needs: list[bool]) -> tuple[Tensor, list[Tensor]]:
    """Each row's loss, and the gradients of the sum of those that count, some rows at a time."""
    losses, gradients = chunked.like_kl(call, needs)
    vocabulary, T = call.weight[0].shape[0], call.temperature
    # Filled where it is: a copy from the host waits for the device.
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


_kl = beside_its_gradients("linear_kl", KlCall, native_linear_kl, chunked.rows_or_sum)

linear_kl = functools.partial(chunked.linear_kl, kl=_kl)
