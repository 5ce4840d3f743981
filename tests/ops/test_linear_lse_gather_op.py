"""linear_lse_gather: log-sum-exp and target logit, of one head, of several, and of parts of one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fastgrow import ops
from fastgrow.errors import ArgumentError
from fastgrow.kernels.calls import LseCall
from fastgrow.ops import linear_cross_entropy, linear_lse_gather, merge_lse
from fastgrow.ops.core import dispatch
from fastgrow.ops.core.dispatch import OPERATIONS, Explanation
from fastgrow.ops.heads import call as heads_call
from fastgrow.ops.heads import chunked

N, VOCABULARY = 15, 13
WIDTHS = (6, 4, 6)


@pytest.fixture(params=["eager", "chunked"])
def impl(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(chunked, "MIN_ROWS", 1)
    monkeypatch.setattr(chunked, "MAX_ROWS", 7)
    monkeypatch.setattr(chunked, "TILE_ROWS", 7)
    monkeypatch.setattr(chunked, "TILE_ELEMENTS", 35)
    return request.param


def random(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()


def several() -> tuple[list[Tensor], list[Tensor], list[Tensor], Tensor]:
    h = [random(N, d, seed=k) for k, d in enumerate(WIDTHS)]
    weight = [random(VOCABULARY, d, seed=10 + k) for k, d in enumerate(WIDTHS)]
    bias = [random(VOCABULARY, seed=20 + k) for k in range(len(WIDTHS))]
    return h, weight, bias, torch.arange(N) % VOCABULARY


def averaged(h: list[Tensor], weight: list[Tensor], bias: list[Tensor], mix: Any) -> Tensor:
    """Logits by the formula."""
    terms = torch.stack([F.linear(*parts) for parts in zip(h, weight, bias, strict=True)], -1)
    shares = torch.full((3,), 1 / 3, dtype=torch.float64) if mix is None else torch.as_tensor(mix)
    return (terms * shares.double()[..., None, :]).sum(-1)


def assert_gradients(got: Any, want: Any, leaves: list[Tensor]) -> None:
    """Gradients of a sum with random factors, so that the rows' gradients differ."""
    factors = [random(*x.shape, seed=30 + i).detach() for i, x in enumerate(want)]
    for a, b in zip(
        torch.autograd.grad(got, leaves, factors),
        torch.autograd.grad(want, leaves, factors),
        strict=True,
    ):
        torch.testing.assert_close(a, b, atol=1e-12, rtol=1e-10)


def test_one_head(impl: str) -> None:
    h, weight, bias = random(3, 5, 6), random(VOCABULARY, 6, seed=1), random(VOCABULARY, seed=2)
    targets = (torch.arange(15) % VOCABULARY).view(3, 5)
    logits = F.linear(h, weight, bias)
    want = logits.logsumexp(-1), logits.gather(-1, targets[..., None]).squeeze(-1)
    got = linear_lse_gather(h, weight, targets, bias, impl=impl)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, atol=1e-12, rtol=1e-12)
    assert_gradients(got, want, [h, weight, bias])


@pytest.mark.parametrize("form", ["mean", "numbers", "tensor", "rows"])
def test_heads_are_averaged(impl: str, form: str) -> None:
    h, weight, bias, targets = several()
    mix: Any = {
        "mean": None,
        "numbers": [0.5, -2.0, 1.0],
        "tensor": random(3, seed=40),
        "rows": random(N, 3, seed=41),
    }[form]
    logits = averaged(h, weight, bias, mix)
    leaves = [*h, *weight, *bias, *([mix] if isinstance(mix, Tensor) else [])]
    want = logits.logsumexp(-1), logits.gather(-1, targets[:, None]).squeeze(-1)
    got = linear_lse_gather(h, weight, targets, bias, mix=mix, impl=impl)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, atol=1e-12, rtol=1e-12)
    assert_gradients(got, want, leaves)
    loss = linear_cross_entropy(h, weight, targets, bias, mix=mix, impl=impl)
    expected = F.cross_entropy(logits, targets)
    torch.testing.assert_close(loss, expected, atol=1e-12, rtol=1e-12)
    assert_gradients([loss], [F.cross_entropy(averaged(h, weight, bias, mix), targets)], leaves)


def test_a_number_0_excludes_its_head(impl: str) -> None:
    """Even if its tensors are NaN; if all heads are excluded, all logits are 0."""
    h, weight, bias, targets = several()
    wild = [x.detach().clone() for x in (h[1], weight[1], bias[1])]
    for x in wild:
        x[0] = float("inf")
    wild[0].requires_grad_()
    given = [h[0], wild[0], h[2]], [weight[0], wild[1], weight[2]], targets
    got = linear_lse_gather(*given, [bias[0], wild[2], bias[2]], mix=[0.5, 0.0, 2.0], impl=impl)
    logits = averaged(h, weight, bias, [0.5, 0.0, 2.0])
    want = logits.logsumexp(-1), logits.gather(-1, targets[:, None]).squeeze(-1)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, atol=1e-12, rtol=1e-12)
    assert_gradients(got, want, [h[0], h[2], weight[0], weight[2], bias[0], bias[2]])
    loss = linear_cross_entropy(*given, mix=[0.5, 0.0, 2.0], impl=impl)
    assert torch.autograd.grad(loss, wild[0], allow_unused=True) == (None,)
    assert loss.isfinite()
    nothing, _ = linear_lse_gather(h, weight, targets, bias, mix=[0.0] * 3, impl=impl)
    torch.testing.assert_close(nothing, torch.full_like(nothing, VOCABULARY).log())


@pytest.mark.parametrize("form", ["tensor", "rows"])
def test_a_0_in_a_tensor_masks_infinities(impl: str, form: str) -> None:
    """The gradient of the 0 is that of the finite numbers, and nothing is NaN."""
    h, weight, bias, targets = several()
    mix = torch.full((3,) if form == "tensor" else (N, 3), 0.5, dtype=torch.float64)
    mix[..., 1] = 0
    if form == "rows":
        mix[1:, 1] = 0.25
    wild = h[1].detach().clone()
    wild[0] = float("nan")
    wild[0, 0] = float("inf")
    leaves = [h[0], wild.requires_grad_(), *weight, mix.requires_grad_()]
    got = linear_lse_gather([h[0], wild, h[2]], weight, targets, bias, mix=mix, impl=impl)
    logits = averaged([h[0], wild.nan_to_num(0.0, 0.0, 0.0), h[2]], weight, bias, mix)
    want = logits.logsumexp(-1), logits.gather(-1, targets[:, None]).squeeze(-1)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, atol=1e-12, rtol=1e-12)
    assert_gradients(got, want, leaves)


def test_some_heads_without_bias(impl: str) -> None:
    h, weight, bias, targets = several()
    rows = random(N, 3, seed=41)
    given = [None, bias[1], None]
    for mix in (None, rows):
        some = linear_lse_gather(h, weight, targets, given, mix=mix, impl=impl)
        zeros = [torch.zeros_like(b) if g is None else g for b, g in zip(bias, given, strict=True)]
        all_ = linear_lse_gather(h, weight, targets, zeros, mix=mix, impl="eager")
        for a, b in zip(some, all_, strict=True):
            torch.testing.assert_close(a, b, atol=1e-12, rtol=1e-12)


def test_no_head_is_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    """Products read the weights without a copy."""
    h, weight, bias, targets = several()
    addresses: set[int] = set()
    mm, addmm_ = torch.mm, Tensor.addmm_

    def seen(made: Any) -> Any:
        def run(*arguments: Tensor, **keywords: Any) -> Tensor:
            addresses.update(x.data_ptr() for x in arguments)
            return made(*arguments, **keywords)

        return run

    monkeypatch.setattr(torch, "mm", seen(mm))
    monkeypatch.setattr(torch, "addmm", seen(torch.addmm))
    monkeypatch.setattr(Tensor, "addmm_", seen(addmm_))
    linear_cross_entropy(h, weight, targets, bias, impl="chunked").backward()
    assert {w.data_ptr() for w in weight} <= addresses


def test_parts_of_a_vocabulary_merge_to_the_whole(impl: str) -> None:
    h, weight, bias = random(N, 6), random(VOCABULARY, 6, seed=1), random(VOCABULARY, seed=2)
    targets = torch.arange(N) % VOCABULARY
    want = linear_lse_gather(h, weight, targets, bias, impl="eager")
    parts = [
        linear_lse_gather(h, weight[a:b], targets - a, bias[a:b], impl=impl)
        for a, b in ((0, 4), (4, 5), (5, VOCABULARY))
    ]
    got = merge_lse([lse for lse, _ in parts], [logit for _, logit in parts])
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, atol=1e-12, rtol=1e-12)
    assert_gradients(got, want, [h, weight, bias])


def test_autocast_rounds_the_inputs(impl: str) -> None:
    leaves = [x.detach().float() for x in (random(N, 6), random(VOCABULARY, 6, seed=1))]
    leaves = [x.requires_grad_() for x in (*leaves, torch.linspace(-1, 1, VOCABULARY))]
    h, weight, bias = leaves
    targets = torch.arange(N) % VOCABULARY
    with torch.autocast("cpu", torch.bfloat16):
        got = linear_lse_gather(h, weight, targets, bias, impl=impl)
        loss = linear_cross_entropy(h, weight, targets, bias, impl=impl)
    logits = F.linear(*(x.bfloat16().float() for x in leaves))
    want = logits.logsumexp(1), logits.gather(1, targets[:, None]).squeeze(1)
    # Logits of the formula are bfloat16.
    accuracy = {"rtol": 2e-2, "atol": 2e-2} if impl == "eager" else {"rtol": 1e-6, "atol": 1e-6}
    for a, b in zip((*got, loss), (*want, (want[0] - want[1]).mean()), strict=True):
        torch.testing.assert_close(a, b, **accuracy)
    expected = torch.autograd.grad(want[0].sum() + (want[0] - want[1]).mean(), leaves)
    found = torch.autograd.grad(got[0].sum() + loss, leaves)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=2e-2, atol=2e-2)


def test_automatic_choice_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half-precision inputs or autocast use the kernels, for any alignment of the rows."""
    monkeypatch.setattr(dispatch, "triton_can_run", lambda tensor: (True, ""))
    monkeypatch.setattr(dispatch, "triton_pays_on", lambda tensor: (True, ""))
    monkeypatch.setattr(heads_call, "FEW_ELEMENTS", 0)  # a rule for CPUs
    targets = torch.zeros(4, dtype=torch.int64)

    def explained(width: int, dtype: torch.dtype, count: int = 1) -> Explanation:
        h, weight = torch.zeros(4, width, dtype=dtype), torch.zeros(9, width, dtype=dtype)
        call = LseCall([h] * count, [weight] * count, None, targets)
        return OPERATIONS["linear_lse_gather"].explain(call)

    assert explained(20, torch.float32).active == "chunked"
    assert explained(20, torch.bfloat16).active == "triton"
    with torch.autocast("cpu", torch.bfloat16):
        assert explained(20, torch.float32).active == "triton"
    many = explained(16, torch.bfloat16, 9)
    assert many.active == "eager"
    assert "eager supports more than 8 heads, with all logits in memory" in many.reason


def test_targets_of_another_part_have_no_logit(impl: str) -> None:
    h, weight = random(4, 6), random(VOCABULARY, 6, seed=1)
    targets = torch.tensor([2, -1, VOCABULARY, 10**12])
    _, target_logit = linear_lse_gather(h, weight, targets, impl=impl)
    assert target_logit[0] != 0
    assert not target_logit[1:].any()
    (dh,) = torch.autograd.grad(target_logit.sum(), h)
    torch.testing.assert_close(dh[0], weight[2])
    assert not dh[1:].any()


def test_one_output_alone(impl: str) -> None:
    h, weight = random(4, 6), random(VOCABULARY, 6, seed=1)
    lse, _ = linear_lse_gather(h, weight, torch.arange(4), impl=impl)
    expected = F.linear(h, weight).logsumexp(1)
    assert_gradients([lse], [expected], [h, weight])


def test_only_trainable_tensors_get_a_gradient(impl: str) -> None:
    h, weight, bias, targets = several()
    leaves = [*h, *weight, *bias]
    for k in (1, 3, 8):
        for x in leaves:
            x.requires_grad_(x is leaves[k]).grad = None
        sum(linear_lse_gather(h, weight, targets, bias, impl=impl)).sum().backward()
        assert [x.grad is not None for x in leaves] == [x is leaves[k] for x in leaves]


def test_gradient_of_the_formula() -> None:
    h, weight, bias = random(3, 2), random(4, 2, seed=1), random(4, seed=2)
    targets = torch.tensor([0, 3, -1])
    assert torch.autograd.gradcheck(
        lambda h, w, b: linear_lse_gather(h, w, targets, b, impl="eager"), (h, weight, bias)
    )


def test_double_backward_is_rejected() -> None:
    h, weight = random(3, 6), random(VOCABULARY, 6, seed=1)
    lse, _ = linear_lse_gather(h, weight, torch.arange(3), impl="chunked")
    with pytest.raises(ArgumentError, match="linear_lse_gather: its gradient cannot be diff"):
        torch.autograd.grad(lse.sum(), h, create_graph=True)


def test_operators_are_registered_correctly() -> None:
    *parts, targets = several()
    h, weight, bias = ([x.detach() for x in tensors] for tensors in parts)
    row = random(N).detach()
    operators = torch.ops.fastgrow
    for with_mean in (False, True):
        arguments = (h, weight, bias[0], targets, with_mean)
        torch.library.opcheck(operators.linear_lse_chunked.default, arguments)
    backward = operators.linear_lse_chunked_backward.default
    needs = [True] * 7
    torch.library.opcheck(backward, (h, weight, bias[0], targets, row, row, row, row, needs))
    needs = [False, True] * 3 + [False]
    torch.library.opcheck(backward, (h, weight, None, targets, row, row, row, None, needs))


def test_compiles_without_graph_breaks_and_once_for_two_lengths(impl: str) -> None:
    graphs = 0

    def counting(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> torch.fx.GraphModule:
        nonlocal graphs
        graphs += 1
        return graph

    torch._dynamo.reset()
    _, weight, bias, _ = several()

    def call(h: list[Tensor], targets: Tensor) -> tuple[Tensor, Tensor]:
        return linear_lse_gather(h, weight, targets, bias, impl=impl)

    compiled = torch.compile(call, fullgraph=True, dynamic=True, backend=counting)
    for n in (5, 9):
        h = [random(n, d, seed=k) for k, d in enumerate(WIDTHS)]
        targets = torch.arange(n)
        assert_gradients(compiled(h, targets), call(h, targets), [*h, *weight, *bias])
    assert graphs == 1


BAD: list[tuple[dict[str, Any], str]] = [
    ({"weight": [torch.zeros(7, 6)]}, r"weight must be a list of 2, one for each h, got 1"),
    ({"weight": torch.zeros(7, 6)}, r"weight must be a list of 2, one for each h, got a Tensor"),
    ({"bias": [None] * 3}, r"bias must be a list of 2, one for each h, got 3"),
    ({"weight": [torch.zeros(7, 6), torch.zeros(8, 4)]}, r"weight\[1\] must be of shape \[7, 4\]"),
    ({"weight": [torch.zeros(7, 6), torch.zeros(7, 5)]}, r"weight\[1\] must be of shape \[7, 4\]"),
    ({"h": [torch.zeros(3, 6), torch.zeros(2, 4)]}, r"h\[1\] must be of shape \[3, d\]"),
    ({"h": [torch.zeros(3, 6), torch.zeros(3, 4).double()]}, r"h\[1\] must be of dtype torch.fl"),
    ({"h": [], "weight": []}, r"h must be a tensor, or a list of at least one"),
    ({"h": torch.zeros(3, 6)}, r"weight must be a tensor like h, got a list"),
    ({"mix": [1.0]}, r"mix must be of 2 numbers, one for each h, got 1"),
    ({"mix": torch.zeros(3)}, r"mix must be of shape \[2\] or \[3, 2\] on cpu"),
    ({"targets": torch.zeros(2, dtype=torch.int64)}, r"targets must be of shape \[3\] on cpu"),
    (
        {"h": torch.zeros(3, 6), "weight": torch.zeros(7, 6), "mix": [1.0]},
        "mix must be None if h is one tensor",
    ),
    (
        {"h": torch.zeros(3, 6), "weight": torch.zeros(0, 6)},
        r"weight must be of at least one row, got \[0, 6\]",
    ),
]


@pytest.mark.parametrize(("change", "message"), BAD)
def test_bad_input(change: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {
        "h": [torch.zeros(3, 6), torch.zeros(3, 4)],
        "weight": [torch.zeros(7, 6), torch.zeros(7, 4)],
        "targets": torch.zeros(3, dtype=torch.int64),
    }
    for call in (linear_lse_gather, linear_cross_entropy):
        with pytest.raises(ArgumentError, match=message):
            call(**(arguments | change))


def test_parts_that_do_not_match_are_rejected() -> None:
    with pytest.raises(ArgumentError, match="as long as lse, 1, got 0"):
        merge_lse([torch.zeros(2)], [])
    assert ops.merge_lse is merge_lse
