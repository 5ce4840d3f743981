"""The KL divergence of a student's head from a teacher's: N tokens, width d, vocabulary V."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.case import Family, Inputs, Shape, Work
from fastgrow.ops import linear_kl


def _inputs(shape: Shape, dtype: torch.dtype, generator: torch.Generator) -> Inputs:
    N, d, V = shape["N"], shape["d"], shape["V"]

    def random(*size: int) -> Tensor:
        return torch.randn(size, dtype=dtype, device=generator.device, generator=generator)

    return {
        "h": random(N, d),
        "weight": random(V, d) * d**-0.5,
        "teacher_h": random(N, d),
        "teacher_weight": random(V, d) * d**-0.5,
    }


def _call(inputs: Inputs, impl: str | None) -> Tensor:
    teacher = [(inputs["teacher_h"], inputs["teacher_weight"], None)]
    return linear_kl(inputs["h"], inputs["weight"], teacher, impl=impl)


def _work(shape: Shape, itemsize: int, pass_: str) -> Work:
    # The student's and the teacher's product; two more of the student's in the backward pass.
    products = {"forward": 2, "backward": 2, "full": 4}[pass_]
    return Work(flops=products * 2 * shape["N"] * shape["d"] * shape["V"])


FAMILY = Family(
    op="linear_kl",
    grids={
        "tiny": [{"N": 32, "d": 16, "V": 128}],
        "cpu": [{"N": 512, "d": 256, "V": 16384}],
        "gpu": [{"N": 8192, "d": 1024, "V": 65536}],
    },
    inputs=_inputs,
    call=_call,
    differentiate=("h", "weight"),
    parameters=("weight",),
    work=_work,
    checked=lambda shape: {**shape, "N": min(shape["N"], 128), "V": min(shape["V"], 8192)},
)
