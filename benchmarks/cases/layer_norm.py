"""Layer normalisation of the sum with a residual.

y and the sum are both results, as a block uses both. The gradient of the residual is that of x, so
one of them is asked for.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.case import Family, Inputs, Output, Shape, Work
from fastgrow.ops import layer_norm


def _inputs(shape: Shape, dtype: torch.dtype, generator: torch.Generator) -> Inputs:
    N, d = shape["N"], shape["d"]

    def random(*size: int) -> Tensor:
        return torch.randn(size, dtype=dtype, device=generator.device, generator=generator)

    return {"x": random(N, d), "residual": random(N, d), "weight": random(d), "bias": random(d)}


def _call(inputs: Inputs, impl: str | None) -> Output:
    return layer_norm(**inputs, impl=impl)


def _torch(inputs: Inputs) -> Output:
    total = inputs["x"] + inputs["residual"]
    y = F.layer_norm(total, total.shape[-1:], inputs["weight"], inputs["bias"])
    return y, total


def norm_work(shape: Shape, itemsize: int, pass_: str) -> Work:
    """[N, d] tensors moved: x, residual → y, sum forward, and dy, dsum, sum → dx backward."""
    tensors = {"forward": 4, "backward": 4, "full": 8}[pass_]
    return Work(bytes=tensors * shape["N"] * shape["d"] * itemsize)


FAMILY = Family(
    op="layer_norm",
    grids={
        "tiny": [{"N": 32, "d": 16}],
        "cpu": [{"N": 4096, "d": 256}],
        "gpu": [{"N": 16384, "d": 1024}, {"N": 65536, "d": 2048}],
    },
    inputs=_inputs,
    call=_call,
    differentiate=("x", "weight", "bias"),
    parameters=("weight", "bias"),
    libraries=lambda case: {"torch": _torch},
    work=norm_work,
    checked=lambda shape: {**shape, "N": min(shape["N"], 1024)},
)
