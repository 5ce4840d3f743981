"""The feed-forward layer's kernels against the eager formula in fp64, forward and backward."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
import torch.utils.checkpoint
from harness import DEVICE, INTERPRETED, assert_accurate, smoke
from torch import Tensor
from torch.library import opcheck

from fastgrow.errors import ArgumentError, ConfigError
from fastgrow.kernels import mlp as launchers
from fastgrow.kernels import tuned
from fastgrow.kernels.calls import MlpOutput
from fastgrow.ops import mlp

F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
WEIGHTS = ("up", "down", "gate", "up_bias", "down_bias")


@dataclass(frozen=True)
class Case:
    """One call."""

    activation: str = "gelu"
    rows: int = 150
    dim: int = 80
    width: int = 200
    dtype: torch.dtype = F32
    biases: bool = True
    residual: bool = True
    fused: bool = True
    transposed: bool = False  # weights are stored the other way round, as GPT-2's are

    def __str__(self) -> str:
        usual = Case()
        changed = [f"{k}={v}" for k, v in vars(self).items() if v != getattr(usual, k)]
        return " ".join(changed) or "usual"


ACTIVATIONS = ("gelu", "gelu_tanh", "relu2", "swiglu")
QUICK = [
    *[Case(a, fused=f) for a in ACTIVATIONS for f in (True, False)],
    smoke(Case(dtype=BF16)),
    Case("swiglu", 17, dtype=BF16, biases=False),
    Case(rows=1, residual=False, dtype=F16, transposed=True),
    smoke(Case("swiglu", 256, 64, 128, BF16, fused=False)),
]
FULL = [
    Case(a, rows, 48, 144, dtype, fused=fused)
    for a in ACTIVATIONS
    for rows in (1, 63, 127)
    for dtype in (F32, BF16, F16)
    for fused in (True, False)
] + [
    Case("gelu", 130, 130, 130, BF16, biases=b, residual=r, transposed=True)
    for b in (True, False)
    for r in (True, False)
]


def make(case: Case) -> dict[str, Tensor]:
    """The arguments and, as `dy`, the gradient of the result."""
    generator = torch.Generator().manual_seed(7)

    def random(*shape: int, size: float = 1.0) -> Tensor:
        x = torch.randn(shape, generator=generator) * size
        if case.transposed and len(shape) == 2 and shape[0] != case.rows:
            x = x.T.contiguous().T
        return x.to(case.dtype).to(DEVICE)

    d, m = case.dim, case.width
    tensors = {
        "x": random(case.rows, d),
        "up": random(m, d, size=d**-0.5),
        "down": random(d, m, size=m**-0.5),
        "dy": random(case.rows, d),
    }
    if case.activation == "swiglu":
        tensors["gate"] = random(m, d, size=d**-0.5)
    if case.biases:
        tensors |= {"up_bias": random(m), "down_bias": random(d)}
    if case.residual:
        tensors["residual"] = random(case.rows, d)
    return tensors


def run(case: Case, tensors: dict[str, Tensor], impl: str) -> dict[str, Tensor]:
    """The result and the gradients of all tensors."""
    leaves = {n: t.detach().requires_grad_() for n, t in tensors.items() if n != "dy"}
    y = mlp(**leaves, activation=case.activation, impl=impl)
    gradients = torch.autograd.grad(y, list(leaves.values()), tensors["dy"])
    found = {"y": y.detach()} | {f"d {n}": g for n, g in zip(leaves, gradients, strict=True)}
    with torch.no_grad():
        found["y alone"] = mlp(**leaves, activation=case.activation, impl=impl)
    return found


def make_products(monkeypatch: pytest.MonkeyPatch, fused: bool) -> None:
    """Use our kernels for every product, or for none."""
    product = launchers.ProductChoice(128, 128, 64, 8, 4, 1, 2 if fused else 1)
    monkeypatch.setattr(launchers, "default_product", lambda *args, **kwargs: product)
    # Earlier choices of the rules are cached.
    tuned.forget()


def check(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    make_products(monkeypatch, case.fused)
    tensors = make(case)
    truth = run(case, {n: t.double() for n, t in tensors.items()}, "eager")
    eager = run(case, tensors, "eager")
    result = run(case, tensors, "triton")
    for name, true in truth.items():
        assert_accurate(name, result[name], eager[name], true)


@pytest.mark.parametrize("case", QUICK, ids=str)
def test_agrees_with_truth(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    check(case, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("case", FULL, ids=str)
def test_agrees_with_truth_on_the_full_grid(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    check(case, monkeypatch)


def layer(activation: str = "gelu", **needed: bool) -> dict[str, Any]:
    """A small layer; gradients are wanted of the tensors named."""
    case = Case(activation, 6, 16, 32, residual=needed.get("residual", False))
    tensors = make(case)
    del tensors["dy"]
    leaves = {n: t.requires_grad_(needed.get(n, False)) for n, t in tensors.items()}
    return leaves | {"activation": activation}


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("fused", [True, False])
def test_extreme_inputs_follow_the_formula(
    activation: str, fused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NaN and infinity propagate; tails neither overflow nor give NaN."""
    make_products(monkeypatch, fused)
    one = torch.ones(1, 1, device=DEVICE)
    numbers = [-1e4, -50.0, -9.0, -0.0, 0.0, 1e-30, 9.0, 50.0, 1e4, float("nan")]
    x = torch.tensor(numbers, device=DEVICE)[:, None]
    gate = one if activation == "swiglu" else None
    results = []
    for impl in ("eager", "triton"):
        leaf = x.clone().requires_grad_()
        y = mlp(leaf, one, one, gate=gate, activation=activation, impl=impl)
        (dx,) = torch.autograd.grad(y, leaf, torch.ones_like(y))
        results.append((y.detach(), dx))
    for expected, result in zip(*results, strict=True):
        torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-6, equal_nan=True)
    infinity = mlp(one / 0, one, one, gate=gate, activation=activation, impl="triton")
    assert infinity.item() == float("inf")


@pytest.mark.parametrize("activation", ["gelu", "swiglu"])
@pytest.mark.parametrize("needed", [*WEIGHTS, "x", "residual"])
def test_gradients_of_what_is_not_frozen_alone(activation: str, needed: str) -> None:
    arguments = layer(activation, **{needed: True, "residual": needed == "residual"})
    if needed not in arguments:
        pytest.skip("this activation has no gate")
    everything = {n: t for n, t in arguments.items() if isinstance(t, Tensor)}
    mlp(**arguments, impl="triton").square().sum().backward()
    assert [n for n, t in everything.items() if t.grad is not None] == [needed]
    result = everything[needed].grad
    everything[needed].grad = None
    mlp(**arguments, impl="eager").square().sum().backward()
    torch.testing.assert_close(result, everything[needed].grad, rtol=1e-5, atol=1e-5)


def test_leading_dimensions_and_strided_rows() -> None:
    arguments = layer(x=True)
    x = torch.randn(2, 3, 5, 40, device=DEVICE)[..., 4:20].transpose(0, 1)
    expected = mlp(**arguments | {"x": x}, impl="eager")
    torch.testing.assert_close(
        mlp(**arguments | {"x": x}, impl="triton"), expected, rtol=1e-5, atol=1e-5
    )
    vector = mlp(**arguments | {"x": x[0, 0, 0]}, impl="triton")
    torch.testing.assert_close(vector, expected[0, 0, 0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("fused", [True, False])
def test_strided_biases(fused: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    make_products(monkeypatch, fused)
    arguments = layer()
    arguments["up_bias"] = torch.randn(32, 2, device=DEVICE)[:, 0]
    arguments["down_bias"] = torch.randn(16, 2, device=DEVICE)[:, 0]
    expected = mlp(**arguments, impl="eager")
    torch.testing.assert_close(mlp(**arguments, impl="triton"), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("fused", [True, False])
def test_empty(fused: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    make_products(monkeypatch, fused)
    arguments = layer("swiglu", x=True, up=True, down=True, gate=True, up_bias=True, down_bias=True)
    x = torch.randn(2, 0, 16, device=DEVICE, requires_grad=True)
    y = mlp(**arguments | {"x": x}, impl="triton")
    y.sum().backward()
    assert y.shape == (2, 0, 16)
    for name in WEIGHTS:
        assert not arguments[name].grad.any()
    up, down = torch.randn(0, 16, device=DEVICE), torch.randn(16, 0, device=DEVICE)
    no_width = mlp(arguments["x"], up, down, down_bias=arguments["down_bias"], impl="triton")
    assert torch.equal(no_width, arguments["down_bias"].expand(6, 16))


def test_run_twice_gives_the_same_bits() -> None:
    case = Case("swiglu", 256, dtype=BF16)
    tensors = make(case)
    once, again = (run(case, tensors, "triton") for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(once.values(), again.values(), strict=True))


def test_offsets_beyond_32_bits() -> None:
    """Rows, weights and results that lie more than 2³¹ elements apart."""
    if not INTERPRETED:
        pytest.skip("takes sparse memory")
    # The stride itself fits 32 bits; twice of it does not.
    far = 2**30 + 8
    names = ("x", "up", "out", "pre")
    # Pages that are never touched take no memory.
    tensors = {n: torch.from_numpy(np.zeros(2 * far + 16, np.float16)) for n in names}
    views = {n: t.as_strided((3, 16), (far, 1)) for n, t in tensors.items()}
    for name in ("x", "up"):
        views[name].copy_(torch.randn(3, 16))
    x, up = views["x"], views["up"]
    constants = launchers.ProductChoice(16, 16, 16, 8, 4, 1).constants(x, 16)
    launchers.hidden_kernel[(1,)](
        x, up, None, None, views["out"], views["pre"], None, *x.stride(), *up.stride(), 0, 0,
        far, 3, 3, 16, ACTIVATION="relu2", **constants,
    )  # fmt: skip
    pre = x.clone() @ up.clone().T
    torch.testing.assert_close(views["pre"][:, :3], pre, rtol=2e-3, atol=1e-3)
    torch.testing.assert_close(views["out"][:, :3], pre.relu().square(), rtol=4e-3, atol=1e-3)
    d_pre = torch.from_numpy(np.zeros(2 * far + 16, np.float16)).as_strided((3, 16), (far, 1))
    launchers.d_hidden_kernel[(1,)](
        x, up.T, views["pre"], None, d_pre, None, views["out"], None, *x.stride(),
        *up.T.stride(), far, 3, 3, 16, ACTIVATION="relu2", PART_N=16, **constants,
    )  # fmt: skip
    expected = pre * 2 * pre.relu()
    torch.testing.assert_close(d_pre[:, :3], expected, rtol=4e-3, atol=2e-3)
    y = launchers.output(MlpOutput(x, up, None, None))
    torch.testing.assert_close(y, pre, rtol=2e-3, atol=1e-3)


def test_double_backward_is_refused() -> None:
    arguments = layer(x=True)
    y = mlp(**arguments, impl="triton")
    (dx,) = torch.autograd.grad(y.sum(), arguments["x"], create_graph=True)
    with pytest.raises(ArgumentError, match=r"cannot be differentiated again .*impl='eager' can"):
        dx.sum().backward()


@pytest.mark.parametrize("dtype", [BF16, F16])
def test_autocast_computes_in_its_dtype(dtype: torch.dtype) -> None:
    """The residual is added unchanged; parameters get gradients in their dtype."""
    arguments = layer("swiglu", residual=True, **dict.fromkeys(("x", *WEIGHTS), True))
    leaves = [t for t in arguments.values() if isinstance(t, Tensor)]
    results = {}
    for impl in ("triton", "eager"):
        with torch.autocast(DEVICE, dtype):
            y = mlp(**arguments, impl=impl)
        results[impl] = y, *torch.autograd.grad(y.square().sum(), leaves)
    for result, expected in zip(results["triton"], results["eager"], strict=True):
        assert result.dtype == expected.dtype == F32
        torch.testing.assert_close(result, expected, rtol=0.1, atol=0.1)
    del arguments["residual"]
    with torch.autocast(DEVICE, dtype):
        assert mlp(**arguments, impl="triton").dtype == dtype


def test_what_the_kernels_do_not_serve_is_refused_with_the_reason() -> None:
    arguments = {n: t.double() if isinstance(t, Tensor) else t for n, t in layer().items()}
    with pytest.raises(ConfigError, match=r"not torch\.float64"):
        mlp(**arguments, impl="triton")


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("activation", ["gelu", "swiglu"])
def test_registration_passes_opcheck(
    activation: str, fused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_products(monkeypatch, fused)
    t = layer(activation)
    gate = t.get("gate")
    ops = torch.ops.fastgrow
    for kept in (True, False):
        opcheck(ops.mlp_hidden.default, (t["x"], t["up"], gate, t["up_bias"], activation, kept))
    hidden, pre, pre_gate = ops.mlp_hidden(t["x"], t["up"], gate, t["up_bias"], activation, True)
    for residual in (None, t["x"].bfloat16()):
        opcheck(ops.mlp_output.default, (hidden, t["down"], t["down_bias"], residual))
    kept_gate = None if gate is None else pre_gate
    for wanted in ((True, False), (False, True)):
        arguments = (t["x"], t["down"], pre, kept_gate, activation, *wanted)
        opcheck(ops.mlp_d_hidden.default, arguments)


def test_compiles_without_graph_breaks_or_recompiling_for_a_second_length() -> None:
    graphs = 0

    def counting(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> torch.fx.GraphModule:
        nonlocal graphs
        graphs += 1
        return graph

    torch.compiler.reset()
    arguments = layer("swiglu", up=True, down=True, gate=True, up_bias=True, down_bias=True)
    compiled = torch.compile(
        lambda x: mlp(**arguments | {"x": x}, impl="triton"),
        fullgraph=True,
        dynamic=True,
        backend=counting,
    )
    for rows in (5, 9):
        x = torch.randn(2, rows, 16, device=DEVICE, requires_grad=True)
        y = compiled(x)
        assert torch.equal(y, mlp(**arguments | {"x": x}, impl="triton"))
        y.sum().backward()
        assert x.grad is not None
        assert arguments["up"].grad is not None
    assert graphs == 1


def test_compiles_with_its_backward() -> None:
    torch.compiler.reset()
    arguments = layer(x=True, up=True, down_bias=True)
    leaves = [t for t in arguments.values() if isinstance(t, Tensor) and t.requires_grad]

    def step(*leaves: Tensor) -> Tensor:
        return mlp(**arguments, impl="triton").square().sum()

    expected = torch.autograd.grad(step(*leaves), leaves)
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    for result, plain in zip(torch.autograd.grad(compiled(*leaves), leaves), expected, strict=True):
        torch.testing.assert_close(result, plain)


def test_recomputes_under_checkpointing() -> None:
    arguments = layer(x=True, up=True)
    leaves = [arguments["x"], arguments["up"]]

    def step() -> Tensor:
        return mlp(**arguments, impl="triton").sum()

    plain = torch.autograd.grad(step(), leaves)
    again = torch.utils.checkpoint.checkpoint(step, use_reentrant=False)
    for expected, result in zip(plain, torch.autograd.grad(again, leaves), strict=True):
        assert torch.equal(result, expected)


def test_replays_in_a_cuda_graph() -> None:
    if DEVICE != "cuda":
        pytest.skip("needs a CUDA device")
    arguments = layer("swiglu", x=True, up=True)
    leaves = [arguments["x"], arguments["up"]]

    def step() -> tuple[Tensor, ...]:
        y = mlp(**arguments, impl="triton")
        return y, *torch.autograd.grad(y.sum(), leaves)

    expected = step()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    graph.replay()
    assert all(torch.equal(a, b) for a, b in zip(captured, expected, strict=True))
