"""Generation: compared with a plain loop; stopping, streaming, prompts beyond the context."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny_model import TinySubstrate, small_config

from fastgrow.errors import ArgumentError, ConfigError
from fastgrow.nn import Decoder, generate, stream


class Scripted:
    """A model that always generates a given text, with only the methods of the protocol."""

    vocab_size, max_seq_len, device = 260, 1000, torch.device("cpu")

    def __init__(self, substrate: Any, *texts: str) -> None:
        self.substrate = substrate
        self.rows = [[4 + b for b in text.encode("latin-1")] + [2] * 100 for text in texts]

    def new_cache(self, batch_size: int, max_len: int | None = None) -> Any:
        assert batch_size == len(self.rows)
        return SimpleNamespace(length=0, max_len=max_len, step=0)

    def __call__(self, ids: torch.Tensor, cache: Any = None, *, last_only: bool = False) -> Any:
        assert last_only
        cache.length += ids.shape[1]
        logits = torch.zeros(len(ids), 1, 260)
        for b, row in enumerate(self.rows):
            logits[b, 0, row[cache.step]] = 100.0
        cache.step += 1
        return logits

    def loss(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError


@pytest.fixture
def model(substrate: TinySubstrate) -> Decoder:
    # Large weights, so that distant tokens affect the next one.
    config = small_config(init_std=0.3)
    return Decoder(config, substrate, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def endless(model: Decoder) -> Decoder:
    """The same model without a substrate, so that no token ends a document."""
    model.substrate = None
    return model


def test_greedy_is_a_loop_over_full_passes(endless: Decoder, ids: torch.Tensor) -> None:
    expected = ids[:, :5]
    for _ in range(12):
        expected = torch.cat([expected, endless(expected)[:, -1:].argmax(-1)], dim=1)
    assert torch.equal(generate(endless, ids[:, :5], max_new_tokens=12, temperature=0), expected)
    one = generate(endless, ids[0, :5].tolist(), max_new_tokens=12, temperature=0)
    assert torch.equal(one, expected[:1])


def test_beyond_the_context_generation_continues_with_the_second_half(
    endless: Decoder, ids: torch.Tensor
) -> None:
    got = generate(endless, ids, max_new_tokens=30, temperature=0)
    expected, begin = ids, 0
    for _ in range(30):
        if expected.shape[1] - begin > 24:
            begin = expected.shape[1] - 12
        expected = torch.cat([expected, endless(expected[:, begin:])[:, -1:].argmax(-1)], dim=1)
    assert torch.equal(got, expected)
    long = torch.cat([ids, ids], 1)
    next_id = generate(endless, long, max_new_tokens=1, temperature=0)[:, -1]
    assert torch.equal(next_id, endless(long[:, -24:])[:, -1].argmax(-1))


def test_seed_is_reproducible_and_does_not_use_the_global_generator(
    model: Decoder, ids: torch.Tensor
) -> None:
    before = torch.get_rng_state()
    first = model.generate(ids, max_new_tokens=20, seed=3)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(model.generate(ids, max_new_tokens=20, seed=3), first)
    assert not torch.equal(model.generate(ids, max_new_tokens=20, seed=4), first)


def test_text_prompt_starts_a_document(model: Decoder, substrate: TinySubstrate) -> None:
    text = model.generate("abc", max_new_tokens=9, seed=0)
    ids = torch.tensor([substrate.bos_id, *substrate.encode("abc")])
    as_ids = generate(model, ids, max_new_tokens=9, seed=0)
    assert text == substrate.decode(as_ids[0].tolist())
    assert text.startswith("abc")
    assert len(text) > 3


def test_ends_with_the_document(substrate: TinySubstrate) -> None:
    assert generate(Scripted(substrate, "one"), "say: ", max_new_tokens=50) == "say: one"
    assert generate(Scripted(substrate, "one"), "say: ", max_new_tokens=2) == "say: on"
    assert generate(Scripted(substrate, "one"), "say: ", max_new_tokens=0) == "say: "


def test_rows_end_separately_and_are_padded(substrate: TinySubstrate) -> None:
    got = generate(Scripted(substrate, "abc", "d"), torch.tensor([[5], [6]]), max_new_tokens=50)
    assert got[0].tolist() == [5, *substrate.encode("abc"), 2]
    assert got[1].tolist() == [6, *substrate.encode("d"), 2, 0, 0]


def test_stop_tokens(substrate: TinySubstrate) -> None:
    dot = substrate.encode(".")[0]
    assert generate(Scripted(substrate, "a.b"), "", stop=dot) == "a"
    got = generate(Scripted(substrate, "a.b"), torch.tensor([[5]]), stop=[dot])
    assert got[0].tolist() == [5, *substrate.encode("a.")]
    bare = Scripted(None, "a.b", "....")
    got = generate(bare, torch.tensor([[5], [5]]), stop=[dot])
    assert got.tolist() == [[5, *substrate.encode("a.")], [5, dot, dot]]
    # Without a stop token the continuation has its full length.
    assert generate(bare, torch.tensor([[5], [5]]), max_new_tokens=30).shape == (2, 31)


def test_stop_strings_and_text_that_may_start_one(substrate: TinySubstrate) -> None:
    model = Scripted(substrate, "ab\nc\n\nd")
    assert generate(model, ">", stop="\n\n") == ">ab\nc"
    assert generate(model, ">", stop=["x", "b\nc", "\n\n"]) == ">a"
    assert generate(model, ">", stop=["c", "b\nc"]) == ">a"
    assert generate(model, ">", stop="d!") == ">ab\nc\n\nd"
    assert list(stream(model, ">", stop="\n\n")) == ["a", "b", "\nc"]
    assert list(stream(model, ">")) == ["a", "b", "\n", "c", "\n", "\n", "d"]


def test_callback_gets_every_piece(substrate: TinySubstrate) -> None:
    pieces: list[str] = []
    generate(Scripted(substrate, "one"), "", on_piece=pieces.append)
    assert pieces == ["o", "n", "e"]


def test_streaming_does_not_disable_the_callers_gradients(
    model: Decoder, ids: torch.Tensor
) -> None:
    for step in model.stream(ids, max_new_tokens=2):
        assert torch.is_grad_enabled()
        assert step.shape == (2,)


def test_any_language_model_generates(
    model: Decoder, config: Any, substrate: TinySubstrate, ids: torch.Tensor
) -> None:
    """The average of two models, with only the methods of the protocol."""
    other = Decoder(config, substrate, generator=torch.Generator().manual_seed(9))

    class Mean(Scripted):
        max_seq_len = 24

        def new_cache(self, batch_size: int, max_len: int | None = None) -> Any:
            caches = [m.new_cache(batch_size, max_len) for m in (model, other)]
            return SimpleNamespace(caches=caches, max_len=max_len, length=0)

        def __call__(self, ids: Any, cache: Any = None, *, last_only: bool = False) -> Any:
            a, b = (
                m(ids, c, last_only=last_only)
                for m, c in zip((model, other), cache.caches, strict=True)
            )
            cache.length += ids.shape[1]
            return (a + b) / 2

    got = generate(Mean(substrate), ids, max_new_tokens=30, temperature=0)
    logits = (model(ids) + other(ids)) / 2
    assert torch.equal(got[:, 17], logits[:, -1].argmax(-1))
    assert got.shape == (2, 47)


@pytest.mark.parametrize(
    ("prompt", "options", "error", "message"),
    [
        ([], {}, ArgumentError, "prompt must be text or integer ids"),
        (torch.zeros(1, 2, 3, dtype=torch.int64), {}, ArgumentError, r"\[T\] or \[B, T\]"),
        (torch.zeros(1, 2), {}, ArgumentError, "integer ids"),
        ([1], {"stop": "x"}, ConfigError, "stop strings require a text prompt"),
        ("a", {"stop": ""}, ConfigError, "empty stop string"),
        ("a", {"top_k": 0}, ConfigError, "top_k"),
        (
            "a",
            {"max_new_tokens": -1},
            ConfigError,
            "max_new_tokens: expected an integer of .* 0, got -1",
        ),
    ],
)
def test_bad_input(
    model: Decoder, prompt: Any, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        model.generate(prompt, **options)


def test_text_needs_a_substrate() -> None:
    with pytest.raises(ArgumentError, match="no substrate; prompt must be token ids"):
        generate(Scripted(None, "a"), "text")
