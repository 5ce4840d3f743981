"""Causal attention with rotary positions; B·T = 16k tokens on a GPU."""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.case import Case, Family, Inputs, Run, Shape, Work
from fastgrow.ops import attention, rope, rope_table

BACKENDS = {
    "sdpa flash": SDPBackend.FLASH_ATTENTION,
    "sdpa cudnn": SDPBackend.CUDNN_ATTENTION,
    "sdpa efficient": SDPBackend.EFFICIENT_ATTENTION,
    "sdpa math": SDPBackend.MATH,
}
# On a CPU torch has these two.
ON_CPU = ("sdpa flash", "sdpa math")


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
        # [B, T, H, D] in memory, as the projections leave it.
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
    return attention(inputs["q"], inputs["k"], inputs["v"], rope=inputs["rope"], impl=impl)


def _libraries(case: Case) -> dict[str, Run]:
    names = ON_CPU if case.device == "cpu" else tuple(BACKENDS)
    return {name: functools.partial(_sdpa, BACKENDS[name]) for name in names}


def _sdpa(backend: SDPBackend, inputs: Inputs) -> Tensor:
    q, k, v = inputs["q"], inputs["k"], inputs["v"]
    q, k = _rotated(q, k, inputs["rope"])
    with sdpa_kernel(backend):
        return F.scaled_dot_product_attention(
            q, k, v, is_causal=True, enable_gqa=q.shape[1] != k.shape[1]
        )


def _rotated(q: Tensor, k: Tensor, table: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """A GPU user would compile the rotation; on a CPU every side has the same eager one."""
    rotate = _compiled_rotation() if q.is_cuda else _rotate
    return rotate(q, k, table)


def _rotate(q: Tensor, k: Tensor, table: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return rope(q, table, impl="eager"), rope(k, table, impl="eager")


@functools.cache
def _compiled_rotation():  # type: ignore[no-untyped-def]
    return torch.compile(_rotate)


def required(case: Case) -> tuple[str, ...]:
    """Without flash and cuDNN a speed-up on a GPU would flatter; they do not serve fp32."""
    return () if case.dtype == "fp32" else ("sdpa flash", "sdpa cudnn")


def _work(shape: Shape, itemsize: int, pass_: str) -> Work:
    B, H, T, D = shape["B"], shape["H"], shape["T"], shape["D"]
    # Two products over the visible half of the scores; the backward pass makes five.
    products = {"forward": 2, "backward": 5, "full": 7}[pass_]
    return Work(flops=products * 2 * B * H * D * T * (T + 1) / 2)


def _checked(shape: Shape) -> Shape:
    return {**shape, "B": 1, "H": min(shape["H"], 8), "T": min(shape["T"], 512)} | {
        "H_kv": min(shape["H_kv"], 8)
    }


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
    libraries=_libraries,
    required=required,
    work=_work,
    checked=_checked,
)
