"""Tuning weights, adapters and heads of ensembles with frozen experts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from compose_models import make_decoder, random_text
from torch import Tensor

from fastgrow.compose import (
    Adapter,
    CallableExpert,
    Contrast,
    Ensemble,
    LearnedWeights,
    Mean,
    Posterior,
    Temperature,
    load,
    tune,
)
from fastgrow.errors import ConfigError
from fastgrow.substrate import Substrate
from fastgrow.training import TextData, TrainConfig

TRAIN = TrainConfig(batch_size=2, seq_len=16, lr=1e-2, eval_every=10)
TOKENS = 2_000


@pytest.fixture(scope="module")
def taught(substrate: Substrate) -> tuple[TextData, Any, Any]:
    """A text that was sampled from the first of two decoders."""
    author, other = (make_decoder(substrate, seed, dtype=torch.float32) for seed in (1, 2))
    texts = [author.generate("", max_new_tokens=20, seed=seed) for seed in range(60)]
    texts = [text for text in texts if text]
    data = TextData.from_splits(
        train=texts[:-10], validation=texts[-10:-5], test=texts[-5:], substrate=substrate
    )
    return data, author, other


def state_of(ensemble: Ensemble) -> dict[str, Tensor]:
    return {name: t.clone() for name, t in ensemble.experts.state_dict().items()}


def changed(before: dict[str, Tensor], ensemble: Ensemble) -> set[str]:
    after = ensemble.experts.state_dict()
    return {name for name, old in before.items() if not torch.equal(old, after[name])}


def test_weights_find_the_author(taught) -> None:
    data, author, other = taught
    duo = Ensemble({"author": author, "other": other}, Mean())
    before, bits = state_of(duo), duo.evaluate(data, split="validation").bits_per_character
    requires = [p.requires_grad for p in duo.parameters()]
    tune(duo, data, what="weights", tokens=TOKENS, train=TRAIN, quiet=True)
    assert isinstance(duo.rule, LearnedWeights)
    weights = duo.rule.weights
    assert weights is not None
    assert weights["author"] > 0.7 > 0.3 > weights["other"]
    assert duo.evaluate(data, split="validation").bits_per_character < bits
    assert changed(before, duo) == set()
    assert [p.requires_grad for p in duo.parameters()] == requires


def test_gradients_of_weights_are_those_of_the_formula(substrate: Substrate) -> None:
    from fastgrow.compose.tune import _WeightTuning

    duo = Ensemble({"a": make_decoder(substrate, 1), "b": make_decoder(substrate, 2)}, Mean())
    tuning = _WeightTuning(duo)
    ids = random_text(substrate, 0)
    loss = tuning.loss(ids, ids.roll(-1, 1))
    weights = torch.full((2,), 0.5, dtype=torch.float64, requires_grad=True)
    logits = sum(w * m(ids).detach() for w, m in zip(weights, duo.experts.values(), strict=True))
    expected = F.cross_entropy(logits.flatten(0, 1), ids.roll(-1, 1).flatten())
    torch.testing.assert_close(loss, expected)
    got = torch.autograd.grad(loss, tuning.weights)[0]
    want = torch.autograd.grad(expected, weights)[0]
    torch.testing.assert_close(got.double(), want, rtol=1e-6, atol=1e-7)


def test_an_adapter_starts_as_the_mean(substrate: Substrate) -> None:
    experts = {"a": make_decoder(substrate, 1), "b": make_decoder(substrate, 2, d_model=48)}
    ids = random_text(substrate, 0)
    mean = Ensemble(experts, Mean())(ids)
    adapted = Ensemble(experts, Adapter(4))
    torch.testing.assert_close(adapted(ids), mean)
    assert adapted.rule == Adapter(4, experts=("a", "b"))
    assert adapted.adapter is not None
    assert adapted.adapter.down.weight.shape == (4, 80)


def with_random_adapter(substrate: Substrate, rule: Adapter | None = None) -> Ensemble:
    experts = {"a": make_decoder(substrate, 1), "b": make_decoder(substrate, 2, d_model=48)}
    duo = Ensemble(experts, rule or Adapter(4))
    assert duo.adapter is not None
    torch.nn.init.normal_(duo.adapter.up.weight, generator=torch.Generator().manual_seed(0))
    return duo


@pytest.mark.parametrize("rule", [Adapter(4), Adapter(3, {"a": 3, "b": 1})], ids=str)
def test_an_adapter_adds_its_low_rank_term(rule: Adapter, substrate: Substrate) -> None:
    duo = with_random_adapter(substrate, rule)
    ids = random_text(substrate, 0)
    models, low = duo.experts.values(), duo.adapter
    hidden = [m.hidden(ids) for m in models]
    shares = rule.coefficients(("a", "b"))
    expected = sum(c * m(ids) for c, m in zip(shares, models, strict=True))
    expected = expected + torch.cat(hidden, -1) @ low.down.weight.T @ low.up.weight.T
    torch.testing.assert_close(duo(ids), expected)
    torch.testing.assert_close(duo(ids, last_only=True), expected[:, -1:])
    targets = ids.roll(-1, 1)
    wanted = F.cross_entropy(expected.flatten(0, 1), targets.flatten())
    torch.testing.assert_close(duo.loss(ids, targets), wanted)
    cache = duo.new_cache(3)
    pieces = [duo(ids[:, :5], cache), duo(ids[:, 5:6], cache), duo(ids[:, 6:], cache)]
    torch.testing.assert_close(torch.cat(pieces, 1), expected)


def test_an_adapter_learns_and_touches_no_expert(taught, tmp_path: Path) -> None:
    data, _, other = taught
    third = make_decoder(data.train.substrate, 3, dtype=torch.float32)
    duo = Ensemble({"other": other, "third": third}, Adapter(8))
    before, bits = state_of(duo), duo.evaluate(data, split="validation").bits_per_character
    tune(duo, data, what="adapter", tokens=TOKENS, train=TRAIN, out=tmp_path / "run", quiet=True)
    assert duo.evaluate(data, split="validation").bits_per_character < bits - 0.1
    assert changed(before, duo) == set()
    saved = load(tmp_path / "run" / "model", substrate=data.train.substrate)
    ids = random_text(data.train.substrate, 0)
    torch.testing.assert_close(saved(ids), duo(ids), rtol=0, atol=0)
    assert isinstance(saved, Ensemble)
    assert saved.rule == duo.rule


@pytest.mark.parametrize("rule", [Mean(), Temperature({"other": 2.0}), Contrast("other", 0.1)])
def test_heads_learn_and_nothing_else(rule: Any, taught, substrate: Substrate) -> None:
    data, _, _ = taught
    experts = {"other": make_decoder(substrate, 2, dtype=torch.float32)}
    experts["third"] = make_decoder(substrate, 3, dtype=torch.float32)
    duo = Ensemble(experts, rule)
    before, bits = state_of(duo), duo.evaluate(data, split="validation").bits_per_character
    tune(duo, data, what="head", tokens=TOKENS, train=TRAIN, quiet=True)
    assert duo.rule == rule
    assert duo.evaluate(data, split="validation").bits_per_character < bits
    names = {name.split(".", 1)[1] for name in changed(before, duo)}
    assert names == {"lm_head.weight", "lm_head.bias"}


def test_an_adapter_belongs_to_its_experts(substrate: Substrate) -> None:
    duo = with_random_adapter(substrate)
    low, other = duo.adapter, make_decoder(substrate, 3)
    with pytest.raises(
        ConfigError, match=r"made for the experts 'a', 'b', not 'a', 'b', 'c'; pass"
    ):
        duo.add("c", other)
    with pytest.raises(ConfigError, match="it was made for the experts 'a', 'b', not 'a'"):
        duo.remove("b")
    assert duo.names == ("a", "b")
    duo.rename("b", "z")
    duo.reweight({"a": 1, "z": 3})
    assert duo.adapter is low
    duo.add("c", other, rule=Adapter(4))
    assert duo.adapter is not low
    assert bool((duo.adapter.up.weight == 0).all())  # type: ignore[union-attr]
    duo.remove("c", rule=Mean())
    assert duo.adapter is None
    assert not any(name.startswith("adapter") for name in duo.state_dict())


def test_an_adapter_needs_decoders(substrate: Substrate) -> None:
    one, guest = (
        make_decoder(substrate, 1),
        CallableExpert(make_decoder(substrate, 2), vocab_size=len(substrate), max_seq_len=24),
    )
    with pytest.raises(ConfigError, match="but expert 'two' is a CallableExpert; expected a D"):
        Ensemble({"one": one, "two": guest}, Adapter(2))
    low = make_decoder(substrate, 2, dtype=torch.float32)
    with pytest.raises(ConfigError, match="the experts' dtypes differ: "):
        Ensemble({"one": one, "two": low}, Adapter(2))


@pytest.mark.parametrize("rank", [0, -2, 1.5, True])
def test_a_rank_is_a_number_above_zero(rank: object) -> None:
    with pytest.raises(ConfigError, match=r"Adapter\.rank: expected an integer"):
        Adapter(rank)  # type: ignore[arg-type]


def test_what_cannot_be_tuned_is_refused(taught, substrate: Substrate) -> None:
    data, author, other = taught
    duo = Ensemble({"author": author, "other": other}, Mean())
    options = {"tokens": 64, "train": TRAIN}
    with pytest.raises(ConfigError, match="must be weights, adapter or head, got 'blocks'"):
        tune(duo, data, what="blocks", **options)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"what is 'adapter', but the rule is Mean\(\)"):
        tune(duo, data, what="adapter", **options)  # type: ignore[arg-type]
    duo.reweight(Posterior())
    with pytest.raises(ConfigError, match="expected a rule over logits"):
        tune(duo, data, what="weights", **options)  # type: ignore[arg-type]
    guest = CallableExpert(other, vocab_size=len(substrate), max_seq_len=24)
    with pytest.raises(ConfigError, match="all experts must be instances of Decoder"):
        tune(Ensemble({"a": author, "b": guest}), data, what="head", **options)  # type: ignore[arg-type]
