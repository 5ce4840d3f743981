"""KL divergence of two linear heads: the implementations compared with torch on all logits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fastgrow.errors import ArgumentError
from fastgrow.ops import linear_kl
from fastgrow.ops.heads import chunked

Head = tuple[Tensor, Tensor, Tensor | None]


def inputs(
    n: int = 23, vocabulary: int = 11, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor, Tensor, list[Head]]:
    """h, weight, bias, and two teacher heads, the second with another width and without bias."""
    generator = torch.Generator().manual_seed(0)

    def random(*size: int) -> Tensor:
        return torch.randn(size, generator=generator, dtype=torch.float64).to(dtype)

    h, weight, bias = random(n, 6), random(vocabulary, 6), random(vocabulary)
    teacher: list[Head] = [
        (random(n, 6), random(vocabulary, 6), random(vocabulary)),
        (random(n, 4), random(vocabulary, 4), None),
    ]
    return h, weight, bias, teacher


def divergence(
    h: Tensor, weight: Tensor, bias: Tensor, teacher: list[Head], shares: Any, temperature: float
) -> Tensor:
    """Rows' losses from the definition."""
    merged = sum(w * F.linear(*head) for w, head in zip(shares, teacher, strict=True))
    p = (merged / temperature).softmax(-1)
    q = (F.linear(h, weight, bias) / temperature).softmax(-1)
    return temperature**2 * (p * (p.log() - q.log())).sum(-1)


@pytest.fixture(params=["eager", "chunked"])
def impl(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    # Several chunks, the last of them shorter.
    monkeypatch.setattr(chunked, "MIN_ROWS", 1)
    monkeypatch.setattr(chunked, "MAX_ROWS", 7)
    name: str = request.param
    return name


@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_value_and_gradients(impl: str, reduction: str, temperature: float) -> None:
    h, weight, bias, teacher = inputs()
    given = [t.requires_grad_() for t in (h, weight, bias)]
    rows = divergence(h, weight, bias, teacher, (0.3, 0.7), temperature)
    expected = rows.mean() if reduction == "mean" else rows.sum()
    loss = linear_kl(
        h, weight, teacher, bias, teacher_weights=(0.3, 0.7), temperature=temperature,
        reduction=reduction, impl=impl,
    )  # fmt: skip
    torch.testing.assert_close(loss, expected, atol=1e-12, rtol=1e-12)
    # An incoming gradient other than 1.
    for got, want in zip(
        torch.autograd.grad(loss * 3, given), torch.autograd.grad(expected * 3, given), strict=True
    ):
        torch.testing.assert_close(got, want, atol=1e-12, rtol=1e-10)


def test_heads_share_equally_without_weights(impl: str) -> None:
    h, weight, bias, teacher = inputs()
    expected = divergence(h, weight, bias, teacher, (0.5, 0.5), 1.0)
    got = linear_kl(h[:22].view(2, 11, -1), weight, [
        (t[:22].view(2, 11, -1), w, b) for t, w, b in teacher
    ], bias, reduction="none", impl=impl)  # fmt: skip
    torch.testing.assert_close(got, expected[:22].view(2, 11), atol=1e-12, rtol=0)


def test_a_head_as_its_own_teacher_has_zero_loss(impl: str) -> None:
    h, weight, bias, _ = inputs()
    h.requires_grad_()
    loss = linear_kl(h, weight, [(h, weight, bias)], bias, impl=impl)
    torch.testing.assert_close(loss, torch.zeros_like(loss), atol=1e-14, rtol=0)
    (gradient,) = torch.autograd.grad(loss, h)
    torch.testing.assert_close(gradient, torch.zeros_like(h), atol=1e-15, rtol=0)


def test_rows_that_do_not_count(impl: str) -> None:
    h, weight, bias, teacher = inputs()
    rows = divergence(h, weight, bias, teacher, (0.5, 0.5), 1.0)
    counts = torch.arange(23) % 3 != 0
    wild = h.masked_fill(~counts[:, None], float("nan")).requires_grad_()
    loss = linear_kl(wild, weight, teacher, bias, counts=counts, impl=impl)
    torch.testing.assert_close(loss, rows[counts].mean(), atol=1e-12, rtol=1e-12)
    none = torch.zeros(23, dtype=torch.bool)
    assert linear_kl(h, weight, teacher, bias, counts=none, impl=impl).isnan()
    assert linear_kl(h, weight, teacher, bias, counts=none, reduction="sum", impl=impl) == 0


@pytest.mark.parametrize("counted", [False, True])
def test_no_rows(impl: str, counted: bool) -> None:
    h, weight, bias, teacher = inputs(n=0)
    counts = torch.zeros(0, dtype=torch.bool) if counted else None
    weight.requires_grad_()
    for reduction in ("mean", "sum"):
        loss = linear_kl(
            h, weight, teacher, bias, counts=counts, reduction=reduction, impl=impl
        )  # fmt: skip
        assert loss.isnan() if reduction == "mean" else loss == 0
        assert torch.autograd.grad(loss, weight)[0].shape == weight.shape


def test_tokens_of_probability_zero_under_the_teacher(impl: str) -> None:
    h, weight, bias, teacher = inputs()
    ruled_out = torch.zeros(11, dtype=torch.float64)
    ruled_out[3] = -float("inf")
    taught = [(teacher[0][0], teacher[0][1], ruled_out)]
    h.requires_grad_()
    loss = linear_kl(h, weight, taught, bias, impl=impl)
    assert loss.isfinite()
    assert torch.autograd.grad(loss, h)[0].isfinite().all()


@pytest.mark.parametrize("frozen", ["h", "weight", "bias"])
def test_only_trainable_tensors_get_a_gradient(impl: str, frozen: str) -> None:
    h, weight, bias, teacher = inputs()
    given = {"h": h, "weight": weight, "bias": bias}
    for name, tensor in given.items():
        tensor.requires_grad_(name != frozen)
    teacher = [(t.requires_grad_(), w.requires_grad_(), b) for t, w, b in teacher]
    linear_kl(h, weight, teacher, bias, impl=impl).backward()
    for name, tensor in given.items():
        assert (tensor.grad is None) == (name == frozen)
    assert all(t.grad is None and w.grad is None for t, w, _ in teacher)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_low_precision_is_summed_in_float32(impl: str, dtype: torch.dtype) -> None:
    h, weight, bias, teacher = inputs(dtype=dtype)
    wide = [(t.double(), w.double(), None if b is None else b.double()) for t, w, b in teacher]
    expected = divergence(h.double(), weight.double(), bias.double(), wide, (0.5, 0.5), 1.0).mean()
    loss = linear_kl(h, weight, teacher, bias, impl=impl)
    assert loss.dtype == torch.float32
    # Logits in bf16 are known to 2⁻⁸ of their size, and a loss is a difference of logits.
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(loss.double(), expected, rtol=tolerance, atol=0)


def test_autocast_runs_a_part_of_the_rows_at_a_time(impl: str) -> None:
    h, weight, bias, teacher = inputs(dtype=torch.float32)
    given = [t.requires_grad_() for t in (h, weight, bias)]
    with torch.autocast("cpu", torch.bfloat16):
        loss = linear_kl(h, weight, teacher, bias, impl=impl)
        chosen = linear_kl(h, weight, teacher, bias)
    narrow = [t.detach().bfloat16().requires_grad_() for t in given]
    rounded = [
        (t.bfloat16(), w.bfloat16(), b if b is None else b.bfloat16()) for t, w, b in teacher
    ]
    expected = linear_kl(narrow[0], narrow[1], rounded, narrow[2], impl=impl)
    assert torch.equal(loss, expected)
    assert torch.equal(chosen, linear_kl(narrow[0], narrow[1], rounded, narrow[2], impl="chunked"))
    assert loss.dtype == torch.float32
    gradients = torch.autograd.grad(loss, given)
    for got, want in zip(gradients, torch.autograd.grad(expected, narrow), strict=True):
        assert got.dtype == torch.float32
        assert torch.equal(got, want.float())


def test_the_operator_is_registered_correctly() -> None:
    h, weight, bias, teacher = inputs(n=5)
    arguments = (
        [h], [weight], bias, [t for t, _, _ in teacher], [w for _, w, _ in teacher],
        [b for _, _, b in teacher], [0.5, 0.5], torch.ones(5, dtype=torch.bool), 1.0,
        "mean", [True, True, False],
    )  # fmt: skip
    torch.library.opcheck(torch.ops.fastgrow.linear_kl_chunked.default, arguments)


def test_compiles_without_graph_breaks() -> None:
    h, weight, bias, teacher = inputs()
    weight.requires_grad_()
    step = torch.compile(
        lambda h, t: linear_kl(h, weight, [(t, *teacher[0][1:])], bias),
        fullgraph=True, backend="aot_eager", dynamic=True,
    )  # fmt: skip
    for rows in (23, 17):
        loss = step(h[:rows], teacher[0][0][:rows])
        expected = divergence(h[:rows], weight, bias, [
            (teacher[0][0][:rows], *teacher[0][1:])
        ], (1.0,), 1.0).mean()  # fmt: skip
        torch.testing.assert_close(loss, expected)
        torch.testing.assert_close(
            torch.autograd.grad(loss, weight)[0], torch.autograd.grad(expected, weight)[0]
        )


def test_one_graph_serves_every_number_of_rows() -> None:
    h, weight, bias, teacher = inputs()
    graphs = 0

    def counting(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> torch.fx.GraphModule:
        nonlocal graphs
        graphs += 1
        return graph

    step = torch.compile(
        lambda h, t: linear_kl(h, weight, [(t, *teacher[0][1:])], bias, impl="chunked"),
        fullgraph=True, backend=counting, dynamic=True,
    )  # fmt: skip
    for rows in (19, 17, 13, 9):
        step(h[:rows], teacher[0][0][:rows])
    assert graphs == 1


def test_double_backward_is_rejected() -> None:
    h, weight, bias, teacher = inputs()
    h.requires_grad_()
    loss = linear_kl(h, weight, teacher, bias, impl="chunked")
    with pytest.raises(ArgumentError, match="cannot be differentiated again"):
        torch.autograd.grad(loss, h, create_graph=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"temperature": 0.0}, r"temperature must be above 0, got 0\.0"),
        ({"reduction": "max"}, "reduction must be one of mean, sum, none, got 'max'"),
        ({"teacher": []}, "teacher must be at least one head, got none"),
        ({"teacher_weights": [1.0]}, "teacher_weights must be 2 numbers, got 1"),
        ({"h": torch.tensor(1.0)}, r"h must be of shape \[\.\.\., d\], got \[\] float32"),
        (
            {"teacher": [(torch.tensor(1.0), torch.zeros(11, 6), None)]},
            r"teacher\[0\]\[0\] must be of shape \[23, d\], got \[\] float32",
        ),
        ({"weight": torch.zeros(11, 5)}, r"weight must be of shape \[V, 6\], got \[11, 5\]"),
        ({"counts": torch.ones(23)}, r"counts must be a bool tensor \[23\], got \[23\] float32"),
        (
            {"teacher": [(torch.zeros(22, 6), torch.zeros(11, 6), None)]},
            r"teacher\[0\]\[0\] must be of shape \[23, d\], got \[22, 6\]",
        ),
        (
            {"teacher": [(torch.zeros(23, 6).double(), torch.zeros(9, 6).double(), None)]},
            r"teacher\[0\]\[1\] must be of shape \[11, 6\], got \[9, 6\]",
        ),
    ],
)
def test_bad_arguments_are_named(change: dict[str, Any], message: str) -> None:
    h, weight, bias, teacher = inputs()
    arguments = {"h": h, "weight": weight, "teacher": teacher, "bias": bias} | change
    with pytest.raises(ArgumentError, match=message):
        linear_kl(**arguments)
