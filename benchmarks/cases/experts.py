"""What is read off K experts' logits without averages in memory; bound by reading them.

Token ids are told as float64, in which the check of correctness can take differences.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.case import Family, Inputs, Output, Run, Shape, Work
from fastgrow.ops import (
    mean_argmax,
    mean_cross_entropy,
    mean_log_softmax_gather,
    mean_sample,
    mean_top_k,
    probability_mean,
    probability_mean_gather,
)

Grids = dict[str, list[Shape]]
Call = Callable[[Inputs, str | None], Output]
TOP = 40

GRIDS: Grids = {
    "tiny": [{"K": 2, "N": 8, "V": 64}],
    "cpu": [{"K": 4, "N": 64, "V": 65536}, {"K": 2, "N": 64, "V": 65536}],
    "gpu": [{"K": K, "N": 4096, "V": 65536} for K in (4, 2, 8)],
}
DECODE_GRIDS: Grids = {**GRIDS, "gpu": [{"K": 4, "N": N, "V": 65536} for N in (64, 1)]}


def _inputs(shape: Shape, dtype: torch.dtype, generator: torch.Generator) -> Inputs:
    size, device = (shape["N"], shape["V"]), generator.device
    return {
        "logits": [
            torch.randn(size, dtype=dtype, device=device, generator=generator)
            for _ in range(shape["K"])
        ],
        "targets": torch.randint(shape["V"], size[:1], device=device, generator=generator),
    }


def _mean(inputs: Inputs) -> Tensor:
    """The best of the eager ways: one tensor of the result's size, added to in place."""
    first, *others = inputs["logits"]
    total = first.clone()
    for logits in others:
        total += logits
    return total.div_(len(inputs["logits"]))


def _stacked(inputs: Inputs) -> Tensor:
    return torch.stack(inputs["logits"]).mean(0)


def _family(
    op: str, grids: Grids, call: Call, libraries: dict[str, Run], passes: int = 1
) -> Family:
    """One of the operations; `passes` is how often it reads the logits, at least."""

    def work(shape: Shape, itemsize: int, pass_: str) -> Work:
        return Work(bytes=passes * shape["K"] * shape["N"] * shape["V"] * itemsize)

    return Family(
        op=op,
        grids=grids,
        inputs=_inputs,
        call=call,
        libraries=lambda case: libraries,
        work=work,
        checked=lambda shape: {**shape, "N": min(shape["N"], 16)},
    )


def _top_k(inputs: Inputs, impl: str | None) -> tuple[Tensor, Tensor]:
    values, ids = mean_top_k(inputs["logits"], TOP, impl=impl)
    return values, ids.double()


def _library_top_k(inputs: Inputs) -> tuple[Tensor, Tensor]:
    values, ids = _mean(inputs).topk(TOP)
    return values, ids.double()


def _at_targets(log_probabilities: Tensor, inputs: Inputs) -> Tensor:
    return log_probabilities.gather(1, inputs["targets"][:, None]).squeeze(1)


def _mixture(inputs: Inputs) -> Tensor:
    parts = [x.float().log_softmax(-1) for x in inputs["logits"]]
    return torch.stack(parts).logsumexp(0) - math.log(len(parts))


EXPERTS = (
    _family(
        "mean_cross_entropy",
        GRIDS,
        lambda inputs, impl: mean_cross_entropy(inputs["logits"], inputs["targets"], impl=impl),
        {
            "stack + mean + cross_entropy": lambda inputs: F.cross_entropy(
                _stacked(inputs).float(), inputs["targets"]
            ),
            "add in place + cross_entropy": lambda inputs: F.cross_entropy(
                _mean(inputs).float(), inputs["targets"]
            ),
        },
    ),
    _family(
        "mean_log_softmax_gather",
        GRIDS,
        lambda inputs, impl: mean_log_softmax_gather(
            inputs["logits"], inputs["targets"], impl=impl
        ),
        {
            "add in place + log_softmax": lambda inputs: _at_targets(
                _mean(inputs).float().log_softmax(-1), inputs
            )
        },
    ),
    _family(
        "mean_argmax",
        DECODE_GRIDS,
        lambda inputs, impl: mean_argmax(inputs["logits"], impl=impl).double(),
        {"add in place + argmax": lambda inputs: _mean(inputs).argmax(-1).double()},
    ),
    _family("mean_top_k", DECODE_GRIDS, _top_k, {"add in place + topk": _library_top_k}),
    # Another generator draws other tokens: only our own implementations can be compared.
    _family(
        "mean_sample",
        DECODE_GRIDS,
        lambda inputs, impl: mean_sample(inputs["logits"], impl=impl).double(),
        {},
    ),
    _family(
        "probability_mean",
        GRIDS,
        lambda inputs, impl: probability_mean(inputs["logits"], impl=impl),
        {"log_softmax + stack + logsumexp": _mixture},
        passes=2,
    ),
    _family(
        "probability_mean_gather",
        GRIDS,
        lambda inputs, impl: probability_mean_gather(
            inputs["logits"], inputs["targets"], impl=impl
        ),
        {"log_softmax + stack + logsumexp": lambda inputs: _at_targets(_mixture(inputs), inputs)},
    ),
)
