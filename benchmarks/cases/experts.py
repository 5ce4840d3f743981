"""Operations on K experts' logits that do not store the average; bound by reading the logits.

Token ids are returned as float64, so that the check of correctness can compute differences.
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
TOP, TOP_P = 40, 0.9

GRIDS: Grids = {
    "tiny": [{"K": 2, "N": 8, "V": 64}],
    "cpu": [{"K": 4, "N": 64, "V": 65536}, {"K": 2, "N": 64, "V": 65536}],
    "gpu": [{"K": K, "N": N, "V": 65536} for K, N in ((4, 4096), (4, 1), (2, 4096), (8, 4096))],
}
# With gradients, a shape takes three times as long to measure.
TRAINED_GRIDS: Grids = {**GRIDS, "cpu": GRIDS["cpu"][:1]}
DECODE_GRIDS: Grids = {**GRIDS, "gpu": [{"K": 4, "N": N, "V": 65536} for N in (64, 1, 4096)]}


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
    """Average in the fastest eager way: add in place to one tensor of the result's size."""
    first, *others = inputs["logits"]
    total = first.clone()
    for logits in others:
        total += logits
    return total.div_(len(inputs["logits"]))


def _stacked(inputs: Inputs) -> Tensor:
    return torch.stack(inputs["logits"]).mean(0)


def _family(
    op: str,
    grids: Grids,
    call: Call,
    libraries: dict[str, Run],
    *,
    row: Callable[[int], int],
    reads: int = 1,
    differentiate: tuple[str, ...] = (),
    variant: str = "",
) -> Family:
    """Make the family of one of the operations.

    Args:
        op: name of the operation.
        grids: shapes by the name of the grid.
        call: runs the operation.
        libraries: alternatives by name.
        row: returns the bytes of a row in addition to its logits, such as its target and result.
        reads: minimum number of times that the logits are read without gradients.
        differentiate: names of the inputs that get gradients.
        variant: distinguishes several families of one operation.
    """

    def work(shape: Shape, itemsize: int, pass_: str) -> Work:
        K, N, V = (shape[name] for name in "KNV")
        # The backward pass reads the logits once more, and writes the gradients.
        passes, rows = {"forward": (reads, 1), "backward": (2, 1), "full": (reads + 2, 2)}[pass_]
        return Work(bytes=passes * K * N * V * itemsize + rows * N * row(V))

    return Family(
        op=op,
        variant=variant,
        grids=grids,
        inputs=_inputs,
        call=call,
        differentiate=differentiate,
        libraries=lambda case: libraries,
        work=work,
        checked=lambda shape: {**shape, "N": min(shape["N"], 16)},
    )


def _of_target(columns: int) -> int:
    """Bytes of the target, the row's log-sum-exp, and the log-probability or its gradient."""
    return 8 + 4 + 4


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
        TRAINED_GRIDS,
        lambda inputs, impl: mean_cross_entropy(inputs["logits"], inputs["targets"], impl=impl),
        {
            "stack + mean + cross_entropy": lambda inputs: F.cross_entropy(
                _stacked(inputs).float(), inputs["targets"]
            ),
            "add in place + cross_entropy": lambda inputs: F.cross_entropy(
                _mean(inputs).float(), inputs["targets"]
            ),
        },
        row=_of_target,
        differentiate=("logits",),
    ),
    _family(
        "mean_log_softmax_gather",
        TRAINED_GRIDS,
        lambda inputs, impl: mean_log_softmax_gather(
            inputs["logits"], inputs["targets"], impl=impl
        ),
        {
            "add in place + log_softmax": lambda inputs: _at_targets(
                _mean(inputs).float().log_softmax(-1), inputs
            )
        },
        row=_of_target,
        differentiate=("logits",),
    ),
    _family(
        "mean_argmax",
        DECODE_GRIDS,
        lambda inputs, impl: mean_argmax(inputs["logits"], impl=impl).double(),
        {"add in place + argmax": lambda inputs: _mean(inputs).argmax(-1).double()},
        row=lambda columns: 8,
    ),
    _family(
        "mean_top_k",
        DECODE_GRIDS,
        _top_k,
        {"add in place + topk": _library_top_k},
        row=lambda columns: 12 * TOP,
    ),
    # A different generator draws different tokens: only fastgrow's implementations are comparable.
    _family(
        "mean_sample",
        DECODE_GRIDS,
        lambda inputs, impl: mean_sample(inputs["logits"], impl=impl).double(),
        {},
        row=lambda columns: 8 + 8,
    ),
    _family(
        "mean_sample",
        {**DECODE_GRIDS, "cpu": DECODE_GRIDS["cpu"][:1]},
        lambda inputs, impl: mean_sample(
            inputs["logits"], top_k=TOP, top_p=TOP_P, impl=impl
        ).double(),
        {},
        row=lambda columns: 8 + 8,
        variant="cut",
    ),
    _family(
        "probability_mean",
        GRIDS,
        lambda inputs, impl: probability_mean(inputs["logits"], impl=impl),
        {"log_softmax + stack + logsumexp": _mixture},
        row=lambda columns: 4 * columns,
        reads=2,
    ),
    _family(
        "probability_mean_gather",
        TRAINED_GRIDS,
        lambda inputs, impl: probability_mean_gather(
            inputs["logits"], inputs["targets"], impl=impl
        ),
        {"log_softmax + stack + logsumexp": lambda inputs: _at_targets(_mixture(inputs), inputs)},
        row=_of_target,
        differentiate=("logits",),
    ),
)
