"""The norms' kernels against the eager formulas in fp64, forward and backward."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from harness import DEVICE, INTERPRETED, assert_accurate, smoke
from torch import Tensor
from torch.library import opcheck

from fastgrow import ops
from fastgrow.errors import ArgumentError, ConfigError

F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
NORMS = {"layer_norm": ops.layer_norm, "rms_norm": ops.rms_norm}


@dataclass(frozen=True)
class Case:
    """One call."""

    norm: str = "layer_norm"
    rows: int = 37
    dim: int = 100
    dtype: torch.dtype = F32
    parameters: torch.dtype | None = None  # dtype of weight and bias; that of x
    residual: bool = True
    affine: bool = True
    offset: float = 0.0  # added to all of x
    strided: bool = False  # rows and columns are slices of a larger tensor

    def __str__(self) -> str:
        usual = Case()
        return " ".join(f"{k}={v}" for k, v in vars(self).items() if v != getattr(usual, k))


QUICK = [
    *[Case(norm) for norm in NORMS],
    *[smoke(Case(norm, dtype=BF16, parameters=F32)) for norm in NORMS],
    *[Case(norm, 200, 64, F16, residual=False) for norm in NORMS],
    Case(rows=3, dim=1),
    Case(rows=9, dim=1000, offset=1000.0),
    Case(rows=9, dim=1000, offset=1000.0, dtype=BF16, residual=False),
    Case(rows=33, dim=96, strided=True, dtype=BF16),
    Case("rms_norm", affine=False),
    Case(affine=False, residual=False),
    *[Case(norm, 2, 8200) for norm in NORMS],
    # Too wide for a whole row in registers, forward and backward.
    *[smoke(Case(norm, 2, 40000, BF16)) for norm in NORMS],
]
FULL = [
    *[
        Case(norm, rows, dim, dtype, residual=residual)
        for norm in NORMS
        for dtype in (F32, BF16, F16)
        for residual in (True, False)
        for rows, dim in ((1, 16), (63, 31), (17, 768), (127, 257), (5, 4097))
    ],
    # The whole row is in registers forward, part of it backward; part of it in both.
    *[
        Case(norm, 2, dim, dtype)
        for norm in NORMS
        for dim in (16000, 65536)
        for dtype in (F32, BF16)
    ],
    Case(rows=2, dim=40000, offset=1000.0),
    Case(rows=2, dim=40000, affine=False, residual=False),
]  # fmt: skip


def make(case: Case) -> tuple[dict[str, Tensor], list[Tensor]]:
    """The inputs by name, and the gradients of y and of the sum."""
    generator = torch.Generator().manual_seed(7)

    def random(*shape: int, dtype: torch.dtype = case.dtype) -> Tensor:
        if case.strided and len(shape) == 2:
            wide = torch.randn(shape[0] * 2, shape[1] + 11, generator=generator)
            return wide.to(dtype).to(DEVICE)[::2, 3 : 3 + shape[1]]
        return torch.randn(shape, generator=generator).to(dtype).to(DEVICE)

    shape, dtype = (case.rows, case.dim), case.parameters or case.dtype
    inputs = {"x": random(*shape) + case.offset if case.offset else random(*shape)}
    if case.residual:
        inputs["residual"] = random(*shape)
    if case.affine:
        inputs["weight"] = random(case.dim, dtype=dtype)
        if case.norm == "layer_norm":
            inputs["bias"] = random(case.dim, dtype=dtype)
    return inputs, [random(*shape), random(*shape)][: 1 + case.residual]


def run(
    norm: str, inputs: dict[str, Tensor], gradients: list[Tensor], impl: str
) -> dict[str, Tensor]:
    """y, total and the gradients of all inputs, by name."""
    leaves = {name: x.detach().requires_grad_() for name, x in inputs.items()}
    found = NORMS[norm](**leaves, eps=1e-5, impl=impl)
    outputs = found if isinstance(found, tuple) else (found,)
    results = dict(zip(("y", "total"), outputs, strict=False))
    grads = torch.autograd.grad(outputs, list(leaves.values()), gradients)
    results |= {f"d {name}": grad for name, grad in zip(leaves, grads, strict=True)}
    return {name: x.detach() for name, x in results.items()}


def check(case: Case) -> None:
    inputs, gradients = make(case)
    result = run(case.norm, inputs, gradients, "triton")
    if case.residual:
        exact = inputs["x"].double() + inputs["residual"].double()
        total = result["total"]
        assert_accurate("total", total, inputs["x"] + inputs["residual"], exact)
        # What is normalised is the sum as it was rounded.
        inputs |= {"x": total, "residual": torch.zeros_like(total)}
    eager = run(case.norm, inputs, gradients, "eager")
    wide = {name: x.double() for name, x in inputs.items()}
    truth = run(case.norm, wide, [g.double() for g in gradients], "eager")
    # dx is a difference of numbers of the size of dy.
    terms = float(max(g.double().abs().max() for g in gradients))
    assert result.keys() == truth.keys()
    with torch.no_grad():
        alone = NORMS[case.norm](**inputs, eps=1e-5, impl="triton")
    torch.testing.assert_close(alone[0] if case.residual else alone, result["y"])
    for name in truth:
        assert_accurate(
            name,
            result[name],
            eager[name],
            truth[name],
            # The error of the mean, and so of every difference from it, is an ulp of the offset.
            condition=max(1.0, case.offset),
            terms=terms if name in ("d x", "d residual") else 0.0,
        )


@pytest.mark.parametrize("case", QUICK, ids=str)
def test_agrees_with_truth(case: Case) -> None:
    check(case)


@pytest.mark.slow
@pytest.mark.parametrize("case", FULL, ids=str)
def test_agrees_with_truth_on_the_full_grid(case: Case) -> None:
    check(case)


@pytest.mark.parametrize("norm", NORMS)
def test_the_sum_has_the_bits_of_an_addition(norm: str) -> None:
    x, residual = torch.randn(2, 5, 40, device=DEVICE)
    _, total = NORMS[norm](x, residual=residual, impl="triton")
    assert torch.equal(total, x + residual)


@pytest.mark.parametrize("norm", NORMS)
def test_mixed_dtypes_are_those_of_a_float32_residual_stream(norm: str) -> None:
    x = torch.randn(6, 40, device=DEVICE).to(BF16).requires_grad_()
    residual = torch.randn(6, 40, device=DEVICE, requires_grad=True)
    y, total = NORMS[norm](x, residual=residual, impl="triton")
    assert y.dtype == total.dtype == F32
    assert torch.equal(total, x + residual)
    (y.sum() + (total * residual.detach()).sum()).backward()
    assert x.grad is not None
    assert residual.grad is not None
    assert x.grad.dtype == BF16
    torch.testing.assert_close(x.grad.float(), residual.grad, rtol=2**-7, atol=1e-6)


@pytest.mark.parametrize("norm", NORMS)
def test_statistics_of_a_wide_row_are_joined_from_parts_that_differ(norm: str) -> None:
    x = torch.randn(2, 40000, device=DEVICE) + torch.linspace(-20, 90, 40000, device=DEVICE)
    truth = NORMS[norm](x.double(), impl="eager")
    assert_accurate("y", NORMS[norm](x, impl="triton"), NORMS[norm](x, impl="eager"), truth)


def test_rows_do_not_mix_and_infinities_stay_in_theirs() -> None:
    x = torch.randn(5, 40)
    x[2, 3] = float("inf")
    x = x.to(DEVICE)
    for norm in NORMS.values():
        y = norm(x, impl="triton")
        assert y[2].isnan().any()
        assert y[[0, 1, 3, 4]].isfinite().all()


def test_run_twice_gives_the_same_bits() -> None:
    inputs, gradients = make(Case(rows=300, dtype=BF16))
    once, again = (run("layer_norm", inputs, gradients, "triton") for _ in range(2))
    assert all(torch.equal(once[name], again[name]) for name in once)


@pytest.mark.parametrize("dim", [24, 5000])
@pytest.mark.parametrize("needed", ["x", "residual", "weight", "bias", "x weight", "x bias"])
def test_frozen_inputs_get_no_gradient_and_the_others_the_same(needed: str, dim: int) -> None:
    inputs, gradients = make(Case(rows=5, dim=dim))
    leaves = {name: x.clone().requires_grad_(name in needed) for name, x in inputs.items()}
    y, total = ops.layer_norm(**leaves, impl="triton")
    frozen = not {"x", "residual"} & set(needed.split())
    # Otherwise blocks above a frozen sum would compute its gradient.
    assert total.requires_grad != frozen
    kept = y.grad_fn.saved_tensors  # type: ignore[union-attr]
    assert bool(kept) == (needed != "bias")
    if frozen and kept:
        assert sum(t is not None for t in kept) == 3, (
            "the weight is not needed for its own gradient"
        )
    torch.autograd.backward((y, total)[: 1 + (not frozen)], gradients[: 1 + (not frozen)])
    everything = run("layer_norm", inputs, gradients, "triton")
    for name, leaf in leaves.items():
        assert (leaf.grad is not None) == (name in needed.split()), name
        if leaf.grad is not None:
            torch.testing.assert_close(leaf.grad, everything[f"d {name}"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("which", [0, 1])
def test_a_result_that_is_not_used_costs_no_gradient_of_zeros(which: int) -> None:
    inputs, gradients = make(Case(rows=5))
    for impl in ("eager", "triton"):
        leaves = {name: x.clone().requires_grad_() for name, x in inputs.items()}
        result = ops.layer_norm(**leaves, impl=impl)[which]
        grads = torch.autograd.grad(
            result, list(leaves.values()), gradients[which], allow_unused=True
        )
        if impl == "eager":
            expected = grads
    for grad, truth in zip(grads, expected, strict=True):
        assert (grad is None) == (truth is None)
        if truth is not None:
            torch.testing.assert_close(grad, truth, rtol=1e-5, atol=1e-5)


def test_keeps_the_sum_and_two_numbers_a_row() -> None:
    inputs, _ = make(Case(rows=6, dim=40))
    leaves = {name: x.requires_grad_() for name, x in inputs.items()}
    y, total = ops.layer_norm(**leaves, impl="triton")
    saved = [t for t in y.grad_fn.saved_tensors if t is not None]  # type: ignore[union-attr]
    assert sum(t.numel() for t in saved) == 6 * 40 + 40 + 2 * 6
    assert any(t.data_ptr() == total.data_ptr() for t in saved)


def test_nothing_is_kept_without_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    from fastgrow.kernels import norm as launchers

    statistics = []
    forward = launchers.forward

    def watched(*args: Any, **kwargs: Any) -> Any:
        result = forward(*args, **kwargs)
        statistics.extend(result[2:])
        return result

    monkeypatch.setattr(launchers, "forward", watched)
    x = torch.randn(3, 8, device=DEVICE, requires_grad=True)
    with torch.no_grad():
        ops.layer_norm(x, impl="triton")
    ops.rms_norm(x.detach(), impl="triton")
    assert statistics == [None] * 4


def test_no_rows() -> None:
    for shape in ((0, 16), (2, 0, 16)):
        x = torch.randn(shape, device=DEVICE, requires_grad=True)
        weight = torch.randn(16, device=DEVICE, requires_grad=True)
        y, total = ops.layer_norm(x, weight, weight, residual=x, impl="triton")
        (y.sum() + total.sum()).backward()
        assert y.shape == total.shape == shape
        assert weight.grad is not None
        assert not weight.grad.any()


def test_one_row_without_a_leading_axis_and_expanded_rows() -> None:
    x, weight = torch.randn(40, device=DEVICE), torch.randn(40, device=DEVICE)
    expected = ops.layer_norm(x, weight, impl="eager")
    torch.testing.assert_close(ops.layer_norm(x, weight, impl="triton"), expected)
    many = ops.layer_norm(x.expand(3, 2, 40), weight, impl="triton")
    torch.testing.assert_close(many, expected.expand(3, 2, 40))


@pytest.mark.skipif(not INTERPRETED, reason="the memory of a device is no sparse file")
def test_rows_more_than_two_to_the_31_elements_apart(tmp_path: Path) -> None:
    """A sparse file, of which four rows are written."""
    size = 3 * 2**30 + 16
    far = torch.from_file(str(tmp_path / "x"), shared=True, size=size, dtype=F16)
    x = far.as_strided((4, 16), (2**30, 1))
    x.copy_(torch.randn(4, 16))
    near = x.clone()
    for norm in NORMS.values():
        pairs = []
        for tensor in (x, near):
            leaf = tensor.detach().requires_grad_()
            y, total = norm(leaf, residual=leaf, impl="triton")
            (grad,) = torch.autograd.grad((y, total), leaf, (tensor, tensor))
            pairs.append((y, total, grad))
        assert all(torch.equal(a, b) for a, b in zip(*pairs, strict=True))


@pytest.mark.parametrize("norm", NORMS)
def test_double_backward_is_refused(norm: str) -> None:
    x = torch.randn(3, 16, device=DEVICE, requires_grad=True)
    (dx,) = torch.autograd.grad(NORMS[norm](x, impl="triton").sum(), x, create_graph=True)
    with pytest.raises(ArgumentError, match="cannot be differentiated again"):
        dx.sum().backward()


@pytest.mark.parametrize("norm", NORMS)
def test_autocast_gives_the_dtypes_of_torch(norm: str) -> None:
    x = torch.randn(3, 16, device=DEVICE).to(BF16).requires_grad_()
    weight = torch.ones(16, device=DEVICE, requires_grad=True)
    with torch.autocast(DEVICE, BF16):
        expected = getattr(torch.nn.functional, norm)(x, (16,), weight).dtype
        y = NORMS[norm](x, weight, impl="triton")
    if DEVICE == "cuda":
        # torch 2.11 does not list rms_norm for float32 yet.
        expected = F32
    assert y.dtype == expected
    y.sum().backward()
    assert x.grad is not None
    assert weight.grad is not None
    assert (x.grad.dtype, weight.grad.dtype) == (BF16, F32)


@pytest.mark.parametrize("wide", ["weight", "bias"])
def test_a_float32_parameter_with_one_in_bf16_keeps_its_gradient(wide: str) -> None:
    inputs, gradients = make(Case(rows=9, dim=24, dtype=BF16, residual=False))
    inputs[wide] = inputs[wide].float()
    with torch.autocast(DEVICE, BF16):
        result = run("layer_norm", inputs, gradients, "triton")
    exact = {name: x.double() for name, x in inputs.items()}
    truth = run("layer_norm", exact, [g.double() for g in gradients], "eager")
    narrow = "bias" if wide == "weight" else "weight"
    assert (result[f"d {wide}"].dtype, result[f"d {narrow}"].dtype) == (F32, BF16)
    torch.testing.assert_close(result[f"d {wide}"].double(), truth[f"d {wide}"], atol=2e-5, rtol=0)
    torch.testing.assert_close(
        result[f"d {narrow}"].double(), truth[f"d {narrow}"], atol=2e-5, rtol=2**-8
    )


def test_what_the_kernels_do_not_serve_is_refused_with_the_reason() -> None:
    x = torch.randn(3, 16, device=DEVICE)
    with pytest.raises(ConfigError, match=r"not torch\.float64"):
        ops.layer_norm(x.double(), impl="triton")
    with pytest.raises(ConfigError, match=r"not torch\.float64"):
        ops.rms_norm(x, x[0].double(), impl="triton")
    with pytest.raises(ConfigError, match="rows have no features"):
        ops.rms_norm(x[:, :0], impl="triton")


@pytest.mark.parametrize("centred", [True, False])
def test_registration_passes_opcheck(centred: bool) -> None:
    x = torch.randn(2, 3, 16, device=DEVICE)
    weight = torch.randn(16, device=DEVICE, dtype=BF16)
    arguments = (x, x.to(BF16), weight, weight, 1e-5, centred, F16)
    y, total, mean, rstd = torch.ops.fastgrow.norm_forward(*arguments)
    opcheck(torch.ops.fastgrow.norm_inference.default, arguments)
    opcheck(torch.ops.fastgrow.norm_inference.default, (x, None, None, None, 1e-5, centred, F32))
    opcheck(torch.ops.fastgrow.norm_forward.default, arguments)
    found = (y, total, total, mean if centred else None, rstd, weight)
    backward = torch.ops.fastgrow.norm_backward.default
    opcheck(backward, (*found, True, True, True, BF16))
    opcheck(backward, (*found, True, False, False, BF16))
    opcheck(backward, (y, None, *found[2:5], None, False, True, False, BF16))


def block(x: Tensor, residual: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    y, total = ops.layer_norm(x, weight, residual=residual, impl="triton")
    return ops.rms_norm(y, weight, impl="triton"), total


def test_compiles_without_graph_breaks_or_recompiling_for_a_second_length() -> None:
    graphs = 0

    def counting(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> torch.fx.GraphModule:
        nonlocal graphs
        graphs += 1
        return graph

    torch.compiler.reset()
    compiled = torch.compile(block, fullgraph=True, dynamic=True, backend=counting)
    weight = torch.randn(16, device=DEVICE, requires_grad=True)
    for length in (5, 9):
        x = torch.randn(2, length, 16, device=DEVICE, requires_grad=True)
        residual = torch.randn(2, length, 16, device=DEVICE)
        grads = []
        for function in (compiled, block):
            y, total = function(x, residual, weight)
            grads.append(torch.autograd.grad((y, total), (x, weight), (x.detach(), residual)))
        assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))
    assert graphs == 1


def test_compiles_ahead_of_time_with_its_gradients() -> None:
    torch.compiler.reset()
    compiled = torch.compile(block, fullgraph=True, dynamic=True, backend="aot_eager")
    x, residual = (torch.randn(2, 5, 16, device=DEVICE, requires_grad=True) for _ in range(2))
    weight = torch.randn(16, device=DEVICE, requires_grad=True)
    grads = []
    for function in (compiled, block):
        y, total = function(x, residual, weight)
        grads.append(
            torch.autograd.grad((y, total), (x, residual, weight), (x.detach(), x.detach()))
        )
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


class Layer(torch.nn.Module):
    def forward(self, x: Tensor, residual: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        return block(x, residual, weight)


def test_exports() -> None:
    inputs = (*torch.randn(2, 3, 16, device=DEVICE), torch.randn(16, device=DEVICE))
    exported = torch.export.export(Layer(), inputs).module()
    for a, b in zip(exported(*inputs), Layer()(*inputs), strict=True):
        assert torch.equal(a, b)


def test_recomputes_under_checkpointing() -> None:
    inputs = [torch.randn(3, 16, device=DEVICE, requires_grad=True) for _ in range(2)]
    inputs.append(torch.randn(16, device=DEVICE, requires_grad=True))
    plain = torch.autograd.grad(sum(t.sum() for t in block(*inputs)), inputs)
    again = torch.utils.checkpoint.checkpoint(block, *inputs, use_reentrant=False)
    found = torch.autograd.grad(sum(t.sum() for t in again), inputs)
    assert all(torch.equal(a, b) for a, b in zip(found, plain, strict=True))


@pytest.mark.skipif(INTERPRETED, reason="needs a GPU")
def test_a_graph_of_a_gpu_captures_it() -> None:
    x, weight = torch.randn(64, 128, device=DEVICE), torch.randn(128, device=DEVICE)
    x.requires_grad_(), weight.requires_grad_()

    def step() -> list[Tensor]:
        y, total = ops.layer_norm(x, weight, weight, residual=x, impl="triton")
        return [y, total, *torch.autograd.grad((y, total), (x, weight), (x.detach(), x.detach()))]

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    with torch.no_grad():
        x.copy_(torch.randn_like(x))
    graph.replay()
    for a, b in zip(captured, step(), strict=True):
        assert torch.equal(a, b)


def test_a_thousand_equal_rows_sum_to_a_thousand_times_one() -> None:
    """Sums over rows are fp32 for every dtype: in bf16 they would stop at 256."""
    x = torch.randn(1, 8).expand(1000, 8).to(DEVICE).to(BF16).contiguous()
    weight = torch.ones(8, device=DEVICE, requires_grad=True)
    y = ops.layer_norm(x, weight, weight.detach().requires_grad_(), impl="triton")
    (grad,) = torch.autograd.grad(y, weight, torch.ones_like(y))
    one = ops.layer_norm(x[:1].float(), impl="eager")[0]
    torch.testing.assert_close(grad, 1000 * one, rtol=1e-4, atol=math.sqrt(1000) * 1e-5)
