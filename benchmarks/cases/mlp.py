"""The feed-forward layer, d → 4d → d with GELU and biases."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.case import Family, Inputs, Shape, Work
from fastgrow.ops import mlp


def _inputs(shape: Shape, dtype: torch.dtype, generator: torch.Generator) -> Inputs:
    N, d = shape["N"], shape["d"]

    def random(*size: int) -> Tensor:
        return torch.randn(size, dtype=dtype, device=generator.device, generator=generator)

    return {
        "x": random(N, d),
        "up": random(4 * d, d) * d**-0.5,
        "down": random(d, 4 * d) * (4 * d) ** -0.5,
        "up_bias": random(4 * d),
        "down_bias": random(d),
    }


def _call(inputs: Inputs, impl: str | None) -> Tensor:
    return mlp(**inputs, impl=impl)


def _work(shape: Shape, itemsize: int, pass_: str) -> Work:
    products = {"forward": 2, "backward": 4, "full": 6}[pass_]
    return Work(flops=products * 2 * shape["N"] * shape["d"] * 4 * shape["d"])


FAMILY = Family(
    op="mlp",
    grids={
        "tiny": [{"N": 32, "d": 16}],
        "cpu": [{"N": 512, "d": 256}],
        "gpu": [{"N": 16384, "d": 1024}, {"N": 4096, "d": 4096}],
    },
    inputs=_inputs,
    call=_call,
    differentiate=("x", "up", "down", "up_bias", "down_bias"),
    parameters=("up", "down", "up_bias", "down_bias"),
    work=_work,
    checked=lambda shape: {**shape, "N": min(shape["N"], 256)},
)
