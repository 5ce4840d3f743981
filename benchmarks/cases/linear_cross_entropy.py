"""The head's product with the loss: N tokens, width d, vocabulary V."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.case import Case, Family, Inputs, Run, Shape, Work
from benchmarks.cases.liger import function, liger
from fastgrow.ops import linear_cross_entropy


def _inputs(shape: Shape, dtype: torch.dtype, generator: torch.Generator) -> Inputs:
    N, d, V = shape["N"], shape["d"], shape["V"]

    def random(*size: int) -> Tensor:
        return torch.randn(size, dtype=dtype, device=generator.device, generator=generator)

    return {
        "h": random(N, d),
        "weight": random(V, d) * d**-0.5,
        "bias": random(V),
        "targets": torch.randint(V, (N,), device=generator.device, generator=generator),
    }


def _call(inputs: Inputs, impl: str | None) -> Tensor:
    h, weight, targets, bias = (inputs[n] for n in ("h", "weight", "targets", "bias"))
    return linear_cross_entropy(h, weight, targets, bias, impl=impl)


def _liger(inputs: Inputs) -> Tensor:
    h, weight, targets, bias = (inputs[n] for n in ("h", "weight", "targets", "bias"))
    fused = function("fused_linear_cross_entropy", "LigerFusedLinearCrossEntropyFunction")
    result = fused.apply(h, weight, targets, bias)  # type: ignore[attr-defined]
    # Newer releases return the z-loss beside the loss.
    loss: Tensor = result[0] if isinstance(result, tuple) else result
    return loss


def _libraries(case: Case) -> dict[str, Run]:
    return liger(case, "liger", _liger)


def _work(shape: Shape, itemsize: int, pass_: str) -> Work:
    products = {"forward": 1, "backward": 2, "full": 3}[pass_]
    return Work(flops=products * 2 * shape["N"] * shape["d"] * shape["V"])


FAMILY = Family(
    op="linear_cross_entropy",
    grids={
        "tiny": [{"N": 32, "d": 16, "V": 128}],
        "cpu": [{"N": 256, "d": 256, "V": 8192}, {"N": 2048, "d": 256, "V": 65536}],
        "gpu": [{"N": 8192, "d": 1024, "V": 65536}, {"N": 8192, "d": 1024, "V": 131072}],
    },
    inputs=_inputs,
    call=_call,
    differentiate=("h", "weight", "bias"),
    parameters=("weight", "bias"),
    libraries=_libraries,
    work=_work,
    checked=lambda shape: {**shape, "N": min(shape["N"], 128), "V": min(shape["V"], 8192)},
)
