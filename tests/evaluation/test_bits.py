"""Bits per character against values computed by hand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from standin import LetterSubstrate, TinyModel, make_stream, random_text
from torch import nn
from torch.nn import functional

from fastgrow.errors import ConfigError, DataError
from fastgrow.evaluation import bits_per_character, uniform_bits, unigram_bits
from fastgrow.training import TokenStream

SUBSTRATE = LetterSubstrate("abc")  # 8 entries: 4 specials, a b c, and "th"


class Rigged:
    """Predicts token v with probability p[v] in every context, and records the targets."""

    def __init__(self, p: list[float], max_seq_len: int = 4):
        self.log_p = torch.tensor(p, dtype=torch.float64).log()
        self.max_seq_len = max_seq_len
        self.asked: list[list[list[int]]] = []

    def loss(
        self, ids: torch.Tensor, targets: torch.Tensor, *, ignore_index: int, reduction: str
    ) -> torch.Tensor:
        assert reduction == "sum"
        assert ids.shape == targets.shape
        self.asked.append(targets.tolist())
        log_p = self.log_p.expand(*targets.shape, -1)
        return functional.nll_loss(
            log_p.flatten(0, 1), targets.flatten(), ignore_index=ignore_index, reduction="sum"
        )


def test_by_hand() -> None:
    # <s> a b </s> <s> c </s>: targets a b </s> c </s>, five tokens, three characters.
    stream = make_stream("ab\nc", SUBSTRATE)
    model = Rigged([0, 0, 1 / 2, 0, 1 / 4, 1 / 8, 1 / 8, 0])
    result = bits_per_character(model, stream)
    bits = 2 + 3 + 1 + 3 + 1
    assert (result.tokens, result.characters) == (5, 3)
    assert result.bits_per_character == pytest.approx(bits / 3, rel=1e-12)
    assert result.bits_per_token == pytest.approx(bits / 5, rel=1e-12)
    assert result.loss == pytest.approx(bits * math.log(2) / 5, rel=1e-12)


def test_a_token_of_two_characters_counts_two() -> None:
    letters = LetterSubstrate("hta")
    stream = make_stream("tha", letters)
    assert len(stream) == 4
    result = uniform_bits(stream)
    assert (result.tokens, result.characters) == (3, 3)
    assert result.bits_per_character == pytest.approx(3 * math.log2(len(letters)) / 3)


def test_a_perfect_model_needs_no_bits() -> None:
    stream = make_stream("ab\nc", SUBSTRATE)

    class Knows(Rigged):
        def loss(self, ids: Any, targets: Any, *, ignore_index: int, reduction: str) -> Any:
            return torch.zeros(())

    assert bits_per_character(Knows([1.0]), stream).bits_per_character == 0


@pytest.mark.parametrize(("batch_size", "seq_len"), [(1, 1), (2, 3), (3, 5), (16, 64), (2, 8)])
def test_every_target_is_scored_once_in_order(batch_size: int, seq_len: int) -> None:
    stream = make_stream(random_text(7, 0, "abc"), SUBSTRATE)
    model = Rigged([1 / 8] * 8)
    result = bits_per_character(model, stream, batch_size=batch_size, seq_len=seq_len)
    scored = [target for batch in model.asked for row in batch for target in row]
    expected = [-100 if i == SUBSTRATE.bos_id else int(i) for i in stream.ids[1:]]
    assert scored == expected
    assert result.tokens == sum(target != -100 for target in expected)
    assert result.bits_per_token == pytest.approx(3)
    sizes = {(len(batch), len(batch[0])) for batch in model.asked[:-2]}
    assert sizes <= {(batch_size, seq_len)}


def test_padding_is_never_scored() -> None:
    stream = make_stream("ab", SUBSTRATE)
    padded = TokenStream(
        np.append(stream.ids, [SUBSTRATE.pad_id] * 3).astype(np.uint16),
        SUBSTRATE,
        n_documents=1,
        n_characters=2,
    )
    model = Rigged([1 / 8] * 8)
    assert bits_per_character(model, padded) == bits_per_character(model, stream)


def test_max_tokens_scores_the_start() -> None:
    stream = make_stream("abcabcabc", SUBSTRATE)
    model = Rigged([1 / 8] * 8)
    result = bits_per_character(model, stream, max_tokens=5)
    assert (result.tokens, result.characters) == (5, 5)
    assert model.asked == [[[4, 5, 6, 4]], [[5]]]
    assert bits_per_character(model, stream, max_tokens=500).tokens == 10


def test_a_real_model_is_scored_as_by_one_pass_and_left_as_it_was() -> None:
    torch.manual_seed(0)
    substrate = LetterSubstrate()
    model = TinyModel(len(substrate))
    model.add_module("dropout", nn.Dropout(0.5))
    model.hidden.eval()
    modes = [module.training for module in model.modules()]
    stream = make_stream(random_text(20, 0), substrate)
    result = bits_per_character(model, stream, batch_size=3, seq_len=11)
    assert [module.training for module in model.modules()] == modes
    assert all(parameter.grad is None for parameter in model.parameters())
    # The test model uses only one token of context, so windows have no effect.
    ids = torch.from_numpy(stream.ids.astype(np.int64))
    targets = ids[1:].masked_fill(ids[1:] == substrate.bos_id, -100)
    expected = model.loss(ids[None, :-1], targets[None]).item()
    assert result.loss == pytest.approx(expected, rel=1e-6)


def test_ids_are_moved_to_the_device_attribute_of_the_model() -> None:
    """Needed for an ensemble whose experts are all offloaded."""

    class Asked(Exception):
        pass

    class Parked(nn.Module):
        max_seq_len = 4
        device = torch.device("meta")

        def loss(self, ids: torch.Tensor, targets: torch.Tensor, **options: Any) -> torch.Tensor:
            raise Asked(ids.device, targets.device)

    with pytest.raises(Asked) as asked:
        bits_per_character(Parked(), make_stream("abcabc", SUBSTRATE))
    assert asked.value.args == (Parked.device, Parked.device)


def test_unigram_by_hand() -> None:
    # Training targets: a a b </s>; smoothed over the 8 entries: p(a) = 3/12, p(b) = p(</s>) = 2/12,
    # everything else 1/12.
    train, test = make_stream("aab", SUBSTRATE), make_stream("ac\nb", SUBSTRATE)
    result = unigram_bits(train, test)
    bits = -math.log2(3 / 12) - math.log2(1 / 12) - 3 * math.log2(2 / 12)
    assert (result.tokens, result.characters) == (5, 3)
    assert result.bits_per_character == pytest.approx(bits / 3, rel=1e-12)
    # A model with these probabilities has the same loss.
    p = [1 / 12, 1 / 12, 2 / 12, 1 / 12, 3 / 12, 2 / 12, 1 / 12, 1 / 12]
    assert bits_per_character(Rigged(p), test).loss == pytest.approx(result.loss, rel=1e-12)


def test_uniform_by_hand() -> None:
    result = uniform_bits(make_stream("ab\nc", SUBSTRATE))
    assert result.bits_per_token == pytest.approx(3)
    assert result.bits_per_character == pytest.approx(5)


def test_long_streams_are_counted_block_by_block(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = make_stream(random_text(50, 0, "abc"), SUBSTRATE)
    whole = unigram_bits(stream, stream)
    monkeypatch.setattr("fastgrow.evaluation.bits._BLOCK", 7)
    assert unigram_bits(stream, stream) == whole


def test_bad_input_is_named() -> None:
    stream = make_stream("abc", SUBSTRATE)
    empty = TokenStream(
        np.zeros(0, np.uint16), SUBSTRATE, n_documents=0, n_characters=0, name="validation"
    )
    model = Rigged([1 / 8] * 8)
    with pytest.raises(DataError, match="validation: holds no text to evaluate"):
        bits_per_character(model, empty)
    with pytest.raises(ConfigError, match="batch_size must be at least 1"):
        bits_per_character(model, stream, batch_size=0)
    with pytest.raises(ConfigError, match="max_tokens must be at least 1"):
        bits_per_character(model, stream, max_tokens=0)
    del model.max_seq_len
    with pytest.raises(ConfigError, match="pass seq_len"):
        bits_per_character(model, stream)
    with pytest.raises(DataError, match="different substrates"):
        unigram_bits(make_stream("abc", LetterSubstrate("cba")), stream)
