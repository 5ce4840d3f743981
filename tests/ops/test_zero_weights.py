"""A weight of zero excludes its expert, for any logits and any form of the weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import pytest
import torch
from expert_logits import DTYPES, IMPLEMENTATIONS, SPECIAL, make
from torch import Tensor

from fastgrow import ops

ROWS, COLUMNS = 3, 70
WEIGHTS = [0.75, 0.0, -0.25]
TARGETS = torch.tensor([3, 69, 0])

Operation = Callable[..., Tensor]
OPERATIONS: dict[str, Operation] = {
    "logit_mean": ops.logit_mean,
    "logit_mean-into": lambda z, w, **options: ops.logit_mean(
        z, w, out=torch.empty_like(z[0]), **options
    ),
    "mean_cross_entropy": lambda z, w, **options: ops.mean_cross_entropy(z, TARGETS, w, **options),
    "mean_log_softmax_gather": lambda z, w, **options: ops.mean_log_softmax_gather(
        z, TARGETS, w, **options
    ),
    "mean_argmax": ops.mean_argmax,
    "mean_top_k": lambda z, w, **options: ops.mean_top_k(z, 5, w, **options)[0],
    "mean_sample": ops.mean_sample,
    "mean_sample-top_k": lambda z, w, **options: ops.mean_sample(z, w, top_k=7, **options),
    "mean_sample-top_p": lambda z, w, **options: ops.mean_sample(z, w, top_p=0.8, **options),
    "probability_mean": ops.probability_mean,
    "probability_mean_gather": lambda z, w, **options: ops.probability_mean_gather(
        z, TARGETS, w, **options
    ),
    "probability_mean_cross_entropy": lambda z, w, **options: ops.probability_mean_cross_entropy(
        z, TARGETS, w, **options
    ),
}
WITH_GRADIENTS = [
    name
    for name in OPERATIONS
    if name not in ("logit_mean-into", "mean_argmax") and "sample" not in name
]
FORMS: dict[str, Callable[[Sequence[float]], Sequence[float] | Tensor]] = {
    "numbers": list,
    "tensor": torch.tensor,
    "rows": lambda weights: torch.tensor(weights).expand(ROWS, -1).clone(),
}


def spoiled(dtype: torch.dtype, special: float) -> list[Tensor]:
    """Three experts; the second has NaN and infinities, in one row only those."""
    logits = make(3, (ROWS, COLUMNS), dtype)
    logits[1][0] = special
    logits[1][1:, ::3] = special
    return logits


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("special", SPECIAL)
@pytest.mark.parametrize("dtype", DTYPES)
def test_expert_is_excluded_special(
    impl: str, form: str, name: str, special: float, dtype: torch.dtype
) -> None:
    operation = OPERATIONS[name]
    logits = spoiled(dtype, special)
    # The mean of the second expert alone; the logarithm of a negative weight would be NaN.
    weights = [abs(w) for w in WEIGHTS] if name.startswith("probability") else WEIGHTS
    temperatures = [0.5, 2.0, 1.0]
    result = operation(logits, FORMS[form](weights), temperatures=temperatures, impl=impl)
    expected = operation(
        [logits[0], logits[2]],
        FORMS[form]([weights[0], weights[2]]),
        temperatures=[0.5, 1.0],
        impl=impl,
    )
    torch.testing.assert_close(result, expected, rtol=1e-6, atol=1e-6)
    assert result.isfinite().all()


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", WITH_GRADIENTS)
@pytest.mark.parametrize("special", SPECIAL)
def test_gradients_are_zero_special(impl: str, form: str, name: str, special: float) -> None:
    logits = [x.requires_grad_() for x in spoiled(torch.float32, special)]
    positive = [0.75, 0.0, 0.25]
    weights = FORMS[form](positive if name.startswith("probability") else WEIGHTS)
    temperatures = torch.tensor([0.5, 2.0, 1.0], requires_grad=True)
    leaves = [*logits, temperatures]
    if isinstance(weights, Tensor):
        leaves.append(weights.requires_grad_())
    # Only eager has gradients for these, and the automatic choice uses it.
    chosen = None if name in ("mean_top_k", "probability_mean") else impl
    result = OPERATIONS[name](logits, weights, temperatures=temperatures, impl=chosen)
    factor = torch.linspace(-1, 2, result.numel()).view(result.shape)
    gradients = torch.autograd.grad((result * factor).sum(), leaves)
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert (gradients[1] == 0).all()
    assert gradients[3][1] == 0
    assert (gradients[0] != 0).any()
    assert gradients[3][0] != 0
    if isinstance(weights, Tensor):
        assert (gradients[4][..., 1] == 0).all()
        assert (gradients[4][..., 0] != 0).any()


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("form", ["tensor", "rows"])
def test_gradients_of_gradients_are_those_without_the_expert(impl: str, form: str) -> None:
    logits = spoiled(torch.float64, math.inf)
    weights = FORMS[form]([0.75, 0.0, -0.25])
    assert isinstance(weights, Tensor)
    found = []
    for present in ([0, 1, 2], [0, 2]):
        leaves = [logits[k].clone().requires_grad_() for k in present]
        each = weights[..., present].double().requires_grad_()
        squares = ops.logit_mean(leaves, each, impl=impl).square().sum()
        first = torch.autograd.grad(squares, [*leaves, each], create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in first), [*leaves, each])
        found.append((*second[:-1], *second[-1].unbind(-1)))
    (a, b, c, *of_weights), (d, e, *of_others) = found
    assert (b == 0).all()
    assert (of_weights[1] == 0).all()
    torch.testing.assert_close((a, c, of_weights[0], of_weights[2]), (d, e, *of_others))


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("form", FORMS)
def test_excluding_all_experts_gives_zeros(impl: str, form: str) -> None:
    logits = [torch.full((ROWS, COLUMNS), x) for x in (math.nan, math.inf)]
    weights = FORMS[form]([0.0, 0.0])
    assert (ops.logit_mean(logits, weights, impl=impl) == 0).all()
    losses = ops.mean_cross_entropy(logits, TARGETS, weights, reduction="none", impl=impl)
    torch.testing.assert_close(losses, torch.full((ROWS,), math.log(COLUMNS)))
    assert ops.probability_mean(logits, weights, impl=impl).isneginf().all()


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("form", FORMS)
def test_an_infinite_temperature_is_not_a_weight_of_zero(impl: str, form: str) -> None:
    """It makes a uniform distribution, which stays in the mixture."""
    a, b = make(2, (ROWS, COLUMNS), torch.float32)
    temperatures = FORMS[form]([1.0, math.inf])
    result = ops.probability_mean([a, b], temperatures=temperatures, impl=impl)
    torch.testing.assert_close(result.exp(), (a.softmax(-1) + 1 / COLUMNS) / 2)
    gathered = ops.probability_mean_gather([a, b], TARGETS, temperatures=temperatures, impl=impl)
    torch.testing.assert_close(gathered, result.gather(-1, TARGETS[:, None])[:, 0])


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("special", SPECIAL)
def test_an_infinite_temperature_excludes_from_the_mean(
    impl: str, form: str, special: float
) -> None:
    logits = spoiled(torch.float32, special)
    temperatures = FORMS[form]([1.0, math.inf, 2.0])
    result = ops.logit_mean(logits, temperatures=temperatures, impl=impl)
    torch.testing.assert_close(result, (logits[0] + logits[2] / 2) / 3)
    gathered = ops.probability_mean_gather(logits, TARGETS, temperatures=temperatures, impl=impl)
    uniform = [logits[0], torch.zeros_like(logits[0]), logits[2] / 2]
    torch.testing.assert_close(gathered, ops.probability_mean_gather(uniform, TARGETS))


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_what_rounds_to_zero_is_zero(impl: str) -> None:
    logits = [torch.ones(2, 5), torch.full((2, 5), math.inf)]
    assert (ops.logit_mean(logits, [1.0, 1e-60], impl=impl) == 1).all()
    assert ops.logit_mean(logits, [1.0, 1e-30], impl=impl).isposinf().all()
    assert ops.logit_mean(logits, [1.0, math.nan], impl=impl).isnan().all()


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_large_means_exclude_an_expert(impl: str) -> None:
    """One long row of several tasks, written with non-temporal stores."""
    a = torch.randn(1 << 21)
    result = ops.logit_mean([torch.full_like(a, math.nan), a], [0.0, 1.0], impl=impl)
    assert torch.equal(result, a)
