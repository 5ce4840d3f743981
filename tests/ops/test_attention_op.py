"""Attention against a loop over queries in float64, and SDPA against the eager formula."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from fastgrow import ops
from fastgrow.errors import ArgumentError
from fastgrow.kernels.calls import AttentionCall
from fastgrow.ops.core import dispatch
from fastgrow.ops.core.dispatch import OPERATIONS
from fastgrow.ops.softmax_attention import triton
from fastgrow.ops.softmax_attention.reference import visible_keys


def loop(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    rope: ops.RopeTable | None = None,
    scale: float | None = None,
    causal: bool = True,
    window: int | None = None,
    cu_seqlens: torch.Tensor | None = None,
    lengths: torch.Tensor | None = None,
    starts: torch.Tensor | None = None,
) -> torch.Tensor:
    """Attention as a loop over queries and keys."""
    batch, heads, queries, dim = q.shape
    keys = k.shape[2]
    group = heads // k.shape[1]
    y = torch.zeros_like(q)

    def rotated(x: torch.Tensor, position: int) -> torch.Tensor:
        if rope is None:
            return x
        cos, sin = rope[0][position].double(), rope[1][position].double()
        a, b = x.chunk(2)
        return torch.cat([a * cos - b * sin, b * cos + a * sin])

    def document(index: int) -> int:
        assert cu_seqlens is not None
        return sum(int(end) <= index for end in cu_seqlens)

    for b in range(batch):
        n = keys if lengths is None else int(lengths[b])
        for h in range(heads):
            for i in range(queries):
                p = n - queries + i
                scores, values = [], []
                for j in range(n):
                    if causal and j > p:
                        continue
                    if window is not None and p - j >= window:
                        continue
                    if starts is not None and j < int(starts[b]):
                        continue
                    if cu_seqlens is not None and document(j) != document(p):
                        continue
                    dot = rotated(q[b, h, i], p) @ rotated(k[b, h // group, j], j)
                    scores.append(dot * (dim**-0.5 if scale is None else scale))
                    values.append(v[b, h // group, j])
                if scores:
                    y[b, h, i] = torch.stack(scores).softmax(0) @ torch.stack(values)
    return y


CASES: dict[str, dict[str, Any]] = {
    "causal": {},
    "every key": {"causal": False},
    "fewer queries than keys": {"tq": 3},
    "one query": {"tq": 1},
    "grouped heads": {"kv": 2},
    "one key head": {"kv": 1, "tq": 4},
    "scale": {"scale": 0.9},
    "window": {"window": 3},
    "window and fewer queries": {"window": 2, "tq": 4, "kv": 2},
    "packed documents": {"batch": 1, "cu_seqlens": torch.tensor([0, 3, 4, 7])},
    "ragged cache": {"tq": 1, "lengths": torch.tensor([7, 2])},
    "ragged cache, two queries": {"tq": 2, "lengths": torch.tensor([7, 4])},
    "left padding": {"starts": torch.tensor([0, 3])},
    "one token": {"tk": 1},
}


def tensors(
    batch: int = 2,
    heads: int = 4,
    kv: int = 4,
    tq: int | None = None,
    tk: int = 7,
    dim: int = 8,
    **rules: Any,
) -> tuple[list[torch.Tensor], dict[str, Any]]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(batch, heads, tq or tk, dim), (batch, kv, tk, dim), (batch, kv, tk, dim)]
    qkv = [torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes]
    return qkv, rules


@pytest.mark.parametrize("with_rope", [False, True], ids=["plain", "rope"])
@pytest.mark.parametrize("case", CASES)
def test_agrees_with_a_loop(case: str, with_rope: bool) -> None:
    (q, k, v), rules = tensors(**CASES[case])
    rope = tuple(t.double() for t in ops.rope_table(7, 8)) if with_rope else None
    expected = loop(q, k, v, rope=rope, **rules)  # type: ignore[arg-type]
    for impl in ("eager", "sdpa"):
        y = ops.attention(q, k, v, rope=rope, impl=impl, **rules)  # type: ignore[arg-type]
        torch.testing.assert_close(y, expected, atol=1e-12, rtol=1e-12)


def test_rotated_keys_of_a_cache_give_the_same() -> None:
    (q, k, v), _ = tensors(tq=3)
    rope = ops.rope_table(7, 8)
    rotated = ops.rope(k, rope)
    torch.testing.assert_close(
        ops.attention(q, rotated, v, rope=rope, k_rotated=True),
        ops.attention(q, k, v, rope=rope),
        atol=1e-12,
        rtol=0,
    )


def test_position_ids_move_the_rotation() -> None:
    (q, k, v), _ = tensors(tq=3)
    table = ops.rope_table(40, 8)
    ids = torch.tensor([[0, 5, 6, 7, 20, 30, 31], [1, 2, 3, 4, 5, 6, 7]])
    y = ops.attention(q, k, v, rope=table, position_ids=ids)
    rotated = ops.rope(q, table, ids[:, -3:]), ops.rope(k, table, ids)
    torch.testing.assert_close(y, ops.attention(*rotated, v), atol=1e-12, rtol=0)
    # Only distances matter, so the second row has the default positions.
    torch.testing.assert_close(y[1], ops.attention(q, k, v, rope=table)[1], atol=1e-6, rtol=0)


@pytest.mark.parametrize("impl", ["eager", "sdpa"])
def test_later_tokens_do_not_change_earlier_results(impl: str) -> None:
    (q, k, v), _ = tensors()
    before = ops.attention(q, k, v, impl=impl)
    k, v = k.clone(), v.clone()
    k[:, :, 4:], v[:, :, 4:] = 1e3, -1e3
    after = ops.attention(q, k, v, impl=impl)
    torch.testing.assert_close(after[:, :, :4], before[:, :, :4], atol=0, rtol=0)
    assert not torch.allclose(after[:, :, 4:], before[:, :, 4:])


@pytest.mark.parametrize("impl", ["eager", "sdpa"])
def test_query_without_keys_gives_zeros_and_finite_gradients(impl: str) -> None:
    (q, k, v), _ = tensors()
    for t in (q, k, v):
        t.requires_grad_()
    y = ops.attention(q, k, v, starts=torch.tensor([2, 7]), impl=impl)
    assert torch.equal(y[0, :, :2], torch.zeros_like(y[0, :, :2]))
    assert torch.equal(y[1], torch.zeros_like(y[1]))
    assert y[0, :, 2:].abs().min() > 0
    y.sum().backward()
    for t in (q, k, v):
        assert t.grad is not None
        assert torch.isfinite(t.grad).all()


@pytest.mark.parametrize("floating", [False, True], ids=["bool", "float"])
@pytest.mark.parametrize("causal", [False, True], ids=["all", "causal"])
@pytest.mark.parametrize("kv", [1, 4])
def test_sdpa_takes_masks(floating: bool, causal: bool, kv: int) -> None:
    generator = torch.Generator().manual_seed(1)
    (q, k, v), _ = tensors(kv=kv)
    mask = torch.rand(2, 1, 7, 7, generator=generator) < 0.4
    if floating:
        mask = torch.randn(2, 1, 7, 7, generator=generator, dtype=torch.float64)
    else:
        mask[0, 0, 3] = False
    # The first queries of a row that starts late attend to no key.
    rules: dict[str, Any] = {"mask": mask, "causal": causal, "starts": torch.tensor([0, 3])}
    gradients = []
    for impl in ("eager", "sdpa"):
        leaves = [t.clone().requires_grad_() for t in (q, k, v)]
        y = ops.attention(*leaves, impl=impl, **rules)
        gradients.append((y, *torch.autograd.grad(y.square().sum(), leaves)))
    for sdpa, eager in zip(gradients[1], gradients[0], strict=True):
        torch.testing.assert_close(sdpa, eager, atol=1e-12, rtol=1e-12)


HALF, D32, D128 = torch.bfloat16, 32, 128
CALLS: list[tuple[dict[str, Any], bool, str]] = [
    # Training, at any head dimension.
    (
        {"dim": D32, "gradient": True},
        False,
        "7 products and 2 exponentials per score, Triton 9 and 3",
    ),
    ({"dim": D128, "gradient": True}, False, "Triton 9 and 3"),
    ({"dim": D32, "gradient": True, "no_grad": True}, True, "optimised for larger heads"),
    # Inference.
    ({"dim": D32}, True, "optimised for larger heads"),
    ({"dim": D128}, False, "optimised for this head dimension"),
    ({"dim": D32, "dtype": torch.float32}, False, "optimised for this head dimension"),
    # Few queries.
    ({"tq": 1, "dim": D128}, True, "one more launch"),
    ({"tq": 1, "dim": D128, "rope": False}, False, "in as many launches"),
    ({"tq": 1, "dim": D32, "rope": False}, False, "in as many launches"),
    ({"tq": 1, "dim": D32, "rope": False, "tk": 1000}, True, "optimised for larger heads"),
    ({"tq": 1, "dim": D128, "rope": False, "kv": 1}, False, "in as many launches"),
    ({"tq": 4, "dim": D128, "rope": False, "kv": 1, "causal": False}, True, "once for all"),
    ({"tq": 4, "dim": D128, "rope": False, "causal": False}, False, "in as many launches"),
    ({"tq": 1, "dim": D128, "rope": False, "dtype": torch.float32}, True, "splits the keys"),
    ({"tq": 1, "dim": 100, "rope": False}, True, "splits the keys"),
    ({"tq": 8, "dim": D128, "kv": 1, "causal": False, "heads": 16}, False, "this head dimension"),
    # Calls for which SDPA needs a mask.
    ({"tq": 4, "dim": D128}, True, "a mask of all scores"),
    ({"dim": D128, "gradient": True, "window": 5}, True, "a mask of all scores"),
    ({"dim": D128, "starts": torch.zeros(1, dtype=torch.int32)}, True, "a mask of all scores"),
]


@pytest.mark.parametrize(("call", "ours", "why"), CALLS)
def test_which_kernels_a_gpu_gets(
    monkeypatch: pytest.MonkeyPatch, call: dict[str, Any], ours: bool, why: str
) -> None:
    monkeypatch.setattr(dispatch, "triton_pays_on", lambda tensor: (True, ""))
    tk, heads, dim = call.get("tk", 2048), call.get("heads", 4), call["dim"]
    dtype = call.get("dtype", HALF)
    q = torch.empty(1, heads, call.get("tq", tk), dim, dtype=dtype, device="meta")
    k = torch.empty(1, call.get("kv", heads), tk, dim, dtype=dtype, device="meta")
    q.requires_grad_(call.get("gradient", False))
    table = (q, q) if call.get("rope", True) else (None, None)
    rules = {name: call[name] for name in ("causal", "window", "starts") if name in call}
    record = AttentionCall(q, k, k, *table, **rules)
    with torch.set_grad_enabled(not call.get("no_grad", False)):
        pays, reason = OPERATIONS["attention"].implementations["triton"].pays(record)
    assert pays is ours
    assert why in reason


def test_choice_and_kernels_have_the_same_limits_of_decoding() -> None:
    tiles = pytest.importorskip("fastgrow.kernels.attention_tiles")
    assert triton.MAX_DECODED_QUERIES == tiles.MAX_QUERIES
    assert triton.MAX_DECODED_ROWS == tiles.MAX_ROWS


def test_masks_and_dropout() -> None:
    (q, k, v), _ = tensors()
    seen = torch.rand(2, 1, 7, 7, generator=torch.Generator().manual_seed(1)) < 0.6
    seen |= torch.eye(7, dtype=torch.bool)
    by_bool = ops.attention(q, k, v, mask=seen)
    added = torch.zeros(2, 1, 7, 7, dtype=torch.float64).masked_fill(~seen, -math.inf)
    torch.testing.assert_close(by_bool, ops.attention(q, k, v, mask=added), atol=1e-12, rtol=0)
    assert not torch.allclose(by_bool, ops.attention(q, k, v))
    ones = torch.ones_like(v)
    for impl in ("eager", "sdpa"):
        torch.manual_seed(0)
        dropped = ops.attention(q, k, ones, dropout=0.5, causal=False, impl=impl)
        assert dropped.std() > 0.1
        assert dropped.mean() == pytest.approx(1, abs=0.2)


@pytest.mark.parametrize("rules", [{}, {"window": 2}, {"starts": torch.tensor([1])}])
def test_gradient(rules: dict[str, Any]) -> None:
    (q, k, v), _ = tensors(batch=1, heads=2, kv=1, tq=3, tk=4, dim=4)
    rope = tuple(t.double() for t in ops.rope_table(4, 4))
    assert torch.autograd.gradcheck(
        lambda q, k, v: ops.attention(q, k, v, rope=rope, impl="eager", **rules),
        [t.requires_grad_() for t in (q, k, v)],
    )


def test_mask_is_built_only_where_it_is_needed() -> None:
    q, k = torch.zeros(1, 1, 1, 4), torch.zeros(1, 1, 5, 4)
    assert visible_keys(AttentionCall(q, k, k)) is None
    assert visible_keys(AttentionCall(k, k, k, causal=False)) is None


def test_compiles_without_graph_breaks_for_any_length() -> None:
    graphs = []

    def count(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph

    torch._dynamo.reset()
    table = ops.rope_table(64, 8)
    compiled = torch.compile(
        lambda q, k, v: ops.attention(q, k, v, rope=table), fullgraph=True, backend=count
    )
    for length in (5, 9, 13, 17):
        (q, k, v), _ = tensors(tk=length)
        q, k, v = q.float(), k.float(), v.float()
        torch.testing.assert_close(compiled(q, k, v), ops.attention(q, k, v, rope=table))
    # One for the first length, one for all others.
    assert len(graphs) == 2


@pytest.mark.parametrize("impl", ["eager", "sdpa"])
def test_half_precision_is_close_to_float64(impl: str) -> None:
    (q, k, v), _ = tensors(tk=64)
    exact = ops.attention(q, k, v, impl="eager")
    q, k, v = q.bfloat16(), k.bfloat16(), v.bfloat16()
    if impl == "sdpa":
        try:
            F.scaled_dot_product_attention(q, k, v, is_causal=True)
        except RuntimeError as error:
            # With ATEN_CPU_CAPABILITY below the processor's, torch's own call raises.
            pytest.skip(f"torch's scaled_dot_product_attention: {error}")
    y = ops.attention(q, k, v, impl=impl)
    assert y.dtype == torch.bfloat16
    assert (y - exact).square().mean().sqrt() < 5e-3 * exact.square().mean().sqrt() * 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"q": torch.zeros(4, 7, 8)},
            r"q must be of shape \[B, H, Tq, D\] with D ≥ 1, got \[4, 7, 8\]",
        ),
        ({"q": torch.zeros(2, 4, 7, 8, dtype=torch.int64)}, "q must be a floating-point"),
        ({"q": torch.zeros(2, 4, 7, 0)}, r"with D ≥ 1, got \[2, 4, 7, 0\]"),
        ({"k": torch.zeros(2, 4, 6, 8)}, r"k must be of shape \[2, H_kv, at least 7, 8\]"),
        (
            {"k": torch.zeros(2, 3, 7, 8), "v": torch.zeros(2, 3, 7, 8)},
            "attention: k has 3 heads, which must divide q's 4",
        ),
        ({"v": torch.zeros(2, 4, 7, 4)}, r"v must be of k's shape \[2, 4, 7, 8\]"),
        ({"v": torch.zeros(2, 4, 7, 8).double()}, "v must be torch.float32 on cpu like q"),
        ({"window": 0}, "window must be at least 1, got 0"),
        ({"lengths": torch.tensor([1])}, r"lengths must be of shape \[2\]"),
        ({"starts": torch.tensor([1.0, 2.0])}, "starts must be an int64 or int32"),
        ({"cu_seqlens": torch.tensor([0, 7])}, "with B = 1"),
        (
            {"cu_seqlens": torch.tensor([0, 7]), "lengths": torch.tensor([1, 1])},
            "attention: lengths and cu_seqlens cannot be given together",
        ),
        ({"lengths": torch.ones(2, dtype=torch.int32, device="meta")}, r"of shape \[2\] on cpu"),
        ({"starts": torch.ones(2, dtype=torch.int32, device="meta")}, r"of shape \[2\] on cpu"),
        (
            {"rope": ops.rope_table(7, 8), "position_ids": torch.zeros(3, 7, dtype=torch.int64)},
            r"position_ids must be of shape \[7\] or \[2, 7\] on cpu, got \[3, 7\]",
        ),
        (
            {"rope": (ops.rope_table(7, 8)[0], ops.rope_table(7, 8)[1].to("meta"))},
            "the rope table must be on cpu",
        ),
        ({"rope": ops.rope_table(6, 8)}, "at least 7 positions"),
        (
            {"lengths": torch.tensor([1, 1]), "position_ids": torch.arange(7)},
            "attention: lengths and position_ids cannot be given together",
        ),
    ],
)
def test_bad_input(change: dict[str, Any], message: str) -> None:
    arguments = {name: torch.zeros(2, 4, 7, 8) for name in "qkv"} | change
    with pytest.raises(ArgumentError, match=message):
        ops.attention(**arguments)
