"""Sampling from averaged logits: correct distribution, correct uniform numbers."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from expert_logits import IMPLEMENTATIONS, Experts, experts, make, needs_native
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.library import opcheck

from fastgrow.errors import ArgumentError, ConfigError
from fastgrow.ops import logit_mean, mean_argmax, mean_sample
from fastgrow.ops.experts.choices import draw
from fastgrow.ops.experts.philox import eager_uniforms, philox, row_uniforms

# By how much a uniform number may miss a boundary of the distribution function.
ROUNDING = 1e-5


def distribution(
    logits: Tensor, temperature: float, top_k: int | None, top_p: float | None
) -> Tensor:
    """Probabilities of a mean of logits [V] in fp64, by definition, in the order of the ids."""
    p = (logits.double() / temperature).softmax(-1)
    order = sorted(range(len(p)), key=lambda v: -p[v].item())[:top_k]
    p = torch.zeros_like(p).index_copy(0, torch.tensor(order), p[order])
    if top_p is not None:
        share, before = p / p.sum(), 0.0
        for v in order:
            if before >= top_p:
                p[v] = 0
            before += share[v].item()
    return p / p.sum()


def test_philox_gives_the_published_numbers() -> None:
    """The test vectors of the authors' Random123."""
    for word, expected in (
        (0, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        (0xFFFFFFFF, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
    ):
        words = philox([torch.tensor([word])] * 4, (word, word))
        assert [w.item() for w in words] == expected


def test_uniform_numbers_are_the_same_natively_and_in_plain_pytorch() -> None:
    logits = torch.zeros(3, 7, 5)
    for seed in (0, 1, -1, 2**63 - 1, -(2**63)):
        for step in (0, 3, 2**40 + 1):
            numbers = row_uniforms(logits, seed, step)
            assert torch.equal(numbers, eager_uniforms(logits, seed, step))
            assert ((numbers >= 0) & (numbers < 1)).all()
    assert (row_uniforms(logits, 0, 0) != row_uniforms(logits, 1, 0)).all()
    assert (row_uniforms(logits, 0, 0) != row_uniforms(logits, 0, 1)).all()
    assert row_uniforms(logits, 0, 0).unique().numel() == 21


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@settings(max_examples=60)
@given(
    given_experts=experts(special=False),
    temperature=st.sampled_from([0.25, 1.0, 3.0]),
    top_k=st.one_of(st.none(), st.integers(1, 1024)),
    top_p=st.one_of(st.none(), st.floats(0.01, 0.99)),
    seed=st.integers(-(2**63), 2**63 - 1),
)
def test_agrees_with_the_inverted_distribution(
    impl: str,
    given_experts: Experts,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    seed: int,
) -> None:
    """The token's interval of the cumulative fp64 distribution contains the uniform number."""
    e = given_experts
    assume(e.rounding < 1e-5)
    settings = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "seed": seed}
    tokens = mean_sample(e.logits, e.weights, temperatures=e.temperatures, impl=impl, **settings)
    mean = logit_mean(e.exact, e.weights, temperatures=e.temperatures, impl="eager")
    numbers = row_uniforms(e.logits[0], seed, 0)
    for token, row, number in zip(
        tokens.flatten(), mean.view(-1, mean.shape[-1]), numbers.flatten(), strict=True
    ):
        # This close to the nucleus's boundary a token may be in or out.
        edges = (-ROUNDING, 0, ROUNDING)
        near = [None] if top_p is None else [max(top_p + d, 1e-9) for d in edges]
        laws = [distribution(row, temperature, top_k, p) for p in near]
        ordered = top_p is not None or (top_k is not None and top_k < len(row))
        assert any(holds(p, row if ordered else None, int(token), float(number)) for p in laws)


def holds(p: Tensor, order: Tensor | None, token: int, number: float) -> bool:
    """Whether `number` is in the token's interval, in descending `order` or in order of the ids."""
    if order is None:
        below = p[:token].sum()
        return bool(below - ROUNDING <= number <= below + p[token] + ROUNDING)
    # Probabilities that are equal up to rounding may be in either order.
    first = p[order > order[token] + 1e-5].sum()
    last = p[order >= order[token] - 1e-5].sum()
    return bool(first - ROUNDING <= number <= last + ROUNDING)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize(("top_k", "top_p"), [(None, None), (5, None), (None, 0.7), (6, 0.8)])
def test_frequencies_are_the_probabilities(
    impl: str, top_k: int | None, top_p: float | None
) -> None:
    n = 40_000
    logits = [x.expand(n, 12) for x in make(2, (1, 12), torch.float32, seed=3)]
    p = distribution(logit_mean(logits)[0], 2.0, top_k, top_p)
    tokens = mean_sample(logits, temperature=2.0, top_k=top_k, top_p=top_p, seed=5, impl=impl)
    frequency = torch.bincount(tokens, minlength=12) / n
    assert ((frequency - p).abs() <= 4 * (p * (1 - p) / n).sqrt()).all()


@needs_native
@pytest.mark.parametrize("sharpness", [0.0, 1.0, 20.0])
def test_large_nuclei_agree_with_eager(sharpness: float) -> None:
    """From a nucleus of a few tokens to one of nearly all, to cover each way of finding it."""
    logits = [sharpness * x for x in make(2, (40, 5000), torch.float32)]
    logits[0][1, 7] = math.nan
    eager = mean_sample(logits, top_p=0.9, seed=2, impl="eager")
    native = mean_sample(logits, top_p=0.9, seed=2, impl="native")
    assert eager[1] == native[1] == -1
    # A few of the 40 numbers may be on a boundary.
    assert (eager != native).sum() <= 1


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_rows_without_a_distribution_give_minus_one(impl: str) -> None:
    logits = torch.zeros(5, 5000)
    logits[0, 4000] = math.nan
    logits[1, 3] = math.inf
    logits[2] = -math.inf
    logits[3, 1:] = -math.inf
    for options in ({}, {"top_k": 3}, {"top_p": 0.5}, {"top_k": 10, "top_p": 0.5}):
        tokens = mean_sample([logits, logits], impl=impl, **options)  # type: ignore[arg-type]
        assert tokens[:4].tolist() == [-1, -1, -1, 0]
        assert tokens[4] >= 0


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_same_seed_same_tokens_and_rows_apart(impl: str) -> None:
    logits = make(2, (6, 3000), torch.bfloat16)

    def tokens(**options: Any) -> Tensor:
        return mean_sample(logits, temperature=4.0, impl=impl, **options)

    assert torch.equal(tokens(seed=3, step=4), tokens(seed=3, step=4))
    assert not torch.equal(tokens(seed=3, step=4), tokens(seed=3, step=5))
    assert not torch.equal(tokens(seed=3, step=4), tokens(seed=4, step=4))
    assert torch.equal(mean_sample(logits, temperature=0, impl=impl), mean_argmax(logits))


def test_last_token_of_nonzero_probability_is_drawn_by_the_largest_number() -> None:
    p = torch.tensor([[0.1, 0.2, 0.3, 0.0]], dtype=torch.float64)
    for number, place in ((0.0, 0), (0.999999999999999999, 2), (1 / 6 + 1e-9, 1)):
        assert draw(p, torch.tensor([number], dtype=torch.float64)).item() == place


@needs_native
def test_result_does_not_depend_on_the_number_of_threads() -> None:
    logits = make(3, (3, 50_001), torch.float32)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(mean_sample(logits, temperature=9.0, impl="native"))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


@pytest.mark.slow
@needs_native
def test_more_than_two_to_the_31_elements() -> None:
    rows, columns = 32_769, 65_536
    values = torch.full((columns,), -1e4, dtype=torch.bfloat16)
    values[60_000] = 0
    tokens = mean_sample([values.expand(rows, columns)], impl="native")
    assert (tokens == 60_000).all()


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_tokens_of_logits_that_require_a_gradient_have_none(impl: str) -> None:
    logits = [x.requires_grad_() for x in make(2, (3, 20), torch.float32)]
    settings: list[dict[str, Any]] = [{}, {"top_k": 5}, {"top_p": 0.5}]
    for options in settings:
        tokens = mean_sample(logits, impl=impl, **options)
        assert not tokens.requires_grad
        plain = [x.detach() for x in logits]
        assert torch.equal(tokens, mean_sample(plain, impl=impl, **options))


@needs_native
def test_registrations_pass_opcheck() -> None:
    logits, numbers = make(2, (3, 33), torch.float32), torch.rand(3, dtype=torch.float64)
    opcheck(torch.ops.fastgrow.row_uniforms.default, (logits[0], 3, 4))
    for top_k, top_p in ((None, None), (5, None), (None, 0.5)):
        arguments = (logits, torch.tensor([0.5, 0.5]), numbers, top_k, top_p)
        opcheck(torch.ops.fastgrow.native_sample.default, arguments)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_compiles_without_graph_breaks_or_recompiling_for_another_step(impl: str) -> None:
    graphs = 0

    def counting(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> torch.fx.GraphModule:
        nonlocal graphs
        graphs += 1
        return graph

    torch.compiler.reset()
    compiled = torch.compile(
        lambda logits, step: mean_sample(logits, top_p=0.9, step=step, impl=impl),
        fullgraph=True,
        dynamic=True,
        backend=counting,
    )
    for rows, step in ((3, 7), (5, 8), (6, 9)):
        logits = make(2, (rows, 33), torch.float32)
        expected = mean_sample(logits, top_p=0.9, step=step, impl=impl)
        assert torch.equal(compiled(logits, step), expected)
    assert graphs == 1


def test_errors_name_what_was_expected() -> None:
    a = torch.zeros(2, 5)
    for options, message in (
        ({"temperature": -1.0}, "temperature must be 0 or more, got -1.0"),
        ({"temperature": math.nan}, "temperature must be 0 or more"),
        ({"top_k": 0}, "top_k must be at least 1, got 0"),
        ({"top_p": 0.0}, "top_p must be above 0 and at most 1"),
    ):
        with pytest.raises(ArgumentError, match=f"mean_sample: {message}"):
            mean_sample([a], **options)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"at most 1024 candidates|is not there"):
        mean_sample([torch.zeros(1, 3000)], top_k=2000, impl="native")


@needs_native
def test_a_uniform_number_of_zero_draws_no_token_of_probability_zero() -> None:
    """A block with so little mass that the probabilities of its columns are 0 in float32."""
    z = torch.full((1, 20_000), -float("inf"))
    z[0, 4000], z[0, 10_000] = -150, 0
    zero = torch.zeros(1, dtype=torch.float64)
    token = torch.ops.fastgrow.native_sample.default([z], torch.ones(1), zero, None, None)
    assert z[0, token].isfinite()
