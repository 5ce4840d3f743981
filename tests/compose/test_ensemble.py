"""An ensemble is the rule applied to its experts, and a language model like any other."""

from __future__ import annotations

import copy
import math
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from compose_models import make_decoder, random_text
from torch import Tensor, nn

import fastgrow as fg
from fastgrow.compose import (
    Contrast,
    Ensemble,
    Mean,
    Posterior,
    ProbabilityMean,
    Rule,
    Temperature,
    Tokens,
    TopK,
    Weighted,
)
from fastgrow.errors import ArgumentError, ConfigError, SubstrateError
from fastgrow.nn import Decoder, LanguageModel, repeat_cache
from fastgrow.substrate import Substrate
from fastgrow.training import TextData

EXACT = {"rtol": 1e-10, "atol": 1e-10}
RULES: list[Rule] = [
    Mean(),
    Weighted({"ru": 0.5, "zh": 0.2, "en": 0.3}),
    Weighted({"ru": 1.5, "zh": -0.5, "en": 0}),
    Temperature({"ru": 2.0}, {"ru": 1, "zh": 2, "en": 1}),
    Contrast("zh"),
    ProbabilityMean(),
    ProbabilityMean({"ru": 0.5, "zh": 0.5, "en": 0}),
    Posterior(),
    Posterior({"ru": 1, "zh": 2, "en": 3}, forgetting=0.9, temperature=2),
    TopK(2, forgetting=0.9),
]
each_rule = pytest.mark.parametrize("rule", RULES, ids=str)


class Guest:
    """A language model that is not a torch module."""

    def __init__(self, model: Decoder) -> None:
        self.model = model
        self.substrate, self.device = model.substrate, model.device
        self.vocab_size, self.max_seq_len = model.vocab_size, model.max_seq_len
        self.loss, self.new_cache = model.loss, model.new_cache

    def __call__(self, ids: Tensor, cache: Any | None = None, *, last_only: bool = False) -> Tensor:
        return self.model(ids, cache, last_only=last_only)


@dataclass(frozen=True)
class Loudest(Rule):
    """A rule of neither family: the maximum of the logits."""

    kind = "test-loudest"

    def check(self, names: Sequence[str]) -> None:
        pass

    def with_weights(self, weights: object) -> Rule:
        raise ConfigError("Loudest has no weights")

    def merge(
        self,
        names: Sequence[str],
        logits: Sequence[Tensor],
        tokens: Tokens,
        state: object = None,
        *,
        last_only: bool = False,
    ) -> Tensor:
        return torch.stack(list(logits)).amax(0)


@pytest.fixture
def experts(substrate: Substrate) -> dict[str, Decoder]:
    """Three decoders of different width, depth and context."""
    return {
        "ru": make_decoder(substrate, 1),
        "zh": make_decoder(substrate, 2, d_model=16, n_layer=2, max_seq_len=20),
        "en": make_decoder(substrate, 3, d_model=48, head_bias=False),
    }


@pytest.fixture
def ids(substrate: Substrate) -> Tensor:
    return random_text(substrate, 4)


@each_rule
@pytest.mark.parametrize("shape", [(0, 5), (2, 0)])
def test_nothing_read_gives_nothing(
    rule: Rule, shape: tuple[int, int], experts: dict[str, Decoder]
) -> None:
    ensemble = Ensemble(experts, rule)
    merged = ensemble(torch.zeros(shape, dtype=torch.int64))
    assert merged.shape == (*shape, ensemble.vocab_size)


def shifted(ids: Tensor, substrate: Substrate) -> Tensor:
    """Each token's successor as its target, as in evaluation; the last one is arbitrary."""
    targets = torch.cat([ids[:, 1:], ids[:, 1:2]], dim=1)
    silent = (targets == substrate.bos_id) | (targets == substrate.pad_id)
    return targets.masked_fill(silent, -100)


def corpus(documents: list[str], substrate: Substrate) -> TextData:
    """Data whose test split are these documents."""
    return TextData.from_splits(train=["вг"], test=documents, substrate=substrate)


def test_is_a_language_model(experts: dict[str, Decoder], substrate: Substrate) -> None:
    duo = Ensemble(experts)
    assert isinstance(duo, LanguageModel)
    assert duo.rule == Mean()
    assert duo.names == ("ru", "zh", "en")
    assert duo.vocab_size == len(substrate)
    assert duo.max_seq_len == 20
    assert duo.substrate is substrate
    assert duo.device == torch.device("cpu")
    assert fg.Ensemble is Ensemble


def test_forward_merges_the_experts_logits(experts: dict[str, Decoder], ids: Tensor) -> None:
    logits = [model(ids) for model in experts.values()]
    torch.testing.assert_close(Ensemble(experts)(ids), sum(logits) / 3, **EXACT)
    weighted = Ensemble(experts, Weighted({"en": 3, "ru": 1, "zh": 1}))(ids)
    by_hand = 0.2 * logits[0] + 0.2 * logits[1] + 0.6 * logits[2]
    torch.testing.assert_close(weighted, by_hand, **EXACT)
    mixed = Ensemble(experts, ProbabilityMean())(ids)
    naive = (sum(z.softmax(-1) for z in logits) / 3).log()
    torch.testing.assert_close(mixed, naive, **EXACT)


def test_one_expert_is_itself(experts: dict[str, Decoder], ids: Tensor) -> None:
    alone = {"ru": experts["ru"]}
    logits = experts["ru"](ids)
    assert torch.equal(Ensemble(alone)(ids), logits)
    for rule in (ProbabilityMean(), Posterior()):
        torch.testing.assert_close(Ensemble(alone, rule)(ids), logits.log_softmax(-1), **EXACT)
    greedy: dict[str, Any] = {"max_new_tokens": 8, "temperature": 0}
    expected = experts["ru"].generate("абв", **greedy)
    for rule in (Mean(), ProbabilityMean(), Posterior()):
        assert Ensemble(alone, rule).generate("абв", **greedy) == expected


@each_rule
@pytest.mark.parametrize("kind", ["decoders", "guests", "nested"])
@pytest.mark.parametrize("text", ["next token", "other targets"])
def test_loss_is_the_cross_entropy_of_forward(
    experts: dict[str, Decoder],
    ids: Tensor,
    substrate: Substrate,
    rule: Rule,
    kind: str,
    text: str,
) -> None:
    models: dict[str, Any] = dict(experts)
    if kind == "guests":
        models = {name: Guest(model) for name, model in experts.items()}
    elif kind == "nested":
        models["zh"] = Ensemble({"a": experts["zh"], "b": make_decoder(substrate, 9)}, Posterior())
    ensemble = Ensemble(models, rule)
    targets = shifted(ids, substrate)
    if text == "other targets":
        targets = targets.flip(1)
    expected = F.cross_entropy(
        ensemble(ids).flatten(0, 1), targets.flatten(), ignore_index=-100, reduction="none"
    ).view_as(targets)
    got = ensemble.loss(ids, targets, reduction="none")
    torch.testing.assert_close(got, expected, **EXACT)
    counted = (targets != -100).sum()
    torch.testing.assert_close(
        ensemble.loss(ids, targets, reduction="sum"), expected.sum(), **EXACT
    )
    torch.testing.assert_close(ensemble.loss(ids, targets), expected.sum() / counted, **EXACT)
    other = targets.masked_fill(targets == -100, substrate.pad_id)
    torch.testing.assert_close(
        ensemble.loss(ids, other, ignore_index=substrate.pad_id), expected.sum() / counted, **EXACT
    )


def test_loss_under_a_rule_of_another_family(
    experts: dict[str, Decoder], ids: Tensor, substrate: Substrate
) -> None:
    targets = shifted(ids, substrate)
    expected = F.cross_entropy(
        torch.stack([m(ids) for m in experts.values()]).amax(0).flatten(0, 1), targets.flatten()
    )
    torch.testing.assert_close(Ensemble(experts, Loudest()).loss(ids, targets), expected, **EXACT)


def test_an_expert_of_weight_zero_is_not_run_for_a_loss(
    experts: dict[str, Decoder], ids: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    ensemble = Ensemble(experts, Weighted({"ru": 1, "zh": 0, "en": 0}))

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("was run")

    monkeypatch.setattr(experts["zh"].embedding, "forward", refuse)
    torch.testing.assert_close(ensemble.loss(ids, ids), experts["ru"].loss(ids, ids), **EXACT)


def test_loss_without_a_target_that_counts_is_nan_as_in_torch(
    experts: dict[str, Decoder], ids: Tensor
) -> None:
    nothing = torch.full_like(ids, -100)
    for rule in (Mean(), ProbabilityMean(), Posterior()):
        assert math.isnan(Ensemble(experts, rule).loss(ids, nothing).item())
        assert Ensemble(experts, rule).loss(ids, nothing, reduction="sum").item() == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rule", [Mean(), ProbabilityMean(), Posterior()], ids=str)
def test_loss_and_forward_agree_in_low_precision(
    substrate: Substrate, ids: Tensor, rule: Rule, dtype: torch.dtype
) -> None:
    models = {str(seed): make_decoder(substrate, seed, dtype=dtype) for seed in (1, 2)}
    ensemble = Ensemble(models, rule)
    targets = shifted(ids, substrate)
    loss = ensemble.loss(ids, targets)
    assert loss.dtype == torch.float32
    if not isinstance(rule, Mean):
        assert ensemble(ids).dtype == torch.float32
    expected = F.cross_entropy(ensemble(ids).float().flatten(0, 1), targets.flatten())
    # Merged bfloat16 logits of up to 16 are rounded to multiples of 1/16 at worst.
    bound = 1e-5 if dtype == torch.float32 else 1 / 16
    torch.testing.assert_close(loss, expected, rtol=0, atol=bound)


@each_rule
def test_no_rule_lets_an_ensemble_look_ahead(
    experts: dict[str, Decoder], ids: Tensor, rule: Rule
) -> None:
    ensemble = Ensemble(experts, rule)
    before = ensemble(ids)
    for position in (1, 6, 15):
        changed = ids.clone()
        changed[:, position:] = (changed[:, position:] + 5) % ensemble.vocab_size
        after = ensemble(changed)
        torch.testing.assert_close(after[:, :position], before[:, :position], **EXACT)
        assert not torch.allclose(after[:, position:], before[:, position:])


@each_rule
@pytest.mark.parametrize("cuts", [[1] * 16, [5, 1, 1, 9], [16]])
def test_reading_in_pieces_is_reading_at_once(
    experts: dict[str, Decoder], ids: Tensor, rule: Rule, cuts: list[int]
) -> None:
    ensemble = Ensemble(experts, rule)
    whole = ensemble(ids)
    cache, last_cache = ensemble.new_cache(len(ids)), ensemble.new_cache(len(ids))
    start = 0
    for cut in cuts:
        piece = ids[:, start : start + cut]
        start += cut
        merged = ensemble(piece, cache)
        torch.testing.assert_close(merged, whole[:, start - cut : start], **EXACT)
        last = ensemble(piece, last_cache, last_only=True)
        torch.testing.assert_close(last, whole[:, start - 1 : start], **EXACT)
        assert cache.length == start
    torch.testing.assert_close(ensemble(ids, last_only=True), whole[:, -1:], **EXACT)


@each_rule
def test_generating_with_the_cache_is_generating_without(
    experts: dict[str, Decoder], substrate: Substrate, rule: Rule
) -> None:
    ensemble = Ensemble(experts, rule)
    prompt = torch.tensor([[substrate.bos_id, *substrate.encode("аб文 c")]])
    generated = ensemble.generate(prompt, max_new_tokens=10, temperature=0)
    by_hand = prompt
    while by_hand.shape[1] < generated.shape[1]:
        by_hand = torch.cat([by_hand, ensemble(by_hand)[:, -1:].argmax(-1)], dim=1)
    assert generated.tolist() == by_hand.tolist()
    assert generated.shape[1] > prompt.shape[1]


@each_rule
def test_generating_beyond_the_context_and_as_a_stream(
    experts: dict[str, Decoder], rule: Rule
) -> None:
    ensemble = Ensemble(experts, rule)
    options: dict[str, Any] = {"max_new_tokens": 40, "top_k": 8, "temperature": 0.8, "seed": 3}
    text = ensemble.generate("абв", **options)
    assert text.startswith("абв")
    assert text == "абв" + "".join(ensemble.stream("абв", **options))


@each_rule
def test_a_repeated_cache_reads_on_for_each_copy(
    experts: dict[str, Decoder], ids: Tensor, rule: Rule
) -> None:
    ensemble = Ensemble(experts, rule)
    cache = ensemble.new_cache(len(ids))
    ensemble(ids[:, :9], cache)
    copies = repeat_cache(cache, 2)
    assert copies is not None
    more = ids.flip(0).repeat(2, 1)[:, 9:]
    whole = torch.cat([ids[:, :9].repeat_interleave(2, dim=0), more], dim=1)
    expected = ensemble(whole)[:, 9:]
    torch.testing.assert_close(ensemble(more[:, :3], copies), expected[:, :3], **EXACT)
    torch.testing.assert_close(ensemble(more[:, 3:], copies), expected[:, 3:], **EXACT)
    torch.testing.assert_close(ensemble(ids[:, 9:], cache), ensemble(ids)[:, 9:], **EXACT)


def test_a_cache_of_an_expert_that_cannot_repeat_is_not_repeated(
    experts: dict[str, Decoder],
) -> None:
    class Fixed:
        length, max_len = 0, 16

    guest = Guest(experts["ru"])
    guest.new_cache = lambda *sizes: Fixed()  # type: ignore[assignment, return-value]
    ensemble = Ensemble({"one": experts["zh"], "guest": guest})
    assert repeat_cache(ensemble.new_cache(1), 2) is None


def test_a_cache_is_checked_against_the_ensemble(
    experts: dict[str, Decoder], ids: Tensor, substrate: Substrate
) -> None:
    ensemble = Ensemble(experts)
    cache = ensemble.new_cache(3, 18)
    ensemble(ids, cache)
    with pytest.raises(ArgumentError, match="at most 18 tokens, got 16 after 16"):
        ensemble(ids, cache)
    assert [inner.length for inner in cache.caches.values()] == [16, 16, 16]
    with pytest.raises(ArgumentError, match="batch of 3, got a batch of 1"):
        ensemble(ids[:1, :1], cache)
    ensemble.reweight(Posterior())
    with pytest.raises(ArgumentError, match=r"under the rule 'mean'.*now 'posterior'"):
        ensemble(ids[:, :1], cache)
    ensemble.reweight(Mean())
    ensemble.remove("zh")
    with pytest.raises(ArgumentError, match="experts ru, zh, en, but the ensemble has ru, en"):
        ensemble(ids[:, :1], cache)


def test_ids_must_be_rows(experts: dict[str, Decoder], ids: Tensor) -> None:
    with pytest.raises(ArgumentError, match=r"shape \[B, T\], got \[16\]"):
        Ensemble(experts)(ids[0])
    with pytest.raises(ArgumentError, match=r"targets must be of shape \[3, 16\].*got \[3, 15\]"):
        Ensemble(experts).loss(ids, ids[:, 1:])
    with pytest.raises(ArgumentError, match="reduction must be mean, sum or none, got 'max'"):
        Ensemble(experts).loss(ids, ids, reduction="max")


def test_adding_and_removing_leaves_no_trace(
    experts: dict[str, Decoder], ids: Tensor, substrate: Substrate
) -> None:
    for rule in (Mean(), ProbabilityMean(), Posterior()):
        ensemble = Ensemble(experts, rule)
        before = ensemble(ids)
        newcomer = make_decoder(substrate, 8)
        ensemble.add("de", newcomer)
        assert ensemble.names == ("ru", "zh", "en", "de")
        assert torch.equal(ensemble(ids), Ensemble({**experts, "de": newcomer}, rule)(ids))
        assert ensemble.remove("de") is newcomer
        assert torch.equal(ensemble(ids), before)
        assert ensemble.remove("zh") is experts["zh"]
        rest = {"ru": experts["ru"], "en": experts["en"]}
        assert torch.equal(ensemble(ids), Ensemble(rest, rule)(ids))


def test_weights_by_name_follow_the_experts(
    experts: dict[str, Decoder], ids: Tensor, substrate: Substrate
) -> None:
    start = Weighted({"ru": 1, "zh": 2, "en": 1})
    ensemble = Ensemble(experts, start)
    before = ensemble(ids)
    newcomer = make_decoder(substrate, 8)
    with pytest.raises(ConfigError, match=r"expert 'de' has no weight.*pass add\(…, rule=…\)"):
        ensemble.add("de", newcomer)
    assert ensemble.names == ("ru", "zh", "en")
    ensemble.add("de", newcomer, rule=Weighted({"ru": 1, "zh": 2, "en": 1, "de": 4}))
    assert not torch.equal(ensemble(ids), before)
    ensemble.remove("de")
    assert ensemble.rule == start
    assert torch.equal(ensemble(ids), before)
    ensemble.rename("zh", "cn")
    assert ensemble.names == ("ru", "cn", "en")
    assert ensemble.rule == Weighted({"ru": 1, "cn": 2, "en": 1})
    assert torch.equal(ensemble(ids), before)


def test_reweighting_takes_effect_at_once_and_back(
    experts: dict[str, Decoder], ids: Tensor
) -> None:
    ensemble = Ensemble(experts)
    before = ensemble(ids)
    ensemble.reweight({"ru": 1, "zh": 0, "en": 0})
    assert ensemble.rule == Weighted({"ru": 1, "zh": 0, "en": 0})
    assert torch.equal(ensemble(ids), experts["ru"](ids))
    ensemble.reweight(Posterior())
    ensemble.reweight({"ru": 1, "zh": 1, "en": 2})
    assert ensemble.rule == Posterior({"ru": 1, "zh": 1, "en": 2})
    ensemble.reweight(Mean())
    assert torch.equal(ensemble(ids), before)


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ({"ru": 1, "zh": 1}, "expert 'en' has no weight"),
        (Posterior({"ru": 1, "zh": 1, "en": 1, "de": 1}), "weight for 'de', but no such expert"),
    ],
)
def test_a_bad_reweighting_changes_nothing(
    experts: dict[str, Decoder], rule: Any, message: str
) -> None:
    ensemble = Ensemble(experts)
    with pytest.raises(ConfigError, match=message):
        ensemble.reweight(rule)
    assert ensemble.rule == Mean()
    with pytest.raises(ConfigError, match=r"expected a rule such as Mean\(\), got 'mean'"):
        Ensemble(experts, "mean")  # type: ignore[arg-type]


def test_names_are_checked(experts: dict[str, Decoder], substrate: Substrate) -> None:
    ensemble = Ensemble({"type": experts["ru"], "train": experts["zh"], "русский": experts["en"]})
    for name in ("a.b", "../up", "", "a b", "-x", 7, "x" * 65):
        with pytest.raises(ConfigError, match=r"expert name .* expected up to 64 letters"):
            ensemble.add(name, make_decoder(substrate, 8))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="there is an expert 'type' already"):
        ensemble.add("type", make_decoder(substrate, 8))
    with pytest.raises(ConfigError, match="there is an expert 'type' already"):
        ensemble.rename("train", "type")
    with pytest.raises(ConfigError, match="no expert 'zh'; the experts are 'type', 'train'"):
        ensemble.remove("zh")
    with pytest.raises(ConfigError, match="no expert 'zh'"):
        ensemble.rename("zh", "cn")
    ensemble.remove("train")
    ensemble.remove("русский")
    with pytest.raises(ConfigError, match="expert 'type' is the last one"):
        ensemble.remove("type")
    with pytest.raises(ConfigError, match="at least one expert, got none"):
        Ensemble({})
    with pytest.raises(ConfigError, match=r"expected models by name, .* got a list"):
        Ensemble([ensemble.experts["type"]])
    with pytest.raises(ConfigError, match=r"reweight: expected a rule, .* got 'mean'"):
        ensemble.reweight("mean")


def test_experts_that_do_not_fit_are_refused(
    experts: dict[str, Decoder], other_substrate: Substrate, substrate: Substrate
) -> None:
    ensemble = Ensemble(experts)
    stranger = make_decoder(other_substrate, 8)
    difference = substrate.difference(other_substrate)
    assert difference
    with pytest.raises(SubstrateError, match="expert 'de' and expert 'ru'") as refusal:
        ensemble.add("de", stranger)
    assert difference in str(refusal.value)
    larger = make_decoder(None, 8, vocab_size=40, embedding="trainable")
    with pytest.raises(ConfigError, match=f"'de' has a vocabulary of 40.*one of {len(substrate)}"):
        ensemble.add("de", larger)
    with pytest.raises(ConfigError, match="'de' is a Linear and not a language model: it has"):
        ensemble.add("de", nn.Linear(2, 2))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="'de' is on meta, expert 'ru' on cpu"):
        ensemble.add("de", make_decoder(substrate, 8).to("meta"))
    with pytest.raises(ConfigError, match="contains the ensemble that it would be added to"):
        ensemble.add("de", Ensemble({"inner": ensemble}))
    assert ensemble.names == ("ru", "zh", "en")


def test_a_model_of_bare_ids_may_join(experts: dict[str, Decoder], substrate: Substrate) -> None:
    bare = make_decoder(None, 8, vocab_size=len(substrate), embedding="trainable")
    ensemble = Ensemble({"bare": bare, **experts})
    assert ensemble.substrate is substrate
    alone = Ensemble({"bare": bare}, Posterior())
    assert alone.substrate is None
    assert alone.generate([1, 2, 3], max_new_tokens=2).shape == (1, 5)


def test_the_table_is_held_once(
    experts: dict[str, Decoder], substrate: Substrate, twin_substrate: Substrate, ids: Tensor
) -> None:
    twin = make_decoder(twin_substrate, 8)
    assert twin.embedding.table.data_ptr() != experts["ru"].embedding.table.data_ptr()
    before = twin(ids)
    ensemble = Ensemble(experts)
    ensemble.add("inner", Ensemble({"twin": twin}))
    inner = ensemble.experts["inner"]

    def tables() -> set[int]:
        models = [*experts.values(), inner.experts["twin"]]
        return {model.embedding.table.data_ptr() for model in models}

    assert len(tables()) == 1
    assert twin.substrate is substrate
    assert torch.equal(twin(ids), before)
    ensemble.to(torch.float32)
    assert len(tables()) == 1
    assert twin.embedding.table.dtype == torch.float32
    ensemble.to(torch.float64)
    assert len(tables()) == 1


def test_tables_that_differ_stay_apart(ids: Tensor, substrate: Substrate) -> None:
    generator = torch.Generator().manual_seed(0)
    tables = [torch.randn(len(substrate), 16, generator=generator) for _ in range(2)]
    models = [make_decoder(None, 1, table=t, vocab_size=len(substrate)) for t in tables]
    before = [model(ids) for model in models]
    Ensemble({"a": models[0], "b": models[1]})
    assert torch.equal(models[0](ids), before[0])
    assert torch.equal(models[1](ids), before[1])


def test_a_guest_leaves_without_a_trace(experts: dict[str, Decoder]) -> None:
    ensemble = Ensemble(experts)
    guest = Guest(experts["ru"])
    ensemble.add("guest", guest)
    assert ensemble.experts["guest"] is guest
    gone = weakref.ref(guest)
    ensemble.remove("guest")
    del guest
    assert gone() is None


def test_parameters_are_counted_once(experts: dict[str, Decoder], substrate: Substrate) -> None:
    trained = make_decoder(substrate, 8, embedding="trainable")
    ensemble = Ensemble({**experts, "own": trained, "again": trained})
    table = len(substrate) * substrate.n_embed
    parts = [m.num_parameters(include_table=False) for m in (*experts.values(), trained)]
    assert ensemble.num_parameters(include_table=False) == sum(parts)
    assert ensemble.num_parameters() == sum(parts) + 2 * table
    for model in (experts["ru"], experts["zh"]):
        model.requires_grad_(False)
    assert ensemble.num_parameters(active=True) == parts[2] + parts[3] + table
    assert ensemble.num_parameters(active=True, include_table=False) == parts[2] + parts[3]


def test_gradients_reach_the_active_parameters(
    experts: dict[str, Decoder], ids: Tensor, substrate: Substrate
) -> None:
    experts["ru"].requires_grad_(False)
    experts["zh"].blocks.requires_grad_(False)
    targets = shifted(ids, substrate)
    for rule in (Mean(), ProbabilityMean(), Posterior()):
        ensemble = Ensemble(experts, rule)
        active = [p for p in ensemble.parameters() if p.requires_grad]
        ensemble.zero_grad()
        ensemble.loss(ids, targets).backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in active)
        assert all(p.grad is None for p in experts["ru"].parameters())
        assert all(p.grad is None for p in experts["zh"].blocks.parameters())
        by_loss = [p.grad.clone() for p in active if p.grad is not None]
        ensemble.zero_grad()
        F.cross_entropy(ensemble(ids).flatten(0, 1), targets.flatten()).backward()
        for loss_grad, parameter in zip(by_loss, active, strict=True):
            torch.testing.assert_close(parameter.grad, loss_grad, **EXACT)


def test_state_dict_round_trip(experts: dict[str, Decoder], ids: Tensor) -> None:
    ensemble = Ensemble(experts, Posterior())
    state = ensemble.state_dict()
    assert set(state) == {
        f"experts.{name}.{key}" for name, m in experts.items() for key in m.state_dict()
    }
    duplicate = copy.deepcopy(ensemble)
    with torch.no_grad():
        for parameter in duplicate.parameters():
            parameter.zero_()
    assert not torch.equal(duplicate(ids), ensemble(ids))
    duplicate.load_state_dict(state)
    assert torch.equal(duplicate(ids), ensemble(ids))


def test_the_weights_of_equal_experts_stay_equal(experts: dict[str, Decoder], ids: Tensor) -> None:
    twins = Ensemble({"a": experts["ru"], "b": experts["ru"]}, Posterior({"a": 1, "b": 9}))
    torch.testing.assert_close(twins(ids), experts["ru"](ids).log_softmax(-1), **EXACT)


@pytest.fixture(scope="module")
def specialists(substrate: Substrate) -> dict[str, Decoder]:
    """One decoder trained on Cyrillic text only, and one trained on Latin text."""
    trained = {}
    for name, text in (("ru", "абвгд ежз абвгд ежз"), ("en", "abcd efgh. abcd efg")):
        model = make_decoder(substrate, 5, dtype=torch.float32)
        row = torch.tensor([[substrate.bos_id, *substrate.encode(text), substrate.eos_id]])
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        for _ in range(40):
            optimizer.zero_grad()
            model.loss(row[:, :-1], row[:, 1:]).backward()
            optimizer.step()
        trained[name] = model.requires_grad_(False)
    return trained


def test_an_expert_wins_on_its_own_text(
    specialists: dict[str, Decoder], substrate: Substrate
) -> None:
    documents = {"ru": ["абвгд ежз абвгд"], "en": ["abcd efgh. abcd"]}
    posterior, mean = Ensemble(specialists, Posterior()), Ensemble(specialists, Mean())
    for name, texts in documents.items():
        stream = corpus(texts, substrate).test
        own = Ensemble({name: specialists[name]}).evaluate(stream).bits_per_character
        mixed = posterior.evaluate(stream).bits_per_character
        # By Bayes' rule a document costs at most log 2 nats more than with the better expert.
        assert mixed <= own + 1 / stream.n_characters + 1e-6
        assert mixed < mean.evaluate(stream).bits_per_character
    both = corpus(documents["ru"] + documents["en"], substrate)
    together = posterior.evaluate(both).bits_per_character
    for model in specialists.values():
        assert together < Ensemble({"one": model}).evaluate(both).bits_per_character
    # The weights restart at each document: the second costs no more after the first.
    apart = [posterior.evaluate(corpus(texts, substrate)) for texts in documents.values()]
    assert both.test.n_documents == 2
    expected = sum(part.loss * part.tokens for part in apart)
    whole = posterior.evaluate(both)
    assert whole.loss * whole.tokens < expected + 3


def test_evaluation_refuses_the_text_of_another_substrate(
    experts: dict[str, Decoder], other_substrate: Substrate, substrate: Substrate
) -> None:
    data = corpus(["аб"], other_substrate)
    with pytest.raises(SubstrateError, match="the text and the ensemble"):
        Ensemble(experts).evaluate(data)
    data = corpus(["аб"], substrate)
    with pytest.raises(ConfigError, match="TextData has no split 'dev'"):
        Ensemble(experts).evaluate(data, split="dev")
    ensemble = Ensemble(experts)
    assert ensemble.evaluate(data) == ensemble.evaluate(data.test)
    assert ensemble.evaluate(data, split="train") == ensemble.evaluate(data.train)
