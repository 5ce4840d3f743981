"""The output head with the loss: N tokens, width d, vocabulary V; and K heads averaged."""

from __future__ import annotations

import dataclasses

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.case import Absent, Case, Family, Inputs, Library, Shape, Work
from benchmarks.cases.packages import LIGER, QUACK, function, liger, package
from fastgrow.ops import linear_cross_entropy, linear_lse_gather

CHUNKED_OPTIONS = "LinearCrossEntropyOptions"
UNBIASED = "unbiased"
GPU = [{"N": 8192, "d": 1024, "V": 65536}, {"N": 8192, "d": 1024, "V": 131072}]


def _inputs(shape: Shape, dtype: torch.dtype, generator: torch.Generator) -> Inputs:
    N, d, V = shape["N"], shape["d"], shape["V"]

    def random(*size: int) -> Tensor:
        return torch.randn(size, dtype=dtype, device=generator.device, generator=generator)

    inputs = {
        "h": random(N, d),
        "weight": random(V, d) * d**-0.5,
        "bias": random(V),
        "targets": torch.randint(V, (N,), device=generator.device, generator=generator),
    }
    for k in range(1, shape.get("K", 1)):
        inputs |= {f"h{k}": random(N, d), f"weight{k}": random(V, d) * d**-0.5}
    return inputs


def _inputs_without_bias(shape: Shape, dtype: torch.dtype, generator: torch.Generator) -> Inputs:
    inputs = _inputs(shape, dtype, generator)
    del inputs["bias"]
    return inputs


def _call(inputs: Inputs, impl: str | None) -> Tensor:
    h, weight, targets = (inputs[n] for n in ("h", "weight", "targets"))
    return linear_cross_entropy(h, weight, targets, inputs.get("bias"), impl=impl)


def _call_lse(inputs: Inputs, impl: str | None) -> tuple[Tensor, Tensor]:
    h, weight, targets, bias = (inputs[n] for n in ("h", "weight", "targets", "bias"))
    return linear_lse_gather(h, weight, targets, bias, impl=impl)


def _call_with_heads(inputs: Inputs, impl: str | None) -> Tensor:
    h, weight = (
        [x for name, x in inputs.items() if name.rstrip("0123456789") == kind]
        for kind in ("h", "weight")
    )
    bias = [inputs["bias"], *[None] * (len(h) - 1)]
    return linear_cross_entropy(h, weight, inputs["targets"], bias, impl=impl)


def _liger(inputs: Inputs) -> Tensor:
    fused = liger("fused_linear_cross_entropy", "LigerFusedLinearCrossEntropyFunction")
    result = fused(inputs["h"], inputs["weight"], inputs["targets"], inputs.get("bias"))
    # Newer releases return the loss together with the z-loss.
    loss: Tensor = result[0] if isinstance(result, tuple) else result
    return loss


def _torch_chunked(inputs: Inputs) -> Tensor:
    """Run torch's chunked loss, available from torch 2.13 on."""
    # Looked up by name, because earlier releases do not have it.
    options = getattr(torch.nn, CHUNKED_OPTIONS)()
    loss: Tensor = getattr(F, "linear_cross_entropy")(  # noqa: B009
        *(inputs[name] for name in ("h", "weight", "targets")),
        linear_bias=inputs.get("bias"),
        options=options,
    )
    return loss


def _quack(inputs: Inputs) -> Tensor:
    fused = function("quack.linear_cross_entropy", "chunked_linear_cross_entropy")
    loss: Tensor = fused(inputs["h"], inputs["weight"], inputs["targets"])
    return loss


def _libraries(case: Case) -> dict[str, Library]:
    chunked: Library = _torch_chunked
    if not hasattr(torch.nn, CHUNKED_OPTIONS):
        chunked = Absent(f"not installed: torch {torch.__version__} has none")
    quacks: Library = _quack
    if case.family.variant != UNBIASED:
        quacks = Absent("refused: it takes no bias")
    packages = package(case, "liger", LIGER, _liger) | package(case, "quack", QUACK, quacks)
    return {"torch chunked": chunked, **packages}


def _work(shape: Shape, itemsize: int, pass_: str) -> Work:
    products = {"forward": 1, "backward": 2, "full": 3}[pass_]
    K = shape.get("K", 1)
    return Work(flops=products * 2 * K * shape["N"] * shape["d"] * shape["V"])


def _frozen_work(shape: Shape, itemsize: int, pass_: str) -> Work:
    products = {"forward": 1, "backward": 1, "full": 2}[pass_]
    return Work(flops=products * 2 * shape["N"] * shape["d"] * shape["V"])


FAMILY = Family(
    op="linear_cross_entropy",
    grids={
        "tiny": [{"N": 32, "d": 16, "V": 128}],
        "cpu": [{"N": 256, "d": 256, "V": 8192}, {"N": 2048, "d": 256, "V": 65536}],
        "gpu": GPU,
    },
    inputs=_inputs,
    call=_call,
    differentiate=("h", "weight", "bias"),
    parameters=("weight", "bias"),
    libraries=_libraries,
    work=_work,
    checked=lambda shape: {**shape, "N": min(shape["N"], 128), "V": min(shape["V"], 8192)},
)

# The form in which the libraries measure it; some support no bias.
WITHOUT_BIAS = dataclasses.replace(
    FAMILY,
    variant=UNBIASED,
    grids={
        "tiny": [{"N": 32, "d": 16, "V": 128}],
        "cpu": [{"N": 256, "d": 256, "V": 8192}],
        "gpu": GPU[:1],
    },
    inputs=_inputs_without_bias,
    differentiate=("h", "weight"),
    parameters=("weight",),
)

# A frozen head: the loss has a gradient for the hidden states only.
FROZEN = dataclasses.replace(
    FAMILY,
    variant="frozen",
    grids={
        "tiny": [{"N": 32, "d": 16, "V": 128}],
        "cpu": [{"N": 256, "d": 256, "V": 8192}],
        "gpu": GPU[:1],
    },
    differentiate=("h",),
    parameters=(),
    work=_frozen_work,
)

# The mean of K experts' logits, which no library supports.
HEADS = dataclasses.replace(
    FAMILY,
    variant="heads",
    grids={
        "tiny": [{"K": 2, "N": 32, "d": 16, "V": 128}],
        "cpu": [{"K": 2, "N": 256, "d": 256, "V": 8192}],
        "gpu": [{"K": 2, "N": 8192, "d": 1024, "V": 65536}],
    },
    call=_call_with_heads,
    libraries=lambda case: {},
)

# The log-sum-exp and target logit from which the loss is computed, with gradients for every row.
LSE = dataclasses.replace(
    FAMILY,
    op="linear_lse_gather",
    grids={
        "tiny": [{"N": 32, "d": 16, "V": 128}],
        "cpu": [{"N": 256, "d": 256, "V": 8192}],
        "gpu": GPU[:1],
    },
    call=_call_lse,
    libraries=lambda case: {},
)
