"""Functions that return logits as experts."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from compose_models import make_decoder, random_text
from torch import Tensor, nn

from fastgrow.compose import CallableExpert, Ensemble, Mean, Posterior
from fastgrow.errors import ArgumentError, ConfigError, SubstrateError
from fastgrow.nn import LanguageModel
from fastgrow.substrate import Substrate


@pytest.fixture
def pair(substrate: Substrate):
    """A decoder, and the same decoder as a bare function."""
    decoder = make_decoder(substrate, 1)
    guest = CallableExpert(
        lambda ids: decoder(ids),
        vocab_size=decoder.vocab_size,
        max_seq_len=decoder.max_seq_len,
        vocabulary=substrate,
    )
    return decoder, guest


def test_a_function_is_a_language_model(pair, substrate: Substrate) -> None:
    decoder, guest = pair
    assert isinstance(guest, LanguageModel)
    ids = random_text(substrate, 0)
    torch.testing.assert_close(guest(ids), decoder(ids), rtol=0, atol=0)
    torch.testing.assert_close(guest(ids, last_only=True), decoder(ids)[:, -1:], rtol=0, atol=0)
    targets = ids.roll(-1, 1).masked_fill(ids == substrate.pad_id, -100)
    for reduction in ("mean", "sum", "none"):
        torch.testing.assert_close(
            guest.loss(ids, targets, reduction=reduction),
            decoder.loss(ids, targets, reduction=reduction),
        )


@pytest.mark.parametrize("rule", [Mean(), Posterior()], ids=str)
def test_it_joins_an_ensemble_and_generates(rule, pair, substrate: Substrate) -> None:
    decoder, guest = pair
    other = make_decoder(substrate, 2)
    own = Ensemble({"one": decoder, "two": other}, rule)
    mixed = Ensemble({"one": guest, "two": other}, rule)
    ids = random_text(substrate, 3)
    torch.testing.assert_close(mixed(ids), own(ids))
    torch.testing.assert_close(mixed.loss(ids, ids), own.loss(ids, ids))
    options = {"max_new_tokens": 9, "seed": 0}
    assert mixed.generate("аб", **options) == own.generate("аб", **options)


def test_reading_in_pieces_reads_everything(pair, substrate: Substrate) -> None:
    _, guest = pair
    ids = random_text(substrate, 4)
    cache = guest.new_cache(3, 16)
    pieces = [guest(ids[:, :5], cache), guest(ids[:, 5:6], cache), guest(ids[:, 6:], cache)]
    assert cache.length == 16
    torch.testing.assert_close(torch.cat(pieces, 1), guest(ids))
    with pytest.raises(ArgumentError, match="holds at most 16 tokens, got 1 after 16"):
        guest(ids[:, :1], cache)
    short = guest.new_cache(3, 16)
    guest(ids[:, :5], short)
    more = ids[:, 5:].repeat_interleave(2, dim=0)
    expected = guest(ids)[:, 5:].repeat_interleave(2, dim=0)
    torch.testing.assert_close(guest(more, short.repeated(2)), expected)


def test_an_object_with_logits_will_do() -> None:
    logits = torch.randn(2, 3, 5)
    guest = CallableExpert(lambda ids: SimpleNamespace(logits=logits), vocab_size=5, max_seq_len=3)
    assert guest(torch.zeros(2, 3, dtype=torch.int64)) is not None
    torch.testing.assert_close(guest(torch.zeros(2, 3, dtype=torch.int64)), logits)


def test_a_module_is_moved_and_trained_with_the_expert() -> None:
    class Bigram(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(5, 5)

        def forward(self, ids: Tensor) -> Tensor:
            return self.table(ids)

    guest = CallableExpert(Bigram(), vocab_size=5, max_seq_len=4)
    ensemble = Ensemble({"bigram": guest})
    assert [name for name, _ in ensemble.named_parameters()] == ["experts.bigram.call.table.weight"]
    assert guest.to("meta").device.type == "meta"


@pytest.mark.parametrize("shape", [(2, 3, 4), (2, 5), (3, 3, 5)])
def test_wrong_logits_are_named(shape: tuple[int, ...]) -> None:
    guest = CallableExpert(lambda ids: torch.zeros(shape), vocab_size=5, max_seq_len=3)
    with pytest.raises(ArgumentError, match=r"must return logits of shape \[2, 3, 5\], got"):
        guest(torch.zeros(2, 3, dtype=torch.int64))


def test_a_result_that_is_no_tensor_is_named() -> None:
    guest = CallableExpert(lambda ids: [1.0], vocab_size=5, max_seq_len=3)
    with pytest.raises(ArgumentError, match="got list"):
        guest(torch.zeros(2, 3, dtype=torch.int64))


def test_a_gpu_without_a_number_is_the_current_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """An ensemble compares it with the devices of the other experts."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    places = {"cuda": "cuda:1", "cuda:0": "cuda:0", "cpu": "cpu", "meta": "meta"}
    for given, place in places.items():
        guest = CallableExpert(lambda ids: ids, vocab_size=5, max_seq_len=4, device=given)
        assert guest.device == torch.device(place)


def test_too_long_a_text_is_refused(pair) -> None:
    _, guest = pair
    with pytest.raises(ArgumentError, match="accepts at most 24 tokens, got 25"):
        guest(torch.zeros(1, 25, dtype=torch.int64))


def test_sizes_and_vocabularies_have_to_agree(
    pair, substrate: Substrate, other_substrate: Substrate
) -> None:
    decoder, _ = pair
    with pytest.raises(ConfigError, match="vocab_size must be at least 1, got 0"):
        CallableExpert(decoder, vocab_size=0, max_seq_len=3)
    with pytest.raises(ConfigError, match=r"vocab_size is 3, but the vocabulary has \d+ entries"):
        CallableExpert(decoder, vocab_size=3, max_seq_len=3, vocabulary=substrate)
    size = len(substrate)
    stranger = CallableExpert(decoder, vocab_size=size, max_seq_len=9, vocabulary=other_substrate)
    with pytest.raises(SubstrateError, match="different substrates"):
        Ensemble({"one": decoder, "two": stranger})
    small = CallableExpert(decoder, vocab_size=size - 1, max_seq_len=9)
    with pytest.raises(ConfigError, match="has a vocabulary of"):
        Ensemble({"one": decoder, "two": small})


def test_it_cannot_be_saved_and_nothing_is_written(pair, tmp_path) -> None:
    decoder, guest = pair
    with pytest.raises(ConfigError, match="expert 'two' is a CallableExpert; only"):
        Ensemble({"one": decoder, "two": guest}).save(tmp_path / "both")
    assert list(tmp_path.iterdir()) == []
