"""Kernels of linear_lse_gather and linear_cross_entropy against the eager formulas in fp64."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from harness import DEVICE, EPS, assert_accurate, smoke
from torch import Tensor
from torch.library import opcheck

from fastgrow.errors import ArgumentError, ConfigError
from fastgrow.kernels.calls import HeadLossCall, LseCall, LseGradientCall
from fastgrow.kernels.linear_lse import logits_gradient
from fastgrow.kernels.logit_loss import fill_losses
from fastgrow.ops import linear_cross_entropy, linear_lse_gather
from fastgrow.ops.heads import cublas, reference
from fastgrow.ops.heads import heads as heads_module
from fastgrow.ops.heads import triton as of_triton
from fastgrow.ops.heads.call import as_heads
from fastgrow.ops.heads.heads import accumulate

F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
IGNORED = -100


@dataclass(frozen=True)
class Case:
    """One call of either operation."""

    n: int = 37
    d: tuple[int, ...] = (40,)  # of each head
    vocabulary: int = 300
    dtype: torch.dtype = F32
    bias: bool = True
    listed: bool = False  # one head, given as a list
    mix: str = "none"  # none, numbers, tensor, rows
    scale: float = 1.0  # of the logits
    ids: torch.dtype = torch.int64
    options: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        usual = Case()
        changed = [f"{k}={v}" for k, v in vars(self).items() if v != getattr(usual, k)]
        return " ".join(changed) or "usual"


def random_inputs(case: Case) -> dict[str, Any]:
    """Leaves by name (h0, w0, b0, …, mix), targets, and gradients of lse and target logit."""
    generator = torch.Generator().manual_seed(3)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(case.dtype).to(DEVICE)

    leaves: dict[str, Tensor] = {}
    for k, d in enumerate(case.d):
        leaves[f"h{k}"] = random(case.n, d) * case.scale
        leaves[f"w{k}"] = random(case.vocabulary, d) * d**-0.5
        if case.bias:
            leaves[f"b{k}"] = random(case.vocabulary)
    if case.mix in ("tensor", "rows"):
        shape = (case.n, len(case.d)) if case.mix == "rows" else (len(case.d),)
        leaves["mix"] = random(*shape)
    targets = torch.randint(case.vocabulary, (case.n,), generator=generator, dtype=case.ids)
    targets[::5] = IGNORED
    return {"leaves": leaves, "targets": targets.to(DEVICE), "g": (random(case.n), random(case.n))}


def heads(case: Case, leaves: dict[str, Tensor]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Arguments of either operation."""
    count = range(len(case.d))
    h, weight = [leaves[f"h{k}"] for k in count], [leaves[f"w{k}"] for k in count]
    bias = [leaves[f"b{k}"] for k in count] if case.bias else None
    if len(h) == 1 and not case.listed:
        return {"h": h[0], "weight": weight[0], "bias": bias[0] if bias else None}, {}
    mix = leaves.get("mix", [0.3, -1.2, 0.5][: len(h)] if case.mix == "numbers" else None)
    return {"h": h, "weight": weight, "bias": bias}, {"mix": mix}


Results = dict[str, Tensor]


def run(case: Case, inputs: dict[str, Any], impl: str, op: str, *, wide: bool = False) -> Results:
    """Outputs and gradients by name; in fp64 with `wide`."""
    given = {k: x.double() if wide else x for k, x in inputs["leaves"].items()}
    leaves = {name: x.detach().requires_grad_() for name, x in given.items()}
    arguments, mix = heads(case, leaves)
    if op == "gather":
        outputs = linear_lse_gather(**arguments, **mix, targets=inputs["targets"], impl=impl)
        results = dict(zip(("lse", "target_logit"), outputs, strict=True))
        gradients = [g.to(out.dtype) for g, out in zip(inputs["g"], outputs, strict=True)]
    else:
        loss = linear_cross_entropy(
            **arguments, **mix, **case.options, targets=inputs["targets"], impl=impl
        )
        results, outputs = {"loss": loss}, (loss,)
        gradients = [inputs["g"][0].to(loss.dtype) if loss.dim() else loss.new_tensor(3.0)]
    found = torch.autograd.grad(outputs, list(leaves.values()), gradients)
    return {k: v.detach() for k, v in {**results, **dict(zip(leaves, found, strict=True))}.items()}


def exact_logits(case: Case, leaves: dict[str, Tensor]) -> Tensor:
    arguments, mix = heads(case, {name: x.double() for name, x in leaves.items()})
    targets = torch.zeros(case.n, dtype=torch.int64, device=DEVICE)
    given = as_heads("", *arguments.values(), mix.get("mix"), targets)
    return reference.logits(LseCall(*given, targets))


def check(case: Case, impl: str, op: str) -> None:
    inputs = random_inputs(case)
    truth = run(case, inputs, "eager", op, wide=True)
    eager = run(case, inputs, "eager", op)
    result = run(case, inputs, impl, op)
    logits = exact_logits(case, inputs["leaves"])
    # A probability is exp of a logit, whose error in fp32 is its size · eps.
    condition = float(logits.abs().max())
    # Logits in memory, or h times its weight, are rounded to half precision.
    in_half = case.dtype != F32 and (impl == "cublas" or len(case.d) > 1)
    rounded = torch.finfo(case.dtype).eps if in_half else 0.0
    for name, value in result.items():
        terms = 0.0
        if name == "loss" and value.dim() == 0:
            terms = rounded / EPS * of_a_loss(case, logits, inputs["targets"])
        assert_accurate(
            name,
            value,
            eager[name],
            truth[name],
            condition=condition,
            terms=terms,
            rounded=rounded,
        )


def of_a_loss(case: Case, logits: Tensor, targets: Tensor) -> float:
    """Three standard deviations of a sum or mean of one logit a row, each rounded, in eps.

    A rounding is evenly distributed over ± half an ulp, whose deviation is 1/√3 of that half.
    """
    kept = int((targets != IGNORED).sum())
    of_sum = 3 * float(logits.square().mean().sqrt()) / 2 * (kept / 3) ** 0.5
    return of_sum if case.options.get("reduction") == "sum" else of_sum / kept


GATHER = [
    Case(),
    Case(1, (16,), 7, bias=False),
    smoke(Case(130, (48,), 257, BF16)),
    Case(37, (32, 40), 300, mix="rows"),
    Case(37, (32, 32, 32), 90, BF16, mix="numbers"),
    Case(20, scale=50.0),
]
GATHER_FULL = [
    *[
        Case(n, (d,), v, t)
        for n, d, v in ((17, 33, 127), (63, 64, 512), (127, 8, 1))
        for t in (F32, BF16, F16)
    ],
    Case(37, (32, 40), 300, F16, mix="tensor"),
    Case(37, (32, 40), 300, bias=False, mix="rows"),
    Case(9, (24,), 70, listed=True),
    Case(256, (264,), 1000, BF16),
]
LOSS = [
    Case(),
    smoke(Case(37, dtype=BF16, options={"label_smoothing": 0.1, "z_loss": 1e-2})),
    Case(37, (32, 40), mix="tensor", ids=torch.int32, options={"reduction": "sum"}),
    Case(20, scale=50.0),
    Case(3, (16,), 9000, options={"reduction": "sum"}),  # more words than are read at a time
]
ROWS = [
    Case(37, options={"reduction": "none", "label_smoothing": 0.1, "z_loss": 1e-2}),
    Case(40, (32, 40), 300, BF16, mix="rows", options={"reduction": "none"}),
]


@pytest.mark.parametrize("case", GATHER, ids=str)
def test_gather_agrees_with_truth(case: Case) -> None:
    check(case, "triton", "gather")


@pytest.mark.slow
@pytest.mark.parametrize("case", GATHER_FULL, ids=str)
def test_gather_agrees_with_truth_on_the_full_grid(case: Case) -> None:
    check(case, "triton", "gather")


@pytest.mark.parametrize("case", LOSS, ids=str)
@pytest.mark.parametrize("impl", ["triton", "cublas"])
def test_loss_agrees_with_truth(case: Case, impl: str) -> None:
    check(case, impl, "loss")


@pytest.mark.parametrize("case", ROWS, ids=str)
def test_losses_of_rows_agree_with_truth(case: Case) -> None:
    check(case, "triton", "loss")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dtype", "impl"),
    [(F32, "triton"), (BF16, "triton"), (F16, "triton"), (F32, "cublas"), (BF16, "cublas")],
    ids=str,
)
@pytest.mark.parametrize(
    "case",
    [
        Case(2, (24,), 31, bias=False),
        Case(127, (64,), 5000, options={"label_smoothing": 0.2, "reduction": "sum"}),
        Case(63, (32, 40, 16), 700, mix="rows", options={"z_loss": 1e-3}),
    ],
    ids=str,
)
def test_loss_agrees_with_truth_on_the_full_grid(case: Case, dtype: torch.dtype, impl: str) -> None:
    check(Case(**{**vars(case), "dtype": dtype}), impl, "loss")


@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
def test_slices_of_the_vocabulary_and_parts_of_the_rows_add_up(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Several of each, the last of them smaller; half-precision sums of them are float32."""
    totals: set[torch.dtype] = set()

    def recorded(total: Tensor, a: Tensor, b: Tensor, *, first: bool) -> None:
        if not first:
            totals.add(total.dtype)
        accumulate(total, a, b, first=first)

    monkeypatch.setattr(heads_module, "accumulate", recorded)
    monkeypatch.setattr(of_triton, "SLICE_ELEMENTS", 0)
    monkeypatch.setattr(of_triton, "MIN_WORDS", 128)
    check(Case(50, (32, 40), 300, dtype), "triton", "gather")
    assert totals == {F32}
    monkeypatch.setattr(cublas, "rows_at_a_time", lambda *numbers: 16)
    check(Case(50, (32, 40), 300, dtype), "cublas", "loss")


@pytest.mark.parametrize("impl", ["triton", "cublas"])
def test_logits_of_several_heads_are_not_rounded(impl: str) -> None:
    """Their standard deviation is 20, rounded by 0.06 in bfloat16; shares of 1/4 are exact."""
    case = Case(130, (32,) * 4, 90, BF16, bias=False, scale=40.0)
    inputs = random_inputs(case)
    truth, result = run(case, inputs, "eager", "loss", wide=True), run(case, inputs, impl, "loss")
    loss = truth.pop("loss")
    assert (result["loss"].double() - loss).abs() < 1e-6 * loss
    for name, expected in truth.items():
        error = (result[name].double() - expected).square().mean().sqrt()
        assert error < 5e-3 * expected.square().mean().sqrt(), name


def test_later_tiles_may_hold_the_largest_logits() -> None:
    bias = torch.linspace(-20, 20, 17000, device=DEVICE)
    h, weight = torch.zeros(1, 16, device=DEVICE), torch.zeros(17000, 16, device=DEVICE)
    targets = torch.zeros(1, dtype=torch.int64, device=DEVICE)
    lse, _ = linear_lse_gather(h, weight, targets, bias, impl="triton")
    torch.testing.assert_close(lse, bias.logsumexp(0, keepdim=True), rtol=1e-6, atol=0)


def test_rows_at_a_time_are_few_without_a_weight_to_train() -> None:
    assert cublas.rows_at_a_time(8192, 65536, 2, False) == 256
    assert cublas.rows_at_a_time(8192, 65536, 2, True) == 2048


def test_targets_elsewhere_have_no_logit_and_no_gradient() -> None:
    h, weight = torch.randn(4, 16, device=DEVICE, requires_grad=True), torch.randn(20, 16)
    targets = torch.tensor([3, -1, 20, 10**12], device=DEVICE)
    _, target_logit = linear_lse_gather(h, weight.to(DEVICE), targets, impl="triton")
    assert target_logit[0] != 0
    assert not target_logit[1:].any()
    (dh,) = torch.autograd.grad(target_logit.sum(), h)
    assert dh[0].any()
    assert not dh[1:].any()


@pytest.mark.parametrize("impl", ["triton", "cublas"])
def test_a_loss_of_targets_out_of_range_is_nan(impl: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU the host does not check them; no memory outside the tensors is accessed."""
    monkeypatch.setattr(cublas, "check_targets_in_range", lambda call: None)
    h, weight = torch.randn(4, 16, device=DEVICE), torch.randn(20, 16, device=DEVICE)
    targets = torch.tensor([3, 20, IGNORED, -1], device=DEVICE)
    losses = linear_cross_entropy(h, weight, targets, reduction="none", impl=impl)
    assert losses.isnan().tolist() == [False, True, False, True]
    assert losses[2] == 0


@pytest.mark.parametrize("impl", ["triton", "cublas"])
def test_infinite_logits_follow_the_formula(impl: str) -> None:
    """A bias of −inf removes words from the vocabulary; an infinite input gives NaN."""
    torch.manual_seed(0)
    h, weight = torch.randn(5, 16), torch.randn(600, 16)
    bias = torch.randn(600)
    bias[3], bias[200:520] = float("-inf"), float("-inf")  # the latter with a whole tile
    targets = torch.tensor([0, 5, 3, 599, 550])
    tensors = [x.to(DEVICE).requires_grad_() for x in (h, weight, bias)]
    found = {}
    for name in ("eager", impl):
        loss = linear_cross_entropy(
            *(tensors[0], tensors[1], targets.to(DEVICE), tensors[2]), reduction="sum", impl=name
        )
        found[name] = [loss, *torch.autograd.grad(loss, tensors)]
    assert found[impl][0].isposinf()  # the third row's target is masked
    for value, expected in zip(found[impl], found["eager"], strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-6, equal_nan=True)
    with torch.no_grad():
        h[1, 0] = float("inf")
        losses = linear_cross_entropy(
            *(h.to(DEVICE), weight.to(DEVICE), targets.to(DEVICE)), reduction="none", impl=impl
        )
    assert losses.isfinite().tolist() == [True, False, True, True, True]


def test_offsets_past_2_to_the_31() -> None:
    """Rows so far apart that the third one's offset does not fit 32 bits."""
    apart, width = 2**30 + 64, 40
    torch.utils.deterministic.fill_uninitialized_memory = False
    try:
        far = torch.empty(2 * apart + 512, dtype=BF16, device=DEVICE)
    finally:
        torch.utils.deterministic.fill_uninitialized_memory = True
    weight = far.as_strided((3, width), (apart, 1))
    near = torch.randn(3, width, device=DEVICE).to(BF16)
    weight.copy_(near)
    h = torch.randn(4, width, device=DEVICE).to(BF16)
    targets = torch.tensor([2, 0, 1, 2], device=DEVICE)
    expected = linear_lse_gather(h, near, targets, impl="triton")
    for value, want in zip(
        linear_lse_gather(h, weight, targets, impl="triton"), expected, strict=True
    ):
        assert torch.equal(value, want)
    swapped = torch.tensor([2, 0, 1], device=DEVICE)
    forth = linear_lse_gather(weight, near, swapped, impl="triton")
    back = linear_lse_gather(near, near, swapped, impl="triton")
    assert torch.equal(forth[0], back[0])
    out, logits = (far.as_strided((3, 300), (apart, 1)) for _ in range(2))
    ones = torch.ones(3, device=DEVICE)
    words = torch.randn(300, width, device=DEVICE).to(BF16)
    backward = LseGradientCall([near], [words], None, swapped, 6 * ones, ones, ones, None, [])
    dense = torch.empty(3, 300, dtype=BF16, device=DEVICE)
    for place in (out, dense):
        logits_gradient(backward, 0, place, with_sums=False)
    assert torch.equal(out, dense)
    call = HeadLossCall([near], [words], None, swapped, ignore_index=-1)
    logits.copy_(dense)
    losses = [torch.empty(3, device=DEVICE) for _ in range(2)]
    for place, loss in zip((logits, dense), losses, strict=True):
        fill_losses(call, slice(0, 3), place, ones, loss, place)
    assert torch.equal(*losses)
    assert torch.equal(logits, dense)


@pytest.mark.parametrize("impl", ["triton", "cublas"])
def test_strided_inputs_and_no_rows(impl: str) -> None:
    whole = torch.randn(40, 8, device=DEVICE)
    h, weight = whole.T[:5], torch.randn(80, 60, device=DEVICE)[::2, 10:50]
    targets, bias = torch.arange(10, device=DEVICE)[::2], torch.randn(40, 2, device=DEVICE)[:, 0]
    loss = linear_cross_entropy(h, weight, targets, bias, impl=impl)
    plain = linear_cross_entropy(h.contiguous(), weight.contiguous(), targets, bias, impl="eager")
    torch.testing.assert_close(loss, plain)
    nothing = h[:0].detach().requires_grad_()
    learned = weight.detach().requires_grad_()
    empty = linear_cross_entropy(nothing, learned, targets[:0], reduction="sum", impl=impl)
    assert empty == 0
    empty.backward()
    assert nothing.grad is not None
    assert learned.grad is not None
    assert not learned.grad.any()


@pytest.mark.parametrize("impl", ["triton", "cublas"])
@pytest.mark.parametrize("needed", [(1, 0, 0), (0, 1, 0), (0, 0, 1)])
def test_frozen_inputs_get_no_gradient_and_no_product(
    impl: str, needed: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes = ((5, 16), (30, 16), (30,))
    leaves = [
        torch.randn(s, device=DEVICE).requires_grad_(bool(n))
        for s, n in zip(shapes, needed, strict=True)
    ]
    targets = torch.arange(5, device=DEVICE)
    products: list[tuple[int, ...]] = []
    mm, addmm_ = torch.mm, Tensor.addmm_

    def counting(made: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def run(*arguments: Tensor, **keywords: Any) -> Tensor:
            result = made(*arguments, **keywords)
            products.append(tuple(result.shape))
            return result

        return run

    monkeypatch.setattr(torch, "mm", counting(mm))
    monkeypatch.setattr(Tensor, "addmm_", counting(addmm_))
    linear_cross_entropy(leaves[0], leaves[1], targets, leaves[2], impl=impl).backward()
    assert [x.grad is not None for x in leaves] == [bool(n) for n in needed]
    wanted = [shape for shape, n in zip(shapes[:2], needed, strict=False) if n]
    assert [p for p in products if p != (5, 30)] == wanted


@pytest.mark.parametrize("impl", ["triton", "cublas"])
def test_tied_weights_get_the_sum_of_their_gradients(impl: str) -> None:
    table = torch.randn(30, 16, device=DEVICE, requires_grad=True)
    targets = torch.tensor([4, 5, 4], device=DEVICE)

    def gradient(name: str) -> Tensor:
        loss = linear_cross_entropy([table[:3], table[targets]], [table, table], targets, impl=name)
        return torch.autograd.grad(loss, table)[0]

    torch.testing.assert_close(gradient(impl), gradient("eager"), rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("impl", ["triton", "cublas"])
def test_run_twice_gives_the_same_bits(impl: str) -> None:
    case = Case(130, (48,), 257, BF16)
    inputs = random_inputs(case)
    once, again = (run(case, inputs, impl, "loss") for _ in range(2))
    assert all(torch.equal(once[name], again[name]) for name in once)


@pytest.mark.parametrize("impl", ["triton", "cublas"])
def test_double_backward_is_refused(impl: str) -> None:
    h = torch.randn(3, 16, device=DEVICE, requires_grad=True)
    weight, targets = torch.randn(9, 16, device=DEVICE), torch.arange(3, device=DEVICE)
    loss = linear_cross_entropy(h, weight, targets, impl=impl)
    with pytest.raises(ArgumentError, match="cannot be differentiated again"):
        torch.autograd.grad(loss, h, create_graph=True)


@pytest.mark.parametrize("impl", ["triton", "cublas"])
def test_autocast_computes_in_its_dtype(impl: str) -> None:
    h = torch.randn(3, 16, device=DEVICE, requires_grad=True)
    weight = torch.randn(9, 16, device=DEVICE, requires_grad=True)
    targets = torch.arange(3, device=DEVICE)
    with torch.autocast(DEVICE, BF16):
        loss = linear_cross_entropy(h, weight, targets, impl=impl)
    loss.backward()
    assert loss.dtype == F32
    assert h.grad is not None
    assert h.grad.dtype == F32
    half = linear_cross_entropy(h.to(BF16), weight.to(BF16), targets, impl=impl)
    assert torch.equal(loss, half)


def test_what_the_kernels_do_not_serve_is_refused_with_the_reason() -> None:
    h, weight = torch.randn(3, 16, device=DEVICE), torch.randn(9, 16, device=DEVICE)
    targets = torch.arange(3, device=DEVICE)
    with pytest.raises(ConfigError, match="at most 8 products, got 9"):
        linear_lse_gather([h] * 9, [weight] * 9, targets, impl="triton")
    with pytest.raises(ConfigError, match=r"not torch\.float64"):
        linear_lse_gather(h.double(), weight.double(), targets, impl="triton")
    half = h.to(BF16).requires_grad_()
    with pytest.raises(ConfigError, match="gradients of single rows' losses cannot be"):
        linear_cross_entropy(half, weight.to(BF16), targets, reduction="none", impl="cublas")
    with pytest.raises(ConfigError, match="available are triton, cublas, chunked, eager"):
        linear_cross_entropy(half, weight.to(BF16), targets, impl="vendor")


def test_registration_passes_opcheck() -> None:
    case = Case(5, (16, 24), 40)
    leaves = random_inputs(case)["leaves"]
    h, weight, bias = [leaves["h0"], leaves["h1"]], [leaves["w0"], leaves["w1"]], leaves["b0"]
    targets = torch.tensor([0, 1, 39, 7, IGNORED], device=DEVICE)
    row = torch.randn(5, device=DEVICE)
    ops = torch.ops.fastgrow
    opcheck(ops.linear_lse_triton.default, (h, weight, bias, targets, True))
    backward = ops.linear_lse_triton_backward.default
    opcheck(backward, (h, weight, bias, targets, row, row, row, row, [True] * 5))
    opcheck(
        backward, (h, weight, None, targets, row, row, row, None, [True, False, False, True, False])
    )
    for needs in ([True] * 5, [False] * 5):
        opcheck(
            ops.linear_cross_entropy_cublas.default,
            (h, weight, bias, targets, IGNORED, "mean", 0.1, 0.01, needs),
        )


@pytest.mark.parametrize("autocast", [True, False])
def test_float16_gradients_are_made_with_the_loss_scale(autocast: bool) -> None:
    """Rare words' probabilities over the number of rows are below float16's smallest number."""
    torch.manual_seed(0)
    dtype = F32 if autocast else F16
    h = (0.1 * torch.randn(64, 16, device=DEVICE)).to(dtype).requires_grad_()
    weight = (0.1 * torch.randn(2000, 16, device=DEVICE)).to(dtype).requires_grad_()
    bias = torch.zeros(2000, dtype=dtype, device=DEVICE)
    bias[-100:] = -6
    targets = torch.arange(64, device=DEVICE)
    with torch.autocast(DEVICE, F16, enabled=autocast):
        with pytest.raises(ConfigError, match="float16 gradients computed with the loss underflow"):
            linear_cross_entropy(h, weight, targets, bias, impl="cublas")
        loss = linear_cross_entropy(h, weight, targets, bias, impl="triton")
    (found,) = torch.autograd.grad(65536 * loss, weight)
    wide = [x.detach().to(F16).double().requires_grad_() for x in (h, weight, bias)]
    exact = linear_cross_entropy(wide[0], wide[1], targets, wide[2], impl="eager")
    (truth,) = torch.autograd.grad(65536 * exact, wide[1])
    error = (found.double() - truth)[-100:].norm() / truth[-100:].norm()
    assert error < 2e-3


@pytest.mark.parametrize("impl", ["triton", "cublas"])
def test_compiles_without_graph_breaks_or_recompiling_for_a_second_length(impl: str) -> None:
    graphs = 0

    def counting(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> torch.fx.GraphModule:
        nonlocal graphs
        graphs += 1
        return graph

    torch.compiler.reset()
    weight = torch.randn(30, 16, device=DEVICE, requires_grad=True)
    frozen = torch.randn(30, 16, device=DEVICE)

    def loss(h: Tensor, targets: Tensor) -> Tensor:
        return linear_cross_entropy([h, 2 * h], [weight, frozen], targets, impl=impl)

    compiled = torch.compile(loss, fullgraph=True, dynamic=True, backend=counting)
    for length in (5, 9):
        h = torch.randn(length, 16, device=DEVICE, requires_grad=True)
        targets = torch.arange(length, device=DEVICE)
        found = compiled(h, targets)
        assert torch.equal(found, loss(h, targets))
        found.backward()
        assert h.grad is not None
    assert graphs == 1


class Loss(torch.nn.Module):
    def forward(self, h: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        return linear_cross_entropy(h, weight, targets, impl="triton")


def test_exports() -> None:
    h, weight = torch.randn(3, 16, device=DEVICE), torch.randn(9, 16, device=DEVICE)
    inputs = (h, weight, torch.arange(3, device=DEVICE))
    exported = torch.export.export(Loss(), inputs).module()
    assert torch.equal(exported(*inputs), Loss()(*inputs))


@pytest.mark.skipif(DEVICE == "cpu", reason="needs a CUDA device")
@pytest.mark.parametrize("impl", ["triton", "cublas"])
def test_is_captured_in_a_graph(impl: str) -> None:
    h = torch.randn(64, 64, device=DEVICE).to(BF16).requires_grad_()
    weight = torch.randn(500, 64, device=DEVICE).to(BF16).requires_grad_()
    targets = torch.arange(64, device=DEVICE)

    def step() -> tuple[Tensor, ...]:
        loss = linear_cross_entropy(h, weight, targets, impl=impl)
        return (loss, *torch.autograd.grad(loss, (h, weight)))

    expected = step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    graph.replay()
    assert all(torch.equal(a, b) for a, b in zip(captured, expected, strict=True))


@pytest.mark.skipif(DEVICE == "cpu", reason="needs a CUDA device")
@pytest.mark.parametrize("impl", ["triton", "cublas"])
def test_memory_stays_an_eighth_of_the_formula_s(impl: str) -> None:
    h = torch.randn(4096, 256, device=DEVICE).to(BF16).requires_grad_()
    weight = torch.randn(32768, 256, device=DEVICE).to(BF16).requires_grad_()
    targets = torch.arange(4096, device=DEVICE)

    def transient(name: str) -> int:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        loss = linear_cross_entropy(h, weight, targets, impl=name)
        gradients = torch.autograd.grad(loss, (h, weight))
        kept = sum(g.nbytes for g in gradients)
        return torch.cuda.max_memory_allocated() - before - kept

    assert transient(impl) <= transient("eager") / 8
