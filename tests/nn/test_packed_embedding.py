"""Frozen embeddings of bits and codes: memory, and equality with the table of floats."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fastgrow.errors import ArgumentError, ConfigError
from fastgrow.nn import Decoder, DecoderConfig, FrozenEmbedding
from fastgrow.substrate import Substrate

LETTERS = "abcdefghijklmnopqrstuvwxyz .\n"


@pytest.fixture(scope="module", params=["id-16", "random-64"])
def codes(request: pytest.FixtureRequest) -> Substrate:
    return Substrate.build(characters=LETTERS, codes=request.param)


def packed(n_bits: int = 13) -> tuple[Tensor, Tensor]:
    """Rows of random bits, packed and as floats."""
    bits = np.random.default_rng(0).integers(0, 2, (20, n_bits), dtype=np.uint8)
    return torch.from_numpy(np.packbits(bits, axis=1)), torch.from_numpy(bits).float()


def decoder(substrate: Substrate, table: Tensor | None = None, **options: object) -> Decoder:
    config = DecoderConfig(len(substrate), d_model=128, n_layer=1, n_head=2)
    generator = torch.Generator().manual_seed(0)
    return Decoder(config, substrate, table=table, generator=generator, **options)  # type: ignore[arg-type]


def test_logits_are_those_of_the_table_of_floats(codes: Substrate) -> None:
    ids = torch.tensor([codes.encode("a bad cab.\n")])
    floats = torch.from_numpy(codes.table.copy())
    assert torch.equal(decoder(codes)(ids), decoder(codes, floats)(ids))


def test_no_table_of_floats_is_created(codes: Substrate) -> None:
    fresh = Substrate.build(characters=LETTERS, codes=codes.recipe.codes)
    model = decoder(fresh)
    model.loss(*[torch.tensor([fresh.encode("abc")])] * 2)
    table = model.embedding.table
    assert table is not None
    assert table.numel() * table.element_size() * 32 == len(fresh) * fresh.n_embed * 4
    assert table.data_ptr() == fresh.bits.ctypes.data
    assert "table" not in vars(fresh)


def test_parameter_count_is_that_of_the_table_of_floats() -> None:
    substrate = Substrate.build(characters=LETTERS, codes="id-16")
    model = decoder(substrate)
    whole, without = model.num_parameters(), model.num_parameters(include_table=False)
    assert whole - without == len(substrate) * 16
    assert model.num_parameters(active=True) == without


def test_saved_models_load(codes: Substrate, tmp_path: Path) -> None:
    model = decoder(codes)
    model.save(tmp_path / "m")
    loaded = Decoder.load(tmp_path / "m")
    ids = torch.tensor([codes.encode("a bad cab.\n")])
    assert torch.equal(loaded(ids), model(ids))
    assert loaded.embedding.bits == codes.n_embed
    shared = Decoder.load(tmp_path / "m", substrate=codes, dtype=torch.float64)
    assert shared.embedding.address == model.embedding.address
    assert shared(ids).dtype == torch.float64


def test_a_trainable_embedding_starts_with_the_codes(codes: Substrate) -> None:
    config = DecoderConfig(len(codes), d_model=128, n_head=2, embedding="trainable")
    table = Decoder(config, codes).embedding.table
    assert isinstance(table, nn.Parameter)
    assert torch.equal(table, torch.from_numpy(codes.table.copy()))


def test_codes_cannot_be_truncated(codes: Substrate) -> None:
    config = DecoderConfig(len(codes), d_model=128, n_head=2, n_embed=8)
    with pytest.raises(ConfigError, match="which cannot be truncated"):
        Decoder(config, codes)


def test_bits() -> None:
    table, floats = packed()
    ids = torch.tensor([[3, 19], [0, 3]])
    module = FrozenEmbedding.from_bits(table, 13, 39, offset=-1.0, scale=2.0)
    assert torch.equal(module(ids), (2 * floats - 1)[ids].repeat_interleave(3, -1))
    assert not module.state_dict()
    assert not list(module.parameters())
    assert module.table is not None
    assert module.table.data_ptr() == table.data_ptr()
    assert str(module) == "FrozenEmbedding(20, 13, repeat=3, frozen bits)"
    with pytest.raises(ArgumentError, match=r"in \[0, 20\), got 20"):
        module(torch.tensor([20]))


def test_ids_as_codes_need_no_memory() -> None:
    module = FrozenEmbedding.from_codes(16, 1024, vocab_size=300)
    assert not list(module.buffers())
    y = module(torch.tensor([0x0105 - 5]))
    assert y[0].view(16, 64).sum(1).nonzero().flatten().tolist() == [7]
    assert str(module) == "FrozenEmbedding(300, 16, repeat=64, frozen codes)"
    with pytest.raises(ArgumentError, match=r"in \[0, 300\), got 300"):
        module(torch.tensor([300]))
    assert FrozenEmbedding.from_codes(6).vocab_size == 64
    assert copy.deepcopy(module)(torch.tensor([5])).shape == (1, 1024)


def test_custom_codes() -> None:
    codes = torch.tensor([5, 0, 6], dtype=torch.int32)
    module = FrozenEmbedding.from_codes(3, codes=codes)
    assert module(torch.tensor([0, 2])).tolist() == [[1, 0, 1], [1, 1, 0]]


def test_the_result_follows_the_module_s_dtype() -> None:
    table, _ = packed()
    for module in (FrozenEmbedding.from_bits(table, 13), FrozenEmbedding.from_codes(13)):
        outer = nn.Sequential(module).to(torch.bfloat16)
        assert (module.dtype, outer(torch.tensor([1])).dtype) == (torch.bfloat16,) * 2
        outer.to("cpu").double()
        assert outer(torch.tensor([1])).dtype == torch.float64
    assert FrozenEmbedding(torch.zeros(3, 4)).half().dtype == torch.float16


def test_moved_modules_and_copies_share_the_bits() -> None:
    table, _ = packed()
    module = FrozenEmbedding.from_bits(table, 13)
    others = [copy.deepcopy(module), FrozenEmbedding.from_bits(table, 13).half()]
    assert {m.address for m in (module, *others)} == {(13, table.data_ptr())}


def test_equal_bits_are_shared_and_others_are_not() -> None:
    table, floats = packed()
    module = FrozenEmbedding.from_bits(table, 13)
    twin = FrozenEmbedding.from_bits(table.clone(), 13)
    assert twin.share(module)
    assert twin.address == module.address
    assert not FrozenEmbedding.from_bits(table.clone(), 13, scale=2.0).share(module)
    assert not FrozenEmbedding.from_bits(table.clone(), 12).share(module)
    assert not FrozenEmbedding.from_bits(1 - table, 13).share(module)
    assert not FrozenEmbedding(floats).share(module)
    own = FrozenEmbedding.from_codes(13, vocab_size=20)
    assert own.share(FrozenEmbedding.from_codes(13, vocab_size=20))
    assert not own.share(FrozenEmbedding.from_codes(13, vocab_size=19))
    assert not own.share(module)


def test_bad_input() -> None:
    table, floats = packed()
    for make, message in (
        (lambda: FrozenEmbedding.from_bits(table, 17), r"table must be \[V, 3\] uint8 for 17 bits"),
        (lambda: FrozenEmbedding.from_bits(floats, 13), r"table must be \[V, 2\] uint8"),
        (lambda: FrozenEmbedding.from_bits(table, 13, 40), "multiple of the table's width 13"),
        (lambda: FrozenEmbedding.from_codes(3, codes=floats), r"codes must be \[V\] int64"),
        (lambda: FrozenEmbedding.from_codes(64), r"bits must be in \[1, 63\] for codes"),
        (lambda: FrozenEmbedding.from_codes(3, vocab_size=9), r"vocab_size must be in \[1, 8\]"),
        (
            lambda: FrozenEmbedding.from_codes(3, codes=table[:, 0].int(), vocab_size=8),
            "vocab_size must be None if codes",
        ),
    ):
        with pytest.raises(ConfigError, match=message):
            make()
