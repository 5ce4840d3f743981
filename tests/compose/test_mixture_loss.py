"""Losses of ensembles of decoders, without logits in memory and without double rounding."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from compose_models import make_decoder, random_text
from torch import Tensor

from benchmarks.memory import peak_bytes
from fastgrow import _native, ops
from fastgrow.compose import (
    Adapter,
    CallableExpert,
    Ensemble,
    Mean,
    Posterior,
    ProbabilityMean,
    Rule,
    TopK,
    Weighted,
)
from fastgrow.nn import Decoder, DecoderConfig
from fastgrow.nn.sampling import Sampler
from fastgrow.ops.heads import call as heads_call
from fastgrow.ops.heads import chunked
from fastgrow.substrate import Substrate

MIXTURES: list[Rule] = [ProbabilityMean({"a": 1, "b": 3}), Posterior(forgetting=0.9), TopK(1)]


def pair(substrate: Substrate, dtype: torch.dtype = torch.float64) -> dict[str, Decoder]:
    return {
        "a": make_decoder(substrate, 1, dtype=dtype),
        "b": make_decoder(substrate, 2, d_model=48, dtype=dtype),
    }


@pytest.mark.parametrize("rule", MIXTURES, ids=str)
def test_gradients_without_logits_are_those_of_the_formula(
    rule: Rule, substrate: Substrate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So few logits would be one chunk: the test forces several chunks, as for large sizes."""
    monkeypatch.setattr(heads_call, "FEW_ELEMENTS", 0)
    monkeypatch.setattr(chunked, "MAX_ROWS", 20)
    monkeypatch.setattr(chunked, "TILE_ROWS", 20)
    ensemble = Ensemble(pair(substrate), rule)
    ids = random_text(substrate, 4)
    targets = ids.roll(-1, 1).masked_fill(ids == substrate.pad_id, -100)
    parameters = list(ensemble.parameters())
    logits = ensemble(ids)
    wanted = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
    gradients = torch.autograd.grad(wanted, parameters)
    monkeypatch.setattr(Decoder, "forward", None)
    loss = ensemble.loss(ids, targets)
    torch.testing.assert_close(loss, wanted, rtol=1e-10, atol=1e-10)
    for got, want in zip(torch.autograd.grad(loss, parameters), gradients, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("rule", [ProbabilityMean(), Posterior(), Mean()], ids=str)
def test_no_expert_s_logits_are_in_memory(rule: Rule) -> None:
    """Forward and backward through 3 heads of N 768, V 32,768: chunk and gradients."""
    rows, length, vocabulary, experts = 3, 256, 32_768, 3
    config = DecoderConfig(
        d_model=32,
        n_layer=1,
        n_head=2,
        vocab_size=vocabulary,
        max_seq_len=length,
        head_bias=False,
    )
    table = torch.randn(vocabulary, 32, generator=torch.Generator().manual_seed(0))
    ensemble = Ensemble({f"e{k}": Decoder(config, table=table) for k in range(experts)}, rule)
    ids = torch.randint(vocabulary, (rows, length), generator=torch.Generator().manual_seed(1))
    parameters = list(ensemble.parameters())

    def step() -> object:
        return torch.autograd.grad(ensemble.loss(ids, ids.roll(-1, 1)), parameters)

    logits = experts * rows * length * vocabulary * 4
    gradients = sum(p.nbytes for p in parameters)
    assert peak_bytes(step, torch.device("cpu")) - gradients < logits / 5


@pytest.mark.parametrize("rule", [ProbabilityMean(), Posterior(), Mean()], ids=str)
def test_a_prompt_is_read_without_logits_of_it(
    rule: Rule, substrate: Substrate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every head computes the logits of one position; the others are scored like a loss."""
    ensemble = Ensemble(pair(substrate), rule)
    ids = random_text(substrate, 0)
    expected = ensemble(ids)[:, -1:]
    shapes = []
    for model in ensemble.experts.values():
        model.lm_head.register_forward_hook(lambda _, inputs, z: shapes.append(z.numel()))
    cache = ensemble.new_cache(3)
    torch.testing.assert_close(ensemble(ids, cache, last_only=True), expected)
    assert shapes == [3 * len(substrate)] * 2
    ensemble.next_tokens(ids[:, :1], cache, Sampler())
    assert max(shapes) == 3 * len(substrate)


def test_an_expert_of_weight_zero_is_not_run(
    substrate: Substrate, monkeypatch: pytest.MonkeyPatch
) -> None:
    experts = pair(substrate)
    ids = random_text(substrate, 0)
    alone = experts["a"].loss(ids, ids)
    ensemble = Ensemble(experts, ProbabilityMean({"a": 1, "b": 0}))
    monkeypatch.setattr(experts["b"], "loss", None)
    torch.testing.assert_close(ensemble.loss(ids, ids), alone)


def test_an_expert_of_weight_zero_has_no_effect(substrate: Substrate) -> None:
    experts = pair(substrate)
    ids = random_text(substrate, 0)
    rules = [ProbabilityMean({"a": 1, "b": 0}), Posterior({"a": 1, "b": 0})]
    alone = experts["a"].loss(ids, ids), experts["a"](ids).log_softmax(-1)
    torch.nn.init.constant_(experts["b"].lm_head.weight, math.nan)
    for rule in rules:
        ensemble = Ensemble(experts, rule)
        torch.testing.assert_close(ensemble.loss(ids, ids), alone[0])
        torch.testing.assert_close(ensemble(ids), alone[1])


def test_shares_are_multiplied_in_before_vectors_are_rounded(substrate: Substrate) -> None:
    experts = pair(substrate, torch.bfloat16)
    ids = random_text(substrate, 0)
    shares = {"a": 0.7, "b": 0.3}
    vectors = [model.hidden(ids, in_float32=True) for model in experts.values()]
    assert all(h.dtype == torch.float32 for h in vectors)
    for h, model in zip(vectors, experts.values(), strict=True):
        # To the nearest bfloat16, or the next where the vector lies between two.
        torch.testing.assert_close(h.bfloat16(), model.hidden(ids), rtol=2**-7, atol=1e-6)
    heads = [model.lm_head for model in experts.values()]
    once = [(h * w).bfloat16() for h, w in zip(vectors, shares.values(), strict=True)]
    twice = [(h.bfloat16() * w) for h, w in zip(vectors, shares.values(), strict=True)]

    def loss(hidden: list[Tensor]) -> Tensor:
        bias = sum(
            (head.bias * w).bfloat16() for head, w in zip(heads, shares.values(), strict=True)
        )
        return ops.linear_cross_entropy(
            hidden, [head.weight for head in heads], ids, [bias, None], mix=[1.0, 1.0]
        )

    got = Ensemble(experts, Weighted(shares)).loss(ids, ids)
    assert torch.equal(got, loss(once))
    assert not torch.equal(got, loss(twice))


def test_an_adapter_in_half_precision_has_a_loss(substrate: Substrate) -> None:
    experts = pair(substrate, torch.bfloat16)
    duo = Ensemble(experts, Adapter(4))
    assert duo.adapter is not None
    torch.nn.init.normal_(duo.adapter.up.weight, generator=torch.Generator().manual_seed(0))
    ids = random_text(substrate, 0)
    expected = F.cross_entropy(duo(ids).float().flatten(0, 1), ids.flatten())
    torch.testing.assert_close(duo.loss(ids, ids), expected, rtol=0, atol=1 / 16)


@pytest.mark.skipif(not _native.CPU.loaded, reason=_native.CPU.reason)
def test_a_foreign_expert_s_loss_makes_no_second_copy_of_its_logits(substrate: Substrate) -> None:
    logits = torch.randn(4, 16, 4096)
    guest = CallableExpert(lambda ids: logits, vocab_size=4096, max_seq_len=16)
    ids = torch.zeros(4, 16, dtype=torch.int64)
    expected = F.cross_entropy(logits.flatten(0, 1), ids.flatten())
    torch.testing.assert_close(guest.loss(ids, ids), expected)
    assert peak_bytes(lambda: guest.loss(ids, ids), torch.device("cpu")) < logits.nbytes / 4
