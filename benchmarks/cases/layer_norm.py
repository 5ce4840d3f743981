"""Layer normalisation, with and without adding a residual.

y and the sum are both results, as a block uses both. The gradients of the residual and of x are
equal, so only one of them is computed.
"""

from __future__ import annotations

import dataclasses

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.case import Absent, Case, Family, Inputs, Library, Output, Run, Shape, Work
from benchmarks.cases.packages import LIGER, QUACK, liger, package
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


def _torch_alone(inputs: Inputs) -> Output:
    x = inputs["x"]
    return F.layer_norm(x, x.shape[-1:], inputs["weight"], inputs["bias"])


def _liger(x: Tensor, inputs: Inputs) -> Tensor:
    norm = liger("layer_norm", "LigerLayerNormFunction")
    y: Tensor = norm(x, inputs["weight"], inputs["bias"], 1e-5)
    return y


def _liger_with_sum(inputs: Inputs) -> Output:
    total = inputs["x"] + inputs["residual"]
    return _liger(total, inputs), total


def _libraries(case: Case) -> dict[str, Library]:
    return _with_packages(case, _torch, _liger_with_sum)


def _libraries_alone(case: Case) -> dict[str, Library]:
    return _with_packages(case, _torch_alone, lambda inputs: _liger(inputs["x"], inputs))


def _with_packages(case: Case, torchs: Run, ligers: Run) -> dict[str, Library]:
    quack = Absent("refused: it has fp32 weights and no gradient")
    packages = package(case, "liger", LIGER, ligers) | package(case, "quack", QUACK, quack)
    return {"torch": torchs, **packages}


def norm_work(shape: Shape, itemsize: int, pass_: str) -> Work:
    """Count the [N, d] tensors moved: x, residual → y, sum forward; dy, dsum, sum → dx backward."""
    tensors = {"forward": 4, "backward": 4, "full": 8}[pass_]
    return Work(bytes=tensors * shape["N"] * shape["d"] * itemsize)


def lone_work(shape: Shape, itemsize: int, pass_: str) -> Work:
    """Count the [N, d] tensors moved: x → y forward; dy, x → dx backward."""
    tensors = {"forward": 2, "backward": 3, "full": 5}[pass_]
    return Work(bytes=tensors * shape["N"] * shape["d"] * itemsize)


def _inputs_alone(shape: Shape, dtype: torch.dtype, generator: torch.Generator) -> Inputs:
    inputs = _inputs(shape, dtype, generator)
    del inputs["residual"]
    return inputs


FAMILY = Family(
    op="layer_norm",
    grids={
        "tiny": [{"N": 32, "d": 16}],
        "cpu": [{"N": 4096, "d": 256}, {"N": 512, "d": 1024}],
        "gpu": [{"N": 16384, "d": 1024}, {"N": 65536, "d": 2048}],
    },
    inputs=_inputs,
    call=_call,
    differentiate=("x", "weight", "bias"),
    parameters=("weight", "bias"),
    libraries=_libraries,
    work=norm_work,
    checked=lambda shape: {**shape, "N": min(shape["N"], 1024)},
)
ALONE = dataclasses.replace(
    FAMILY, variant="alone", inputs=_inputs_alone, libraries=_libraries_alone, work=lone_work
)
