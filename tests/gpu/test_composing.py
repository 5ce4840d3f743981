"""An ensemble of two experts on a device has the CPU's predictions, samples and cache."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from against_cpu import assert_close
from torch import Tensor

import fastgrow as fg
from fastgrow.compose import Rule
from fastgrow.nn import Decoder, DecoderConfig
from fastgrow.substrate import Substrate
from fastgrow.training import TextData

RULES = {
    "mean": fg.Mean(),
    "weighted": fg.Weighted({"deep": 0.7, "wide": 0.3}),
    "mean of probabilities": fg.ProbabilityMean(),
    "posterior": fg.Posterior(),
}


def experts(substrate: Substrate) -> dict[str, Decoder]:
    """Of different depths and widths, on the CPU, with heads that prefer some tokens."""
    made = {}
    for seed, (name, layers, width) in enumerate((("deep", 3, 64), ("wide", 1, 128))):
        config = DecoderConfig(
            vocab_size=len(substrate), d_model=width, n_layer=layers, n_head=2, max_seq_len=64
        )
        generator = torch.Generator().manual_seed(seed)
        made[name] = Decoder(config, substrate, generator=generator)
        with torch.no_grad():
            made[name].lm_head.weight.mul_(4)
    return made


def pair(substrate: Substrate, device: torch.device, rule: Rule) -> tuple[fg.Ensemble, fg.Ensemble]:
    """On the CPU and on the device."""
    on_cpu = experts(substrate)
    on_device = {name: copy.deepcopy(model).to(device) for name, model in on_cpu.items()}
    return fg.Ensemble(on_cpu, rule), fg.Ensemble(on_device, rule)


def text(substrate: Substrate, batch: int = 3, length: int = 40) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    ids = torch.randint(4, len(substrate), (batch, length), generator=generator)
    ids[:, 0] = substrate.bos_id
    return ids


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_predictions_and_losses(rule: Rule, substrate: Substrate, device: torch.device) -> None:
    truth, duo = pair(substrate, device, rule)
    ids = text(substrate)
    with torch.no_grad():
        assert_close(duo(ids.to(device)), truth(ids))
        for reduction in ("mean", "none"):
            arguments = (ids[:, :-1], ids[:, 1:])
            loss = duo.loss(*(x.to(device) for x in arguments), reduction=reduction)
            assert loss.device.type == device.type
            assert_close(loss, truth.loss(*arguments, reduction=reduction))


def test_predictions_in_bf16(substrate: Substrate, device: torch.device) -> None:
    truth, duo = pair(substrate, device, fg.Mean())
    ids = text(substrate)
    with torch.no_grad():
        expected = truth(ids)
        logits = duo.to(torch.bfloat16)(ids.to(device))
        assert_close(logits, expected, truth.to(torch.bfloat16)(ids))


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_the_most_likely_continuation(
    rule: Rule, substrate: Substrate, device: torch.device
) -> None:
    truth, duo = pair(substrate, device, rule)
    prompt = text(substrate, 2, 7)
    expected = truth.generate(prompt, max_new_tokens=12, temperature=0)
    assert torch.equal(duo.generate(prompt, max_new_tokens=12, temperature=0).cpu(), expected)


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_draws_are_repeatable(rule: Rule, substrate: Substrate, device: torch.device) -> None:
    _, duo = pair(substrate, device, rule)
    once, again, other = (
        duo.generate("Some", max_new_tokens=20, seed=seed, top_p=0.9) for seed in (3, 3, 4)
    )
    assert once == again
    assert once != other


def test_experts_come_and_go(substrate: Substrate, device: torch.device, tmp_path: Path) -> None:
    truth, duo = pair(substrate, device, fg.Mean())
    ids = text(substrate)
    with torch.no_grad():
        expected = truth(ids)
        for folder in (None, tmp_path / "offloaded"):
            duo.offload("deep", folder)
            assert_close(duo(ids.to(device)), expected)
            duo.recall("deep")
            assert_close(duo(ids.to(device)), expected)
        removed = duo.remove("wide")
        assert_close(duo(ids.to(device)), truth.experts["deep"](ids))
        duo.add("wide", removed)
        duo.save(tmp_path / "duo")
        loaded = fg.load(tmp_path / "duo", device=device)
        assert torch.equal(loaded(ids.to(device)), duo(ids.to(device)))


def test_bits_of_a_text(substrate: Substrate, data: TextData, device: torch.device) -> None:
    truth, duo = pair(substrate, device, fg.Posterior())
    expected, found = (x.evaluate(data, split="validation") for x in (truth, duo))
    assert found.bits_per_character == pytest.approx(expected.bits_per_character, rel=1e-5)
    assert (found.tokens, found.characters) == (expected.tokens, expected.characters)
