"""The rules against naive implementations of their formulas in float64."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fastgrow.compose.mixing import decayed_sums, logit_sum
from fastgrow.compose.posterior import Posterior
from fastgrow.compose.rules import Mean, ProbabilityMean, Rule, Tokens, Weighted
from fastgrow.errors import ConfigError

NAMES = ("ru", "zh", "en")
BOS, PAD = 0, 1


def random_logits(seed: int, *, experts: int = 3, batch: int = 2, length: int = 9, vocab: int = 7):
    generator = torch.Generator().manual_seed(seed)
    shape = (batch, length, vocab)
    return [
        3 * torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(experts)
    ]


def random_ids(seed: int, *, batch: int = 2, length: int = 9, vocab: int = 7) -> Tensor:
    generator = torch.Generator().manual_seed(seed + 1)
    return torch.randint(0, vocab, (batch, length), generator=generator)


def naive_posterior(rule: Posterior, logits: list[Tensor], ids: Tensor) -> Tensor:
    """The mixture's log-probabilities, token by token from the definition."""
    prior = rule.prior(NAMES[: len(logits)])
    probabilities = [z.softmax(-1) for z in logits]
    out = torch.empty_like(logits[0])
    for b in range(ids.shape[0]):
        document: list[tuple[int, list[float]]] = []
        for t in range(ids.shape[1]):
            token = int(ids[b, t])
            if token == BOS:
                document = []
            elif token != PAD and t > 0:
                document.append((t, [float(p[b, t - 1, token]) for p in probabilities]))
            weights = []
            for k, weight in enumerate(prior):
                for age, (_, scores) in enumerate(reversed(document)):
                    weight *= scores[k] ** (rule.forgetting**age / rule.temperature)
                weights.append(weight)
            total = sum(weights)
            mixed = sum(w / total * p[b, t] for w, p in zip(weights, probabilities, strict=True))
            out[b, t] = mixed.log()
    return out


def test_mean_is_the_mean_of_logits() -> None:
    logits = random_logits(0)
    merged = Mean().merge(NAMES, logits, Tokens.of(random_ids(0)))
    torch.testing.assert_close(merged, torch.stack(logits).mean(0), rtol=1e-14, atol=1e-14)


def test_mean_by_hand() -> None:
    logits = [torch.tensor([[[1.0, 2.0]]]), torch.tensor([[[3.0, -4.0]]])]
    merged = Mean().merge(("a", "b"), logits, Tokens.of(torch.tensor([[0]])))
    assert merged.tolist() == [[[2.0, -1.0]]]


def test_mean_is_the_normalised_geometric_mean_of_probabilities() -> None:
    logits = random_logits(1)
    merged = Mean().merge(NAMES, logits, Tokens.of(random_ids(1))).softmax(-1)
    geometric = torch.stack([z.softmax(-1) for z in logits]).prod(0) ** (1 / 3)
    torch.testing.assert_close(merged, geometric / geometric.sum(-1, keepdim=True))


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        (Weighted({"ru": 0.5, "zh": 0.25, "en": 0.25}), (0.5, 0.25, 0.25)),
        (Weighted({"en": 1, "ru": 2, "zh": 1}), (0.5, 0.25, 0.25)),
        (Weighted({"ru": 1.5, "zh": -0.5, "en": 0}), (1.5, -0.5, 0.0)),
        (Weighted({"ru": 2, "zh": 1, "en": 1}, normalize=False), (2.0, 1.0, 1.0)),
    ],
)
def test_weighted_looks_weights_up_by_name(rule: Weighted, expected: tuple[float, ...]) -> None:
    logits = random_logits(2)
    merged = rule.merge(NAMES, logits, Tokens.of(random_ids(2)))
    by_hand = sum(w * z for w, z in zip(expected, logits, strict=True))
    torch.testing.assert_close(merged, by_hand, rtol=1e-14, atol=1e-14)


def test_an_expert_of_weight_zero_is_left_out_and_not_multiplied() -> None:
    wild = torch.tensor([math.inf, -math.inf, math.nan])
    assert logit_sum([torch.ones(3), wild], [2.0, 0.0]).tolist() == [2.0, 2.0, 2.0]


def test_low_precision_is_added_up_in_float32() -> None:
    # In bfloat16, 256 + 1 is 256.
    logits = [torch.tensor([256.0]), torch.tensor([1.0]), torch.tensor([1.0])]
    low = [z.bfloat16() for z in logits]
    total = logit_sum(low, [1.0, 1.0, 1.0])
    assert total.dtype == torch.bfloat16
    assert total.item() == 258.0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_log_probabilities_are_at_least_float32(dtype: torch.dtype) -> None:
    logits, tokens = [z.to(dtype) for z in random_logits(3)], Tokens.of(random_ids(3))
    for rule in (ProbabilityMean(), Posterior()):
        merged = rule.merge(NAMES, logits, tokens)
        assert merged.dtype == torch.float32
        exact = rule.merge(NAMES, [z.double() for z in logits], tokens)
        torch.testing.assert_close(merged.double(), exact, rtol=1e-5, atol=1e-5)


def test_probability_mean_is_the_mean_of_softmaxes() -> None:
    logits = random_logits(3)
    merged = ProbabilityMean().merge(NAMES, logits, Tokens.of(random_ids(3)))
    naive = torch.stack([z.softmax(-1) for z in logits]).mean(0).log()
    torch.testing.assert_close(merged, naive, rtol=1e-12, atol=1e-12)


def test_probability_mean_with_weights() -> None:
    logits = random_logits(4)
    rule = ProbabilityMean({"zh": 1, "ru": 3, "en": 0})
    merged = rule.merge(NAMES, logits, Tokens.of(random_ids(4)))
    naive = (0.75 * logits[0].softmax(-1) + 0.25 * logits[1].softmax(-1)).log()
    torch.testing.assert_close(merged, naive, rtol=1e-12, atol=1e-12)


def test_probability_mean_does_not_underflow() -> None:
    logits = [torch.tensor([[[0.0, -2000.0]]]), torch.tensor([[[0.0, -1000.0]]])]
    merged = ProbabilityMean().merge(("a", "b"), logits, Tokens.of(torch.tensor([[0]])))
    torch.testing.assert_close(merged[0, 0, 1], torch.tensor(-1000.0 - math.log(2)))


@pytest.mark.parametrize("forgetting", [1.0, 0.7])
@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("weights", [None, {"ru": 1, "zh": 2, "en": 5}])
def test_posterior_equals_the_naive_loop(
    forgetting: float, temperature: float, weights: dict[str, float] | None
) -> None:
    rule = Posterior(weights, forgetting=forgetting, temperature=temperature)
    logits, ids = random_logits(5), random_ids(5)
    assert (ids == BOS).any()
    assert (ids == PAD).any()
    merged = rule.merge(NAMES, logits, Tokens.of(ids, BOS, PAD))
    naive = naive_posterior(rule, logits, ids)
    torch.testing.assert_close(merged, naive, rtol=1e-11, atol=1e-11)


@settings(max_examples=40)
@given(
    seed=st.integers(0, 10_000),
    cuts=st.lists(st.integers(1, 5), min_size=1, max_size=9),
    forgetting=st.sampled_from([1.0, 0.9, 0.3]),
)
def test_posterior_in_pieces_equals_posterior_in_one_pass(
    seed: int, cuts: list[int], forgetting: float
) -> None:
    rule = Posterior(forgetting=forgetting)
    length = sum(cuts)
    logits, ids = random_logits(seed, length=length), random_ids(seed, length=length)
    whole = rule.merge(NAMES, logits, Tokens.of(ids, BOS, PAD))
    state, pieces, start = rule.new_state(), [], 0
    for cut in cuts:
        span = slice(start, start + cut)
        tokens = Tokens.of(ids[:, span], BOS, PAD)
        pieces.append(rule.merge(NAMES, [z[:, span] for z in logits], tokens, state))
        start += cut
    torch.testing.assert_close(torch.cat(pieces, 1), whole, rtol=1e-11, atol=1e-11)


def test_posterior_of_a_document_is_exact_bayesian_averaging() -> None:
    logits, ids = random_logits(6, batch=1), torch.tensor([[2, 3, 4, 5, 6, 2, 3, 4, 5]])
    merged = Posterior().merge(NAMES, logits, Tokens.of(ids, BOS, PAD))
    log_p = merged[:, :-1].gather(-1, ids[:, 1:, None]).sum()
    each = [z.log_softmax(-1)[:, :-1].gather(-1, ids[:, 1:, None]).sum() for z in logits]
    expected = torch.stack(each).logsumexp(0) - math.log(3)
    torch.testing.assert_close(log_p, expected, rtol=1e-12, atol=1e-12)


def test_posterior_of_identical_experts_stays_at_the_prior() -> None:
    same, ids = random_logits(7, experts=1)[0], random_ids(7)
    rule = Posterior({"ru": 1, "zh": 3})
    scores = torch.randn(2, 9, 1, dtype=torch.float64).expand(2, 9, 2)
    log_weights = rule.log_weights(("ru", "zh"), Tokens.of(ids, BOS, PAD), scores)
    expected = torch.tensor([0.25, 0.75], dtype=torch.float64).expand(2, 9, 2)
    torch.testing.assert_close(log_weights.exp(), expected)
    merged = rule.merge(("ru", "zh"), [same, same], Tokens.of(ids, BOS, PAD))
    torch.testing.assert_close(merged, same.log_softmax(-1))


def test_posterior_follows_the_text_and_forgets_it_at_a_new_document() -> None:
    ids = torch.tensor([[BOS, 2, 2, 2, 2, BOS, 3, 3]])
    twos, threes = torch.zeros(1, 8, 4), torch.zeros(1, 8, 4)
    twos[..., 2], threes[..., 3] = 4.0, 4.0
    tokens = Tokens.of(ids, BOS, PAD)
    scores = torch.stack(
        [torch.where(ids == 2, -0.1, -4.1).float(), torch.where(ids == 3, -0.1, -4.1).float()], -1
    )
    weights = Posterior().log_weights(("a", "b"), tokens, scores).exp()[0, :, 0].tolist()
    assert weights[0] == weights[5] == 0.5
    assert weights[1] > 0.98
    assert weights[4] > weights[1]
    assert weights[6] < 0.02
    merged = Posterior().merge(("a", "b"), [twos, threes], tokens)
    assert merged[0, 4].argmax() == 2
    assert merged[0, 7].argmax() == 3


def test_posterior_survives_tokens_that_every_expert_called_impossible() -> None:
    logits = [torch.zeros(1, 4, 3) for _ in range(2)]
    for z in logits:
        z[..., 2] = -math.inf
    logits[0][:, 1:, 2] = 0.0
    ids = torch.tensor([[0, 2, 2, 1]])
    merged = Posterior().merge(("a", "b"), logits, Tokens.of(ids))
    assert not merged.isnan().any()
    # After the second 2, only the first expert is left.
    torch.testing.assert_close(merged[0, 2], logits[0][0, 2].log_softmax(-1))


def test_posterior_keeps_an_expert_that_no_float32_weight_could_hold() -> None:
    """An expert of weight e⁻³⁰⁰ decides if the other gives the token probability zero."""
    logits = [torch.zeros(1, 2, 3) for _ in range(2)]
    logits[1][:, 0, 1] = -300.0
    logits[0][:, 1, 2] = -math.inf
    merged = Posterior().merge(("a", "b"), logits, Tokens.of(torch.tensor([[0, 1]])))
    assert merged[0, 1, 2].item() == pytest.approx(-300 - math.log(2), abs=1e-4)


@pytest.mark.parametrize(
    "rule", [Mean(), ProbabilityMean(), Posterior(), Posterior(forgetting=0.5)]
)
def test_no_rule_looks_ahead(rule: Rule) -> None:
    logits, ids = random_logits(8), random_ids(8)
    before = rule.merge(NAMES, logits, Tokens.of(ids, BOS, PAD))
    for position in range(1, ids.shape[1]):
        changed_ids, changed = ids.clone(), [z.clone() for z in logits]
        changed_ids[:, position:] = (ids[:, position:] + 1) % 7
        for z in changed:
            z[:, position:] += torch.randn_like(z[:, position:])
        after = rule.merge(NAMES, changed, Tokens.of(changed_ids, BOS, PAD))
        torch.testing.assert_close(after[:, :position], before[:, :position], rtol=0, atol=1e-13)


@pytest.mark.parametrize("rule", [Mean(), Weighted({"ru": 3}), ProbabilityMean(), Posterior()])
def test_one_expert_alone_is_that_expert(rule: Rule) -> None:
    z, ids = random_logits(9, experts=1)[0], random_ids(9)
    merged = rule.merge(("ru",), [z], Tokens.of(ids, BOS, PAD))
    torch.testing.assert_close(merged.log_softmax(-1), z.log_softmax(-1), rtol=1e-13, atol=1e-13)


@settings(max_examples=60)
@given(
    length=st.integers(1, 20),
    carries=st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=20, max_size=20),
    seed=st.integers(0, 1000),
)
def test_decayed_sums_equal_the_recurrence(length: int, carries: list[float], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(2, length, 3, generator=generator, dtype=torch.float64)
    initial = torch.randn(2, 3, generator=generator, dtype=torch.float64)
    carry = torch.tensor(carries[:length], dtype=torch.float64).expand(2, length)
    sums, current = decayed_sums(values, carry, initial), initial
    for t in range(length):
        current = carry[:, t, None] * current + values[:, t]
        torch.testing.assert_close(sums[:, t], current, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("rule", [Weighted, ProbabilityMean, Posterior])
def test_weights_must_name_exactly_the_experts(rule: type[Rule]) -> None:
    with pytest.raises(ConfigError, match=r"weight for 'de', but no such expert.*'ru', 'zh'"):
        rule({"ru": 1, "zh": 1, "de": 1}).check(("ru", "zh"))  # type: ignore[call-arg]
    with pytest.raises(ConfigError, match="expert 'zh' has no weight; weights are given for 'ru'"):
        rule({"ru": 1}).check(("ru", "zh"))  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({}, "expected weights by expert name"),
        ({"ru": math.nan}, "weight of 'ru' is nan, not a finite number"),
        ({"ru": "half"}, "weight of 'ru' is 'half', not a number"),
        ({"ru": True}, "weight of 'ru' is True, not a number"),
        ({"ru": 0.0, "zh": 0}, "every weight is zero"),
    ],
)
@pytest.mark.parametrize("rule", [Weighted, ProbabilityMean, Posterior])
def test_weights_must_be_numbers(rule: type[Rule], weights: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        rule(weights)  # type: ignore[call-arg]


@pytest.mark.parametrize("rule", [ProbabilityMean, Posterior])
def test_probabilities_have_no_negative_weights(rule: type[Rule]) -> None:
    with pytest.raises(ConfigError, match=r"weight of 'zh' is -0\.5; expected at least 0"):
        rule({"ru": 1.5, "zh": -0.5})  # type: ignore[call-arg]


def test_a_mean_needs_a_positive_sum() -> None:
    with pytest.raises(ConfigError, match="weights sum to 0"):
        Weighted({"ru": 1, "zh": -1}).check(("ru", "zh"))
    Weighted({"ru": 1, "zh": -1}, normalize=False).check(("ru", "zh"))


@pytest.mark.parametrize("options", [{"forgetting": 0}, {"forgetting": 1.1}, {"temperature": 0}])
def test_posterior_options_have_a_range(options: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(options))):
        Posterior(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "rule",
    [
        Mean(),
        Weighted({"ru": 0.6, "zh": 0.4}, normalize=False),
        ProbabilityMean(),
        ProbabilityMean({"ru": 1, "zh": 2}),
        Posterior({"ru": 1, "zh": 2}, forgetting=0.9, temperature=2),
    ],
)
def test_config_round_trip(rule: Rule) -> None:
    assert Rule.from_config(rule.to_config()) == rule


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"kind": "median"},
            "'median'} is unknown; expected .*'kind' is one of adapter, con",
        ),
        ({"kind": ["mean"]}, "is unknown"),
        ("mean", "rule 'mean' is unknown"),
        ({"kind": "mean", "power": 2}, "rule mean: .*power"),
        ({"kind": "weighted"}, "rule weighted: .*weights"),
        ({"kind": "posterior", "forgetting": "slow"}, r"Posterior\.forgetting: .*, got \'slow\'"),
    ],
)
def test_bad_config_is_refused(config: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Rule.from_config(config)


def test_names_leave_and_change() -> None:
    weighted = Weighted({"ru": 1, "zh": 3, "en": 1})
    assert weighted.without("zh").coefficients(("ru", "en")) == [0.5, 0.5]  # type: ignore[attr-defined]
    assert weighted.renamed("zh", "cn") == Weighted({"ru": 1, "cn": 3, "en": 1})
    assert Posterior({"ru": 1, "zh": 3}, forgetting=0.5).without("ru") == Posterior(
        {"zh": 3}, forgetting=0.5
    )
    assert Mean().without("zh") == Mean()
    assert ProbabilityMean().without("zh") == ProbabilityMean()


def test_new_weights_keep_the_family_and_its_options() -> None:
    assert Mean().with_weights({"ru": 2, "zh": 1}) == Weighted({"ru": 2, "zh": 1})
    slow = Posterior(forgetting=0.5)
    assert slow.with_weights({"ru": 2}) == Posterior({"ru": 2}, forgetting=0.5)
    raw = Weighted({"ru": 1}, normalize=False)
    assert raw.with_weights({"ru": 2}) == Weighted({"ru": 2}, normalize=False)
