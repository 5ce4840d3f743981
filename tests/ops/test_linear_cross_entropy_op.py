"""Linear cross-entropy: the implementations compared with torch's loss on all logits."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from benchmarks.memory import peak_bytes
from fastgrow import ops
from fastgrow.errors import ArgumentError
from fastgrow.kernels.calls import HeadLossCall
from fastgrow.ops import linear_cross_entropy as public
from fastgrow.ops.core import dispatch
from fastgrow.ops.core.dispatch import OPERATIONS
from fastgrow.ops.heads import call as heads_call
from fastgrow.ops.heads import chunked, loss_workspace


def inputs(
    n: int = 23, d: int = 6, vocabulary: int = 11, dtype: torch.dtype = torch.float64
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """h, weight, targets, bias; every fifth target is ignored."""
    generator = torch.Generator().manual_seed(0)
    h = torch.randn(n, d, generator=generator, dtype=torch.float64)
    weight = torch.randn(vocabulary, d, generator=generator, dtype=torch.float64)
    bias = torch.randn(vocabulary, generator=generator, dtype=torch.float64)
    targets = torch.randint(0, vocabulary, (n,), generator=generator)
    targets[::5] = -100
    return h.to(dtype), weight.to(dtype), targets, bias.to(dtype)


@pytest.fixture(params=["eager", "chunked"])
def impl(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    # Several chunks, the last of them shorter.
    monkeypatch.setattr(chunked, "MIN_ROWS", 1)
    monkeypatch.setattr(chunked, "MAX_ROWS", 7)
    monkeypatch.setattr(chunked, "TILE_ROWS", 7)
    monkeypatch.setattr(chunked, "TILE_ELEMENTS", 35)
    return request.param


@pytest.mark.parametrize("with_bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_value_and_gradients(impl: str, reduction: str, with_bias: bool) -> None:
    h, weight, targets, bias = inputs()
    given = [t.requires_grad_() for t in ((h, weight, bias) if with_bias else (h, weight))]
    used_bias = bias if with_bias else None
    expected = F.cross_entropy(F.linear(h, weight, used_bias), targets, reduction=reduction)
    loss = public(h, weight, targets, used_bias, reduction=reduction, impl=impl)
    torch.testing.assert_close(loss, expected, atol=1e-12, rtol=1e-12)
    # An incoming gradient other than 1.
    for got, want in zip(
        torch.autograd.grad(loss * 3, given), torch.autograd.grad(expected * 3, given), strict=True
    ):
        torch.testing.assert_close(got, want, atol=1e-12, rtol=1e-10)


def test_losses_of_single_rows(impl: str) -> None:
    h, weight, targets, bias = inputs()
    expected = F.cross_entropy(F.linear(h, weight, bias), targets, reduction="none")
    shaped = public(
        h[:22].view(2, 11, -1), weight, targets[:22].view(2, 11), bias, reduction="none", impl=impl
    )
    torch.testing.assert_close(shaped, expected[:22].view(2, 11), atol=1e-12, rtol=0)


@pytest.mark.parametrize("frozen", ["h", "weight", "bias"])
def test_only_trainable_tensors_get_a_gradient(impl: str, frozen: str) -> None:
    h, weight, targets, bias = inputs()
    given = {"h": h, "weight": weight, "bias": bias}
    for name, tensor in given.items():
        tensor.requires_grad_(name != frozen)
    public(h, weight, targets, bias, impl=impl).backward()
    for name, tensor in given.items():
        assert (tensor.grad is None) == (name == frozen)


def test_frozen_weight_has_no_gradient_computed() -> None:
    h, weight, targets, bias = inputs()
    _, (dh, dweight, dbias) = torch.ops.fastgrow.linear_cross_entropy_chunked(
        [h], [weight], bias, targets, -100, "mean", 0.0, 0.0, [True, False, False]
    )
    assert dh.shape == h.shape
    assert dweight.numel() == dbias.numel() == 0


def test_ignored_targets(impl: str) -> None:
    h, weight, targets, bias = inputs()
    with_own_index = torch.where(targets == -100, 3, targets)
    expected = F.cross_entropy(F.linear(h, weight, bias), with_own_index, ignore_index=3)
    loss = public(h, weight, with_own_index, bias, ignore_index=3, impl=impl)
    torch.testing.assert_close(loss, expected)
    h.requires_grad_()
    nothing = torch.full_like(targets, -100)
    assert public(h, weight, nothing, bias, impl=impl).isnan()
    total = public(h, weight, nothing, bias, reduction="sum", impl=impl)
    assert total == 0
    total.backward()
    assert h.grad is not None
    assert torch.equal(h.grad, torch.zeros_like(h))


@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.1}, {"z_loss": 1e-2}], ids=str)
def test_smoothing_and_z_loss(impl: str, options: dict[str, float]) -> None:
    h, weight, targets, bias = inputs()
    tensors = [t.requires_grad_() for t in (h, weight, bias)]
    logits = F.linear(h, weight, bias)
    kept = targets != -100
    smoothing, z_loss = options.get("label_smoothing", 0.0), options.get("z_loss", 0.0)
    expected = F.cross_entropy(logits, targets, label_smoothing=smoothing, reduction="none")
    expected = expected + z_loss * torch.where(kept, logits.logsumexp(-1).square(), 0)
    factors = torch.linspace(-1, 2, len(targets), dtype=torch.float64)
    for reduction, want in (
        ("none", expected),
        ("sum", expected.sum()),
        ("mean", expected.sum() / kept.sum()),
    ):
        loss = public(h, weight, targets, bias, **options, reduction=reduction, impl=impl)
        torch.testing.assert_close(loss, want, atol=1e-12, rtol=1e-12)
        factor = factors if reduction == "none" else factors[0]
        for got, gradient in zip(
            torch.autograd.grad(loss, tensors, factor),
            torch.autograd.grad(want, tensors, factor, retain_graph=True),
            strict=True,
        ):
            torch.testing.assert_close(got, gradient, atol=1e-12, rtol=1e-10)


@pytest.mark.parametrize("smoothing", [0.0, 0.25])
def test_logits_whose_sum_has_no_gradient(impl: str, smoothing: float) -> None:
    """If 1 + 2 · z_loss · lse is 0, only the target's gradient remains."""
    bias = torch.zeros(2).double().requires_grad_()
    z_loss = -0.5 / bias.logsumexp(0).item()
    assert abs(1 + 2 * z_loss * math.log(2)) < 1e-15
    h, weight = torch.zeros(2, 3).double(), torch.zeros(2, 3).double()
    options: dict[str, Any] = {"z_loss": z_loss, "label_smoothing": smoothing}
    loss = public(h, weight, torch.tensor([0, 0]), bias, **options, impl=impl)
    (found,) = torch.autograd.grad(loss, bias)
    of_target = torch.tensor([1.0, 0.0]).double()
    expected = -(1 - smoothing) * of_target - smoothing / 2
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_no_rows(impl: str) -> None:
    h, weight, targets, bias = inputs(n=0)
    tensors = [t.requires_grad_() for t in (h, weight, bias)]
    assert public(h, weight, targets, bias, impl=impl).isnan()
    total = public(h, weight, targets, bias, reduction="sum", impl=impl)
    assert total == 0
    assert not any(g.any() for g in torch.autograd.grad(total, tensors))
    assert public(h, weight, targets, bias, reduction="none", impl=impl).shape == (0,)


def test_int32_targets_and_masked_words(impl: str) -> None:
    h, weight, targets, bias = inputs()
    bias[4], targets[targets == 4] = float("-inf"), 3
    tensors = [t.requires_grad_() for t in (h, weight, bias)]
    expected = F.cross_entropy(F.linear(h, weight, bias), targets)
    loss = public(h, weight, targets.int(), bias, impl=impl)
    torch.testing.assert_close(loss, expected)
    for got, want in zip(
        torch.autograd.grad(loss, tensors), torch.autograd.grad(expected, tensors), strict=True
    ):
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize("scale", [1.0, 50.0])
def test_float32_error_is_bounded(scale: float) -> None:
    h, weight, targets, bias = inputs(n=300, d=64, vocabulary=1000)
    weight = weight * scale / 8
    exact = F.cross_entropy(F.linear(h, weight, bias), targets)
    single = [t.float() for t in (h, weight, bias)]
    errors = {
        name: abs(float(public(single[0], single[1], targets, single[2], impl=name) - exact))
        for name in ("eager", "chunked")
    }
    ulp = float(exact) * 2**-23
    assert errors["chunked"] <= 2 * errors["eager"] + 2 * ulp


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("heads", [1, 3])
def test_half_precision_in_chunks_is_as_accurate_as_the_formula(
    dtype: torch.dtype, reduction: str, heads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chunked, "MIN_ROWS", 1)
    monkeypatch.setattr(chunked, "MAX_ROWS", 64)
    monkeypatch.setattr(chunked, "TILE_ROWS", 64)
    monkeypatch.setattr(chunked, "TILE_ELEMENTS", 64 * 67)
    h, weight, targets, bias = inputs(n=300, d=32, vocabulary=400, dtype=dtype)
    options: dict[str, Any] = {"reduction": reduction, "label_smoothing": 0.1, "z_loss": 1e-2}
    h, weight = h / 2, weight / 2

    def results(impl: str, wide: torch.dtype) -> list[torch.Tensor]:
        leaves = [x.to(wide).requires_grad_() for x in (h, weight, bias)]
        several = [[leaves[0]] * heads, [leaves[1]] * heads, targets, [leaves[2]] * heads]
        given = several if heads > 1 else [leaves[0], leaves[1], targets, leaves[2]]
        loss = public(*given, **options, impl=impl)  # type: ignore[arg-type]
        with torch.no_grad():
            again = public(*given, **options, impl=impl)  # type: ignore[arg-type]
        torch.testing.assert_close(loss, again, rtol=1e-4, atol=1e-4)
        factor = torch.linspace(1, 2, loss.numel()).view(loss.shape).to(loss.dtype)
        return [loss.detach(), *torch.autograd.grad(loss, leaves, factor)]

    truth = results("eager", torch.float64)
    found, formula = results("chunked", dtype), results("eager", dtype)
    assert [x.dtype for x in found] == [torch.float32, dtype, dtype, dtype]
    for x, other, exact in zip(found, formula, truth, strict=True):
        error, allowed = (x - exact).square().mean().sqrt(), (other - exact).square().mean().sqrt()
        rounding = torch.finfo(dtype).eps * exact.square().mean().sqrt()
        assert error <= 1.25 * allowed + rounding


def test_float16_gradients_in_chunks_include_the_loss_scale() -> None:
    """Probabilities of rare tokens divided by the number of rows underflow in float16."""
    h, weight, targets, bias = inputs(n=64, d=16, vocabulary=2000)
    bias[-100:] -= 10
    leaves = [x.half().requires_grad_() for x in (h / 10, weight / 10, bias)]
    targets = targets % 1900
    loss = public(leaves[0], leaves[1], targets, leaves[2], impl="chunked")
    (found,) = torch.autograd.grad(65536 * loss, leaves[1])
    wide = [x.detach().double().requires_grad_() for x in leaves]
    (truth,) = torch.autograd.grad(65536 * public(*wide[:2], targets, wide[2]), wide[1])
    error = (found.double() - truth)[-100:].norm() / truth[-100:].norm()
    assert error < 1e-2


def test_gradient_of_the_formula() -> None:
    h, weight, targets, bias = inputs(n=4, vocabulary=5)
    tensors = [t.requires_grad_() for t in (h, weight, bias)]
    assert torch.autograd.gradcheck(
        lambda h, w, b: public(h, w, targets, b, z_loss=0.1, impl="eager"), tensors
    )


def test_double_backward_is_rejected() -> None:
    h, weight, targets, bias = inputs()
    h.requires_grad_()
    loss = public(h, weight, targets, bias, impl="chunked")
    with pytest.raises(ArgumentError, match="cannot be differentiated again"):
        torch.autograd.grad(loss, h, create_graph=True)


def test_operator_is_registered_correctly() -> None:
    h, weight, targets, bias = inputs()
    operator = torch.ops.fastgrow.linear_cross_entropy_chunked.default
    for needs in ([False, False, False], [True, True, True], [True, False, True]):
        arguments = ([h], [weight], bias, targets, -100, "mean", 0.1, 0.01, needs)
        torch.library.opcheck(operator, arguments)


def test_compiles_without_graph_breaks(impl: str) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(
        lambda h, w, t, b: public(h, w, t, b, impl=impl), fullgraph=True, backend="aot_eager"
    )
    h, weight, targets, bias = inputs()
    tensors = [t.requires_grad_() for t in (h, weight, bias)]
    loss, expected = compiled(h, weight, targets, bias), public(h, weight, targets, bias)
    torch.testing.assert_close(loss, expected)
    for got, want in zip(
        torch.autograd.grad(loss, tensors), torch.autograd.grad(expected, tensors), strict=True
    ):
        torch.testing.assert_close(got, want)


def chosen(h: torch.Tensor, weight: torch.Tensor, reduction: str = "mean") -> str | None:
    """The automatic choice."""
    targets = torch.empty(h.shape[:1], dtype=torch.int64, device=h.device)
    call = HeadLossCall([h], [weight], None, targets, reduction=reduction)
    return OPERATIONS["linear_cross_entropy"].explain(call).active


def test_automatic_choice_on_a_cpu() -> None:
    h, weight = torch.zeros(300, 4), torch.zeros(8192, 4, requires_grad=True)
    assert chosen(h[:256], weight) == "eager"  # few logits
    assert chosen(h, weight) == "chunked"
    assert chosen(h, weight, "none") == "chunked"
    assert chosen(h.half(), weight.half()) == "eager"
    with torch.autocast("cpu", torch.bfloat16):
        assert chosen(h, weight) == "eager"


def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "triton_can_run", lambda tensor: (True, ""))
    monkeypatch.setattr(dispatch, "triton_pays_on", lambda tensor: (True, ""))
    monkeypatch.setattr(heads_call, "FEW_ELEMENTS", 0)  # a rule for CPUs


@pytest.mark.parametrize(
    ("trained", "reduction", "width", "expected"),
    [
        (True, "mean", 32, "cublas"),
        (True, "none", 32, "triton"),
        (False, "mean", 32, "triton"),
        (False, "none", 32, "triton"),
        (False, "mean", 20, "cublas"),
    ],
)
def test_automatic_choice_on_a_gpu(
    trained: bool, reduction: str, width: int, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gradients are computed with a scalar loss; for `none` no logits are in memory."""
    as_on_a_gpu(monkeypatch)
    h = torch.zeros(4, width, dtype=torch.bfloat16)
    weight = torch.zeros(9, width, dtype=torch.bfloat16, requires_grad=trained)
    assert chosen(h, weight, reduction) == expected
    with torch.autocast("cpu", torch.bfloat16):
        assert chosen(h.float(), weight.float(), reduction) == expected


@pytest.mark.parametrize("width", [32, 20])
def test_half_precision_gradients_are_computed_after_the_loss_scale(
    width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the loss scale they underflow in float16."""
    as_on_a_gpu(monkeypatch)
    h, weight = torch.zeros(4, width), torch.zeros(9, width, requires_grad=True)
    assert chosen(h.half(), weight.half()) == "triton"
    with torch.autocast("cpu", torch.float16):
        assert chosen(h, weight) == "triton"
        assert chosen(h, weight.detach()) == ("triton" if width == 32 else "cublas")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"targets": torch.tensor([0, 11])}, r"targets must be in \[0, 11\), got 11 at \[1\]"),
        ({"targets": torch.tensor([-100, -1])}, r"in \[0, 11\), got -1 at \[1\]"),
        ({"targets": torch.tensor([0])}, r"targets must be of shape \[2\] on cpu"),
        ({"targets": torch.zeros(2)}, "targets must be an int64 or int32"),
        ({"weight": torch.zeros(11, 5)}, r"weight must be of shape \[V, 6\]"),
        ({"weight": torch.zeros(11, 6).double()}, "weight must be of dtype torch.float32"),
        ({"bias": torch.zeros(6)}, r"bias must be of shape \[11\]"),
        ({"label_smoothing": 1.5}, r"label_smoothing must be in \[0, 1\], got 1.5"),
        ({"label_smoothing": -0.1}, r"label_smoothing must be in \[0, 1\], got -0.1"),
        ({"label_smoothing": float("nan")}, r"label_smoothing must be in \[0, 1\], got nan"),
        ({"reduction": "avg"}, "reduction must be one of mean, sum, none, got 'avg'"),
    ],
)
def test_bad_input(impl: str, change: dict[str, Any], message: str) -> None:
    arguments = {
        "h": torch.zeros(2, 6),
        "weight": torch.zeros(11, 6),
        "targets": torch.tensor([0, 1]),
        "bias": torch.zeros(11),
    }
    with pytest.raises(ArgumentError, match=message):
        ops.linear_cross_entropy(**(arguments | change), impl=impl)  # type: ignore[arg-type]


@pytest.mark.parametrize("rows", [256, 257])
def test_workspace_is_of_the_chosen_implementation(rows: int) -> None:
    """8,192 tokens: from 257 rows on the logits are not computed at once."""
    h, weight = torch.zeros(rows, 4), torch.zeros(8192, 4, requires_grad=True)
    plan = loss_workspace(rows, 4, 8192, itemsize=4, device="cpu", head_bytes=weight.nbytes)
    assert plan.implementation == chosen(h, weight)
    assert plan.rows == 256
    on_gpu = loss_workspace(8192, 1024, 65536, itemsize=2, device="cuda", head_bytes=1)
    assert on_gpu.implementation == "cublas"
    assert on_gpu.rows == 2048


@pytest.mark.slow
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_peak_memory_of_half_precision_in_chunks(reduction: str) -> None:
    """N 2,048, d 64, V 32,768, forward and backward: a fifth of the formula's."""
    generator = torch.Generator().manual_seed(0)
    h = torch.randn(2048, 64, generator=generator).bfloat16().requires_grad_()
    weight = torch.randn(32768, 64, generator=generator).bfloat16().requires_grad_()
    targets = torch.randint(32768, (2048,), generator=generator)

    def peak(impl: str) -> int:
        def step() -> object:
            loss = public(h, weight, targets, reduction=reduction, impl=impl)
            return torch.autograd.grad(loss.mean(), (h, weight))

        return peak_bytes(step, h.device)

    assert peak("chunked") <= peak("eager") / 5


@pytest.mark.slow
def test_peak_memory_is_a_fifth_of_the_formula_s() -> None:
    """N 2,048, d 256, V 65,536, forward and backward; gradients count on both sides."""
    generator = torch.Generator().manual_seed(0)
    h = torch.randn(2048, 256, generator=generator, requires_grad=True)
    weight = torch.randn(65536, 256, generator=generator, requires_grad=True)
    bias = torch.randn(65536, generator=generator, requires_grad=True)
    targets = torch.randint(65536, (2048,), generator=generator)

    def peak(impl: str | None, **options: Any) -> int:
        def step() -> object:
            loss = public(h, weight, targets, bias, impl=impl, **options)
            return torch.autograd.grad(loss.mean(), (h, weight, bias))

        return peak_bytes(step, h.device)

    allowed = peak("eager") / 5
    assert peak(None) <= allowed
    assert peak(None, reduction="none") <= allowed
    assert peak(None, label_smoothing=0.1, z_loss=1e-4) <= allowed


@pytest.mark.parametrize("narrow", [torch.float16, torch.bfloat16])
def test_heads_of_different_dtypes_keep_their_own(narrow: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(1)
    h = [torch.randn(9, 6, generator=generator) for _ in range(2)]
    # The second head's values overflow in float16.
    weight = [torch.randn(11, 6, generator=generator).to(narrow)]
    weight.append(1e5 * torch.randn(11, 6, generator=generator))
    targets = torch.arange(9)
    results = [public(h, weight, targets, impl=impl) for impl in ("chunked", "eager")]
    torch.testing.assert_close(*results, rtol=1e-3, atol=0)
    assert results[0].isfinite()


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("trained", [True, False])
def test_compiles_for_rows_that_are_picked_within(reduction: str, trained: bool) -> None:
    h, weight, targets, bias = inputs(dtype=torch.float32)
    weight.requires_grad_(trained)

    def step(h: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        kept = (targets != -100).nonzero().squeeze(1)
        options: dict[str, Any] = {"reduction": reduction, "impl": "chunked"}
        loss = public(h[kept], weight, targets[kept], bias, **options)
        lse, target_logit = ops.linear_lse_gather(
            h[kept], weight, targets[kept], bias, impl="chunked"
        )
        return loss.sum() + (lse - target_logit).sum()

    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
        found, expected = compiled(h, targets), step(h, targets)
    torch.testing.assert_close(found, expected)
    if trained:
        gradients = [torch.autograd.grad(x, weight)[0] for x in (found, expected)]
        torch.testing.assert_close(*gradients)


def test_an_unsupported_transform_raises() -> None:
    h, weight, targets, bias = inputs(dtype=torch.float32)

    def loss(h: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return public(h, weight, targets, bias, reduction="sum", impl="chunked")

    with pytest.raises(RuntimeError, match="Batching rule not implemented"):
        torch.func.vmap(loss)(h[None], targets[None])
