"""Likelihoods of continuations against sums over their tokens."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from rigged import CharacterSubstrate, Rigged

from fastgrow.errors import ArgumentError
from fastgrow.evaluation.likelihood import Candidates, log_likelihoods


def say(text: str) -> dict[str, float]:
    """Depends on the last two characters, so that a misplaced token changes the result."""
    number = 1 + (ord(text[-1]) * 7 + ord(text[-2:-1] or "0")) % 5
    total = sum(range(number, number + 4))
    return {letter: (number + i) / total for i, letter in enumerate("abcd")}


def by_hand(context: str, continuation: str) -> float:
    text, total = f"<s>{context}", 0.0
    for character in continuation:
        total += math.log(say(text)[character])
        text += character
    return total


def test_each_continuation_is_the_sum_of_its_tokens() -> None:
    questions = [
        Candidates("one", ("a", "bcd", "dd")),
        Candidates("longer context", ("abcdabcd", "c")),
        Candidates("", ("ab", "ba")),
    ]
    for batch_size in (1, 3, 16):
        found = log_likelihoods(Rigged(say), questions, batch_size=batch_size)
        for question, likelihoods in zip(questions, found, strict=True):
            expected = [by_hand(question.context, c) for c in question.continuations]
            assert likelihoods.log_likelihoods == pytest.approx(expected, abs=1e-4)
            assert (likelihoods.cut, likelihoods.unknown) == (0, 0)


def test_equal_choices_are_equally_likely_to_the_last_digit() -> None:
    class ByPlace(Rigged):
        """The rounding of a row depends on its index in the batch, as in a matrix product."""

        def loss(self, *arguments: Any, **options: Any) -> torch.Tensor:
            nats = super().loss(*arguments, **options)
            return nats * (1 + 1e-6 * torch.arange(len(nats)))[:, None]

    questions = [Candidates("one", ("a", "bcd", "a", "dd", "bcd")), Candidates("two", ("a", "a"))]
    first, second = log_likelihoods(ByPlace(say), questions, batch_size=2)
    values = first.log_likelihoods
    assert (values[0], values[1]) == (values[2], values[4])
    assert len(set(values)) == 3
    assert len(set(second.log_likelihoods)) == 1


def test_a_long_context_is_cut_on_the_left() -> None:
    model = Rigged(say, max_seq_len=8)
    found = log_likelihoods(model, [Candidates("0123456789", ("ab", "abcd"))])[0]
    # `say` uses only the last two characters, which are not cut.
    expected = [by_hand("0123456789", "ab"), by_hand("0123456789", "abcd")]
    assert found.log_likelihoods == pytest.approx(expected, abs=1e-4)
    # The input is the last eight of <s>, ten characters, and three of the longest choice.
    assert found.cut == 6
    assert max(map(len, model.texts_read)) == 8


def test_a_continuation_longer_than_the_context_is_scored_in_pieces() -> None:
    model = Rigged(say, max_seq_len=6)
    long = "abcdabcdabcdabc"
    found = log_likelihoods(model, [Candidates("xy", (long, "abcda"))])[0]
    expected = [by_hand("xy", long), by_hand("xy", "abcda")]
    assert found.log_likelihoods == pytest.approx(expected, abs=1e-4)
    assert found.cut == 3


def test_unknown_characters_are_counted_in_context_and_choices() -> None:
    model = Rigged(say, substrate=CharacterSubstrate(without="?"))
    found = log_likelihoods(model, [Candidates("a?", ("b", "?c")), Candidates("a", ("b", "c"))])
    assert [likelihoods.unknown for likelihoods in found] == [2, 0]
    assert math.isfinite(found[0].log_likelihoods[1])


def test_no_gradient_is_kept() -> None:
    weight = torch.ones((), requires_grad=True)

    class Trainable(Rigged):
        def loss(self, *arguments: torch.Tensor, **options: object) -> torch.Tensor:
            result = super().loss(*arguments, **options) * weight  # type: ignore[arg-type]
            assert not result.requires_grad
            return result

    log_likelihoods(Trainable(say), [Candidates("x", ("a", "b"))])


def test_a_likelihood_that_is_nan_is_an_error() -> None:
    """Otherwise it would be scored as a choice: the argmax of NaN is the first index."""

    class Diverged(Rigged):
        def _logits(self, ids: list[int]) -> torch.Tensor:
            return torch.full((self.vocab_size,), math.nan)

    with pytest.raises(ArgumentError, match="likelihood of a text is NaN"):
        log_likelihoods(Diverged(say), [Candidates("one", ("a", "b"))])
