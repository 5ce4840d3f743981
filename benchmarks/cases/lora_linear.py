"""A frozen linear layer with LoRA, compared with the chain of operations of adapter libraries."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.case import Family, Inputs, Shape, Work
from fastgrow.ops import lora_linear

SCALE = 2.0


def _inputs(shape: Shape, dtype: torch.dtype, generator: torch.Generator) -> Inputs:
    N, d, m, r = shape["N"], shape["d"], shape["m"], shape["r"]

    def random(*size: int) -> Tensor:
        return torch.randn(size, dtype=dtype, device=generator.device, generator=generator)

    return {
        "x": random(N, d),
        "weight": random(m, d) * d**-0.5,
        "a": random(r, d) * d**-0.5,
        "b": random(m, r) * r**-0.5,
        "bias": random(m),
    }


def _call(inputs: Inputs, impl: str | None) -> Tensor:
    return lora_linear(**inputs, scale=SCALE, impl=impl)


def _chain(inputs: Inputs) -> Tensor:
    x = inputs["x"]
    low_rank = F.linear(F.linear(x, inputs["a"]), inputs["b"])
    return F.linear(x, inputs["weight"], inputs["bias"]) + low_rank * SCALE


def _work(shape: Shape, itemsize: int, pass_: str) -> Work:
    """Count a product with the weight and two narrow ones; backward has two narrow ones more."""
    N, d, m, r = shape["N"], shape["d"], shape["m"], shape["r"]
    forward, more = 2 * N * (d * m + r * (d + m)), 2 * N * r * (d + m)
    flops = {"forward": forward, "backward": forward + more, "full": 2 * forward + more}[pass_]
    return Work(flops=flops)


FAMILY = Family(
    op="lora_linear",
    grids={
        "tiny": [{"N": 32, "d": 16, "m": 48, "r": 4}],
        "cpu": [{"N": 512, "d": 256, "m": 256, "r": 8}],
        "gpu": [
            {"N": 16384, "d": 1024, "m": 1024, "r": 16},
            {"N": 16384, "d": 1024, "m": 4096, "r": 16},
            {"N": 16384, "d": 4096, "m": 4096, "r": 64},
        ],
    },
    inputs=_inputs,
    call=_call,
    differentiate=("x", "a", "b"),
    parameters=("a", "b"),
    libraries=lambda case: {"torch chain": _chain},
    work=_work,
    checked=lambda shape: {**shape, "N": min(shape["N"], 4096)},
)
