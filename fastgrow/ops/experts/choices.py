"""Argmax, top-k and sampling of K experts' averaged logits, without storing the averages.

    z = sum_k  weights[k] / temperatures[k] * logits[k]

Argmax and top-k: of equal logits `native` returns the one with the lower index first; torch
guarantees no order. NaN is greater than every number.

Sampling draws from p = softmax(z / temperature), restricted to `top_k` and then to `top_p`. One
uniform number per row is turned into a token by inverting the cumulative distribution function, in
the order of the token ids, or of decreasing probability if the distribution was restricted. The
number is a function of (seed, step, row) (Philox), so every implementation and device draws the
same token unless the number is within rounding (1e-5) of the boundary between two tokens.
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

# Numbers of most likely tokens that `top_p` looks at; few rows need the second number.
_NUCLEUS = (64, MAX_K["cpu"])
# Bytes that a thread block on a GPU writes per candidate of a part: the logit and its column.
_CANDIDATE_BYTES = 8
# Rows with a nucleus larger than that are averaged and sorted, this many at a time.
_ROWS_AT_A_TIME = 16


class TopKCall(NamedTuple):
    """A call of `mean_top_k`, or of `mean_argmax` with k = 1."""

    mean: MeanCall
    k: int


class SampleCall(NamedTuple):
    """A call of `mean_sample`, with factors already divided by the temperature.

    Args:
        uniforms: one number in [0, 1) for each row, [...] float64.
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
    """Return the most likely token of each row under the experts' averaged logits.

    Args:
        logits: K tensors [..., V] of one shape, dtype (fp32, bf16, fp16 or fp64) and device; their
            strides may differ.
        weights: K numbers, a tensor [K], or a tensor [..., K] with one weight for each row and
            expert. Default: 1/K each. A weight of zero excludes the expert, even if its logits are
            NaN or infinite.
        temperatures: K numbers or a tensor, like `weights`; the logits of expert k are divided by
            temperatures[k]. Default: 1 each.
        impl: force an implementation, such as `eager` or `native`.

    Returns:
        Token ids [...] int64.

    Raises:
        ArgumentError: an argument has a wrong shape, dtype, device or value; the message names the
            expert's position.
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
    """Return the k largest of the experts' averaged logits in each row, largest first.

    Args:
        logits: K tensors [..., V] of one shape, dtype (fp32, bf16, fp16 or fp64) and device; their
            strides may differ.
        k: number of values to return, 1 to V.
        weights: K numbers, a tensor [K], or a tensor [..., K] with one weight for each row and
            expert; tensors may require a gradient. Default: 1/K each. A weight of zero excludes the
            expert, even if its logits are NaN or infinite; the gradients of that weight and of
            these logits are zero.
        temperatures: K numbers or a tensor, like `weights`; the logits of expert k are divided by
            temperatures[k]. Default: 1 each.
        impl: force an implementation, such as `eager` or `native`.

    Returns:
        values [..., k], float32 (float64 for float64 logits), and token ids [..., k] int64.

    Raises:
        ArgumentError: an argument has a wrong shape, dtype, device or value; the message names the
            expert's position.
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
    """Draw one token per row from the softmax of the experts' averaged logits.

    Args:
        logits: K tensors [..., V] of one shape, dtype (fp32, bf16, fp16 or fp64) and device; their
            strides may differ.
        weights: K numbers, a tensor [K], or a tensor [..., K] with one weight for each row and
            expert. Default: 1/K each. A weight of zero excludes the expert, even if its logits are
            NaN or infinite.
        temperatures: K numbers or a tensor, like `weights`; the logits of expert k are divided by
            temperatures[k]. Default: 1 each.
        temperature: divides the averaged logits; 0 returns the most likely token.
        top_k: draw only from the k most likely tokens.
        top_p: draw only from the smallest set of most likely tokens whose probabilities add up to
            at least p (nucleus sampling, Holtzman et al., arXiv 1904.09751), after `top_k`. The set
            has at least one token.
        seed, step: 64-bit integers; the same seed and step draw the same tokens.
        impl: force an implementation, such as `eager` or `native`.

    Returns:
        Token ids [...] int64; −1 for a row without a distribution (its averaged logits contain NaN
        or +inf, or are all −inf).

    Raises:
        ArgumentError: an argument has a wrong shape, dtype, device or value; the message names the
            expert's position.
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
    """The formula in plain PyTorch; the mean is stored in memory."""
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
    """Return values and token ids."""
    values, ids = _like(logits, scale, k)
    run_extension(
        *("mean_top_k_out", logits, scale, k, values, ids),
        plan="mean_top_k" if k > 1 else "mean_argmax",
        part_bytes=(k * _CANDIDATE_BYTES,),
    )
    return values, ids


def draw(probabilities: Tensor, uniforms: Tensor) -> Tensor:
    """Invert the cumulative distribution function of each row.

    Args:
        probabilities: [..., M] float64, not normalised.
        uniforms: [...] in [0, 1).

    Returns:
        Indices [...] int64; −1 if the probabilities add up to zero or NaN.
    """
    sums = probabilities.cumsum(-1)
    total = sums[..., -1:]
    # Strictly below the total, so that the index exists and has a probability above zero.
    threshold = torch.minimum(uniforms[..., None] * total, torch.nextafter(total, total * 0))
    place = (sums <= threshold).sum(-1)
    return torch.where(total.squeeze(-1) > 0, place, -1)


def _draw_sorted(
    probabilities: Tensor, ids: Tensor, uniforms: Tensor, top_p: float | None
) -> Tensor:
    """Draw from candidates in descending order, restricted to the nucleus."""
    if top_p is not None:
        before = probabilities.cumsum(-1) - probabilities
        probabilities = probabilities.masked_fill(before >= top_p, 0)
    place = draw(probabilities, uniforms)
    token = ids.gather(-1, place.clamp(min=0)[..., None]).squeeze(-1)
    return torch.where(place < 0, place, token)


def _eager_sample(call: SampleCall) -> Tensor:
    """The formula in plain PyTorch; mean and softmax are stored in memory."""
    mean = averaged(call.mean).detach().double()
    if call.top_k is None and call.top_p is None:
        return draw(mean.softmax(-1), call.uniforms)
    values, ids = mean.sort(dim=-1, descending=True, stable=True)
    return _draw_sorted(values[..., : call.top_k].softmax(-1), ids, call.uniforms, call.top_p)


def _native_sample(call: SampleCall) -> Tensor:
    """One pass over the logits, then a second read of one block of each row (sample.cpp and .cu).

    With `top_k` or `top_p`, one pass finds the candidates. `top_p` without `top_k` looks at the 64
    most likely tokens first. For rows with a larger nucleus a GPU makes additional passes; a CPU
    looks at 1,024 tokens, then averages and sorts the rows for which these are not enough.
    """
    return native_sample(call.mean.logits, call.mean.scale, *call[1:])


@operator(lambda logits, scale, uniforms, *_: uniforms.new_empty(uniforms.shape, dtype=torch.int64))
def native_sample(
    logits: list[Tensor], scale: Tensor, uniforms: Tensor, top_k: int | None, top_p: float | None
) -> Tensor:
    """Return a token id for each row."""
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
    """Look at the most likely tokens first; sort only the rows for which they are not enough."""
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
