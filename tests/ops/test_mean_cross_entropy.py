"""Cross-entropy and target log-probabilities of averaged logits compared with fp64."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from expert_logits import (
    DTYPES,
    IMPLEMENTATIONS,
    Experts,
    experts,
    make,
    needs_native,
)
from hypothesis import given, settings
from torch import Tensor
from torch.library import opcheck

from fastgrow.errors import ArgumentError, ConfigError
from fastgrow.ops import mean_cross_entropy, mean_log_softmax_gather


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@settings(max_examples=100)
@given(given_experts=experts())
def test_agrees_with_fp64(impl: str, given_experts: Experts) -> None:
    e = given_experts
    result = mean_log_softmax_gather(
        e.logits, e.targets, e.weights, temperatures=e.temperatures, impl=impl
    )
    exact = mean_log_softmax_gather(
        e.exact, e.targets, e.weights, temperatures=e.temperatures, impl="eager"
    )
    wide = e.logits[0].dtype == torch.float64
    assert result.dtype == (torch.float64 if wide else torch.float32)
    torch.testing.assert_close(
        result.double(), exact, rtol=e.rounding, atol=4 * e.rounding, equal_nan=True
    )


@needs_native
@settings(max_examples=60)
@given(given_experts=experts(special=False))
def test_gradients_agree_with_fp64(given_experts: Experts) -> None:
    e = given_experts
    gradients = []
    for logits, impl in ((e.logits, "native"), (e.exact, "eager")):
        leaves = [x.detach().requires_grad_() for x in logits]
        weights = e.weights.to(torch.promote_types(logits[0].dtype, torch.float32))
        weights.requires_grad_()
        loss = mean_cross_entropy(
            leaves, e.targets, weights, temperatures=e.temperatures, reduction="sum", impl=impl
        )
        gradients.append(torch.autograd.grad(loss, [*leaves, weights]))
    for k, (result, exact) in enumerate(zip(*gradients, strict=True)):
        assert result.dtype == (e.logits[k].dtype if k < len(e.logits) else weights_dtype(e))
        largest = max(exact.abs().max().item(), 1e-3)
        unit = torch.finfo(result.dtype).eps + 8 * e.rounding
        torch.testing.assert_close(result.double(), exact, rtol=unit, atol=unit * (1 + largest))


def weights_dtype(e: Experts) -> torch.dtype:
    return torch.promote_types(e.logits[0].dtype, torch.float32)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
def test_reductions_and_ignored_targets_are_torchs(
    impl: str, reduction: str, dtype: torch.dtype
) -> None:
    logits = make(3, (2, 5, 33), torch.float32)
    targets = torch.randint(33, (2, 5))
    targets[0, 1:3] = -7
    mean = sum(logits) / 3  # type: ignore[operator]
    expected = F.cross_entropy(
        mean.view(-1, 33), targets.flatten(), ignore_index=-7, reduction=reduction
    )
    loss = mean_cross_entropy(
        logits, targets.to(dtype), ignore_index=-7, reduction=reduction, impl=impl
    )
    torch.testing.assert_close(loss.flatten(), expected.flatten())
    assert loss.shape == (targets.shape if reduction == "none" else ())


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_ignored_targets_and_excluded_experts_have_zero_gradients_even_with_nan(impl: str) -> None:
    logits = make(2, (3, 40), torch.float32)
    logits[1][0] = float("nan")  # absent there
    logits[1][1, 7] = float("inf")  # ignored there
    leaves = [x.requires_grad_() for x in logits]
    weights = torch.tensor([[0.5, 0.0], [0.5, 0.5], [0.5, 0.5]], requires_grad=True)
    targets = torch.tensor([3, -100, 5])
    loss = mean_cross_entropy(leaves, targets, weights, impl=impl)
    if impl == "eager":
        # Its chain multiplies the ignored row's infinity by a gradient of zero.
        (d_first,) = torch.autograd.grad(loss, leaves[:1])
        assert d_first[0].isfinite().all()
        return
    d_first, d_second, d_weights = torch.autograd.grad(loss, [*leaves, weights])
    assert (d_second[:2] == 0).all()
    assert (d_first[1] == 0).all()
    assert d_weights[0, 1] == 0
    assert (d_weights[1] == 0).all()
    assert all(d.isfinite().all() for d in (d_first, d_second, d_weights))
    assert (d_second[2] != 0).all()


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_gradients_by_finite_differences(impl: str) -> None:
    logits = [x.requires_grad_() for x in make(3, (4, 7), torch.float64)]
    for shape in ((3,), (4, 3)):
        weights = torch.rand(shape, dtype=torch.float64, requires_grad=True)
        temperatures = (1 + torch.rand(3, dtype=torch.float64)).requires_grad_()

        def loss(weights: Tensor, temperatures: Tensor, *logits: Tensor) -> Tensor:
            targets = torch.tensor([0, 6, -100, 3])
            return mean_cross_entropy(
                logits, targets, weights, temperatures=temperatures, impl=impl
            )

        assert torch.autograd.gradcheck(loss, (weights, temperatures, *logits))


@needs_native
def test_frozen_experts_get_no_gradient_and_second_derivatives_are_rejected() -> None:
    logits = make(3, (4, 33), torch.bfloat16)
    logits[1].requires_grad_()
    loss = mean_cross_entropy(logits, torch.arange(4), impl="native")
    (gradient,) = torch.autograd.grad(loss, logits[1:2], retain_graph=True)
    assert gradient.dtype == torch.bfloat16
    loss.backward()
    assert logits[0].grad is None
    assert logits[2].grad is None
    loss = mean_cross_entropy(logits, torch.arange(4), impl="native")
    with pytest.raises(ArgumentError, match="mean_cross_entropy: its gradient cannot be"):
        torch.autograd.grad(loss, logits[1], create_graph=True)


@needs_native
@pytest.mark.parametrize("dtype", DTYPES)
def test_large_gradients_bypass_the_caches_and_agree(dtype: torch.dtype) -> None:
    """From 4 MiB on the stores are non-temporal; rows of odd length are not aligned."""
    rows, columns = 3, (2 << 20) // dtype.itemsize + 77
    x = make(1, (columns,), dtype)[0]
    large = x.expand(rows, columns).clone().requires_grad_()
    small = x[None].clone().requires_grad_()
    for leaf in (large, small):
        mean_cross_entropy(
            [leaf], torch.full((len(leaf),), 5), reduction="sum", impl="native"
        ).backward()
    assert large.grad is not None
    assert small.grad is not None
    assert torch.equal(large.grad, small.grad.expand(rows, columns))


@needs_native
def test_result_depends_neither_on_threads_nor_on_other_rows() -> None:
    logits = make(3, (5, 40_001), torch.float32)
    targets = torch.arange(5)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            leaves = [x.clone().requires_grad_() for x in logits]
            weights = torch.tensor([0.2, 0.3, 0.5], requires_grad=True)
            loss = mean_log_softmax_gather(leaves, targets, weights, impl="native")
            gradients = torch.autograd.grad(loss.sum(), [*leaves, weights])
            results.append((loss.detach(), *gradients))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(map(torch.equal, results[0], other))
    alone = mean_log_softmax_gather(
        [x[2:3] for x in logits], targets[2:3], [0.2, 0.3, 0.5], impl="native"
    )
    assert torch.equal(alone, results[0][0][2:3])


@needs_native
@pytest.mark.parametrize("offset", [-4096, 4096])
def test_large_offsets_keep_the_small_digits(offset: int) -> None:
    logits = make(2, (4, 500), torch.float32)
    shifted = [(x + offset).round(decimals=2) for x in logits]
    targets = torch.arange(4)
    exact = mean_log_softmax_gather([x.double() for x in shifted], targets, impl="eager")
    result = mean_log_softmax_gather(shifted, targets, impl="native")
    # The mean itself is rounded at 4096 · 2⁻²⁴; nothing of that size may be added to it.
    torch.testing.assert_close(result.double(), exact, rtol=0, atol=4096 * 2.0**-23)


@pytest.mark.slow
@needs_native
def test_more_than_two_to_the_31_elements() -> None:
    rows, columns = 32_769, 65_536
    values = torch.randn(2, columns).to(torch.bfloat16)
    logits = [values[0].expand(rows, columns), values[1].expand(rows, columns)]
    targets = torch.arange(rows)
    result = mean_log_softmax_gather(logits, targets, impl="native")
    expected = (values.double().mean(0)).log_softmax(-1)[targets]
    torch.testing.assert_close(result.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@needs_native
def test_nothing_of_the_vocabularys_size_is_written() -> None:
    """Peak memory of a forward pass in a separate process grows by at most 1 % of the logits."""
    code = """
import resource, torch
from fastgrow.ops import mean_cross_entropy, mean_argmax, mean_sample
logits = [torch.randn(512, 16384) for _ in range(4)]
targets = torch.zeros(512, dtype=torch.int64)
small = [x[:2, :64] for x in logits]
mean_cross_entropy(small, targets[:2]), mean_argmax(small), mean_sample(small)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
mean_cross_entropy(logits, targets), mean_argmax(logits), mean_sample(logits)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) <= 4 * 512 * 16384 * 4 / 100


@needs_native
def test_registrations_pass_opcheck() -> None:
    logits, targets = make(2, (3, 33), torch.float32), torch.tensor([1, 5, -100])
    for scale in (torch.tensor([0.5, 0.5]), torch.rand(3, 2)):
        opcheck(torch.ops.fastgrow.mean_log_probability.default, (logits, scale, targets, -100))
        _, log_sums = torch.ops.fastgrow.mean_log_probability(logits, scale, targets, -100)
        for need_scale, need_logits in ((True, [True, False]), (False, [True, True])):
            opcheck(
                torch.ops.fastgrow.mean_log_probability_backward.default,
                (logits, scale, targets, -100, log_sums, torch.rand(3), need_scale, need_logits),
            )


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_compiles_without_graph_breaks_or_recompiling_for_a_second_length(impl: str) -> None:
    graphs = 0

    def counting(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> torch.fx.GraphModule:
        nonlocal graphs
        graphs += 1
        return graph

    torch.compiler.reset()
    compiled = torch.compile(
        lambda logits, targets, weights: mean_cross_entropy(logits, targets, weights, impl=impl),
        fullgraph=True,
        dynamic=True,
        backend=counting,
    )
    weights = torch.tensor([0.5, 0.25], requires_grad=True)
    for rows in (3, 5):
        logits = [x.requires_grad_() for x in make(2, (rows, 33), torch.float32)]
        targets = torch.arange(rows)
        loss = compiled(logits, targets, weights)
        expected = mean_cross_entropy(logits, targets, weights, impl=impl)
        torch.testing.assert_close(loss, expected)
        expected_gradients = torch.autograd.grad(expected, [*logits, weights])
        torch.testing.assert_close(
            torch.autograd.grad(loss, [*logits, weights]), expected_gradients
        )
    assert graphs == 1


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_no_rows_give_an_empty_result(impl: str) -> None:
    logits, targets = make(2, (0, 33), torch.float32), torch.zeros(0, dtype=torch.int64)
    assert mean_log_softmax_gather(logits, targets, impl=impl).shape == (0,)
    assert mean_cross_entropy(logits, targets, reduction="sum", impl=impl) == 0


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_errors_name_what_was_expected(impl: str) -> None:
    a, targets = torch.zeros(2, 5), torch.tensor([0, 4])
    with pytest.raises(
        ArgumentError, match=r"logits\[1\] must be \[2, 5\] float32 .* got \[2, 6\]"
    ):
        mean_cross_entropy([a, torch.zeros(2, 6)], targets, impl=impl)
    with pytest.raises(ArgumentError, match=r"logits\[0\] must be of shape .* with V > 0"):
        mean_cross_entropy([torch.zeros(2, 0)], targets, impl=impl)
    with pytest.raises(ArgumentError, match=r"targets must be of shape \[2\] on cpu"):
        mean_cross_entropy([a], targets[:1], impl=impl)
    with pytest.raises(ArgumentError, match="targets must be an int64 or int32 tensor"):
        mean_log_softmax_gather([a], a[:, 0], impl=impl)
    with pytest.raises(ArgumentError, match="reduction must be one of mean, sum, none"):
        mean_cross_entropy([a], targets, reduction="max", impl=impl)
    with pytest.raises(ArgumentError, match=r"weights must be 1 numbers.* or of shape \[2, 1\]"):
        mean_cross_entropy([a], targets, torch.zeros(3, 1), impl=impl)
    for wrong in (5, -1):
        outside = torch.tensor([0, wrong])
        message = rf"targets must be in \[0, 5\), got {wrong} at \[1\]"
        with pytest.raises(ArgumentError, match=f"mean_cross_entropy: {message}"):
            mean_cross_entropy([a], outside, impl=impl)
        with pytest.raises(ArgumentError, match=f"mean_log_softmax_gather: {message}"):
            mean_log_softmax_gather([a], outside, impl=impl)


@needs_native
def test_calls_that_native_cannot_run_raise_when_forced_and_else_use_eager() -> None:
    transposed = torch.randn(5, 4).mT
    targets = torch.arange(4)
    with pytest.raises(ConfigError, match="last dimension is not contiguous"):
        mean_cross_entropy([transposed], targets, impl="native")
    torch.testing.assert_close(
        mean_cross_entropy([transposed], targets), F.cross_entropy(transposed, targets)
    )
