"""Inserting blocks at any position, and splitting the stack."""

from __future__ import annotations

import pytest
import torch

from fastgrow.errors import ArgumentError, ConfigError
from fastgrow.nn import Decoder, DecoderConfig
from fastgrow.nn.insertion import copied_blocks, insertion_indices


def make(n_layer: int = 3) -> Decoder:
    torch.manual_seed(0)
    config = DecoderConfig(
        vocab_size=20, d_model=16, n_layer=n_layer, n_head=2, n_embed=8, max_seq_len=16
    )
    return Decoder(config, table=torch.randn(20, 8))


IDS = torch.arange(12).view(2, 6)


def test_indices_of_new_blocks() -> None:
    assert insertion_indices(3, 2) == (3, 4)
    assert insertion_indices(3, 3, (0, 1, 3)) == (0, 2, 5)
    assert insertion_indices(3, 2, (1, 1)) == (1, 2)
    assert insertion_indices(0, 2, (0, 0)) == (0, 1)


def test_indices_of_copied_blocks() -> None:
    assert copied_blocks(4, 2) == (2, 3)
    assert copied_blocks(3, 3) == (0, 1, 2), "a stack copied whole"
    assert copied_blocks(2, 4) == (0, 1, 0, 1), "and again"
    assert copied_blocks(4, 3, at=(1, 3, 3)) == (0, 1, 2)
    assert copied_blocks(4, 2, copy_of=(3, 0)) == (3, 0)
    with pytest.raises(ConfigError, match="no block below"):
        copied_blocks(4, 1, at=(0,))
    with pytest.raises(ConfigError, match="2 indices of 4 old blocks"):
        copied_blocks(4, 2, copy_of=(4, 0))


def test_old_blocks_keep_their_order_and_weights() -> None:
    model = make()
    old = list(model.blocks)
    assert model.insert_blocks(2, at=(0, 2)) == (0, 3)
    assert [model.blocks[i] for i in (1, 2, 4)] == old
    assert model.config.n_layer == model.n_layer == 5


@pytest.mark.parametrize("at", [None, (0, 2), (1, 1)])
def test_identity_blocks_at_any_position_keep_logits_bitwise_equal(at) -> None:
    model = make()
    before = model(IDS)
    model.insert_blocks(2, at=at, init="identity")
    assert torch.equal(model(IDS), before)


def test_identity_blocks_can_learn_at_once() -> None:
    model = make()
    index = model.insert_blocks(1, at=(1,), init="identity")[0]
    model.loss(IDS, IDS).backward()
    block = model.blocks[index]
    for projection in block.residual_projections:
        assert projection.weight.grad.abs().max() > 0
    assert block.attention_norm.weight.abs().min() > 0, "norms are not what is zeroed"


def test_copies_are_equal_and_independent() -> None:
    model = make()
    model.insert_blocks(3, init="copy")
    for copied, source in zip(model.blocks[3:], model.blocks[:3], strict=True):
        for name, tensor in source.state_dict().items():
            assert torch.equal(copied.state_dict()[name], tensor)
    model.blocks[3].mlp.up.weight.data.add_(1)
    assert not torch.equal(model.blocks[3].mlp.up.weight, model.blocks[0].mlp.up.weight)


def test_bad_input() -> None:
    model = make()
    for change, message in (
        ({"n": -1}, "n must be 0 or more"),
        ({"n": 1, "init": "zero"}, "init must be"),
        ({"n": 1, "at": (4,)}, "there are 3 old blocks"),
        ({"n": 2, "at": (2, 1)}, "ascending"),
        ({"n": 1, "at": (1, 2)}, "1 ascending"),
        ({"n": 1, "copy_of": (0,)}, "requires init 'copy'"),
    ):
        with pytest.raises(ConfigError, match=message):
            model.insert_blocks(**change)
    assert model.n_layer == 3


@pytest.mark.parametrize("n", [0, 1, 3])
def test_a_split_stack_gives_bitwise_equal_results(n: int) -> None:
    model, targets = make(), IDS.flip(1)
    x = model.trunk(IDS, n)
    assert x.shape == (2, 6, 16)
    assert torch.equal(model.hidden_from(x, n), model.hidden(IDS))
    whole = model.loss(IDS, targets, reduction="none")
    assert torch.equal(model.loss_from(x, n, targets, reduction="none"), whole)


def test_a_trunk_of_more_blocks_than_the_model_has() -> None:
    model = make()
    with pytest.raises(ArgumentError, match="3 blocks, got a trunk of 4"):
        model.trunk(IDS, 4)
    with pytest.raises(ArgumentError, match="3 blocks, got a trunk of 4"):
        model.hidden_from(model.trunk(IDS, 0), 4)
    with pytest.raises(ArgumentError, match=r"x must be of shape \[B, at most 16, 16\]"):
        model.hidden_from(torch.zeros(2, 17, 16), 0)
