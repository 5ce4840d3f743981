"""`TopK` against `Posterior`."""

from __future__ import annotations

import pytest
import torch

from fastgrow.compose import Posterior, Rule, Tokens, TopK
from fastgrow.errors import ConfigError

NAMES = ("ru", "zh", "en")
BOS, PAD = 0, 1


def example(length: int = 12) -> tuple[list[torch.Tensor], torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = [
        3 * torch.randn(2, length, 7, generator=generator, dtype=torch.float64) for _ in NAMES
    ]
    return logits, torch.randint(0, 7, (2, length), generator=generator)


@pytest.mark.parametrize("k", [1, 2])
def test_the_best_experts_share_all_weight(k: int) -> None:
    _, ids = example()
    tokens = Tokens.of(ids, BOS, PAD)
    scores = torch.randn(2, 12, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    full = Posterior(forgetting=0.8).log_weights(NAMES, tokens, scores).exp()
    few = TopK(k, forgetting=0.8).log_weights(NAMES, tokens, scores).exp()
    for b, t in torch.cartesian_prod(torch.arange(2), torch.arange(12)).tolist():
        best = sorted(range(3), key=lambda j: -float(full[b, t, j]))[:k]
        total = sum(float(full[b, t, j]) for j in best)
        expected = [float(full[b, t, j]) / total if j in best else 0.0 for j in range(3)]
        assert few[b, t].tolist() == pytest.approx(expected, rel=1e-12)


def test_of_equal_experts_the_first_are_taken() -> None:
    _, ids = example(1)
    names = tuple(f"expert {i}" for i in range(20))
    weights = TopK(3).log_weights(names, Tokens.of(ids, BOS, PAD), torch.zeros(2, 1, 20))
    expected = torch.tensor([1 / 3] * 3 + [0.0] * 17).expand(2, 20)
    torch.testing.assert_close(weights.exp()[:, 0], expected, check_dtype=False)


def test_the_mixture_is_over_the_best_experts() -> None:
    logits, ids = example()
    tokens = Tokens.of(ids, BOS, PAD)
    one = TopK(1).merge(NAMES, logits, tokens)
    each = torch.stack([z.log_softmax(-1) for z in logits])
    agrees = (one[None] - each).abs().amax(-1) < 1e-12
    assert bool(agrees.any(0).all())
    assert len({int(k) for k in agrees.int().argmax(0).flatten()}) > 1


def test_gradients_are_finite_with_experts_outside_the_top_k() -> None:
    logits, ids = example()
    leaves = [z.requires_grad_() for z in logits]
    merged = TopK(1).merge(NAMES, leaves, Tokens.of(ids, BOS, PAD))
    merged.gather(-1, ids[..., None]).sum().backward()
    assert all(z.grad is not None and bool(z.grad.isfinite().all()) for z in leaves)


def test_nan_of_an_expert_of_weight_zero_has_no_effect() -> None:
    logits, ids = example()
    tokens = Tokens.of(ids, BOS, PAD)
    expected = TopK(1, {"ru": 1, "zh": 1, "en": 0}).merge(NAMES, logits, tokens)
    logits[2][:, 3] = float("nan")
    result = TopK(1, {"ru": 1, "zh": 1, "en": 0}).merge(NAMES, logits, tokens)
    torch.testing.assert_close(result, expected, rtol=0, atol=0)


def test_all_experts_are_the_posterior() -> None:
    logits, ids = example()
    tokens = Tokens.of(ids, BOS, PAD)
    expected = Posterior({"ru": 1, "zh": 2, "en": 3}).merge(NAMES, logits, tokens)
    for k in (3, 9):
        result = TopK(k, {"ru": 1, "zh": 2, "en": 3}).merge(NAMES, logits, tokens)
        torch.testing.assert_close(result, expected, rtol=1e-12, atol=1e-12)


def test_in_pieces_as_in_one_pass() -> None:
    """The evidence of an expert outside the top k is still updated."""
    logits, ids = example()
    rule = TopK(1, forgetting=0.5)
    whole = rule.merge(NAMES, logits, Tokens.of(ids, BOS, PAD))
    state, pieces = rule.new_state(), []
    for span in (slice(0, 1), slice(1, 5), slice(5, 12)):
        tokens = Tokens.of(ids[:, span], BOS, PAD)
        pieces.append(rule.merge(NAMES, [z[:, span] for z in logits], tokens, state))
    torch.testing.assert_close(torch.cat(pieces, 1), whole, rtol=1e-11, atol=1e-11)


def test_round_trip_and_changes() -> None:
    rule = TopK(2, {"ru": 1, "zh": 2}, forgetting=0.9, temperature=2)
    assert Rule.from_config(rule.to_config()) == rule
    assert rule.to_config()["kind"] == "top_k"
    assert rule.without("ru") == TopK(2, {"zh": 2}, forgetting=0.9, temperature=2)
    assert rule.renamed("ru", "be") == TopK(2, {"be": 1, "zh": 2}, forgetting=0.9, temperature=2)
    assert TopK(2) != TopK(1)


@pytest.mark.parametrize("k", [0, -1, 1.5, True, "two"])
def test_k_is_a_number_of_experts(k: object) -> None:
    with pytest.raises(ConfigError, match=r"TopK\.k: expected an integer of at least 1, got"):
        TopK(k)  # type: ignore[arg-type]
