"""Root-mean-square normalisation of the sum with a residual."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.case import Family, Inputs, Output, Shape
from benchmarks.cases.layer_norm import norm_work
from fastgrow.ops import rms_norm


def _inputs(shape: Shape, dtype: torch.dtype, generator: torch.Generator) -> Inputs:
    N, d = shape["N"], shape["d"]

    def random(*size: int) -> Tensor:
        return torch.randn(size, dtype=dtype, device=generator.device, generator=generator)

    return {"x": random(N, d), "residual": random(N, d), "weight": random(d)}


def _call(inputs: Inputs, impl: str | None) -> Output:
    return rms_norm(**inputs, impl=impl)


def _torch(inputs: Inputs) -> Output:
    total = inputs["x"] + inputs["residual"]
    y = F.rms_norm(total, total.shape[-1:], inputs["weight"], 1e-6)
    return y, total


FAMILY = Family(
    op="rms_norm",
    grids={
        "tiny": [{"N": 32, "d": 16}],
        "cpu": [{"N": 4096, "d": 256}],
        "gpu": [{"N": 16384, "d": 1024}, {"N": 65536, "d": 2048}],
    },
    inputs=_inputs,
    call=_call,
    differentiate=("x", "weight"),
    parameters=("weight",),
    libraries=lambda case: {"torch": _torch},
    work=norm_work,
    checked=lambda shape: {**shape, "N": min(shape["N"], 1024)},
)
