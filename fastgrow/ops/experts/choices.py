"""Tokens chosen by K experts' averaged logits, without the averages in memory.

    z = sum_k  weights[k] / temperatures[k] * logits[k]

The most likely: of equal numbers the one of the lower index comes first, natively; torch promises
no order. NaN comes before every number.

Draws are from p = softmax(z / temperature), cut to `top_k` and then to `top_p`. One uniform number
a row is turned into a token by inverting the distribution function: in the order of the token ids,
or of falling probability where the distribution was cut. The number is counted off from (seed,
step, row), so every implementation and device draws the same token unless the number lies within
rounding (1e-5) of the boundary between two.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fastgrow.errors import argument_error
from fastgrow.ops.core.dispatch import Implementation, Operation
from fastgrow.ops.core.extension import on_gpu, run_extension
from fastgrow.ops.core.registration import operator
from fastgrow.ops.experts.losses import MASS_BYTES, log_sum_exp
from fastgrow.ops.experts.mean import (
    MAX_K,
    MeanCall,
    Numbers,
    averaged,
    can_serve,
    example_call,
    mean_call,
    pays,
)
from fastgrow.ops.experts.philox import row_uniforms

# How many of the most likely tokens are looked at for `top_p`; few rows need the second number.
_NUCLEUS = (64, MAX_K["cpu"])
# What a GPU's block leaves of one of the largest of a part of a row: the logit and its column.
_CANDIDATE_BYTES = 8
# Rows of which the nucleus is larger still are averaged and sorted, so many at a time.
_ROWS_AT_A_TIME = 16


class TopKCall(NamedTuple):
    """`mean_top_k`, or `mean_argmax` for k = 1."""

    mean: MeanCall
    k: int


class SampleCall(NamedTuple):
    """`mean_sample` with factors that the temperature has divided.

    Args:
        uniforms: a number in [0, 1) for each row, [...] float64.
        top_k: below V, or None.
        top_p: below 1, or None.
    """

    mean: MeanCall
    uniforms: Tensor
    top_k: int | None
    top_p: float | None


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
            expert. Zero takes the expert out, whatever its logits are.
        temperatures: like the weights; expert k's logits are divided by the k-th.
        impl: force `eager`, `native`, …

    Returns:
        [...] int64.

    Raises:
        ArgumentError: an argument does not fit; the message names the expert's position.
    """
    mean = mean_call("mean_argmax", logits, weights, temperatures)
    return _ARGMAX(TopKCall(mean, 1), impl)


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
            [..., K], one for each row and expert. Zero takes the expert out, whatever its logits
            are; the gradients of that weight and of these logits are zero.
        temperatures: like the weights; expert k's logits are divided by the k-th.
        impl: force `eager`, `native`, …

    Returns:
        values [..., k], float32 (float64 for float64 logits), and token ids [..., k] int64.

    Raises:
        ArgumentError: an argument does not fit; the message names the expert's position.
    """
    mean = mean_call("mean_top_k", logits, weights, temperatures)
    columns = mean.logits[0].shape[-1]
    if not 1 <= k <= columns:
        raise argument_error("mean_top_k", "k", f"in [1, {columns}]", k)
    return _TOP_K(TopKCall(mean, k), impl)


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
            expert. Zero takes the expert out, whatever its logits are.
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
    name = "mean_sample"
    mean = mean_call(name, logits, weights, temperatures)
    if not 0 <= temperature < math.inf:
        raise argument_error(name, "temperature", "0 or more", temperature)
    if top_k is not None and top_k < 1:
        raise argument_error(name, "top_k", "at least 1", top_k)
    if top_p is not None and not 0 < top_p <= 1:
        raise argument_error(name, "top_p", "above 0 and at most 1", top_p)
    if temperature == 0:
        return _ARGMAX(TopKCall(mean, 1), impl)
    cuts = top_k is not None and top_k < mean.logits[0].shape[-1]
    call = SampleCall(
        mean._replace(scale=mean.scale / temperature),
        row_uniforms(mean.logits[0], seed, step),
        top_k if cuts else None,
        None if top_p == 1 else top_p,
    )
    return _SAMPLE(call, impl)


def _eager_top_k(call: TopKCall) -> tuple[Tensor, Tensor]:
    """The formula; the mean is in memory."""
    values, ids = averaged(call.mean).topk(call.k, dim=-1)
    return values, ids


def _native_top_k(call: TopKCall) -> tuple[Tensor, Tensor]:
    """One pass over the logits (csrc/cpu/top_k.cpp, csrc/cuda/top_k.cu)."""
    return native_top_k(call.mean.logits, call.mean.scale, call.k)


def _like(logits: list[Tensor], scale: Tensor, k: int) -> tuple[Tensor, Tensor]:
    shape = (*logits[0].shape[:-1], k)
    return scale.new_empty(shape), scale.new_empty(shape, dtype=torch.int64)


@operator(_like)
def native_top_k(logits: list[Tensor], scale: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Values and token ids."""
    values, ids = _like(logits, scale, k)
    run_extension(
        *("mean_top_k_out", logits, scale, k, values, ids),
        plan="mean_top_k" if k > 1 else "mean_argmax",
        part_bytes=(k * _CANDIDATE_BYTES,),
    )
    return values, ids


def draw(probabilities: Tensor, uniforms: Tensor) -> Tensor:
    """Invert the distribution function of each row.

    Args:
        probabilities: [..., M] float64, not normalised.
        uniforms: [...] in [0, 1).

    Returns:
        [...] int64; −1 where the probabilities add up to nothing or NaN.
    """
    sums = probabilities.cumsum(-1)
    total = sums[..., -1:]
    # Below the total, so that there is a place, and one of a share above zero.
    wanted = torch.minimum(uniforms[..., None] * total, torch.nextafter(total, total * 0))
    place = (sums <= wanted).sum(-1)
    return torch.where(total.squeeze(-1) > 0, place, -1)


def _draw_sorted(
    probabilities: Tensor, ids: Tensor, uniforms: Tensor, top_p: float | None
) -> Tensor:
    """`draw` from candidates in falling order, cut to the nucleus."""
    if top_p is not None:
        before = probabilities.cumsum(-1) - probabilities
        probabilities = probabilities.masked_fill(before >= top_p, 0)
    place = draw(probabilities, uniforms)
    token = ids.gather(-1, place.clamp(min=0)[..., None]).squeeze(-1)
    return torch.where(place < 0, place, token)


def _eager_sample(call: SampleCall) -> Tensor:
    """The formula; mean and softmax are in memory."""
    mean = averaged(call.mean).detach().double()
    if call.top_k is None and call.top_p is None:
        return draw(mean.softmax(-1), call.uniforms)
    values, ids = mean.sort(dim=-1, descending=True, stable=True)
    return _draw_sorted(values[..., : call.top_k].softmax(-1), ids, call.uniforms, call.top_p)


def _native_sample(call: SampleCall) -> Tensor:
    """One pass over the logits and one block of each row again (sample.cpp and .cu).

    A cut distribution takes the pass that finds its candidates. `top_p` alone looks among the 64
    most likely tokens first. On a GPU rows that are spread over more are asked in passes of their
    own; on a CPU 1,024 are looked at, and then such rows are averaged and sorted.
    """
    return native_sample(call.mean.logits, call.mean.scale, *call[1:])


@operator(lambda logits, scale, uniforms, *_: uniforms.new_empty(uniforms.shape, dtype=torch.int64))
def native_sample(
    logits: list[Tensor], scale: Tensor, uniforms: Tensor, top_k: int | None, top_p: float | None
) -> Tensor:
    """A token id for each row."""
    tokens = uniforms.new_empty(uniforms.shape, dtype=torch.int64)
    if top_k is None and top_p is None:
        run_extension(
            *("mean_sample_out", logits, scale, uniforms, tokens),
            plan="mean_sample",
            part_bytes=(MASS_BYTES,),
        )
        return tokens
    if on_gpu(scale):
        k = min(top_k or MAX_K["cuda"], logits[0].shape[-1])
        run_extension(
            *("mean_sample_largest_out", logits, scale, uniforms, k, top_k is not None),
            *(1.0 if top_p is None else top_p, tokens),
            plan="mean_top_k",
            part_bytes=(k * _CANDIDATE_BYTES, MASS_BYTES),
        )
        return tokens
    if top_k is not None:
        values, ids = native_top_k(logits, scale, top_k)
        return _draw_sorted(values.double().softmax(-1), ids, uniforms, top_p)
    assert top_p is not None
    return _sample_nucleus(logits, scale, uniforms, top_p)


def _sample_nucleus(logits: list[Tensor], scale: Tensor, uniforms: Tensor, p: float) -> Tensor:
    """Look among the most likely tokens first; sort only the rows where they are not enough."""
    columns = logits[0].shape[-1]
    log_sums = log_sum_exp(logits, scale).double()
    for k in _NUCLEUS:
        values, ids = native_top_k(logits, scale, min(k, columns))
        shares = (values.double() - log_sums[..., None]).exp()
        missing = (shares.sum(-1) < p) & (values.shape[-1] < columns)
        if not bool(missing.any()):
            break
    tokens = _draw_sorted(shares, ids, uniforms, p)
    for rows in missing.nonzero().split(_ROWS_AT_A_TIME):
        index = tuple(rows.unbind(1))
        each = scale if scale.dim() == 1 else scale[index]
        mean = MeanCall([x[index] for x in logits], each, all_present=False)
        tokens[index] = _eager_sample(SampleCall(mean, uniforms[index], None, p))
    return tokens


def _example(device: torch.device) -> TopKCall:
    return TopKCall(example_call(device), 1)


_TOP_K = Operation(
    "mean_top_k",
    (
        Implementation(
            "native",
            _native_top_k,
            lambda call: can_serve(call, constant=True, k=call.k),
            pays("mean_top_k"),
        ),
        Implementation("eager", _eager_top_k),
    ),
    _example,
)
_ARGMAX = Operation(
    "mean_argmax",
    (
        Implementation(
            "native",
            lambda call: _native_top_k(call)[1].squeeze(-1),
            can_serve,
            pays("mean_argmax"),
        ),
        Implementation("eager", lambda call: averaged(call.mean).argmax(-1)),
    ),
    _example,
)
_SAMPLE = Operation(
    "mean_sample",
    (
        Implementation(
            "native",
            _native_sample,
            lambda call: can_serve(call, k=call.top_k),
            pays("mean_sample"),
        ),
        Implementation("eager", _eager_sample),
    ),
    lambda device: SampleCall(
        example_call(device), torch.zeros(1, dtype=torch.float64, device=device), None, None
    ),
)
