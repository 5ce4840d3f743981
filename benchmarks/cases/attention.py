"""Causal attention with rotary positions; B·T = 16k tokens on a GPU."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.case import Family, Inputs, Shape, Work
from benchmarks.cases.attention_libraries import libraries, required
from fastgrow.ops import attention, rope_table


def _gpu_grid() -> list[Shape]:
    heads = {32: 32, 64: 16, 128: 8}
    return [
        {"B": 16384 // T, "H": H, "H_kv": H, "T": T, "D": D}
        for D, H in heads.items()
        for T in (4096, 1024, 2048, 8192)
    ]


def _inputs(shape: Shape, dtype: torch.dtype, generator: torch.Generator) -> Inputs:
    B, T, D = shape["B"], shape["T"], shape["D"]
    device = generator.device

    def random(heads: int, length: int) -> Tensor:
        # [B, T, H, D] in memory, as the projections write it.
        size = (B, length, heads, D)
        x = torch.randn(size, dtype=dtype, device=device, generator=generator)
        return x.transpose(1, 2)

    return {
        "q": random(shape["H"], T),
        "k": random(shape["H_kv"], T),
        "v": random(shape["H_kv"], T),
        "rope": rope_table(T, D, device=device),
    }


def _call(inputs: Inputs, impl: str | None) -> Tensor:
    """Return [B, T, H, D], the layout that the next projection reads and returns gradients in."""
    y = attention(inputs["q"], inputs["k"], inputs["v"], rope=inputs["rope"], impl=impl)
    return y.transpose(1, 2)


def _work(shape: Shape, itemsize: int, pass_: str) -> Work:
    B, H, T, D = shape["B"], shape["H"], shape["T"], shape["D"]
    # Two products over the visible half of the scores; five in the backward pass.
    products = {"forward": 2, "backward": 5, "full": 7}[pass_]
    return Work(flops=products * 2 * B * H * D * T * (T + 1) / 2)


def _checked(shape: Shape) -> Shape:
    # A kernel is specialised for a number of heads that is a multiple of 16: checking 8 heads
    # instead of 32 would run another kernel.
    heads = {name: min(shape[name], 16) for name in ("H", "H_kv")}
    return {**shape, **heads, "B": 1, "T": min(shape["T"], 4096)}


FAMILY = Family(
    op="attention",
    grids={
        "tiny": [{"B": 1, "H": 2, "H_kv": 2, "T": 64, "D": 32}],
        "cpu": [
            {"B": 2, "H": 8, "H_kv": 8, "T": 512, "D": 32},
            {"B": 1, "H": 8, "H_kv": 8, "T": 2048, "D": 32},
            {"B": 4, "H": 4, "H_kv": 4, "T": 512, "D": 64},
            {"B": 4, "H": 8, "H_kv": 2, "T": 512, "D": 32},
        ],
        "gpu": _gpu_grid(),
    },
    inputs=_inputs,
    call=_call,
    differentiate=("q", "k", "v"),
    # Sums over the keys, or over the queries in the gradients of keys and values.
    sums=lambda shape: shape["T"],
    libraries=libraries,
    required=required,
    work=_work,
    checked=_checked,
)
