"""The frozen table: constant, shared, not in the state dict."""

from __future__ import annotations

import copy

import pytest
import torch
from tiny_model import TinySubstrate, small_config

from fastgrow.errors import ArgumentError, ConfigError
from fastgrow.nn import Decoder, FrozenEmbedding, RotaryTable
from fastgrow.ops import rope_table


def test_models_on_one_substrate_share_the_table(substrate: TinySubstrate) -> None:
    first, second = Decoder(small_config(), substrate), Decoder(small_config(n_layer=1), substrate)
    address = substrate.table.ctypes.data
    assert first.embedding.table.data_ptr() == second.embedding.table.data_ptr() == address
    assert copy.deepcopy(first).embedding.table.data_ptr() == address


def test_moved_models_share_the_moved_table(substrate: TinySubstrate) -> None:
    models = [Decoder(small_config(n_layer=1), substrate).to(torch.bfloat16) for _ in range(2)]
    models.append(copy.deepcopy(models[0]))
    models.append(Decoder(small_config(n_layer=1), substrate, dtype=torch.bfloat16))
    assert len({model.embedding.table.data_ptr() for model in models}) == 1
    assert models[0].embedding.table.dtype == torch.bfloat16
    back = models[0].float()
    assert back.embedding.table.data_ptr() == substrate.table.ctypes.data
    other = Decoder(small_config(n_layer=1), TinySubstrate(1)).to(torch.bfloat16)
    assert other.embedding.table.data_ptr() != models[1].embedding.table.data_ptr()


def test_frozen_table_is_not_in_the_state_dict(substrate: TinySubstrate) -> None:
    embedding = FrozenEmbedding(torch.from_numpy(substrate.table), 16)
    assert not embedding.state_dict()
    assert not list(embedding.parameters())
    assert not embedding(torch.tensor([5])).requires_grad


def test_trainable_table_is_a_separate_parameter(substrate: TinySubstrate) -> None:
    table = torch.from_numpy(substrate.table)
    embedding = FrozenEmbedding(table, 16, trainable=True)
    assert set(embedding.state_dict()) == {"table"}
    assert embedding.table.data_ptr() != table.data_ptr()
    embedding(torch.tensor([5, 5])).sum().backward()
    assert embedding.table.grad is not None
    assert embedding.table.grad[5].tolist() == [4.0] * 8
    twin = copy.deepcopy(embedding)
    assert twin.table.data_ptr() != embedding.table.data_ptr()
    assert isinstance(twin.table, torch.nn.Parameter)


def test_bad_input() -> None:
    with pytest.raises(ConfigError, match="multiple of the table's width 8, got 12"):
        FrozenEmbedding(torch.zeros(5, 8), 12)
    with pytest.raises(ConfigError, match=r"table must be \[V, n_embed\]"):
        FrozenEmbedding(torch.zeros(5))
    with pytest.raises(ArgumentError, match=r"in \[0, 5\), got 5"):
        FrozenEmbedding(torch.zeros(5, 8))(torch.tensor([5]))


def test_rotary_table_keeps_its_precision() -> None:
    table = RotaryTable(600, 16).to(torch.bfloat16)
    for got, want in zip(table(600), rope_table(600, 16), strict=True):
        assert torch.equal(got, want)
    assert table(5)[0].shape == (5, 8)
