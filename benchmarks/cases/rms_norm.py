"""Root-mean-square normalisation, with and without adding a residual."""

from __future__ import annotations

import dataclasses

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.case import Case, Family, Inputs, Library, Output, Shape
from benchmarks.cases.layer_norm import lone_work, norm_work
from benchmarks.cases.packages import LIGER, QUACK, function, liger, package
from fastgrow.ops import rms_norm

EPS = 1e-6
# Liger's settings for the same computation as the others: fp32 inside, gradients not in place.
SETTINGS = (EPS, 0.0, "gemma", False)


def _inputs(shape: Shape, dtype: torch.dtype, generator: torch.Generator) -> Inputs:
    N, d = shape["N"], shape["d"]

    def random(*size: int) -> Tensor:
        return torch.randn(size, dtype=dtype, device=generator.device, generator=generator)

    return {"x": random(N, d), "residual": random(N, d), "weight": random(d)}


def _inputs_alone(shape: Shape, dtype: torch.dtype, generator: torch.Generator) -> Inputs:
    inputs = _inputs(shape, dtype, generator)
    del inputs["residual"]
    return inputs


def _call(inputs: Inputs, impl: str | None) -> Output:
    return rms_norm(**inputs, eps=EPS, impl=impl)


def _torch(inputs: Inputs) -> Output:
    total = inputs["x"] + inputs["residual"]
    y = F.rms_norm(total, total.shape[-1:], inputs["weight"], EPS)
    return y, total


def _torch_alone(inputs: Inputs) -> Output:
    return F.rms_norm(inputs["x"], inputs["x"].shape[-1:], inputs["weight"], EPS)


def _liger(inputs: Inputs) -> Output:
    norm = liger("fused_add_rms_norm", "LigerFusedAddRMSNormFunction")
    results: tuple[Tensor, Tensor] = norm(
        inputs["x"], inputs["residual"], inputs["weight"], *SETTINGS
    )
    return results


def _liger_alone(inputs: Inputs) -> Output:
    norm = liger("rms_norm", "LigerRMSNormFunction")
    y: Tensor = norm(inputs["x"], inputs["weight"], *SETTINGS)
    return y


def _quack(inputs: Inputs) -> Output:
    norm = function("quack.rmsnorm", "rmsnorm")
    results: tuple[Tensor, Tensor] = norm(
        inputs["x"], inputs["weight"], residual=inputs["residual"], eps=EPS, prenorm=True
    )
    return results


def _quack_alone(inputs: Inputs) -> Output:
    y: Tensor = function("quack.rmsnorm", "rmsnorm")(inputs["x"], inputs["weight"], eps=EPS)
    return y


def _libraries(case: Case) -> dict[str, Library]:
    packages = package(case, "liger", LIGER, _liger) | package(case, "quack", QUACK, _quack)
    return {"torch": _torch, **packages}


def _libraries_alone(case: Case) -> dict[str, Library]:
    ligers = package(case, "liger", LIGER, _liger_alone)
    return {"torch": _torch_alone, **ligers, **package(case, "quack", QUACK, _quack_alone)}


FAMILY = Family(
    op="rms_norm",
    grids={
        "tiny": [{"N": 32, "d": 16}],
        "cpu": [{"N": 4096, "d": 256}, {"N": 512, "d": 1024}],
        "gpu": [{"N": 16384, "d": 1024}, {"N": 65536, "d": 2048}],
    },
    inputs=_inputs,
    call=_call,
    differentiate=("x", "weight"),
    parameters=("weight",),
    libraries=_libraries,
    work=norm_work,
    checked=lambda shape: {**shape, "N": min(shape["N"], 1024)},
)
ALONE = dataclasses.replace(
    FAMILY, variant="alone", inputs=_inputs_alone, libraries=_libraries_alone, work=lone_work
)
