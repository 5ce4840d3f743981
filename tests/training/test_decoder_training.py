"""The trainer on the real model and the real substrate."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import nn

from fastgrow.evaluation import bits_per_character, unigram_bits
from fastgrow.nn import Decoder, DecoderConfig
from fastgrow.substrate import Substrate
from fastgrow.training import Batches, Checkpointer, TextData, TrainConfig, Trainer

WORDS = ["жук", "тень", "море", "the", "cat", "sat", "on", "mat"]


@pytest.fixture(scope="module")
def data() -> TextData:
    characters = sorted(set("".join(WORDS)) | {" "})
    substrate = Substrate.build(characters=characters, n_components=16)
    documents = [
        " ".join(WORDS[(start + step * i) % len(WORDS)] for i in range(12))
        for start in range(len(WORDS))
        for step in (1, 3, 5)
    ]
    return TextData(documents, substrate, split=(0.7, 0.3, 0.0))


def make_trainer(data: TextData) -> Trainer:
    """A grown model: its first block is frozen, the second trains with norm and head."""
    torch.manual_seed(0)
    config = DecoderConfig(
        vocab_size=len(data.substrate), d_model=32, n_layer=2, n_head=2, n_embed=16, max_seq_len=32
    )
    model = Decoder(config, data.substrate)  # type: ignore[arg-type]
    model.blocks[0].requires_grad_(False)
    active = {name: p for name, p in model.named_parameters() if p.requires_grad}
    return Trainer(
        model,
        active,
        Batches(data.train, 4, 32),
        TrainConfig(lr=1e-2, accumulate=2, eval_every=10, checkpoint_every=13),
        steps=40,
        validation=data.validation,
    )


def tensors_of(model: nn.Module) -> dict[str, torch.Tensor]:
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def test_a_decoder_trains_its_active_part_and_resumes_bit_for_bit(
    data: TextData, tmp_path: Path
) -> None:
    whole = make_trainer(data)
    before = tensors_of(whole.model)
    untrained = bits_per_character(whole.model, data.validation)  # type: ignore[arg-type]
    assert untrained.bits_per_token == pytest.approx(math.log2(len(data.substrate)), rel=0.2)
    checkpoints = Checkpointer(tmp_path, keep=3)
    result = whole.run(lambda t: checkpoints.save(t.step, {"model": t.model, "trainer": t}))
    assert result.best_bits_per_character is not None
    assert (
        result.best_bits_per_character
        < unigram_bits(data.train, data.validation).bits_per_character
    )
    after = tensors_of(whole.model)
    moved = {name for name in after if not torch.equal(after[name], before[name])}
    assert moved == set(whole.active)

    resumed = make_trainer(data)
    state = checkpoints.load(tmp_path / "step-00000013")
    resumed.model.load_state_dict(state["model"])
    resumed.load_state_dict(state["trainer"])
    resumed.run()
    assert all(torch.equal(value, after[name]) for name, value in tensors_of(resumed.model).items())
