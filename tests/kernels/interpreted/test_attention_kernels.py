"""Attention's kernels against the eager formula in fp64, forward and backward."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
import torch.utils.checkpoint
from harness import DEVICE, assert_accurate, smoke
from torch import Tensor
from torch.library import opcheck

from fastgrow.errors import ArgumentError, ConfigError
from fastgrow.kernels.calls import AttentionCall
from fastgrow.ops import attention, rope, rope_table

F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16


@dataclass(frozen=True)
class Case:
    """One call."""

    queries: int = 70
    keys: int | None = None  # as many as queries
    dim: int = 32
    rotated: int | None = None  # rotated features; all of them, 0 for no rotation
    batch: int = 1
    heads: int = 2
    kv_heads: int = 1
    dtype: torch.dtype = F32
    packed: bool = False  # q, k and v are slices of one tensor
    scale: float | None = None
    size: float = 1.0  # of queries and keys
    options: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        usual = Case()
        changed = [f"{k}={v}" for k, v in vars(self).items() if v != getattr(usual, k)]
        names = [name for name in changed if not name.startswith("options")]
        return " ".join([*names, *self.options]) or "usual"


def ids(*numbers: int) -> Tensor:
    return torch.tensor(numbers, dtype=torch.int32)


QUICK = [
    Case(),
    Case(1, 70, kv_heads=2),
    Case(17, 130, 24, 16, dtype=F16),
    smoke(Case(200, heads=1, packed=True, dtype=BF16)),
    Case(63, 100, 64, 0, options={"causal": False}),
    Case(127, options={"window": 20}),
    Case(150, heads=1, options={"cu_seqlens": ids(0, 30, 31, 150)}),
    Case(8, 70, batch=3, options={"lengths": ids(5, 70, 33)}),
    Case(90, batch=2, options={"lengths": ids(1, 90), "starts": ids(0, 60), "window": 8}),
    Case(70, options={"position_ids": torch.arange(70) // 2}),
    Case(9, 70, options={"k_rotated": True}),
    Case(70, size=50.0, scale=1.0),
]
FULL = [
    Case(70, batch=2, options={"starts": ids(0, 40)}),
    Case(90, batch=3, options={"lengths": ids(1, 64, 90), "starts": ids(0, 60, 89), "window": 8}),
    *[Case(65, dim=d, dtype=t) for d in (16, 20, 48, 80, 96, 128, 192, 256) for t in (F32, BF16)],
    *[Case(t, heads=4, kv_heads=h, dtype=F16) for t in (1, 17, 63, 127, 256) for h in (1, 4)],
    Case(33, 100, dim=40, rotated=20, batch=2, heads=4, kv_heads=2, dtype=BF16, packed=False),
    Case(70, 100, options={"causal": False, "window": 9}),
    Case(70, 100, batch=2, options={"causal": False, "starts": ids(3, 99)}),
    Case(70, 90, batch=2, options={"causal": False, "lengths": ids(1, 90)}),
    Case(150, heads=1, options={"cu_seqlens": ids(0, 64, 128, 150), "causal": False}),
    Case(150, heads=1, options={"cu_seqlens": ids(0, 10, 150), "window": 30}),
    Case(66, batch=2, options={"position_ids": torch.randint(0, 66, (2, 66))}),
    Case(40, 90, batch=2, options={"position_ids": torch.randint(0, 90, (2, 90))}),
    Case(64, scale=-0.3),
]


def make(case: Case) -> tuple[list[Tensor], Tensor]:
    """q, k, v and the gradient of the output."""
    generator = torch.Generator().manual_seed(7)
    keys = case.keys or case.queries
    shapes = [(case.heads, case.queries), (case.kv_heads, keys), (case.kv_heads, keys)]
    if case.packed:
        width = (case.heads + 2 * case.kv_heads) * case.dim
        qkv = torch.randn(case.batch, keys, width, generator=generator).to(case.dtype)
        split = qkv.view(case.batch, keys, -1, case.dim).transpose(1, 2)
        tensors = list(split.split([h for h, _ in shapes], dim=1))
    else:
        tensors = [
            torch.randn(case.batch, h, t, case.dim, generator=generator).to(case.dtype)
            for h, t in shapes
        ]
    tensors[0] = tensors[0] * case.size
    gradient = torch.randn(tensors[0].shape, generator=generator).to(case.dtype)
    return [x.to(DEVICE) for x in tensors], gradient.to(DEVICE)


def attend(case: Case, inputs: list[Tensor], impl: str) -> Tensor:
    """out; in fp64 where the inputs are."""
    options = {
        key: value.to(DEVICE) if isinstance(value, Tensor) else value
        for key, value in case.options.items()
    }
    rotated = case.dim if case.rotated is None else case.rotated
    table = rope_table(case.keys or case.queries, rotated, device=DEVICE) if rotated else None
    if inputs[0].dtype == torch.float64 and table is not None:
        table = (table[0].double(), table[1].double())
    return attention(*inputs, rope=table, scale=case.scale, impl=impl, **options)


def run(case: Case, inputs: list[Tensor], gradient: Tensor, impl: str, *, wide: bool = False):
    """out, dq, dk, dv; in fp64 with `wide`."""
    if wide:
        inputs, gradient = [x.double() for x in inputs], gradient.double()
    leaves = [x.detach().requires_grad_() for x in inputs]
    out = attend(case, leaves, impl)
    return [out, *torch.autograd.grad(out, leaves, gradient)]


def check(case: Case) -> None:
    inputs, gradient = make(case)
    truth = run(case, inputs, gradient, "eager", wide=True)
    eager = run(case, inputs, gradient, "eager")
    result = run(case, inputs, gradient, "triton")
    q, k, v, g = (float(x.double().norm(dim=-1).max()) for x in (*inputs, gradient))
    scale = abs(case.scale or case.dim**-0.5)
    # A score's gradient is a difference of two numbers of the size |dout| · |v|; dk adds as many as
    # there are queries of the heads that share the key, whose errors add like independent ones.
    terms = {"dq": scale * g * v * k, "dk": scale * g * v * q}
    terms["dk"] *= math.sqrt(case.queries * case.heads // case.kv_heads)
    names = ["out", "dq", "dk", "dv"]
    with torch.no_grad():
        compared = [("out alone", attend(case, inputs, "triton"), eager[0], truth[0])]
    for name, r, e, t in [*compared, *zip(names, result, eager, truth, strict=True)]:
        assert_accurate(
            name,
            r.detach(),
            e.detach(),
            t.detach(),
            condition=q * k * scale,
            terms=terms.get(name, 0.0),
        )


@pytest.mark.parametrize("case", QUICK, ids=str)
def test_agrees_with_truth(case: Case) -> None:
    check(case)


@pytest.mark.slow
@pytest.mark.parametrize("case", FULL, ids=str)
def test_agrees_with_truth_on_the_full_grid(case: Case) -> None:
    check(case)


def test_uninitialised_memory_is_poisoned() -> None:
    """The fixture that detects outputs that are not written works."""
    assert torch.empty(5).isnan().all()


def test_first_row_and_equal_keys_are_exact() -> None:
    q, k, v = (torch.randn(1, 2, 40, 32, device=DEVICE) for _ in range(3))
    assert torch.equal(attention(q, k, v, impl="triton")[:, :, 0], v[:, :, 0])
    equal = attention(q, k[:, :, :1].expand_as(k), v, causal=False, impl="triton")
    torch.testing.assert_close(equal, v.mean(2, keepdim=True).expand_as(v), rtol=1e-5, atol=1e-6)


def test_scores_past_any_power_of_two_do_not_overflow() -> None:
    """bf16 omits the running maximum only if the norms allow it."""
    q, k, v = (torch.randn(1, 1, 70, 32, device=DEVICE).to(BF16) for _ in range(3))
    table = rope_table(70, 32, device=DEVICE)
    out = attention(q * 50, k, v, rope=table, scale=1.0, impl="triton")
    assert out.isfinite().all()
    # A mean of rows of v stays within them.
    assert out.abs().max() <= v.abs().max() * (1 + torch.finfo(BF16).eps)


def test_infinite_inputs_follow_the_formula() -> None:
    q, k, v = (torch.randn(1, 1, 20, 16) for _ in range(3))
    q[0, 0, 3, 2], k[0, 0, 7, 1], v[0, 0, 9, 0] = float("nan"), float("inf"), float("inf")
    q, k, v = q.to(DEVICE), k.to(DEVICE), v.to(DEVICE)
    expected = attention(q, k, v, impl="eager")
    result = attention(q, k, v, impl="triton")
    torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-6, equal_nan=True)


def test_keys_beyond_a_row_s_length_are_never_read() -> None:
    q, k, v = (torch.randn(2, 1, 5, 16, device=DEVICE) for _ in range(3))
    lengths = torch.tensor([3, 5], device=DEVICE)
    expected = attention(q, k, v, lengths=lengths, impl="triton")
    k, v = k.clone(), v.clone()
    k[0, :, 3:], v[0, :, 3:] = float("nan"), float("nan")
    assert torch.equal(attention(q, k, v, lengths=lengths, impl="triton"), expected)


def test_run_twice_gives_the_same_bits() -> None:
    case = Case(130, heads=4, dtype=BF16)
    inputs, gradient = make(case)
    once, again = (run(case, inputs, gradient, "triton") for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(once, again, strict=True))


@pytest.mark.parametrize(
    "needed", [(True, False, False), (False, True, False), (False, False, True)]
)
def test_frozen_inputs_get_no_gradient(needed: tuple[bool, ...]) -> None:
    leaves = [torch.randn(1, 1, 5, 16, device=DEVICE).requires_grad_(n) for n in needed]
    attention(*leaves, impl="triton").sum().backward()
    assert [x.grad is not None for x in leaves] == list(needed)


@pytest.mark.parametrize("queries", [5, 1])
def test_results_lie_token_by_token(queries: int) -> None:
    q = torch.randn(2, 3, queries, 16, device=DEVICE, requires_grad=True)
    k, v = (torch.randn(2, 3, 70, 16, device=DEVICE, requires_grad=True) for _ in range(2))
    out = attention(q, k, v, impl="triton")
    gradients = torch.autograd.grad(out.sum(), (q, k, v))
    with torch.no_grad():
        alone = attention(q, k, v, impl="triton")
    assert all(x.transpose(1, 2).is_contiguous() for x in (out, alone, *gradients))


def test_saves_inputs_output_and_one_number_a_query() -> None:
    q = torch.randn(1, 2, 6, 16, device=DEVICE, requires_grad=True)
    k = torch.randn(1, 1, 6, 16, device=DEVICE)
    out = attention(q, k, k, rope=rope_table(6, 16, device=DEVICE), impl="triton")
    saved = [t for t in out.grad_fn.saved_tensors if t is not None]  # type: ignore[union-attr]
    kept = sum(t.numel() for t in saved if t.dim() > 2)
    assert kept == q.numel() + 2 * k.numel() + out.numel() + 2 * 6


def test_empty_batch_and_no_queries() -> None:
    for shape in ((0, 2, 5, 16), (2, 2, 0, 16)):
        q = torch.randn(shape, device=DEVICE, requires_grad=True)
        k = torch.randn(shape[0], 2, 5, 16, device=DEVICE, requires_grad=True)
        out = attention(q, k, k, impl="triton")
        out.sum().backward()
        assert out.shape == shape
        assert k.grad is not None
        assert not k.grad.any()


def test_double_backward_is_refused() -> None:
    q = torch.randn(1, 1, 5, 16, device=DEVICE, requires_grad=True)
    (dq,) = torch.autograd.grad(attention(q, q, q, impl="triton").sum(), q, create_graph=True)
    with pytest.raises(ArgumentError, match="attention: its gradient cannot be differentiated"):
        dq.sum().backward()


def test_autocast_computes_in_its_dtype() -> None:
    q = torch.randn(1, 1, 5, 16, device=DEVICE)
    with torch.autocast(DEVICE, torch.bfloat16):
        assert attention(q, q, q, impl="triton").dtype == torch.bfloat16


def test_what_the_kernels_do_not_serve_is_refused_with_the_reason() -> None:
    q = torch.randn(1, 1, 5, 16, device=DEVICE)
    with pytest.raises(ConfigError, match="it does not support a mask"):
        attention(q, q, q, mask=torch.ones(5, 5, dtype=torch.bool, device=DEVICE), impl="triton")
    with pytest.raises(ConfigError, match="it does not support dropout"):
        attention(q, q, q, dropout=0.5, impl="triton")
    with pytest.raises(ConfigError, match=r"not torch\.float64"):
        attention(q.double(), q.double(), q.double(), impl="triton")
    wide = torch.randn(1, 1, 2, 264, device=DEVICE)
    with pytest.raises(ConfigError, match="head dimensions up to 256, not 264"):
        attention(wide, wide, wide, impl="triton")


def test_registration_passes_opcheck() -> None:
    q = torch.randn(1, 2, 5, 16, device=DEVICE)
    k = torch.randn(1, 1, 6, 16, device=DEVICE)
    cos, sin = rope_table(6, 16, device=DEVICE)
    call = AttentionCall(q, k, k, cos, sin, scale=0.25)
    out, lse = torch.ops.fastgrow.attention_forward(*call)
    opcheck(torch.ops.fastgrow.attention_inference.default, tuple(call))
    opcheck(torch.ops.fastgrow.attention_forward.default, tuple(call))
    arguments = (*call, out, out, lse)
    opcheck(torch.ops.fastgrow.attention_backward.default, (*arguments, True, False))
    opcheck(torch.ops.fastgrow.attention_backward.default, (*arguments, False, True))


def test_compiles_without_graph_breaks_or_recompiling_for_a_second_length() -> None:
    graphs = 0

    def counting(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> torch.fx.GraphModule:
        nonlocal graphs
        graphs += 1
        return graph

    torch.compiler.reset()
    table = rope_table(64, 16, device=DEVICE)
    compiled = torch.compile(
        lambda q, k, v: attention(q, k, v, rope=table, impl="triton"),
        fullgraph=True,
        dynamic=True,
        backend=counting,
    )
    for length in (5, 9):
        q = torch.randn(1, 2, length, 16, device=DEVICE, requires_grad=True)
        k = torch.randn(1, 1, length, 16, device=DEVICE, requires_grad=True)
        v = torch.randn(1, 1, length, 16, device=DEVICE)
        out = compiled(q, k, v)
        assert torch.equal(out, attention(q, k, v, rope=table, impl="triton"))
        out.sum().backward()
        assert k.grad is not None
    assert graphs == 1


def test_contents_out_of_range_are_clamped() -> None:
    """The host does not check them; no memory outside the tensors may be accessed."""
    q = torch.randn(1, 1, 20, 16, device=DEVICE)
    table = rope_table(20, 16, device=DEVICE)
    far = torch.full((20,), 10**6, device=DEVICE)
    last = torch.full((20,), 19, device=DEVICE)
    clamped = attention(q, q, q, rope=table, position_ids=far, impl="triton")
    assert torch.equal(clamped, attention(q, q, q, rope=table, position_ids=last, impl="triton"))
    too_long = attention(q, q, q, lengths=far[:1], impl="triton")
    assert torch.equal(too_long, attention(q, q, q, impl="triton"))
    beyond = torch.tensor([0, 10, 10**6], dtype=torch.int32, device=DEVICE)
    exact = torch.tensor([0, 10, 20], dtype=torch.int32, device=DEVICE)
    assert torch.equal(
        attention(q, q, q, cu_seqlens=beyond, impl="triton"),
        attention(q, q, q, cu_seqlens=exact, impl="triton"),
    )


class Layer(torch.nn.Module):
    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attention(q, k, v, impl="triton")


def test_exports() -> None:
    inputs = tuple(torch.randn(1, 1, 5, 16, device=DEVICE) for _ in range(3))
    exported = torch.export.export(Layer(), inputs).module()
    assert torch.equal(exported(*inputs), Layer()(*inputs))


def test_recomputes_under_checkpointing() -> None:
    inputs = [torch.randn(1, 1, 5, 16, device=DEVICE, requires_grad=True) for _ in range(3)]
    plain = torch.autograd.grad(Layer()(*inputs).sum(), inputs)
    again = torch.utils.checkpoint.checkpoint(Layer(), *inputs, use_reentrant=False)
    for expected, gradient in zip(plain, torch.autograd.grad(again.sum(), inputs), strict=True):
        assert torch.equal(gradient, expected)


def test_compiles_for_tokens_that_are_picked_within() -> None:
    x, table = torch.randn(1, 2, 9, 16, device=DEVICE), rope_table(9, 16, device=DEVICE)
    kept = torch.arange(9, device=DEVICE) % 3 > 0

    def step(x: Tensor, kept: Tensor) -> Tensor:
        some = x[:, :, kept.nonzero().squeeze(1)]
        return attention(some, some, rope(some, table, impl="triton"), rope=table, impl="triton")

    x.requires_grad_()
    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
        found, expected = compiled(x, kept), step(x, kept)
    torch.testing.assert_close(found, expected)
    gradients = [torch.autograd.grad(y.sum(), x)[0] for y in (found, expected)]
    torch.testing.assert_close(*gradients)
