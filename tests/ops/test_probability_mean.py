"""Mixtures of the experts' distributions compared with fp64."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from expert_logits import DTYPES, IMPLEMENTATIONS, Experts, experts, make, needs_native
from hypothesis import given, settings
from torch import Tensor
from torch.library import opcheck

from fastgrow.errors import ArgumentError
from fastgrow.ops import (
    probability_mean,
    probability_mean_cross_entropy,
    probability_mean_gather,
)


def mixture(e: Experts) -> Tensor:
    """log Σ_k w_k · softmax(z_k / T_k) in fp64, without excluded experts."""
    total = torch.zeros(e.logits[0].shape, dtype=torch.float64)
    for k, x in enumerate(e.exact):
        weight = e.weights[..., k, None].double()
        p = (x / e.temperatures[k]).softmax(-1)
        total += torch.where(weight == 0, 0, weight * p)
    return total.log()


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@settings(max_examples=100)
@given(given_experts=experts(negative=False))
def test_agrees_with_fp64(impl: str, given_experts: Experts) -> None:
    e = given_experts
    exact = mixture(e)
    options = {"temperatures": e.temperatures, "impl": impl}
    result = probability_mean(e.logits, e.weights, **options)
    wide = e.logits[0].dtype == torch.float64
    assert result.dtype == (torch.float64 if wide else torch.float32)
    largest = torch.stack([x.nan_to_num(0, 0, 0).abs() for x in e.exact]).max().item()
    close = 40 * torch.finfo(result.dtype).eps * (1 + largest)
    tolerance = {"rtol": 0, "atol": close, "equal_nan": True}
    torch.testing.assert_close(result.double(), exact, **tolerance)
    gathered = probability_mean_gather(e.logits, e.targets, e.weights, **options)
    at_targets = exact.gather(-1, e.targets[..., None]).squeeze(-1)
    torch.testing.assert_close(gathered.double(), at_targets, **tolerance)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_negative_weights_agree_with_fp64(impl: str, dtype: torch.dtype) -> None:
    """The difference of two experts; where it is negative its logarithm is NaN."""
    a, b = make(2, (3, 301), dtype)
    exact = (2 * a.double().softmax(-1) - b.double().softmax(-1)).log()
    result = probability_mean([a, b], [2.0, -1.0], impl=impl)
    assert exact.isnan().any()
    assert not exact.isnan().all()
    torch.testing.assert_close(result.double(), exact, rtol=1e-4, atol=1e-4, equal_nan=True)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_nothing_underflows(impl: str) -> None:
    logits = torch.tensor([[0.0, -500.0, -math.inf]]).expand(2, 3).contiguous()
    result = probability_mean([logits, logits], [0.5, 0.25], impl=impl)
    expected = logits + math.log(0.75)
    torch.testing.assert_close(result, expected)
    gathered = probability_mean_gather([logits, logits], torch.tensor([1, 2]), impl=impl)
    torch.testing.assert_close(gathered, torch.tensor([-500.0, -math.inf]))


def test_is_the_arithmetic_mean_of_probabilities() -> None:
    logits = make(3, (2, 5, 33), torch.float32)
    mean = sum(x.softmax(-1) for x in logits) / 3  # type: ignore[operator]
    torch.testing.assert_close(probability_mean(logits).exp(), mean)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_log_weights_may_differ_greatly(impl: str, dtype: torch.dtype) -> None:
    """e⁻²⁰⁰ underflows in float32, but matters where the other expert's probability is zero."""
    logits = make(3, (2, 3, 65), dtype)
    logits[0][..., 5] = -math.inf
    for log_weights in (
        torch.tensor([0.0, -200.0, -math.inf]).double(),
        torch.tensor([0.0, -200.0, -math.inf]).double().expand(2, 3, 3).clone(),
    ):
        terms = [
            z.double().log_softmax(-1) + log_weights[..., k, None] for k, z in enumerate(logits)
        ]
        exact = torch.stack(terms).logsumexp(0)
        result = probability_mean(logits, log_weights=log_weights, impl=impl)
        assert (exact[..., 5] < -200).all()
        torch.testing.assert_close(result.double(), exact, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_a_log_weight_of_minus_infinity_excludes_the_expert(impl: str) -> None:
    logits = make(3, (2, 7), torch.float64)
    logits[0][0], logits[1][0] = math.nan, math.nan
    log_weights = torch.tensor([[-math.inf, -math.inf, 0.0], [-1.0, -math.inf, -0.5]])
    result = probability_mean(logits, log_weights=log_weights, impl=impl)
    second = torch.logaddexp(logits[0][1].log_softmax(-1) - 1, logits[2][1].log_softmax(-1) - 0.5)
    torch.testing.assert_close(result[0], logits[2][0].log_softmax(-1))
    torch.testing.assert_close(result[1], second)
    for_all_rows = torch.tensor([-math.inf, -math.inf, 0.0])
    result = probability_mean(logits, log_weights=for_all_rows, impl=impl)
    torch.testing.assert_close(result, logits[2].log_softmax(-1))


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_a_nan_weight_is_not_treated_as_zero(impl: str) -> None:
    logits = make(2, (2, 35), torch.float32)
    log_weights = torch.tensor([[math.nan, -0.5], [-0.7, -0.7]])
    result = probability_mean(logits, log_weights=log_weights, impl=impl)
    assert result[0].isnan().all()
    torch.testing.assert_close(result[1], probability_mean(logits, log_weights=log_weights[1])[1])


def test_log_weights_get_gradients() -> None:
    logits = [x.requires_grad_() for x in make(3, (2, 7), torch.float64)]
    for log_weights in (
        torch.tensor([-1.0, -0.1, 0.3], dtype=torch.float64),
        torch.tensor([[-1.0, 0.2, -0.3], [-0.5, -2.0, 0.0]], dtype=torch.float64),
    ):
        assert torch.autograd.gradcheck(
            lambda w, *z: probability_mean(z, log_weights=w),
            (log_weights.requires_grad_(), *logits),
        )
    # The first two experts are both excluded, which must not give NaN.
    some = torch.tensor([-math.inf, -math.inf, 0.0], dtype=torch.float64)
    probability_mean(logits, log_weights=some)[:, 3].sum().backward()
    assert all(x.grad is not None and x.grad.isfinite().all() for x in logits)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_reductions_and_ignored_targets_are_torchs(impl: str, reduction: str) -> None:
    logits = make(3, (2, 5, 33), torch.float32)
    targets = torch.randint(33, (2, 5))
    targets[0, 1:3] = -7
    log_p = (sum(x.softmax(-1) for x in logits) / 3).log()  # type: ignore[operator]
    expected = F.nll_loss(
        log_p.view(-1, 33), targets.flatten(), ignore_index=-7, reduction=reduction
    )
    loss = probability_mean_cross_entropy(
        logits, targets, ignore_index=-7, reduction=reduction, impl=impl
    )
    torch.testing.assert_close(loss.flatten(), expected.flatten())
    assert loss.shape == (targets.shape if reduction == "none" else ())


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_gradients_by_finite_differences(impl: str) -> None:
    logits = [x.requires_grad_() for x in make(3, (4, 7), torch.float64)]
    for shape in ((3,), (4, 3)):
        weights = (0.1 + torch.rand(shape, dtype=torch.float64)).requires_grad_()
        temperatures = (1 + torch.rand(3, dtype=torch.float64)).requires_grad_()

        def loss(weights: Tensor, temperatures: Tensor, *logits: Tensor) -> Tensor:
            targets = torch.tensor([0, 6, -100, 3])
            return probability_mean_cross_entropy(
                logits, targets, weights, temperatures=temperatures, impl=impl
            )

        assert torch.autograd.gradcheck(loss, (weights, temperatures, *logits))


def test_a_mean_that_requires_a_gradient_gets_one() -> None:
    logits = [x.requires_grad_() for x in make(2, (3, 7), torch.float64)]
    weights = torch.rand(2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda w, *z: probability_mean(z, w), (weights, *logits))


@needs_native
def test_excluded_expert_has_no_effect_native() -> None:
    logits = make(2, (3, 70), torch.float32)
    logits[1][0] = math.nan
    leaves = [x.requires_grad_() for x in logits]
    weights = torch.tensor([[0.5, 0.0], [0.5, 0.5], [0.0, 1.0]], requires_grad=True)
    targets = torch.tensor([3, 4, 5])
    loss = probability_mean_cross_entropy(leaves, targets, weights, impl="native")
    gradients = torch.autograd.grad(loss, [*leaves, weights])
    assert all(d.isfinite().all() for d in gradients)
    assert (gradients[1][0] == 0).all()
    assert (gradients[0][2] == 0).all()


@needs_native
def test_result_does_not_depend_on_the_number_of_threads() -> None:
    logits = make(3, (3, 50_001), torch.bfloat16)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(probability_mean(logits, impl="native"))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


@needs_native
def test_registration_passes_opcheck() -> None:
    logits = make(2, (3, 33), torch.float32)
    for shape in ((2,), (3, 2)):
        weight = torch.full(shape, 0.5)
        for log_weight in (None, weight.log()):
            arguments = (logits, torch.ones(shape), weight, log_weight)
            opcheck(torch.ops.fastgrow.native_probability_mean.default, arguments)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_compiles_without_graph_breaks_or_recompiling_for_a_second_length(impl: str) -> None:
    graphs = 0

    def counting(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> torch.fx.GraphModule:
        nonlocal graphs
        graphs += 1
        return graph

    def both(logits: list[Tensor], targets: Tensor) -> tuple[Tensor, Tensor]:
        mean = probability_mean([x.detach() for x in logits], impl=impl)
        return mean, probability_mean_cross_entropy(logits, targets, impl=impl)

    torch.compiler.reset()
    compiled = torch.compile(both, fullgraph=True, dynamic=True, backend=counting)
    for rows in (3, 5):
        logits = [x.requires_grad_() for x in make(2, (rows, 33), torch.float32)]
        mean, loss = compiled(logits, torch.arange(rows))
        expected_mean, expected = both(logits, torch.arange(rows))
        torch.testing.assert_close((mean, loss), (expected_mean, expected))
        torch.testing.assert_close(
            torch.autograd.grad(loss, logits), torch.autograd.grad(expected, logits)
        )
    assert graphs == 1


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_errors_name_what_was_expected(impl: str) -> None:
    a, targets = torch.zeros(2, 5), torch.tensor([0, 4])
    with pytest.raises(ArgumentError, match=r"probability_mean: logits\[1\] must be"):
        probability_mean([a, a.half()], impl=impl)
    with pytest.raises(ArgumentError, match="log_weights must be None if weights is given"):
        probability_mean([a, a], [0.5, 0.5], log_weights=torch.zeros(2), impl=impl)
    with pytest.raises(ArgumentError, match=r"log_weights must be 2 numbers.*got shape \[3\]"):
        probability_mean([a, a], log_weights=torch.zeros(3), impl=impl)
    with pytest.raises(ArgumentError, match=r"probability_mean_gather: targets must be of shape"):
        probability_mean_gather([a], targets[:1], impl=impl)
    with pytest.raises(ArgumentError, match="reduction must be one of"):
        probability_mean_cross_entropy([a], targets, reduction="max", impl=impl)
    with pytest.raises(ArgumentError, match=r"targets must be in \[0, 5\), got 5 at \[0\]"):
        probability_mean_gather([a], targets + 5, impl=impl)
    assert probability_mean([a[:0]], impl=impl).shape == (0, 5)
    assert probability_mean_gather([a[:0]], targets[:0], impl=impl).shape == (0,)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_at_an_infinite_temperature_logits_may_be_anything(impl: str, dtype: torch.dtype) -> None:
    a, b = make(2, (2, 701), dtype)
    b[:, 3:] = -float("inf")
    result = probability_mean([a, b], temperatures=[1.0, float("inf")], impl=impl)
    expected = (a.double().softmax(-1) / 2 + 0.5 / 701).log()
    torch.testing.assert_close(result.double(), expected, rtol=1e-5, atol=1e-5)
