"""The rules `Temperature`, `Contrast` and `LearnedWeights`."""

from __future__ import annotations

import math

import pytest
import torch

from fastgrow.compose import Contrast, LearnedWeights, Mean, Rule, Temperature, Tokens
from fastgrow.errors import ConfigError

NAMES = ("ru", "zh", "en")


def merged(rule: Rule, names: tuple[str, ...] = NAMES) -> tuple[torch.Tensor, list[torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    logits = [torch.randn(2, 5, 7, generator=generator, dtype=torch.float64) for _ in names]
    return rule.merge(names, logits, Tokens.of(torch.zeros(2, 5, dtype=torch.int64))), logits


def test_temperature_divides_each_expert_s_logits() -> None:
    result, (ru, zh, en) = merged(Temperature({"ru": 2.0, "en": 0.5}))
    torch.testing.assert_close(result, (ru / 2 + zh + en / 0.5) / 3, rtol=1e-14, atol=1e-14)


def test_temperature_with_weights() -> None:
    rule = Temperature({"zh": 4.0}, {"ru": 2, "zh": 1, "en": 1})
    result, (ru, zh, en) = merged(rule)
    expected = 0.5 * ru + 0.25 * zh / 4 + 0.25 * en
    torch.testing.assert_close(result, expected, rtol=1e-14, atol=1e-14)


def test_contrast_subtracts_one_expert() -> None:
    result, (ru, zh, en) = merged(Contrast("zh", strength=0.5))
    torch.testing.assert_close(result, 1.5 * (ru + en) / 2 - 0.5 * zh, rtol=1e-14, atol=1e-14)


def test_contrast_of_no_strength_is_the_mean_of_the_others() -> None:
    coefficients = Contrast("en", strength=0.0).coefficients(NAMES)
    assert coefficients == [*Mean().coefficients(NAMES[:2]), 0.0]


def test_contrast_favours_tokens_that_only_the_others_predict() -> None:
    expert, amateur = torch.tensor([[[2.0, 2.0, 0.0]]]), torch.tensor([[[2.0, 0.0, 0.0]]])
    rule, tokens = Contrast("amateur", strength=1.0), Tokens.of(torch.tensor([[0]]))
    assert rule.merge(("expert", "amateur"), [expert, amateur], tokens).argmax() == 1


@pytest.mark.parametrize("temperature", [0, -1, math.nan, math.inf, "warm", True])
def test_a_temperature_is_a_number_above_zero(temperature: object) -> None:
    with pytest.raises(ConfigError, match=r"temperatures\['ru'\]: expected a finite .*, got"):
        Temperature({"ru": temperature})  # type: ignore[dict-item]


def test_names_have_to_be_experts() -> None:
    with pytest.raises(ConfigError, match=r"temperature for 'de', but no such expert.*'ru', 'zh'"):
        Temperature({"de": 2.0}).check(NAMES)
    with pytest.raises(ConfigError, match="names 'de', but there is no such expert; the exp"):
        Contrast("de").check(NAMES)
    with pytest.raises(ConfigError, match="'ru' is the only expert"):
        Contrast("ru").check(("ru",))


@pytest.mark.parametrize("strength", [-0.1, math.inf, math.nan])
def test_strength_is_not_negative(strength: float) -> None:
    with pytest.raises(ConfigError, match=r"Contrast\.strength: expected a "):
        Contrast("ru", strength)


@pytest.mark.parametrize(
    "rule",
    [
        Temperature({"ru": 2.0}),
        Temperature({}, {"ru": 1.0, "zh": 2.0}),
        Contrast("zh"),
        Contrast("zh", 2.0),
        LearnedWeights(),
        LearnedWeights({"ru": 1.5, "zh": -0.2}),
    ],
)
def test_config_round_trip(rule: Rule) -> None:
    assert Rule.from_config(rule.to_config()) == rule


def test_names_leave_and_change() -> None:
    rule = Temperature({"ru": 2.0, "zh": 3.0}, {"ru": 1, "zh": 3, "en": 1})
    assert rule.without("ru") == Temperature({"zh": 3.0}, {"zh": 3, "en": 1})
    assert Temperature({"ru": 2.0}).without("ru").coefficients(("zh",)) == [1.0]  # type: ignore[attr-defined]
    assert rule.renamed("zh", "cn") == Temperature(
        {"ru": 2.0, "cn": 3.0}, {"ru": 1, "cn": 3, "en": 1}
    )
    assert rule.with_weights({"ru": 1}) == Temperature({"ru": 2.0, "zh": 3.0}, {"ru": 1})
    assert Contrast("zh", 0.7).renamed("zh", "cn") == Contrast("cn", 0.7)
    with pytest.raises(ConfigError, match="names 'zh', but there is no such expert"):
        Contrast("zh").without("zh").check(("ru", "en"))
    with pytest.raises(ConfigError, match="has a strength instead of weights"):
        Contrast("zh").with_weights({"ru": 1})


def test_learned_weights_are_taken_as_they_are() -> None:
    assert LearnedWeights().coefficients(("ru", "zh")) == [0.5, 0.5]
    rule = LearnedWeights({"zh": -0.25, "ru": 1.5})
    assert rule.coefficients(("ru", "zh")) == [1.5, -0.25]
    assert rule.without("ru") == LearnedWeights({"zh": -0.25})
    assert rule.renamed("ru", "be") == LearnedWeights({"zh": -0.25, "be": 1.5})
    assert LearnedWeights().without("ru").renamed("zh", "cn") == LearnedWeights()
    with pytest.raises(ConfigError, match="LearnedWeights: every weight is zero"):
        LearnedWeights({"ru": 0, "zh": 0})
