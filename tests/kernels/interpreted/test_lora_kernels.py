"""The LoRA kernels against the eager formula in fp64, forward and backward."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from harness import DEVICE, INTERPRETED, assert_accurate, smoke
from torch import Tensor
from torch.library import opcheck

from fastgrow.errors import ArgumentError, ConfigError
from fastgrow.ops import lora_linear

F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16


@dataclass(frozen=True)
class Case:
    """One call."""

    n: int = 70
    width: int = 90
    out: int = 130
    rank: int = 5
    dtype: torch.dtype = F32
    low_rank: torch.dtype | None = None  # of a and b; that of x without
    bias: bool = True
    strided: bool = False  # rows of x apart, weight in columns
    scale: float = 0.7

    def __str__(self) -> str:
        usual = Case()
        changed = [f"{k}={v}" for k, v in vars(self).items() if v != getattr(usual, k)]
        return " ".join(changed) or "usual"


QUICK = [
    Case(),
    Case(1, 16, 17, 1, bias=False),
    Case(200, 128, 256, 16, BF16, F32),
    Case(130, 33, 40, 100, F16, strided=True),
    smoke(Case(256, 300, 24, 8, BF16, scale=-2.0)),
]
FULL = [
    Case(n, width, out, rank, dtype)
    for n, width, out, rank in [(17, 63, 127, 3), (256, 256, 200, 64), (65, 20, 300, 20)]
    for dtype in (F32, BF16, F16)
] + [Case(100, strided=True, dtype=BF16, low_rank=F32), Case(63, rank=130), Case(scale=0.0)]


def make(case: Case) -> tuple[list[Tensor], Tensor | None, Tensor]:
    """x, weight, a and b; bias; the gradient of the output."""
    generator = torch.Generator().manual_seed(3)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(case.dtype).to(DEVICE)

    x, weight = random(case.n, 2 * case.width)[:, : case.width], random(case.out, case.width)
    if case.strided:
        weight = weight.T.contiguous().T
    else:
        x = x.contiguous()
    low_rank = case.low_rank or case.dtype
    a, b = random(case.rank, case.width).to(low_rank), random(case.out, case.rank).to(low_rank)
    return [x, weight, a, b], random(case.out) if case.bias else None, random(case.n, case.out)


def run(case: Case, impl: str, *, wide: bool = False) -> list[Tensor]:
    """y, dx, da, db; in fp64 with `wide`."""
    tensors, bias, gradient = make(case)
    if wide:
        tensors, gradient = [t.double() for t in tensors], gradient.double()
        bias = None if bias is None else bias.double()
    x, weight, a, b = (t.detach() for t in tensors)
    leaves = [t.requires_grad_() for t in (x, a, b)]
    y = lora_linear(x, weight, a, b, bias, scale=case.scale, impl=impl)
    return [y.detach(), *torch.autograd.grad(y, leaves, gradient)]


def check(case: Case) -> None:
    results = zip(
        ("y", "dx", "da", "db"),
        run(case, "triton"),
        run(case, "eager"),
        run(case, "eager", wide=True),
        strict=True,
    )
    for name, result, eager, truth in results:
        # Gradients of fp32 corrections come from products of half-precision numbers.
        assert_accurate(name, result.to(case.dtype), eager.to(case.dtype), truth)


@pytest.mark.parametrize("case", QUICK, ids=str)
def test_agrees_with_truth(case: Case) -> None:
    check(case)


@pytest.mark.slow
@pytest.mark.parametrize("case", FULL, ids=str)
def test_agrees_with_truth_on_the_full_grid(case: Case) -> None:
    check(case)


def test_rows_split_over_programs() -> None:
    """The gradients of a and b are sums of several programs' sums."""
    from fastgrow.kernels.lora import NarrowTiles, narrow_product

    wide, narrow = torch.randn(250, 40, device=DEVICE), torch.randn(250, 3, device=DEVICE)
    tiles = NarrowTiles(16, 64, 4, 1)
    sums = narrow_product(wide, narrow, 0.5, tiles)
    torch.testing.assert_close(sums, 0.5 * wide.T @ narrow, rtol=1e-5, atol=1e-5)
    assert torch.equal(narrow_product(wide, narrow, 0.5, tiles, transposed=True), sums.T)


def layer(n: int = 9, dtype: torch.dtype = F32) -> list[Tensor]:
    """x, weight, a, b and bias."""
    shapes = [(n, 24), (40, 24), (4, 24), (40, 4), (40,)]
    return [torch.randn(shape, device=DEVICE).to(dtype) for shape in shapes]


def test_run_twice_gives_the_same_bits() -> None:
    case = Case(200, 64, 96, 8, BF16)
    once, again = run(case, "triton"), run(case, "triton")
    assert all(torch.equal(a, b) for a, b in zip(once, again, strict=True))


@pytest.mark.parametrize("needed", [(1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 1, 1)], ids=str)
def test_frozen_inputs_get_no_gradient_and_keep_nothing(needed: tuple[int, ...]) -> None:
    x, weight, a, b, bias = layer()
    for tensor, wanted in zip((x, a, b), needed, strict=True):
        tensor.requires_grad_(bool(wanted))
    kept = set()

    def note(tensor: Tensor) -> Tensor:
        kept.add(tuple(tensor.shape))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        y = lora_linear(x, weight, a, b, bias, impl="triton")
    assert ((9, 24) in kept, (9, 4) in kept) == (bool(needed[1]), bool(needed[2]))
    assert ((40, 24) in kept) == bool(needed[0])
    assert (9, 40) not in kept
    y.sum().backward()
    assert [t.grad is not None for t in (x, a, b)] == [bool(wanted) for wanted in needed]


def test_no_rows_and_leading_dimensions() -> None:
    x, weight, a, b, bias = layer()
    none = x.new_empty(2, 0, 24).requires_grad_()
    y = lora_linear(none, weight, a.requires_grad_(), b.requires_grad_(), bias, impl="triton")
    assert y.shape == (2, 0, 40)
    y.sum().backward()
    assert a.grad is not None
    assert b.grad is not None
    assert not a.grad.any()
    assert not b.grad.any()
    cube = lora_linear(x.view(3, 3, 24), weight, a, b, bias, impl="triton")
    assert torch.equal(cube.view(9, 40), lora_linear(x, weight, a, b, bias, impl="triton"))


def test_strided_bias() -> None:
    x, weight, a, b, _ = layer()
    bias = torch.randn(40, 2, device=DEVICE)[:, 0]
    expected = lora_linear(x, weight, a, b, bias, impl="eager")
    y = lora_linear(x, weight, a, b, bias, impl="triton")
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)


def test_autocast_computes_in_its_dtype() -> None:
    x, weight, a, b, bias = layer()
    with torch.autocast(DEVICE, BF16):
        y = lora_linear(x, weight, a.requires_grad_(), b, bias, impl="triton")
    assert y.dtype == BF16
    y.sum().backward()
    assert a.grad is not None
    assert a.grad.dtype == F32


def test_double_backward_is_refused() -> None:
    x, weight, a, b, bias = layer()
    y = lora_linear(x, weight, a.requires_grad_(), b, bias, impl="triton")
    (da,) = torch.autograd.grad(y.sum(), a, create_graph=True)
    with pytest.raises(ArgumentError, match="cannot be differentiated again"):
        da.sum().backward()


def test_what_the_kernels_do_not_serve_is_refused_with_the_reason() -> None:
    x, weight, a, b, bias = layer()
    with pytest.raises(ConfigError, match="weight or bias requires a gradient"):
        lora_linear(x, weight.requires_grad_(), a, b, bias, impl="triton")
    wide = [t.detach().double() for t in (x, weight, a, b)]
    with pytest.raises(ConfigError, match=r"not torch\.float64"):
        lora_linear(*wide, impl="triton")


def test_registration_passes_opcheck() -> None:
    x, weight, a, b, bias = layer()
    forward = torch.ops.fastgrow.lora_linear_forward
    backward = torch.ops.fastgrow.lora_linear_backward.default
    y, u = forward(x, weight, a, b, bias, 0.5)
    opcheck(forward.default, (x, weight, a, b, bias, 0.5))
    opcheck(backward, (y, x, u, weight, a, b, 0.5))
    opcheck(backward, (y, None, u, None, a, b, 0.5))
    opcheck(backward, (y, x, None, None, a, b, 0.5))


def test_compiles_without_graph_breaks_or_recompiling_for_a_second_length() -> None:
    graphs = 0

    def counting(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> torch.fx.GraphModule:
        nonlocal graphs
        graphs += 1
        return graph

    torch.compiler.reset()
    _, weight, a, b, bias = layer()
    a.requires_grad_()
    compiled = torch.compile(
        lambda x: lora_linear(x, weight, a, b, bias, impl="triton"),
        fullgraph=True,
        dynamic=True,
        backend=counting,
    )
    for n in (7, 11):
        x = torch.randn(n, 24, device=DEVICE, requires_grad=True)
        y = compiled(x)
        assert torch.equal(y, lora_linear(x, weight, a, b, bias, impl="triton"))
        y.sum().backward()
        assert x.grad is not None
    assert graphs == 1


@pytest.mark.skipif(not INTERPRETED, reason="the tensors lie in a sparse file")
def test_offsets_past_two_to_the_31(tmp_path: Path) -> None:
    from fastgrow.kernels.lora import low_rank_product, narrow_product

    apart = 1 << 30
    # A sparse file uses disk space only for what is written to it.
    storage = torch.from_file(str(tmp_path / "far"), shared=True, size=3 * apart + 64, dtype=F32)

    def spread(rows: Tensor) -> Tensor:
        far = storage.as_strided(rows.shape, (apart, 1))
        return far.copy_(rows)

    x, weight, a, b, _ = layer(4)
    u, weight = x @ a.T, weight[:4]
    expected = x @ weight.T + 0.5 * u @ b[:4].T
    y = torch.empty_like(expected)
    low_rank_product(spread(x), weight, u, b[:4], None, 0.5, y, "lora_forward")
    torch.testing.assert_close(y, expected)
    low_rank_product(x, spread(weight), u, b[:4], None, 0.5, y, "lora_forward")
    torch.testing.assert_close(y, expected)
    columns = spread(weight.T[:4]).T
    low_rank_product(x[:, :4], columns, u, b[:4], None, 0.0, y, "lora_forward")
    torch.testing.assert_close(y, x[:, :4] @ columns.T)
    far = storage.as_strided(y.shape, (apart, 1))
    low_rank_product(x, weight, u, b[:4], None, 0.5, far, "lora_forward")
    torch.testing.assert_close(far, expected)
    torch.testing.assert_close(narrow_product(spread(x), u, 1.0), x.T @ u)


@pytest.mark.skipif(INTERPRETED, reason="needs a GPU")
def test_runs_in_a_cuda_graph() -> None:
    x, weight, a, b, bias = layer(64, BF16)
    a.requires_grad_()

    def step() -> tuple[Tensor, Tensor]:
        y = lora_linear(x, weight, a, b, bias, impl="triton")
        return y, torch.autograd.grad(y.sum(), a)[0]

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    x.normal_()
    graph.replay()
    for got, want in zip(captured, step(), strict=True):
        assert torch.equal(got, want)
