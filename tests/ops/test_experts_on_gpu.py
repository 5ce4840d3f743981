"""The GPU part of the extension: on a device, or its kernels emulated on a CPU.

`FASTGROW_EMULATED_CUDA` names a library of the same sources built for csrc/emulator, as
csrc/sanitize.py builds it; the tests then run on CPU tensors, on smaller ones.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest
import torch
from random_logits import make
from torch import Tensor
from torch.library import opcheck

from fastgrow import _native
from fastgrow.ops import (
    linear_kl,
    logit_mean,
    mean_argmax,
    mean_cross_entropy,
    mean_log_softmax_gather,
    mean_sample,
    mean_top_k,
    probability_mean,
    probability_mean_gather,
)
from fastgrow.ops.core import extension
from fastgrow.ops.core.launch_plan import Plan
from fastgrow.ops.experts import choices, losses, mean, mixture
from fastgrow.ops.heads import native as heads_native

EMULATED = os.environ.get("FASTGROW_EMULATED_CUDA")
DEVICE = "cpu" if EMULATED else "cuda"
needs_device = pytest.mark.skipif(bool(EMULATED), reason="this takes a device")
pytestmark = [pytest.mark.gpu]
if EMULATED:
    torch.ops.load_library(EMULATED)
else:
    no_device, not_built = not torch.cuda.is_available(), not _native.CUDA.loaded
    pytestmark += [
        pytest.mark.skipif(no_device, reason="there is no CUDA device"),
        pytest.mark.skipif(not_built, reason=_native.CUDA.reason),
    ]

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# A warp's rows, rows of several parts, odd lengths, and rows that are one part; on a device also
# those of batch-1 decoding and of GPT-2.
SHAPES = [(20, 8), (3, 1001), (1, 5003), (2, 4096)]
SHAPES += [] if EMULATED else [(70_000, 8), (1, 65_536), (16, 50_257), (600, 16_384)]
# All counts of experts at one shape, all shapes with one count.
CASES = [(k, (3, 1001), dtype) for k in (1, 3, 4, 7) for dtype in DTYPES]
CASES += [(64, (2, 301), torch.bfloat16), (33, (2, 301), torch.float32)]
CASES += [(2, shape, dtype) for shape in SHAPES if shape != (3, 1001) for dtype in DTYPES]
FIRST = (3, (3, 1001), torch.bfloat16)  # rows of no whole vectors, several experts
WITH_FIRST = [pytest.param(*FIRST, marks=pytest.mark.gpu_smoke), *(c for c in CASES if c != FIRST)]

# Orders in which the emulator can run a block's threads, in addition to `forward`.
ORDERS = ("backward", "shuffled", "warps", "warps backward")

Run = Callable[[], Any]


@pytest.fixture(autouse=True)
def emulated(monkeypatch: pytest.MonkeyPatch) -> None:
    """Treat CPU tensors as GPU tensors."""
    if EMULATED:
        monkeypatch.setattr(extension, "GPU", "cpu")
        monkeypatch.setattr(_native, "CUDA", _native.Extension("_C_cuda", True, "emulated"))


def experts(k: int, shape: tuple[int, ...], dtype: torch.dtype) -> list[Tensor]:
    """Random logits of k experts; those after the eighth are the same tensor."""
    some = [x.to(DEVICE) for x in make(min(k, 8), shape, dtype)]
    return some + some[:1] * (k - len(some))


def random(*shape: int, seed: int = 7) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def exact(logits: list[Tensor], weights: Tensor | None = None) -> Tensor:
    wide = None if weights is None else weights.double()
    return logit_mean([x.double() for x in logits], wide, impl="eager")


def assert_near(result: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(
        result.double(), expected.double(), rtol=tolerance, atol=tolerance, equal_nan=True
    )


@pytest.mark.parametrize(("k", "shape", "dtype"), WITH_FIRST)
def test_mean_losses_and_choices(k: int, shape: tuple[int, int], dtype: torch.dtype) -> None:
    logits, weights = experts(k, shape, dtype), random(k)
    truth = exact(logits, weights)
    for out_dtype in DTYPES:
        out = torch.full(shape, float("nan"), dtype=out_dtype, device=DEVICE)
        logit_mean(logits, weights, out=out, impl="native")
        assert_near(out, truth, max(1e-5, torch.finfo(out_dtype).eps))
    targets = torch.arange(shape[0], device=DEVICE) % shape[1]
    targets[0] = -100
    loss = mean_cross_entropy(logits, targets, weights, reduction="none", impl="native")
    assert_near(loss, torch.nn.functional.cross_entropy(truth, targets, reduction="none"))
    # As they are rounded before they are compared.
    rounded = logit_mean(logits, weights, dtype=torch.float32, impl="native")
    values = rounded.sort(dim=-1, descending=True).values
    best = mean_argmax(logits, weights, impl="native")
    assert torch.equal(rounded.gather(1, best[:, None]), values[:, :1])
    for count in (1, 2, 40, 64):
        found, columns = mean_top_k(logits, min(count, shape[1]), weights, impl="native")
        assert_near(found, values[:, :count], 1e-6)
        assert torch.equal(rounded.gather(1, columns), found)
        assert (columns.sort(1).values.diff() > 0).all()
    mixture = (weights[:, None, None] * torch.stack(logits).double().softmax(-1)).sum(0).log()
    assert_near(probability_mean(logits, weights, impl="native"), mixture)
    inside = targets.clamp(min=0)
    gathered = probability_mean_gather(logits, inside, weights, impl="native")
    assert_near(gathered, mixture.gather(1, inside[:, None])[:, 0])


@pytest.mark.parametrize("by_row", [False, True])
@pytest.mark.parametrize(("k", "shape", "dtype"), WITH_FIRST)
def test_gradients(k: int, shape: tuple[int, int], dtype: torch.dtype, by_row: bool) -> None:
    targets = torch.arange(shape[0], device=DEVICE) % shape[1]
    targets[1:2] = -100
    of_rows = random(shape[0], seed=3)

    def gradients(impl: str, wide: bool, mixed: bool) -> list[Tensor]:
        leaf = [x.double() if wide else x.clone() for x in experts(k, shape, dtype)]
        weights = random(*(shape[:1] if by_row else ()), k)
        temperatures = 0.5 + random(k, seed=5)
        wanted = [x.to(leaf[0].dtype if wide else x.dtype) for x in (weights, temperatures)]
        for x in (*leaf, *wanted):
            x.requires_grad_()
        if mixed:
            inside = targets.clamp(min=0)
            result = probability_mean_gather(
                leaf, inside, wanted[0], temperatures=wanted[1], impl=impl
            )
        else:
            options = {"temperatures": wanted[1], "reduction": "none", "impl": impl}
            result = mean_cross_entropy(leaf, targets, wanted[0], **options)
        result.backward(of_rows.to(result.dtype))
        return [x.grad for x in (*leaf, *wanted) if x.grad is not None]

    for mixed in (False, True):
        expected = gradients("eager", True, mixed)
        found = gradients("native", False, mixed)
        assert len(found) == k + 2
        *of_logits, of_weights, of_temperatures = zip(found, expected, strict=True)
        # One rounding each, which for the smallest numbers of half precision is an absolute one.
        number = torch.finfo(dtype)
        smallest = number.smallest_normal * number.eps * (shape[0] * shape[1]) ** 0.5
        for a, b in of_logits:
            assert (a.double() - b).norm() <= max(1e-5, number.eps) * b.norm() + smallest
        for a, b in (of_weights, of_temperatures):
            assert_near(a, b, 1e-4)
        again = gradients("native", False, mixed)
        assert all(map(torch.equal, found, again))


def test_frozen_tensors_get_no_gradient() -> None:
    logits = experts(3, (4, 300), torch.float32)
    logits[1].requires_grad_()
    targets = torch.arange(4, device=DEVICE)
    mean_cross_entropy(logits, targets, impl="native").backward()
    truth = logits[1].detach().double().requires_grad_()
    wide = [logits[0].double(), truth, logits[2].double()]
    mean_cross_entropy(wide, targets, impl="eager").backward()
    assert_near(logits[1].grad, truth.grad)


@pytest.mark.parametrize("dtype", DTYPES)
def test_unaligned_rows_and_excluded_experts(dtype: torch.dtype) -> None:
    stored = [x[:, 1:1000] for x in experts(3, (5, 1003), dtype)]
    stored[1][2] = float("nan")
    weights = random(5, 3)
    weights[2, 1] = 0
    truth = exact(stored, weights)
    targets = torch.arange(5, device=DEVICE)
    assert_near(logit_mean(stored, weights, dtype=torch.float32, impl="native"), truth)
    expected = truth.log_softmax(-1).gather(1, targets[:, None])[:, 0]
    assert_near(mean_log_softmax_gather(stored, targets, weights, impl="native"), expected)
    # Everywhere, for all rows.
    stored[1][:] = float("inf")
    others = logit_mean([stored[0].double(), stored[2].double()], [0.5, 0.25], impl="eager")
    without = [stored[0].double().softmax(-1), stored[2].double().softmax(-1)]
    mixture = (0.5 * without[0] + 0.25 * without[1]).log()
    for shared in ([0.5, 0.0, 0.25], torch.tensor([0.5, 0.0, 0.25], device=DEVICE)):
        assert_near(logit_mean(stored, shared, dtype=torch.float32, impl="native"), others)
        result = mean_log_softmax_gather(stored, targets, shared, impl="native")
        assert_near(result, others.log_softmax(-1).gather(-1, targets[:, None])[:, 0])
        best = mean_argmax(stored, shared, impl="native")
        assert_near(others.gather(1, best[:, None])[:, 0], others.max(1).values)
        assert_near(mean_top_k(stored, 5, shared, impl="native")[0], others.topk(5).values)
        assert_near(probability_mean(stored, shared, impl="native"), mixture)
        assert (mean_sample(stored, shared, top_p=0.5, impl="native") >= 0).all()
    leaf = [x.detach().clone().requires_grad_() for x in stored]
    factors = torch.tensor([0.5, 0.0, 0.25], device=DEVICE, requires_grad=True)
    mean_cross_entropy(leaf, targets, factors, impl="native").backward()
    assert (leaf[1].grad == 0).all()
    assert factors.grad[1] == 0
    assert factors.grad.isfinite().all()


def spaced(name: str, dtype: torch.dtype) -> list[Tensor]:
    """Three experts of three rows by two and 530 columns, with different strides."""
    a, b, c = experts(3, (4, 3, 530), dtype)
    if name == "without the last":
        return [x[:3, :2] for x in (a, b, c)]
    if name == "each in its own way":
        return [a[:3, :2].contiguous(), b[1:, 1:], c.transpose(0, 1)[:, :2]]
    return [x[:1, :2].expand(3, 2, 530) for x in (a, b, c)]


@pytest.mark.parametrize("name", ["without the last", "each in its own way", "expanded"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_with_two_different_strides(name: str, dtype: torch.dtype) -> None:
    logits = spaced(name, dtype)
    truth = exact(logits)
    assert_near(logit_mean(logits, dtype=torch.float32, impl="native"), truth)
    stored = torch.full((3, 3, 600), float("nan"), device=DEVICE)
    out = stored[:, :2, :530]
    logit_mean(logits, out=out, impl="native")
    assert_near(out, truth)
    assert stored[:, 2].isnan().all()
    assert stored[..., 530:].isnan().all()
    targets = torch.arange(6, device=DEVICE).view(3, 2)
    leaf = [x.detach().requires_grad_() for x in logits]
    loss = mean_cross_entropy(leaf, targets, impl="native")
    assert_near(loss, torch.nn.functional.cross_entropy(truth.view(6, -1), targets.flatten()))
    loss.backward()
    wide = [x.detach().double().requires_grad_() for x in logits]
    mean_cross_entropy(wide, targets, impl="eager").backward()
    for x, y in zip(leaf, wide, strict=True):
        assert_near(x.grad, y.grad, max(1e-6, torch.finfo(dtype).eps / 8))
    assert_near(mean_top_k(logits, 3, impl="native")[0], truth.topk(3).values)


def test_three_different_strides_are_rejected_with_the_reason() -> None:
    x = torch.zeros(4, 4, 4, 8, device=DEVICE)[:3, :3, :3]
    with pytest.raises(Exception, match="more than two different strides"):
        mean_argmax([x], impl="native")


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_mean_may_be_written_over_an_expert(dtype: torch.dtype) -> None:
    logits = experts(4, (6, 1003), dtype)
    truth = exact(logits)
    result = logit_mean(logits, out=logits[2], impl="native")
    assert result is logits[2]
    assert_near(result, truth, max(1e-5, torch.finfo(dtype).eps))
    with pytest.raises(RuntimeError, match="overlaps expert 0"):
        logit_mean([logits[0][1:]], out=logits[0][:-1], impl="native")


@pytest.mark.parametrize("columns", [300, 9000])
def test_special_values(columns: int) -> None:
    logits = torch.zeros(6, columns, device=DEVICE)
    logits[0, columns // 2], logits[1, 3] = float("nan"), float("inf")
    logits[2] = -float("inf")
    logits[3, 1:] = -float("inf")
    logits[4, 7] = -0.0
    targets = torch.zeros(6, dtype=torch.int64, device=DEVICE)
    for gather in (mean_log_softmax_gather, probability_mean_gather):
        expected = gather([logits], targets, impl="eager")
        assert_near(gather([logits], targets, impl="native"), expected)
    assert_near(probability_mean([logits], impl="native"), probability_mean([logits], impl="eager"))
    assert mean_argmax([logits], impl="native").tolist() == [columns // 2, 3, 0, 0, 0, 0]
    values, ids = mean_top_k([logits], 3, impl="native")
    assert values[0, 0].isnan()
    assert ids.tolist() == [
        [columns // 2, 0, 1], [3, 0, 1], [0, 1, 2], [0, 1, 2], [0, 1, 2], [0, 1, 2]
    ]  # fmt: skip
    for options in ({}, {"top_k": 5}, {"top_p": 0.5}, {"top_k": 5, "top_p": 0.5}):
        tokens = mean_sample([logits], impl="native", **options)
        assert tokens[:4].tolist() == [-1, -1, -1, 0]
        assert (tokens[4:] >= 0).all()


def boundaries_of(logits: list[Tensor], options: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Shares of the tokens in the order in which they are drawn, in fp64, and the tokens."""
    mean = exact(logits) / options.get("temperature", 1)
    order = torch.arange(mean.shape[1], device=DEVICE).expand(mean.shape)
    if "top_k" not in options and "top_p" not in options:
        return mean.softmax(-1), order
    rounded = logit_mean(logits, dtype=torch.float32, impl="native")
    rounded = rounded / options.get("temperature", 1)
    order = rounded.sort(dim=-1, descending=True, stable=True).indices
    shares = mean.gather(1, order)[:, : options.get("top_k")].softmax(-1)
    before = shares.cumsum(-1) - shares
    shares = shares.masked_fill(before >= options.get("top_p", 2), 0)
    return shares / shares.sum(-1, keepdim=True), order[:, : shares.shape[1]]


DRAWS: list[dict[str, Any]] = [
    {}, {"temperature": 0.3}, {"top_k": 7}, {"top_k": 64, "top_p": 0.8}, {"top_p": 0.3},
    {"top_p": 0.9}, {"top_p": 0.999}, {"top_p": 0.9, "temperature": 3.0},
]  # fmt: skip


@pytest.mark.parametrize("options", DRAWS, ids=str)
@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_draws_are_the_same_on_every_device(
    k: int, dtype: torch.dtype, options: dict[str, Any]
) -> None:
    """The same token, unless the number is within 1e-5 of a boundary; bf16 has many ties."""
    for shape in ((12, 300), (3, 9001)) if EMULATED else ((2000, 300), (500, 9001), (1, 65_536)):
        logits = experts(k, shape, dtype)
        tokens = mean_sample(logits, seed=11, step=5, impl="native", **options)
        shares, order = boundaries_of(logits, options)
        on_cpu = [x.cpu() for x in logits]
        numbers = uniforms(on_cpu[0], 11, 5).to(DEVICE)
        place = (order == tokens[:, None]).int().argmax(1)[:, None]
        end = shares.cumsum(-1).gather(1, place)[:, 0]
        begin = end - shares.gather(1, place)[:, 0]
        assert (begin - 1e-5 <= numbers).all()
        assert (numbers <= end + 1e-5).all()
        assert (shares.gather(1, place) > 0).all()


def uniforms(logits: Tensor, seed: int, step: int) -> Tensor:
    from fastgrow.ops.experts.philox import eager_uniforms

    return eager_uniforms(logits, seed, step)


def test_uniform_numbers_are_the_same_on_every_device() -> None:
    from fastgrow.ops.experts.philox import row_uniforms

    logits = torch.empty(1000, 2, device=DEVICE)
    for seed, step in ((0, 0), (-5, 2**40), (2**63 - 1, 17)):
        found = row_uniforms(logits, seed, step)
        assert torch.equal(found.cpu(), uniforms(logits.cpu(), seed, step))


def test_an_overfull_candidate_buffer_keeps_the_largest() -> None:
    """Increasing logits exceed every bound; ties are broken by column."""
    rising = torch.arange(9000.0, device=DEVICE).expand(2, -1)
    ties = (rising.fmod(7) == 3).float()
    for logits in (rising, ties, -rising):
        for k in (5, 64):
            values, ids = mean_top_k([logits], k, impl="native")
            expected = logits.sort(dim=-1, descending=True, stable=True)
            assert torch.equal(values, expected.values[:, :k])
            assert torch.equal(ids, expected.indices[:, :k])


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "vocabulary", "k"), [(5, 1000, 1), (9, 3001, 3), (3, 7, 2)])
def test_linear_kl(
    rows: int, vocabulary: int, k: int, dtype: torch.dtype, reduction: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    # Two rows at a time.
    monkeypatch.setattr(heads_native, "CHUNK_ELEMENTS", 2 * vocabulary)
    generator = torch.Generator().manual_seed(1)

    def head(width: int) -> list[Tensor]:
        shapes = [(rows, width), (vocabulary, width), (vocabulary,)]
        return [torch.randn(s, generator=generator).to(dtype).to(DEVICE) for s in shapes]

    student, teachers = head(16), [head(8 + i) for i in range(k)]
    counts = torch.arange(rows, device=DEVICE) != 1

    def run(impl: str, wide: bool) -> list[Tensor]:
        as_is = (lambda x: x.double()) if wide else (lambda x: x)
        leaf = [as_is(x).detach().clone().requires_grad_() for x in student]
        loss = linear_kl(
            leaf[0], leaf[1], [tuple(map(as_is, teacher)) for teacher in teachers], leaf[2],
            teacher_weights=[0.5 + i for i in range(k)], counts=counts, temperature=2.0,
            reduction=reduction, impl=impl,
        )  # fmt: skip
        loss.backward()
        return [loss.detach(), *[x.grad for x in leaf]]

    eps = torch.finfo(dtype).eps
    truth, eager = run("eager", True), run("eager", False)
    for found, theirs, expected in zip(run("native", False), eager, truth, strict=True):
        error, of_eager = ((x.double() - expected).norm() for x in (found, theirs))
        assert error <= 2 * of_eager + 2 * eps * expected.norm()


def test_a_teacher_with_zero_probabilities_and_a_distant_one() -> None:
    h = torch.ones(2, 1, device=DEVICE)
    student = torch.tensor([[1000.0], [1001.0], [999.0]], device=DEVICE)
    teacher = torch.tensor([[-float("inf")], [3.0], [2.0]], device=DEVICE)
    call = (h, student, [(h, teacher, None)])
    assert_near(linear_kl(*call, impl="native"), linear_kl(*call, impl="eager"), 1e-6)


def test_rows_further_apart_than_two_to_the_31() -> None:
    """Three rows 4.3 GB apart; memory that is never touched is not allocated."""
    apart = 2**30 + 8
    stored = torch.empty(2 * apart + 1000, dtype=torch.bfloat16, device=DEVICE)
    x = stored.as_strided((3, 300), (apart, 1))
    (values,) = experts(1, (3, 300), torch.bfloat16)
    x.copy_(values)
    targets = torch.arange(3, device=DEVICE)
    assert torch.equal(logit_mean([x], impl="native"), logit_mean([values], impl="native"))
    out = stored.as_strided((3, 300), (apart, 1), 512)
    assert_near(logit_mean([values], out=out, impl="native"), values)
    x.copy_(values)
    for run in (mean_argmax, mean_sample, probability_mean):
        assert torch.equal(run([x], impl="native"), run([values], impl="native"))
    losses_of = [
        mean_cross_entropy([y], targets, reduction="none", impl="native") for y in (x, values)
    ]
    assert torch.equal(*losses_of)


@needs_device
def test_more_than_two_to_the_31_logits() -> None:
    rows, columns = 33_000, 65_552
    x = torch.empty(rows, columns, dtype=torch.bfloat16, device=DEVICE).fill_(0)
    x[-1, -1] = 5
    assert mean_argmax([x, x], impl="native")[-2:].tolist() == [0, columns - 1]
    targets = torch.full((rows,), columns - 1, device=DEVICE)
    leaf = x.requires_grad_()
    losses = mean_cross_entropy([leaf], targets, reduction="none", impl="native")
    expected = torch.nn.functional.cross_entropy(x[-1:].double(), targets[-1:])
    assert_near(losses[-1], expected)
    losses.sum().backward()
    row = leaf.grad[-1].float()
    assert_near(row[-1], x[-1].double().softmax(-1)[-1] - 1, 5e-3)
    assert mean_top_k([x.detach()], 2, impl="native")[1][-1, 0] == columns - 1


def everything(logits: list[Tensor], targets: Tensor, impl: str = "native") -> list[Tensor]:
    """Results of every operation."""
    forced = {"impl": impl}
    leaf = [x.detach().requires_grad_() for x in logits]
    weights = torch.ones(len(leaf), device=DEVICE, requires_grad=True)
    loss = mean_cross_entropy(leaf, targets, weights, **forced)
    gradients = torch.autograd.grad(loss, [*leaf, weights])
    numbers = leaf[0].detach().flatten()
    h, weight, teacher = numbers[:64], numbers[64:1088], numbers[1088:2112]
    h, weight, teacher = h.view(4, 16), weight.view(64, 16), teacher.view(64, 16)
    with torch.no_grad():
        return [
            *gradients,
            loss.detach(),
            logit_mean(logits, **forced),
            mean_log_softmax_gather(logits, targets, **forced),
            mean_argmax(logits, **forced),
            *mean_top_k(logits, 40, **forced),
            mean_sample(logits, seed=3, **forced),
            mean_sample(logits, seed=3, top_k=20, **forced),
            mean_sample(logits, seed=3, top_p=0.99, **forced),
            probability_mean(logits, **forced),
            probability_mean_gather(logits, targets, **forced),
            linear_kl(h, weight, [(h, teacher, None)], **forced),
        ]  # fmt: skip


@pytest.mark.gpu_smoke
def test_everything_agrees_with_eager() -> None:
    logits = experts(3, (4, 1001), torch.float32)
    targets = torch.arange(4, device=DEVICE)
    native, eager = everything(logits, targets), everything(logits, targets, "eager")
    for a, b in zip(native, eager, strict=True):
        assert_near(a, b)


@pytest.mark.parametrize("shape", [(20, 300), (5, 5003)])
def test_a_grid_of_one_row_loops_over_all_rows(
    shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    logits, targets = experts(3, shape, torch.bfloat16), torch.arange(shape[0], device=DEVICE)
    expected = everything(logits, targets)
    plan = extension.launch_plan
    monkeypatch.setattr(extension, "launch_plan", lambda *args: plan(*args)._replace(at_a_time=1))
    assert all(map(torch.equal, everything(logits, targets), expected))


def test_a_uniform_number_of_zero_draws_no_token_of_probability_zero() -> None:
    """A part with so little mass that the probabilities of its columns are 0 in float32."""
    z = torch.full((1, 20_000), -float("inf"), device=DEVICE)
    z[0, 4000], z[0, 10_000] = -150, 0
    zero = torch.zeros(1, dtype=torch.float64, device=DEVICE)
    token = choices.native_sample([z], torch.ones(1, device=DEVICE), zero, None, None)
    assert z[0, token].isfinite()


def test_a_student_with_probability_zero_for_an_unlikely_token_of_the_teacher() -> None:
    h, none = torch.ones(1, 1, device=DEVICE), torch.zeros(2000, 1, device=DEVICE)
    of_teacher = torch.full((2000,), -200.0, device=DEVICE)
    of_student = torch.zeros(2000, device=DEVICE)
    of_teacher[-1], of_student[3] = 0, -float("inf")
    call = (h, none, [(h, none, of_teacher)], of_student)
    assert_near(linear_kl(*call, impl="native"), linear_kl(*call, impl="chunked"))


def test_at_an_infinite_temperature_logits_may_be_anything() -> None:
    a, b = experts(2, (2, 700), torch.float32)
    b[:, 3:] = -float("inf")
    options = {"temperatures": [1.0, float("inf")]}
    result = probability_mean([a, b], impl="native", **options)
    assert_near(result, (a.double().softmax(-1) / 2 + 0.5 / 700).log())


@needs_device
def test_a_cuda_graph_captures_all_and_replays_on_new_logits() -> None:
    logits = experts(4, (128, 5003), torch.bfloat16)
    targets = torch.arange(128, device=DEVICE)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        everything(logits, targets)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = everything(logits, targets)
    for x in logits:
        x.copy_(x.flip(1))
    graph.replay()
    torch.cuda.synchronize()
    assert all(map(torch.equal, captured, everything(logits, targets)))


@needs_device
def test_nothing_synchronises_with_the_device() -> None:
    logits = experts(4, (128, 5003), torch.bfloat16)
    targets = torch.arange(128, device=DEVICE)
    everything(logits, targets)
    torch.cuda.set_sync_debug_mode("error")
    try:
        everything(logits, targets)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@needs_device
def test_kernels_run_on_the_current_stream() -> None:
    """Logits that the stream is still writing are read afterwards."""
    expected = experts(4, (128, 5003), torch.bfloat16)
    targets = torch.arange(128, device=DEVICE)
    truth = everything(expected, targets)
    logits = [torch.zeros_like(x) for x in expected]
    torch.cuda.synchronize()
    streams = [torch.cuda.Stream() for _ in range(2)]
    results = []
    for stream in streams:
        with torch.cuda.stream(stream):
            torch.cuda._sleep(50_000_000)
            own = [x.copy_(y) for x, y in zip(map(torch.clone, logits), expected, strict=True)]
            results.append(everything(own, targets))
    torch.cuda.synchronize()
    for result in results:
        assert all(map(torch.equal, result, truth))


@needs_device
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there is one GPU")
def test_a_device_that_is_not_the_current_one() -> None:
    here = experts(4, (128, 5003), torch.bfloat16)
    there = [x.to("cuda:1") for x in here]
    assert torch.equal(
        mean_argmax(there, impl="native").cpu(), mean_argmax(here, impl="native").cpu()
    )


def test_operators_are_registered_correctly() -> None:
    """Schemas, fakes and the dispatch of the operators, as torch checks them."""
    logits, scale = experts(2, (3, 300), torch.bfloat16), random(2)
    targets, numbers = torch.arange(3, device=DEVICE), random(3).double()
    gather = (logits, scale, targets, -100)
    _, log_sums = losses.mean_log_probability(*gather)
    h, weight = random(5, 8), random(40, 8)
    kl = ([h], [weight], None, [h], [weight], [None], [1.0], torch.ones(5, device=DEVICE) > 0)
    opcheck(mean.native_logit_mean, (logits, scale, torch.float32))
    opcheck(losses.mean_log_probability, gather)
    opcheck(
        losses.mean_log_probability_backward, (*gather, log_sums, random(3), True, [True, False])
    )
    opcheck(choices.native_top_k, (logits, scale, 5))
    for cuts in ((None, None), (7, None), (None, 0.9)):
        opcheck(choices.native_sample, (logits, scale, numbers, *cuts))
    opcheck(mixture.native_probability_mean, (logits, scale, scale, None))
    opcheck(heads_native.native_linear_kl, (*kl, 2.0, "sum", [True, True, False]))


def test_automatic_choice_does_not_use_native_until_it_is_measured() -> None:
    logits = experts(2, (2, 300), torch.float32)
    call = mean.LogitMeanCall(mean.mean_call("logit_mean", logits, None, None), torch.float32, None)
    explanation = mean._OPERATION.explain(call)
    assert explanation.active == "eager"
    assert "not been measured" in explanation.reason


@pytest.mark.skipif(not EMULATED, reason="a device's threads take no orders")
@pytest.mark.parametrize("shape", [(8, 300), (1, 9000)])
def test_results_do_not_depend_on_the_order_of_threads(
    shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    logits = experts(3, shape, torch.bfloat16)
    targets = torch.arange(shape[0])
    forward = everything(logits, targets)
    for order in ORDERS:
        monkeypatch.setenv("FASTGROW_EMULATOR_ORDER", order)
        assert all(map(torch.equal, everything(logits, targets), forward))


# Plans that `launch_plan` makes of shapes too large for the emulator, for shapes that are not.
@pytest.fixture
def planned(monkeypatch: pytest.MonkeyPatch) -> Callable[[Plan], None]:
    def use(plan: Plan) -> None:
        monkeypatch.setattr(extension, "launch_plan", lambda *_: plan)

    return use


def test_a_last_part_of_fewer_than_k_columns(planned: Callable[[Plan], None]) -> None:
    logits = experts(2, (2, 2051), torch.float32)
    logits = [x.index_fill(1, torch.tensor([2049], device=DEVICE), 20.0) for x in logits]
    expected = exact(logits).topk(40)
    planned(Plan(256, 1, 2, 2048, 2))
    values, columns = mean_top_k(logits, 40, impl="native")
    assert_near(values, expected.values)
    assert torch.equal(columns, expected.indices)
    assert mean_sample(logits, top_k=40, top_p=1e-6, impl="native").tolist() == [2049, 2049]


def test_blocks_that_loop_over_further_rows(planned: Callable[[Plan], None]) -> None:
    """Three rows, in a grid of two rows."""
    logits = experts(2, (3, 40), torch.bfloat16)
    weights, targets = random(3, 2), torch.arange(3, device=DEVICE)
    truth = exact(logits, weights)
    planned(Plan(32, 1, 5, 8, 2))
    assert_near(logit_mean(logits, weights, dtype=torch.float32, impl="native"), truth)
    leaf = [x.clone().requires_grad_() for x in logits]
    factors = weights.clone().requires_grad_()
    loss = mean_cross_entropy(leaf, targets, factors, impl="native")
    assert_near(loss, torch.nn.functional.cross_entropy(truth, targets))
    found = torch.autograd.grad(loss, [*leaf, factors])
    wide = [x.double().requires_grad_() for x in (*logits, weights)]
    loss = mean_cross_entropy(wide[:2], targets, wide[2], impl="eager")
    for x, y in zip(found, torch.autograd.grad(loss, wide), strict=True):
        assert_near(x, y, 1e-3)


def test_weights_by_row_of_probabilities() -> None:
    logits = experts(3, (4, 700), torch.float32)
    weights = random(4, 3, seed=9) - 0.1
    weights[1, 2], weights[2] = 0.0, torch.tensor([3.0, -0.01, 0.5])
    weights[3, 1] = float("nan")
    for k in (3, 20):
        some = (logits * 7)[:k]
        shares = torch.cat([weights, random(4, 18)], dim=1)[:, :k]
        wide = [x.double() for x in some]
        truth = probability_mean(wide, shares.double(), impl="eager")
        assert_near(probability_mean(some, shares, impl="native"), truth)
        # Excluded by its own log-weight, at any temperature.
        logs = shares.abs().log()
        logs[3, 1] = -float("inf")
        temperatures = random(4, k, seed=4) + 0.5
        truth = probability_mean(
            wide, log_weights=logs.double(), temperatures=temperatures.double(), impl="eager"
        )
        options = {"log_weights": logs, "temperatures": temperatures}
        assert_near(probability_mean(some, impl="native", **options), truth)


def test_tokens_of_probability_zero_under_all_experts() -> None:
    x = torch.full((2, 300), -float("inf"), device=DEVICE)
    x[:, 5] = 1
    expected = torch.full((2, 300), -float("inf"), device=DEVICE)
    expected[:, 5] = 0
    assert torch.equal(probability_mean([x, x], impl="native"), expected)


def test_targets_that_are_ignored_or_out_of_range() -> None:
    logits = experts(2, (3, 40), torch.float32)
    targets = torch.tensor([7, 3, 7], device=DEVICE)
    losses = mean_cross_entropy(logits, targets, ignore_index=7, reduction="none", impl="native")
    assert losses[0] == 0
    assert losses[1] > 0
    # Nothing outside of the logits is read.
    last = torch.full_like(targets, 39)
    far = mean_log_softmax_gather(logits, last + 100_000, impl="native")
    assert torch.equal(far, mean_log_softmax_gather(logits, last, impl="native"))


def test_small_losses_of_large_logits() -> None:
    x = torch.full((1, 300), 1e6, device=DEVICE)
    x[0, 3] += 4
    loss = mean_cross_entropy([x], torch.tensor([3], device=DEVICE), impl="native")
    expected = torch.nn.functional.cross_entropy(x.double(), torch.tensor([3], device=DEVICE))
    assert_near(loss, expected)


def test_an_output_spaced_like_no_expert_or_of_another_dtype_may_not_overlap() -> None:
    memory = torch.zeros(4096, dtype=torch.bfloat16, device=DEVICE)
    x = memory[:2048].view(4, 512)
    with pytest.raises(RuntimeError, match="overlaps expert 0"):
        logit_mean([x], out=memory.view(8, 512)[::2], impl="native")
    with pytest.raises(RuntimeError, match="overlaps expert 0"):
        logit_mean([x], out=memory.view(torch.float32).view(4, 512), impl="native")


def test_draws_at_both_ends_and_between_tokens_of_probability_zero() -> None:
    x = torch.full((4, 9001), -float("inf"), device=DEVICE)
    x[:, 3000], x[:, 3001], x[:, 7000] = 1.0, 1.0, 1.0
    numbers = torch.tensor([0.0, 0.301, 0.501, 1 - 2.0**-24], dtype=torch.float64, device=DEVICE)
    scale = torch.ones(1, device=DEVICE)
    for top_k, top_p in ((None, None), (3, None), (None, 0.999), (5, 0.999)):
        tokens = choices.native_sample([x], scale, numbers, top_k, top_p)
        assert tokens.tolist() == [3000, 3000, 3001, 7000]
    # Of equally likely tokens the nucleus has the first.
    equal = torch.zeros(4, 1000, device=DEVICE)
    assert choices.native_sample([equal], scale, numbers, None, 0.5).tolist() == [0, 150, 250, 499]
    half = torch.full((4,), 0.5, dtype=torch.float64, device=DEVICE)
    assert choices.native_sample([equal], scale, half, 2, None).tolist() == [1] * 4
    assert choices.native_sample([equal], scale, half, None, None).tolist() == [500] * 4


def test_infinite_temperatures_keep_an_expert_in_the_mixture() -> None:
    logits = experts(2, (2, 300), torch.float32)
    given = torch.tensor([1.0, float("inf")], device=DEVICE)
    truth = 0.5 * logits[0].double().softmax(-1) + 0.5 / 300
    assert_near(probability_mean(logits, temperatures=given, impl="native"), truth.log())


@pytest.mark.parametrize("dtype", DTYPES)
def test_many_experts_of_which_the_last_are_aligned_differently(dtype: torch.dtype) -> None:
    logits = experts(40, (2, 304), dtype)
    logits = [x[:, :-1] if k < 32 else x[:, 1:] for k, x in enumerate(logits)]
    found = mean_top_k(logits, 3, impl="native")[0]
    assert_near(found, exact(logits).topk(3).values)


@pytest.mark.skipif(not EMULATED, reason="a device's threads take no orders")
@pytest.mark.parametrize("order", ["forward", *ORDERS])
def test_columns_without_candidates_before_some_with_many(
    order: str, planned: Callable[[Plan], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    logits = torch.zeros(1, 9000)
    logits[0, 7000:] = torch.arange(2000.0)
    planned(Plan(256, 1, 1, 9000, 2))
    monkeypatch.setenv("FASTGROW_EMULATOR_ORDER", order)
    assert mean_top_k([logits], 3, impl="native")[1].tolist() == [[8999, 8998, 8997]]


@pytest.mark.skipif(not EMULATED, reason="a device's threads take no orders")
def test_a_warp_that_is_ahead_does_not_overwrite_the_row_of_others(
    planned: Callable[[Plan], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    logits = experts(2, (3, 1024), torch.bfloat16)
    planned(Plan(64, 1, 2, 512, 2))
    forward = logit_mean(logits, impl="native")
    monkeypatch.setenv("FASTGROW_EMULATOR_ORDER", "warps")
    assert torch.equal(logit_mean(logits, impl="native"), forward)


def test_draws_at_the_end_of_rows_whose_last_tokens_have_probability_zero() -> None:
    """By rounding, a part's mass may be larger than the sum over its columns."""
    logits = experts(1, (60, 300), torch.float32)[0] / 8
    logits[:, -100:] = -float("inf")
    numbers = torch.full((60,), 1 - 2.0**-24, dtype=torch.float64, device=DEVICE)
    tokens = choices.native_sample([logits], torch.ones(1, device=DEVICE), numbers, None, None)
    assert (tokens > 190).all()
    assert (tokens < 200).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("columns", [1, 2, 5])
def test_rows_that_end_before_they_are_aligned(columns: int, dtype: torch.dtype) -> None:
    logits = [x[:, 1 : 1 + columns] for x in experts(3, (9, 32), dtype)]
    truth, targets = exact(logits), torch.zeros(9, dtype=torch.int64, device=DEVICE)
    stored = torch.full((9, 32), 7.0, dtype=dtype, device=DEVICE)
    logit_mean(logits, out=stored[:, 1 : 1 + columns], impl="native")
    assert_near(stored[:, 1 : 1 + columns], truth, max(1e-5, torch.finfo(dtype).eps))
    assert (stored[:, 1 + columns :] == 7).all()
    expected = truth.log_softmax(-1)[:, 0]
    assert_near(mean_log_softmax_gather(logits, targets, impl="native"), expected)
