"""Sampled answers: the inputs of the model, and the drawn tokens."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import pytest
import torch
from rigged import CharacterSubstrate, Rigged, UnrepeatableCache

from fastgrow.errors import ArgumentError, ConfigError
from fastgrow.evaluation.answers import Prompt, sample_answers
from fastgrow.nn import Decoder, DecoderConfig

HALVES = {"A": 0.5, "b": 0.25, " ": 0.25}


def test_the_prompt_is_processed_once_for_ten_runs() -> None:
    model = Rigged(lambda text: HALVES)
    answers = sample_answers(model, [Prompt("12345", 3, "q")])
    assert len(answers[0].texts) == 10
    # <s> and five characters once; then two more steps, ten rows each.
    assert model.tokens_read == 6 + 10 + 10
    assert model.batches == [1, 10, 10]
    assert len(set(answers[0].texts)) > 1


def test_one_token_needs_no_further_step() -> None:
    model = Rigged(lambda text: HALVES)
    sample_answers(model, [Prompt("12345", 1, "q")], runs=50)
    assert model.tokens_read == 6


def test_drawn_tokens_are_the_next_inputs() -> None:
    model = Rigged(lambda text: {"A": 0.5, "B": 0.5} if text.endswith(":") else text[-1].lower())
    prompts = [Prompt("one:", 2, "1"), Prompt("two:", 2, "2"), Prompt("three:", 2, "3")]
    for answer in sample_answers(model, prompts, runs=8, batch_size=2):
        assert set(answer.texts) == {"Aa", "Bb"}
    assert model.batches == [2, 16, 1, 8]


def test_a_cache_that_cannot_be_copied_gives_the_same_answers() -> None:
    def say(text: str) -> dict[str, float]:
        return {"x": 0.3, text[-1]: 0.7}

    prompts = [Prompt("abc", 4, "1"), Prompt("abd", 4, "2")]
    model, stubborn = Rigged(say), Rigged(say)
    stubborn.cache_type = UnrepeatableCache
    assert sample_answers(model, prompts) == sample_answers(stubborn, prompts)
    assert stubborn.tokens_read > model.tokens_read


def test_a_decoder_answers_as_it_generates() -> None:
    substrate = CharacterSubstrate()
    config = DecoderConfig(
        vocab_size=len(substrate), d_model=16, n_layer=2, n_head=2, max_seq_len=24, init_std=0.5
    )
    model = Decoder(config, substrate, generator=torch.Generator().manual_seed(0))  # type: ignore[arg-type]
    texts = ["one two", "three four", "six seven!", "a prompt that is too long to be read whole"]
    prompts = [Prompt(text, 5, text) for text in texts]
    answers = sample_answers(model, prompts, runs=2, temperature=0)
    for text, answer in zip(texts, answers, strict=True):
        ids = [substrate.bos_id, *substrate.encode(text)][-20:]
        said = model.generate(torch.tensor(ids), max_new_tokens=5, temperature=0)[0, len(ids) :]
        assert answer.texts == (substrate.decode(said.tolist()),) * 2
    assert len(set(answers)) == 4


def test_draws_follow_the_probabilities_at_every_step() -> None:
    model = Rigged(lambda text: HALVES)
    answers = sample_answers(model, [Prompt("x", 2, "q")], runs=1000)
    counts = Counter(answers[0].texts)
    assert set(counts) == {first + second for first in HALVES for second in HALVES}
    for pair, count in counts.items():
        # Five standard deviations.
        expected = HALVES[pair[0]] * HALVES[pair[1]]
        assert count / 1000 == pytest.approx(expected, abs=5 * (expected / 1000) ** 0.5)


def test_draws_depend_on_seed_and_question_alone() -> None:
    prompts = [Prompt(f"question {i}", 3, str(i)) for i in range(6)]

    def ask(prompts: list[Prompt], **options: int) -> list[tuple[str, ...]]:
        model = Rigged(lambda text: HALVES)
        return [answer.texts for answer in sample_answers(model, prompts, **options)]

    answers = ask(prompts)
    assert len(set(answers)) == 6
    assert ask(prompts, batch_size=1) == answers
    assert ask(prompts[::-1]) == answers[::-1]
    assert ask(prompts[2:3]) == answers[2:3]
    assert ask(prompts, seed=1) != answers


def test_temperature() -> None:
    prompt = [Prompt("x", 2, "q")]
    greedy = sample_answers(Rigged(lambda text: HALVES), prompt, temperature=0, runs=20)
    assert set(greedy[0].texts) == {"AA"}
    cold = sample_answers(Rigged(lambda text: HALVES), prompt, temperature=0.05, runs=20)
    assert set(cold[0].texts) == {"AA"}
    hot = sample_answers(Rigged(lambda text: HALVES), prompt, temperature=50.0, runs=400)
    assert 0.2 < sum(text[:1] == "A" for text in hot[0].texts) / 400 < 0.45


def test_a_long_prompt_is_cut_on_the_left() -> None:
    model = Rigged(lambda text: "A", max_seq_len=8)
    one, two, short = sample_answers(
        model,
        [Prompt("0123456789", 1, "1"), Prompt("0123456789", 2, "2"), Prompt("012345", 2, "3")],
        runs=3,
    )
    # The input has eight tokens in all; <s> is the first of eleven, the last answer no input.
    assert (one.cut, two.cut, short.cut) == (3, 4, 0)
    assert "23456789" in model.texts_read
    assert {"3456789", "3456789A"} <= set(model.texts_read)
    assert "<s>012345A" in model.texts_read
    assert two.texts == ("AA",) * 3


def test_an_answer_takes_at_most_half_the_context() -> None:
    model = Rigged(lambda text: "x", max_seq_len=8)
    answer = sample_answers(model, [Prompt("0123456789", 100, "1")], runs=1)[0]
    assert answer.texts == ("xxxx",)
    assert answer.cut == 6


def test_a_special_token_ends_an_answer() -> None:
    says = {"Q": "a", "a": "</s>", ">": "B", "B": "B"}
    model = Rigged(lambda text: says[text[-1]])
    assert sample_answers(model, [Prompt("Q", 4, "1")], runs=1)[0].texts == ("a",)
    first = Rigged(lambda text: "</s>" if text[-1] == "Q" else "A")
    assert sample_answers(first, [Prompt("Q", 2, "1")], runs=1)[0].texts == ("",)


def test_a_token_within_a_character_ends_nothing() -> None:
    class Bytes(CharacterSubstrate):
        """The second token of a pair decodes to no character, as in UTF-8."""

        def __init__(self) -> None:
            super().__init__()
            self.n_characters[self.ids["b"]] = 0

    model = Rigged(lambda text: {"Q": "a", "a": "b", "b": "c"}[text[-1]], substrate=Bytes())
    assert sample_answers(model, [Prompt("Q", 3, "1")], runs=1)[0].texts == ("abc",)


def test_tokens_of_spaces_end_nothing_where_a_text_begins_without_them() -> None:
    class Stripping(CharacterSubstrate):
        """Removes one space at the start of a text, as the tokenizers of Llama do."""

        def decode(self, ids: Iterable[int]) -> str:
            return super().decode(ids).removeprefix(" ")

    says = {":": " ", " ": "A"}
    model = Rigged(lambda text: says.get(text[-1], "</s>"), substrate=Stripping())
    assert sample_answers(model, [Prompt("Answer:", 4, "1")], runs=1)[0].texts == ("A",)


def test_unknown_characters_become_unk_and_are_counted() -> None:
    model = Rigged(lambda text: "A", substrate=CharacterSubstrate(without="?\n"))
    answers = sample_answers(model, [Prompt("a?\né", 1, "1"), Prompt("a", 1, "2")])
    assert [answer.unknown for answer in answers] == [3, 0]
    assert "<s>a<unk><unk><unk>" in model.texts_read


def test_special_tokens_in_a_question_are_plain_text() -> None:
    model = Rigged(lambda text: "A")
    sample_answers(model, [Prompt("</s>", 1, "1")])
    assert model.tokens_read == 5


def test_a_model_without_text_is_refused() -> None:
    model = Rigged(lambda text: "A")
    model.substrate = None  # type: ignore[assignment]
    with pytest.raises(ConfigError, match="no substrate"):
        sample_answers(model, [Prompt("x", 1, "q")])


def test_no_token_without_probability_is_drawn() -> None:
    from fastgrow.evaluation.answers import _draw

    logits = torch.tensor([[float("-inf"), 0.0, float("-inf"), 0.0, float("-inf")]])
    numbers = torch.tensor([[0.0, 0.5 - 1e-12, 0.5, 1 - 2**-53]], dtype=torch.float64)
    assert _draw(logits, numbers, 1.0).tolist() == [[1, 1, 3, 3]]
    # A number that is rounded up to the total.
    assert _draw(logits, torch.ones(1, 1, dtype=torch.float64), 1.0).tolist() == [[3]]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_prediction_that_is_no_distribution_is_an_error(value: float, temperature: float) -> None:
    class Diverged(Rigged):
        def _logits(self, ids: list[int]) -> torch.Tensor:
            logits = super()._logits(ids)
            # Some logits may be -inf, but not all.
            logits[: len(logits) if value < 0 else 1] = value
            return logits

    with pytest.raises(ArgumentError, match="cannot draw an answer: the model's logits"):
        sample_answers(Diverged(lambda text: "A"), [Prompt("x", 1, "q")], temperature=temperature)
