"""Lookup in a frozen table with the lift to the model's width; memory is the point, not speed."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.case import Family, Inputs, Shape, Work
from fastgrow.ops import embedding

LIFT = 4


def _inputs(shape: Shape, dtype: torch.dtype, generator: torch.Generator) -> Inputs:
    N, V, d = shape["N"], shape["V"], shape["d"]
    device = generator.device
    return {
        "ids": torch.randint(V, (N,), device=device, generator=generator),
        "table": torch.randn(V, d // LIFT, dtype=dtype, device=device, generator=generator),
    }


def _call(inputs: Inputs, impl: str | None) -> Tensor:
    return embedding(inputs["ids"], inputs["table"], repeat=LIFT, impl=impl)


def _lookup_then_expand(inputs: Inputs) -> Tensor:
    rows = F.embedding(inputs["ids"], inputs["table"])
    return rows.unsqueeze(-1).expand(*rows.shape, LIFT).reshape(rows.shape[0], -1)


def _work(shape: Shape, itemsize: int, pass_: str) -> Work:
    N, d = shape["N"], shape["d"]
    return Work(bytes=N * (d + d // LIFT) * itemsize)


FAMILY = Family(
    op="embedding",
    grids={
        "tiny": [{"N": 32, "V": 64, "d": 16}],
        "cpu": [{"N": 4096, "V": 16384, "d": 256}],
        "gpu": [{"N": 16384, "V": 65536, "d": 1024}],
    },
    inputs=_inputs,
    call=_call,
    libraries=lambda case: {"lookup + expand": _lookup_then_expand},
    work=_work,
)
