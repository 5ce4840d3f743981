"""A training step of growth: L pre-norm blocks of width d; the topmost blocks and head are active.

The frozen blocks need no gradient for any contender; contenders differ in how they compute the
operations. The alternatives are the same model in plain PyTorch (`nn.functional`, SDPA), eager and
compiled.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.case import Case, Compiled, Family, Inputs, Library, Shape, Work
from fastgrow import ops

ACTIVE = 3  # number of active blocks, or fewer if the model has fewer
NAMES = ("norm_1", "qkv", "out", "norm_2", "up", "up_bias", "down", "down_bias")
Layer = Callable[[Tensor, Inputs, int], Tensor]


def _inputs(shape: Shape, dtype: torch.dtype, generator: torch.Generator) -> Inputs:
    B, T, d, H, V, L = (shape[n] for n in ("B", "T", "d", "H", "V", "L"))
    device = generator.device

    def random(*size: int, std: float = 1.0) -> Tensor:
        return torch.randn(size, dtype=dtype, device=device, generator=generator) * std

    inputs: Inputs = {
        "x": random(B, T, d),
        "targets": torch.randint(V, (B, T), device=device, generator=generator),
        "rope": ops.rope_table(T, d // H, device=device),
        "heads": H,
        "head": random(V, d, std=d**-0.5),
    }
    narrow, wide = d**-0.5, (4 * d) ** -0.5
    sizes = {
        "norm_1": lambda: 1 + random(d, std=0.1),
        "qkv": lambda: random(3 * d, d, std=narrow),
        "out": lambda: random(d, d, std=narrow / L),
        "norm_2": lambda: 1 + random(d, std=0.1),
        "up": lambda: random(4 * d, d, std=narrow),
        "up_bias": lambda: random(4 * d, std=0.1),
        "down": lambda: random(d, 4 * d, std=wide / L),
        "down_bias": lambda: random(d, std=0.1),
    }
    for index in range(L):
        # Blocks are numbered from the top, so that `differentiate` can name the active ones at any
        # depth.
        inputs |= {f"{name}{index}": sizes[name]() for name in NAMES}
    return inputs


def _depth(inputs: Inputs) -> int:
    return sum(name.startswith("qkv") for name in inputs)


def _ours(inputs: Inputs, impl: str | None) -> Tensor:
    x, table, heads = inputs["x"], inputs["rope"], inputs["heads"]
    for index in reversed(range(_depth(inputs))):
        norm_1, qkv, out, norm_2, up, up_bias, down, down_bias = _weights(inputs, index)
        normalised = ops.layer_norm(x, norm_1, impl=impl)
        q, k, v = _split(F.linear(normalised, qkv), heads)
        attended = ops.attention(q, k, v, rope=table, impl=impl)
        update = F.linear(attended.transpose(1, 2).flatten(2), out)
        normalised, x = ops.layer_norm(update, norm_2, residual=x, impl=impl)
        x = ops.mlp(
            normalised, up, down, up_bias=up_bias, down_bias=down_bias, residual=x, impl=impl
        )
    loss: Tensor = ops.linear_cross_entropy(x, inputs["head"], inputs["targets"], impl=impl)
    return loss


def _plain(inputs: Inputs) -> Tensor:
    x, table, heads = inputs["x"], inputs["rope"], inputs["heads"]
    width = x.shape[-1:]
    for index in reversed(range(_depth(inputs))):
        norm_1, qkv, out, norm_2, up, up_bias, down, down_bias = _weights(inputs, index)
        q, k, v = _split(F.linear(F.layer_norm(x, width, norm_1), qkv), heads)
        q, k = (ops.rope(t, table, impl="eager") for t in (q, k))
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + F.linear(attended.transpose(1, 2).flatten(2), out)
        hidden = F.gelu(F.linear(F.layer_norm(x, width, norm_2), up, up_bias))
        x = x + F.linear(hidden, down, down_bias)
    logits = F.linear(x, inputs["head"]).flatten(0, 1)
    return F.cross_entropy(logits.float(), inputs["targets"].flatten())


def _weights(inputs: Inputs, index: int) -> list[Tensor]:
    return [inputs[f"{name}{index}"] for name in NAMES]


def _split(qkv: Tensor, heads: int) -> tuple[Tensor, ...]:
    return qkv.unflatten(-1, (3 * heads, -1)).transpose(1, 2).chunk(3, dim=1)


def _libraries(case: Case) -> dict[str, Library]:
    return {"plain torch": _plain, "plain torch, compiled": Compiled(_plain)}


def _work(shape: Shape, itemsize: int, pass_: str) -> Work:
    tokens, d, active = shape["B"] * shape["T"], shape["d"], min(ACTIVE, shape["L"])
    block, head = 12 * d * d, shape["d"] * shape["V"]
    # For active parts, each matrix product of the forward pass is two in the backward pass.
    forward, backward = shape["L"] * block + head, 2 * (active * block + head)
    parts = {"forward": forward, "backward": backward, "full": forward + backward}
    return Work(flops=2 * tokens * parts[pass_])


FAMILY = Family(
    op="growth_step",
    grids={
        "tiny": [{"B": 2, "T": 16, "d": 32, "H": 2, "V": 64, "L": 3}],
        # The demo's models, in their last stage and as a monolith.
        "cpu": [{"B": 8, "T": 128, "d": 128, "H": 4, "V": 2425, "L": 3}],
        "gpu": [{"B": 16, "T": 1024, "d": 1024, "H": 32, "V": 65536, "L": 9}],
    },
    inputs=_inputs,
    call=_ours,
    differentiate=("head", *(f"{name}{i}" for i in range(ACTIVE) for name in NAMES)),
    parameters=("head", *(f"{name}{i}" for i in range(ACTIVE) for name in NAMES)),
    rows=lambda shape: shape["B"] * shape["T"],
    libraries=_libraries,
    work=_work,
    # The MLP uses different tiles for up to 4,096 tokens.
    checked=lambda shape: {**shape, "B": min(shape["B"], 5), "V": min(shape["V"], 4096)},
)
