"""Draws from K experts' averaged logits, without the averages in memory.

    z = sum_k  weights[k] / temperatures[k] * logits[k]
    p = softmax(z / temperature), cut to `top_k` and then to `top_p`

One uniform number a row is turned into a token by inverting the distribution function: in the order
of the token ids, or of falling probability where the distribution was cut. The number is counted
off from (seed, step, row), so every implementation and device draws the same token unless the
number lies within rounding (1e-5) of the boundary between two.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastgrow.errors import argument_error
from fastgrow.ops._experts import (
    Numbers,
    averaged,
    check_logits,
    check_vocabulary,
    example_logits,
    factors,
    row_factors,
    verify_native,
)
from fastgrow.ops._philox import uniforms
from fastgrow.ops.core.dispatch import Answer
from fastgrow.ops.core.legacy import Operation
from fastgrow.ops.mean_top_k import MAX_K, mean_argmax

NAME = "mean_sample"
# How many of the most likely tokens are looked at for `top_p`; few rows need the second number.
_NUCLEUS = (64, MAX_K)
# Rows of which the nucleus is larger still are averaged and sorted, so many at a time.
_ROWS_AT_A_TIME = 16


def mean_sample(
    logits: Sequence[Tensor],
    weights: Numbers | None = None,
    *,
    temperatures: Numbers | None = None,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 0,
    step: int = 0,
    impl: str | None = None,
) -> Tensor:
    """Draw one token a row from the softmax of the experts' averaged logits.

    Args:
        logits: K tensors [..., V] of one shape, dtype (fp32, bf16, fp16 or fp64) and device; each
            may have its own strides.
        weights: K numbers or a tensor [K]; 1/K each by default. Or [..., K], one for each row and
            expert, where zero takes the expert out of the row.
        temperatures: like the weights; expert k's logits are divided by the k-th.
        temperature: divides the average; 0 takes the most likely token.
        top_k: draw from the k most likely alone.
        top_p: draw from the smallest set of most likely tokens whose probabilities reach p, after
            `top_k` (Holtzman et al., arXiv 1904.09751); it has at least one.
        seed, step: 64-bit integers; the same numbers give the same tokens.
        impl: force `eager`, `native`, …

    Returns:
        [...] int64; −1 for a row without a distribution (NaN, +inf, or nothing but −inf).

    Raises:
        ArgumentError: an argument does not fit; the message names the expert's position.
    """
    logits = list(logits)
    check_logits(NAME, logits)
    check_vocabulary(NAME, logits)
    if not 0 <= temperature < math.inf:
        raise argument_error(NAME, "temperature", "0 or more", temperature)
    if top_k is not None and top_k < 1:
        raise argument_error(NAME, "top_k", "at least 1", top_k)
    if top_p is not None and not 0 < top_p <= 1:
        raise argument_error(NAME, "top_p", "above 0 and at most 1", top_p)
    if temperature == 0:
        return mean_argmax(logits, weights, temperatures=temperatures, impl=impl)
    scale = factors(NAME, logits, weights, temperatures) / temperature
    if top_k is not None and top_k >= logits[0].shape[-1]:
        top_k = None
    if top_p == 1:
        top_p = None
    numbers = uniforms(logits[0], seed, step)
    return OPERATION(logits, scale, numbers, top_k, top_p, impl=impl)


def draw(probabilities: Tensor, numbers: Tensor) -> Tensor:
    """Invert the distribution function of each row.

    Args:
        probabilities: [..., M] float64, not normalised.
        numbers: [...] in [0, 1).

    Returns:
        [...] int64; −1 where the probabilities add up to nothing or NaN.
    """
    sums = probabilities.cumsum(-1)
    total = sums[..., -1:]
    # Below the total, so that there is a place, and one of a share above zero.
    wanted = torch.minimum(numbers[..., None] * total, torch.nextafter(total, total * 0))
    place = (sums <= wanted).sum(-1)
    return torch.where(total.squeeze(-1) > 0, place, -1)


def _draw_sorted(
    probabilities: Tensor, ids: Tensor, numbers: Tensor, top_p: float | None
) -> Tensor:
    """`draw` from candidates in falling order, cut to the nucleus."""
    if top_p is not None:
        before = probabilities.cumsum(-1) - probabilities
        probabilities = probabilities.masked_fill(before >= top_p, 0)
    place = draw(probabilities, numbers)
    token = ids.gather(-1, place.clamp(min=0)[..., None]).squeeze(-1)
    return torch.where(place < 0, place, token)


def _example(device: torch.device) -> tuple[tuple[Any, ...], dict[str, Any]]:
    numbers = torch.zeros(1, dtype=torch.float64, device=device)
    return (*example_logits(device), numbers, None, None), {}


OPERATION = Operation(NAME, example=_example)


@OPERATION.implementation("eager")
def eager(
    logits: Sequence[Tensor],
    scale: Tensor,
    numbers: Tensor,
    top_k: int | None,
    top_p: float | None,
) -> Tensor:
    """The formula; mean and softmax are in memory."""
    mean = averaged(logits, scale).detach().double()
    if top_k is None and top_p is None:
        return draw(mean.softmax(-1), numbers)
    values, ids = mean.sort(dim=-1, descending=True, stable=True)
    return _draw_sorted(values[..., :top_k].softmax(-1), ids, numbers, top_p)


def _verify_native(
    logits: Sequence[Tensor],
    scale: Tensor,
    numbers: Tensor,
    top_k: int | None,
    top_p: float | None,
) -> Answer:
    if top_k is not None and top_k > MAX_K:
        return False, f"it finds at most {MAX_K} candidates, not {top_k}"
    return verify_native(logits)


@OPERATION.implementation("native", verify=_verify_native)
def native(
    logits: Sequence[Tensor],
    scale: Tensor,
    numbers: Tensor,
    top_k: int | None,
    top_p: float | None,
) -> Tensor:
    """One pass over the logits and one block of each row again (csrc/cpu/sample.cpp).

    A cut distribution takes the pass that finds its candidates; `top_p` alone takes a second one
    for the whole mass, and averages the rows that are spread over more than 1,024 tokens.
    """
    # Token ids have no gradient, whatever the logits require.
    constants = [x.detach() for x in logits]
    ids: Tensor = torch.ops.fastgrow.mean_sample(constants, scale.detach(), numbers, top_k, top_p)
    return ids


_library = torch.library.Library("fastgrow", "FRAGMENT")
_library.define(
    "mean_sample(Tensor[] logits, Tensor scale, Tensor uniforms, SymInt? top_k, float? top_p) "
    "-> Tensor"
)


@torch.library.register_fake("fastgrow::mean_sample", lib=_library)
def _ids(
    logits: list[Tensor],
    scale: Tensor,
    numbers: Tensor,
    top_k: int | None,
    top_p: float | None,
) -> Tensor:
    return numbers.new_empty(numbers.shape, dtype=torch.int64)


def _sample_cpu(
    logits: list[Tensor],
    scale: Tensor,
    numbers: Tensor,
    top_k: int | None,
    top_p: float | None,
) -> Tensor:
    if top_k is not None:
        values, ids = torch.ops.fastgrow.mean_top_k(logits, scale, top_k)
        return _draw_sorted(values.double().softmax(-1), ids, numbers, top_p)
    if top_p is not None:
        return _sample_nucleus(logits, scale, numbers, top_p)
    tokens = _ids(logits, scale, numbers, top_k, top_p)
    torch.ops.fastgrow_native.mean_sample_out(logits, row_factors(scale), numbers, tokens)
    return tokens


def _sample_nucleus(logits: list[Tensor], scale: Tensor, numbers: Tensor, p: float) -> Tensor:
    """Look among the most likely tokens first; sort only the rows where they are not enough."""
    log_sums = torch.ops.fastgrow.mean_log_sum_exp(logits, scale).double()
    for k in _NUCLEUS:
        values, ids = torch.ops.fastgrow.mean_top_k(logits, scale, min(k, logits[0].shape[-1]))
        shares = (values.double() - log_sums[..., None]).exp()
        missing = (shares.sum(-1) < p) & (values.shape[-1] < logits[0].shape[-1])
        if not bool(missing.any()):
            break
    tokens = _draw_sorted(shares, ids, numbers, p)
    for rows in missing.nonzero().split(_ROWS_AT_A_TIME):
        index = tuple(rows.unbind(1))
        some = [x[index] for x in logits]
        factors_there = scale if scale.dim() == 1 else scale[index]
        tokens[index] = eager(some, factors_there, numbers[index], None, p)
    return tokens


_library.impl("mean_sample", _sample_cpu, "CPU")
