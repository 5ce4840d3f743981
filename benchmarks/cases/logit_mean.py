"""The mean of K experts' logits, a fresh result each time; bound by memory."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.case import Family, Inputs, Shape, Work
from fastgrow.ops import logit_mean


def _inputs(shape: Shape, dtype: torch.dtype, generator: torch.Generator) -> Inputs:
    size = (shape["N"], shape["V"])
    return {
        "logits": [
            torch.randn(size, dtype=dtype, device=generator.device, generator=generator)
            for _ in range(shape["K"])
        ]
    }


def _call(inputs: Inputs, impl: str | None) -> Tensor:
    return logit_mean(inputs["logits"], impl=impl)


def _stack_and_mean(inputs: Inputs) -> Tensor:
    return torch.stack(inputs["logits"]).mean(0)


def _adding_in_place(inputs: Inputs) -> Tensor:
    first, *others = inputs["logits"]
    total = first.clone()
    for logits in others:
        total += logits
    return total.div_(len(inputs["logits"]))


def _work(shape: Shape, itemsize: int, pass_: str) -> Work:
    return Work(bytes=(shape["K"] + 1) * shape["N"] * shape["V"] * itemsize)


FAMILY = Family(
    op="logit_mean",
    grids={
        "tiny": [{"K": 2, "N": 8, "V": 64}],
        "cpu": [{"K": 4, "N": 64, "V": 65536}, {"K": 2, "N": 64, "V": 65536}],
        "gpu": [{"K": K, "N": 4096, "V": 65536} for K in (4, 2, 8)],
    },
    inputs=_inputs,
    call=_call,
    libraries=lambda case: {"stack + mean": _stack_and_mean, "add in place": _adding_in_place},
    work=_work,
    checked=lambda shape: {**shape, "N": min(shape["N"], 16)},
)
