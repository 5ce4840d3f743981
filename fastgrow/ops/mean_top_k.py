"""The most likely tokens under K experts' averaged logits, without the averages in memory.

    z = sum_k  weights[k] / temperatures[k] * logits[k]

Of equal numbers the one of the lower index comes first, natively; torch promises no order. NaN
comes before every number.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastgrow.errors import ArgumentError, argument_error
from fastgrow.ops._experts import (
    Numbers,
    averaged,
    check_logits,
    check_vocabulary,
    example_logits,
    factors,
    pays_native,
    row_factors,
    verify_native,
    verify_native_constant,
)
from fastgrow.ops._log_probability import row_parts
from fastgrow.ops.core.dispatch import Answer
from fastgrow.ops.core.legacy import Operation

# Each row's candidates are in a heap: small, or sorting would be the better way.
MAX_K = 1024


def mean_argmax(
    logits: Sequence[Tensor],
    weights: Numbers | None = None,
    *,
    temperatures: Numbers | None = None,
    impl: str | None = None,
) -> Tensor:
    """The most likely token of each row under the experts' averaged logits.

    Args:
        logits: K tensors [..., V] of one shape, dtype (fp32, bf16, fp16 or fp64) and device; each
            may have its own strides.
        weights: K numbers or a tensor [K]; 1/K each by default. Or [..., K], one for each row and
            expert, where zero takes the expert out of the row.
        temperatures: like the weights; expert k's logits are divided by the k-th.
        impl: force `eager`, `native`, …

    Returns:
        [...] int64.

    Raises:
        ArgumentError: an argument does not fit; the message names the expert's position.
    """
    logits = list(logits)
    check_logits("mean_argmax", logits)
    check_vocabulary("mean_argmax", logits)
    scale = factors("mean_argmax", logits, weights, temperatures)
    return ARGMAX(logits, scale, impl=impl)


def mean_top_k(
    logits: Sequence[Tensor],
    k: int,
    weights: Numbers | None = None,
    *,
    temperatures: Numbers | None = None,
    impl: str | None = None,
) -> tuple[Tensor, Tensor]:
    """The k largest of the experts' averaged logits in each row, largest first.

    Args:
        logits: K tensors [..., V] of one shape, dtype (fp32, bf16, fp16 or fp64) and device; each
            may have its own strides.
        k: how many, 1 to V.
        weights: K numbers, or a tensor [K] that may require a gradient; 1/K each by default. Or
            [..., K], one for each row and expert, where zero takes the expert out of the row.
        temperatures: like the weights; expert k's logits are divided by the k-th.
        impl: force `eager`, `native`, …

    Returns:
        values [..., k], float32 (float64 for float64 logits), and token ids [..., k] int64.

    Raises:
        ArgumentError: an argument does not fit; the message names the expert's position.
    """
    logits = list(logits)
    check_logits("mean_top_k", logits)
    check_vocabulary("mean_top_k", logits)
    if not 1 <= k <= logits[0].shape[-1]:
        raise argument_error("mean_top_k", "k", f"in [1, {logits[0].shape[-1]}]", k)
    scale = factors("mean_top_k", logits, weights, temperatures)
    return TOP_K(logits, scale, k, impl=impl)


def _argmax_example(device: torch.device) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return example_logits(device), {}


def _top_k_example(device: torch.device) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return (*example_logits(device), 2), {}


ARGMAX = Operation("mean_argmax", example=_argmax_example)
TOP_K = Operation("mean_top_k", example=_top_k_example)


@ARGMAX.implementation("eager")
def argmax_eager(logits: list[Tensor], scale: Tensor) -> Tensor:
    """The formula; the mean is in memory."""
    return averaged(logits, scale).argmax(-1)


@TOP_K.implementation("eager")
def top_k_eager(logits: list[Tensor], scale: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The formula; the mean is in memory."""
    values, ids = averaged(logits, scale).topk(k, dim=-1)
    return values, ids


def _verify_argmax(logits: list[Tensor], scale: Tensor) -> Answer:
    return verify_native(logits, devices=("cpu", "cuda"))


def _verify_top_k(logits: list[Tensor], scale: Tensor, k: int) -> Answer:
    if k > MAX_K:
        return False, f"it finds at most {MAX_K}, not {k}"
    return verify_native_constant(logits, scale)


@ARGMAX.implementation("native", verify=_verify_argmax, pays=pays_native)
def argmax_native(logits: list[Tensor], scale: Tensor) -> Tensor:
    """One pass over the logits (csrc/cpu/top_k.cpp)."""
    # Token ids have no gradient, whatever the logits require.
    constants = [x.detach() for x in logits]
    _, ids = torch.ops.fastgrow.mean_top_k(constants, scale.detach(), 1)
    return ids.squeeze(-1)


@TOP_K.implementation("native", verify=_verify_top_k)
def top_k_native(logits: list[Tensor], scale: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """One pass over the logits (csrc/cpu/top_k.cpp)."""
    return torch.ops.fastgrow.mean_top_k(logits, scale, k)


_library = torch.library.Library("fastgrow", "FRAGMENT")
_library.define("mean_top_k(Tensor[] logits, Tensor scale, int k) -> (Tensor, Tensor)")


@torch.library.register_fake("fastgrow::mean_top_k", lib=_library)
def _outputs(logits: list[Tensor], scale: Tensor, k: int) -> tuple[Tensor, Tensor]:
    shape = (*logits[0].shape[:-1], k)
    return scale.new_empty(shape), scale.new_empty(shape, dtype=torch.int64)


def _top_k_cpu(logits: list[Tensor], scale: Tensor, k: int) -> tuple[Tensor, Tensor]:
    values, ids = _outputs(logits, scale, k)
    torch.ops.fastgrow_native.mean_top_k_out(logits, row_factors(scale), k, values, ids)
    return values, ids


def _largest_cuda(logits: list[Tensor], scale: Tensor, k: int) -> tuple[Tensor, Tensor]:
    if k != 1:
        raise ArgumentError(f"mean_top_k: on a GPU it finds the largest alone, not {k}")
    values, ids = _outputs(logits, scale, 1)
    # A part's largest is a column (int64) and a value, padded to 16 bytes.
    parts = row_parts(logits, 16)
    torch.ops.fastgrow_cuda.mean_argmax_out(logits, row_factors(scale), parts, values, ids)
    return values, ids


_library.impl("mean_top_k", _top_k_cpu, "CPU")
_library.impl("mean_top_k", _largest_cuda, "CUDA")
