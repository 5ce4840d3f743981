"""A decoder on a substrate of glyphs: built, saved, loaded and generating."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fastgrow.nn import Decoder, DecoderConfig, SubstrateLike
from fastgrow.substrate import Substrate


@pytest.fixture(scope="module")
def glyphs() -> Substrate:
    return Substrate.build(characters="abcdefghij .\n", n_components=64)


def test_folder_has_all_files_that_loading_needs(glyphs: Substrate, tmp_path: Path) -> None:
    assert isinstance(glyphs, SubstrateLike)
    model = Decoder(DecoderConfig(len(glyphs), d_model=64, n_layer=1, n_head=2), glyphs)
    model.save(tmp_path / "m")
    loaded = Decoder.load(tmp_path / "m")
    ids = torch.tensor([glyphs.encode("a bad cab.\n")])
    assert torch.equal(loaded(ids), model(ids))
    assert loaded.substrate is not None
    assert loaded.substrate.fingerprint == glyphs.fingerprint
    options = {"max_new_tokens": 12, "seed": 0}
    assert loaded.generate("a bad", **options) == model.generate("a bad", **options)


def test_narrow_model_has_the_table_of_a_narrow_substrate(glyphs: Substrate) -> None:
    narrow = Substrate.build(characters="abcdefghij .\n", n_components=8)
    model = Decoder(DecoderConfig(len(glyphs), d_model=8, n_head=2), glyphs)
    torch.testing.assert_close(
        model.embedding.table, torch.from_numpy(narrow.table.copy()), atol=1e-5, rtol=0
    )


@pytest.mark.parametrize("d_model", [8, 100, 1024])
def test_tokens_with_equal_glyphs_have_equal_vectors(d_model: int) -> None:
    substrate = Substrate.build(scripts=["Latin", "Cyrillic", "Greek"], n_ngrams=0)
    config = DecoderConfig(len(substrate), d_model=d_model, n_layer=0, n_head=2)
    vectors = Decoder(config, substrate).embedding(torch.arange(len(substrate)))
    for group in substrate.collisions():
        assert torch.equal(vectors[group], vectors[group[:1]].expand(len(group), -1))
