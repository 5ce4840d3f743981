"""Attention of one new token over a cache of rotated keys, as in generation.

Its time is bound by reading the cache.
"""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.case import Family, Inputs, Shape, Work
from benchmarks.cases.attention_libraries import libraries, required
from fastgrow.ops import attention, rope_table


def _inputs(shape: Shape, dtype: torch.dtype, generator: torch.Generator) -> Inputs:
    B, T, D = shape["B"], shape["T"], shape["D"]

    def random(heads: int, length: int) -> Tensor:
        size = (B, heads, length, D)
        return torch.randn(size, dtype=dtype, device=generator.device, generator=generator)

    return {
        "q": random(shape["H"], 1),
        "k": random(shape["H_kv"], T),
        "v": random(shape["H_kv"], T),
        "rope": rope_table(T, D, device=generator.device),
    }


def _call(inputs: Inputs, impl: str | None) -> Tensor:
    q, k, v = inputs["q"], inputs["k"], inputs["v"]
    y = attention(q, k, v, rope=inputs["rope"], k_rotated=True, impl=impl)
    return y.transpose(1, 2)


def _work(shape: Shape, itemsize: int, pass_: str) -> Work:
    return Work(bytes=2 * shape["B"] * shape["H_kv"] * shape["T"] * shape["D"] * itemsize)


FAMILY = Family(
    op="attention",
    variant="decode",
    grids={
        "tiny": [{"B": 2, "H": 2, "H_kv": 2, "T": 64, "D": 32}],
        "cpu": [{"B": 8, "H": 8, "H_kv": 8, "T": 1024, "D": 32}],
        "gpu": [
            {"B": 16, "H": 32, "H_kv": 32, "T": 4096, "D": 32},
            {"B": 16, "H": 32, "H_kv": 8, "T": 4096, "D": 128},
            {"B": 1, "H": 32, "H_kv": 32, "T": 16384, "D": 32},
        ],
    },
    inputs=_inputs,
    call=_call,
    # Sums over the keys.
    sums=lambda shape: shape["T"],
    libraries=libraries,
    required=required,
    work=_work,
)
