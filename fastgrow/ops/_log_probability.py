"""The log-probability that averaged logits give to targets, natively and with gradients.

Forward and backward read every expert's logits once. Between them one log-sum-exp a row is kept.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastgrow.ops._experts import row_factors, verify_native, verify_native_constant
from fastgrow.ops.core.dispatch import Answer
from fastgrow.ops.core.registration import refuse_double_backward


def verify_log_probability(logits: list[Tensor], scale: Tensor) -> Answer:
    """Whether the extension serves it: on a GPU without gradients."""
    if logits[0].device.type == "cuda":
        return verify_native_constant(logits, scale, devices=("cuda",))
    return verify_native(logits)


def log_probability(
    operation: str, logits: list[Tensor], scale: Tensor, targets: Tensor, ignore_index: int | None
) -> Tensor:
    """log softmax(mean)[target], the shape of `targets`; zero for targets of `ignore_index`.

    Raises:
        IndexError: a target is out of range.
    """
    result: Tensor = _LogProbability.apply(operation, scale, targets.long(), ignore_index, *logits)
    return result


_library = torch.library.Library("fastgrow", "FRAGMENT")
_library.define(
    "mean_log_probability(Tensor[] logits, Tensor scale, Tensor targets, int? ignore_index) "
    "-> (Tensor, Tensor)"
)
_library.define(
    "mean_log_probability_backward(Tensor[] logits, Tensor scale, Tensor targets, "
    "Tensor log_sums, Tensor gradient, int? ignore_index, bool need_scale, bool[] need_logits) "
    "-> (Tensor, Tensor[])"
)
_library.define("mean_log_sum_exp(Tensor[] logits, Tensor scale) -> Tensor")


@torch.library.register_fake("fastgrow::mean_log_sum_exp", lib=_library)
def _log_sums(logits: list[Tensor], scale: Tensor) -> Tensor:
    return scale.new_empty(logits[0].shape[:-1])


@torch.library.register_fake("fastgrow::mean_log_probability", lib=_library)
def _rows(
    logits: list[Tensor], scale: Tensor, targets: Tensor, ignore_index: int | None
) -> tuple[Tensor, Tensor]:
    return scale.new_empty(targets.shape), scale.new_empty(targets.shape)


@torch.library.register_fake("fastgrow::mean_log_probability_backward", lib=_library)
def _gradients(
    logits: list[Tensor],
    scale: Tensor,
    targets: Tensor,
    log_sums: Tensor,
    gradient: Tensor,
    ignore_index: int | None,
    need_scale: bool,
    need_logits: list[bool],
) -> tuple[Tensor, list[Tensor]]:
    # An operator returns the same tensors always; the factors' gradient not asked for is empty.
    d_scale = scale.new_empty(scale.shape if need_scale else (0,))
    wanted = [x for x, needed in zip(logits, need_logits, strict=True) if needed]
    return d_scale, [x.new_empty(x.shape) for x in wanted]


def _log_sum_exp_cpu(logits: list[Tensor], scale: Tensor) -> Tensor:
    log_sums = _log_sums(logits, scale)
    torch.ops.fastgrow_native.mean_log_probability_out(
        logits, row_factors(scale), None, log_sums, None
    )
    return log_sums


def _forward_cpu(
    logits: list[Tensor], scale: Tensor, targets: Tensor, ignore_index: int | None
) -> tuple[Tensor, Tensor]:
    outside = (targets < 0) | (targets >= logits[0].shape[-1])
    if ignore_index is not None:
        outside &= targets != ignore_index
    if bool(outside.any()):
        raise IndexError("target out of range")
    log_probabilities, log_sums = _rows(logits, scale, targets, ignore_index)
    torch.ops.fastgrow_native.mean_log_probability_out(
        logits, row_factors(scale), _indices(targets, ignore_index), log_sums, log_probabilities
    )
    return log_probabilities, log_sums


def _backward_cpu(
    logits: list[Tensor],
    scale: Tensor,
    targets: Tensor,
    log_sums: Tensor,
    gradient: Tensor,
    ignore_index: int | None,
    need_scale: bool,
    need_logits: list[bool],
) -> tuple[Tensor, list[Tensor]]:
    d_scale, d_logits = _gradients(
        logits, scale, targets, log_sums, gradient, ignore_index, need_scale, need_logits
    )
    # By row always; factors that all rows share get the sum.
    d_rows = scale.new_empty(targets.numel(), len(logits)) if need_scale else None
    torch.ops.fastgrow_native.mean_log_probability_backward_out(
        logits,
        row_factors(scale),
        _indices(targets, ignore_index),
        log_sums,
        gradient.contiguous(),
        d_logits,
        [k for k, needed in enumerate(need_logits) if needed],
        d_rows,
    )
    if d_rows is not None:
        d_scale.copy_(d_rows.sum(0) if scale.dim() == 1 else d_rows.view(scale.shape))
    return d_scale, d_logits


def _indices(targets: Tensor, ignore_index: int | None) -> Tensor:
    """Targets as the extension takes them: contiguous, −1 where there is none."""
    if ignore_index is not None:
        targets = targets.masked_fill(targets == ignore_index, -1)
    return targets.contiguous()


def row_parts(logits: list[Tensor], itemsize: int) -> Tensor:
    """Memory for what the blocks of a GPU's first kernel leave to the second, in bytes.

    Few rows are cut into parts, so that there are blocks enough, though not below 4,096 columns.
    """
    rows, columns = logits[0].shape[:-1].numel(), logits[0].shape[-1]
    parts = max(1, min(1024 // max(rows, 1), columns // 4096))
    return logits[0].new_empty(rows * parts * itemsize, dtype=torch.uint8)


# A log-sum-exp of a part is its largest logit and the sum beside it, float32 both.
_PART_BYTES = 8


def _log_sum_exp_cuda(logits: list[Tensor], scale: Tensor) -> Tensor:
    log_sums = _log_sums(logits, scale)
    torch.ops.fastgrow_cuda.mean_log_probability_out(
        logits, row_factors(scale), None, row_parts(logits, _PART_BYTES), log_sums, None
    )
    return log_sums


def _forward_cuda(
    logits: list[Tensor], scale: Tensor, targets: Tensor, ignore_index: int | None
) -> tuple[Tensor, Tensor]:
    log_probabilities, log_sums = _rows(logits, scale, targets, ignore_index)
    torch.ops.fastgrow_cuda.mean_log_probability_out(
        logits,
        row_factors(scale),
        _indices(targets, ignore_index),
        row_parts(logits, _PART_BYTES),
        log_sums,
        log_probabilities,
    )
    return log_probabilities, log_sums


_library.impl("mean_log_sum_exp", _log_sum_exp_cuda, "CUDA")
_library.impl("mean_log_probability", _forward_cuda, "CUDA")
_library.impl("mean_log_sum_exp", _log_sum_exp_cpu, "CPU")
_library.impl("mean_log_probability", _forward_cpu, "CPU")
_library.impl("mean_log_probability_backward", _backward_cpu, "CPU")


class _LogProbability(torch.autograd.Function):
    """d logits[k] = scale[k] · g · (one-hot − softmax), d scale[k] its product with logits[k]."""

    @staticmethod
    def forward(
        ctx: Any,
        operation: str,
        scale: Tensor,
        targets: Tensor,
        ignore_index: int | None,
        *logits: Tensor,
    ) -> Tensor:
        log_probabilities, log_sums = torch.ops.fastgrow.mean_log_probability(
            logits, scale, targets, ignore_index
        )
        ctx.operation, ctx.ignore_index = operation, ignore_index
        ctx.save_for_backward(scale, targets, log_sums, *logits)
        return log_probabilities

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        refuse_double_backward(ctx.operation)
        scale, targets, log_sums, *logits = ctx.saved_tensors
        _, need_scale, _, _, *need_logits = ctx.needs_input_grad
        d_scale, d_logits = torch.ops.fastgrow.mean_log_probability_backward(
            logits,
            scale,
            targets,
            log_sums,
            gradients[0],
            ctx.ignore_index,
            need_scale,
            need_logits,
        )
        wanted = iter(d_logits)
        return (
            None,
            d_scale if need_scale else None,
            None,
            None,
            *(next(wanted) if needed else None for needed in need_logits),
        )
