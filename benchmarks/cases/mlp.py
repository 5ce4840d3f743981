"""The MLP, d → 4d → d with biases: exact and tanh GELU, SwiGLU, frozen weights."""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.case import Absent, Case, Family, Inputs, Library, Shape, Work
from benchmarks.cases.packages import LIGER, QUACK, function, liger, package
from fastgrow.ops import mlp

NO_BIASES = Absent("refused: its biases have no gradient")
WEIGHTS = ("up", "down", "up_bias", "down_bias")


def _inputs(gated: bool, shape: Shape, dtype: torch.dtype, generator: torch.Generator) -> Inputs:
    N, d = shape["N"], shape["d"]

    def random(*size: int) -> Tensor:
        return torch.randn(size, dtype=dtype, device=generator.device, generator=generator)

    inputs = {
        "x": random(N, d),
        "up": random(4 * d, d) * d**-0.5,
        "down": random(d, 4 * d) * (4 * d) ** -0.5,
        "up_bias": random(4 * d),
        "down_bias": random(d),
    }
    if gated:
        inputs["gate"] = random(4 * d, d) * d**-0.5
    return inputs


def _call(activation: str, inputs: Inputs, impl: str | None) -> Tensor:
    return mlp(**inputs, activation=activation, impl=impl)


def _cublaslt(inputs: Inputs) -> Tensor:
    """Run torch's matrix product with an activation in its epilogue, which has no gradient."""
    hidden = torch._addmm_activation(inputs["up_bias"], inputs["x"], inputs["up"].T, use_gelu=True)
    return F.linear(hidden, inputs["down"], inputs["down_bias"])


def _liger_swiglu(inputs: Inputs) -> Tensor:
    gate = F.linear(inputs["x"], inputs["gate"])
    up = F.linear(inputs["x"], inputs["up"], inputs["up_bias"])
    hidden = liger("swiglu", "LigerSiLUMulFunction")(gate, up)
    return F.linear(hidden, inputs["down"], inputs["down_bias"])


def _quack(inputs: Inputs) -> Tensor:
    y: Tensor = function("quack.mlp", "mlp_func")(
        inputs["x"], inputs["up"], inputs["down"], "gelu_tanh_approx",
        bias1=inputs["up_bias"], bias2=inputs["down_bias"],
    )  # fmt: skip
    return y


def _epilogue(case: Case) -> dict[str, Library]:
    forward = case.pass_ == "forward"
    found: dict[str, Library] = {}
    # On a CPU, the same call computes the exact GELU.
    if case.device == "cuda":
        found["addmm_activation"] = _cublaslt if forward else Absent("refused: it has no gradient")
    return found | package(case, "quack", QUACK, _quack if forward else NO_BIASES)


def _work(matrices: int, frozen: bool, shape: Shape, itemsize: int, pass_: str) -> Work:
    backward = matrices if frozen else 2 * matrices
    products = {"forward": matrices, "backward": backward, "full": matrices + backward}[pass_]
    return Work(flops=products * 2 * shape["N"] * shape["d"] * 4 * shape["d"])


def _family(
    variant: str,
    activation: str,
    gpu: list[Shape],
    differentiate: tuple[str, ...],
) -> Family:
    gated = activation == "swiglu"
    parameters = tuple(name for name in differentiate if name != "x")
    return Family(
        op="mlp",
        variant=variant,
        grids={"tiny": [{"N": 32, "d": 16}], "cpu": [{"N": 512, "d": 256}], "gpu": gpu},
        inputs=functools.partial(_inputs, gated),
        call=functools.partial(_call, activation),
        differentiate=differentiate,
        parameters=parameters,
        libraries=_epilogue if activation == "gelu_tanh" else _gated if gated else _none,
        work=functools.partial(_work, 3 if gated else 2, not parameters),
        checked=lambda shape: {**shape, "N": min(shape["N"], 8192)},
    )


def _gated(case: Case) -> dict[str, Library]:
    # It expects both projections in one matrix, which would have to be concatenated in each call.
    quack = Absent("refused: it has one matrix for both projections")
    return package(case, "liger", LIGER, _liger_swiglu) | package(case, "quack", QUACK, quack)


def _none(case: Case) -> dict[str, Library]:
    """Return no alternative: a chain of nn.Linear and F.gelu is the eager formula itself."""
    return {}


LARGE = {"N": 16384, "d": 1024}
FAMILIES = (
    _family("", "gelu", [LARGE, {"N": 4096, "d": 4096}], ("x", *WEIGHTS)),
    _family("frozen", "gelu", [LARGE], ("x",)),
    _family("tanh", "gelu_tanh", [LARGE], ("x", *WEIGHTS)),
    _family("swiglu", "swiglu", [LARGE], ("x", "gate", *WEIGHTS)),
)
