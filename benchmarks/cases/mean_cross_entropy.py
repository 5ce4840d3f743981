"""Cross-entropy and argmax of K experts' averaged logits; bound by reading them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.case import Family, Inputs, Shape, Work
from fastgrow.ops import mean_argmax, mean_cross_entropy

GRIDS = {
    "tiny": [{"K": 2, "N": 8, "V": 64}],
    "cpu": [{"K": 4, "N": 64, "V": 65536}, {"K": 2, "N": 64, "V": 65536}],
    "gpu": [{"K": K, "N": 4096, "V": 65536} for K in (4, 2, 8)],
}
DECODE_GRIDS = {**GRIDS, "gpu": [{"K": 4, "N": N, "V": 65536} for N in (64, 1)]}


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


def _work(shape: Shape, itemsize: int, pass_: str) -> Work:
    return Work(bytes=shape["K"] * shape["N"] * shape["V"] * itemsize)


def _checked(shape: Shape) -> Shape:
    return {**shape, "N": min(shape["N"], 16)}


CROSS_ENTROPY = Family(
    op="mean_cross_entropy",
    grids=GRIDS,
    inputs=_inputs,
    call=lambda inputs, impl: mean_cross_entropy(inputs["logits"], inputs["targets"], impl=impl),
    libraries=lambda case: {
        "stack + mean + cross_entropy": lambda inputs: F.cross_entropy(
            _stacked(inputs).float(), inputs["targets"]
        ),
        "add in place + cross_entropy": lambda inputs: F.cross_entropy(
            _mean(inputs).float(), inputs["targets"]
        ),
    },
    work=_work,
    checked=_checked,
)

ARGMAX = Family(
    op="mean_argmax",
    grids=DECODE_GRIDS,
    inputs=_inputs,
    call=lambda inputs, impl: mean_argmax(inputs["logits"], impl=impl),
    libraries=lambda case: {"add in place + argmax": lambda inputs: _mean(inputs).argmax(-1)},
    work=_work,
    checked=_checked,
)
