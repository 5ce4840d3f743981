"""Sampling answers to prompts. A prompt is processed once for all its runs."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import torch
from torch import Tensor

from fastgrow.errors import ArgumentError
from fastgrow.evaluation.encoding import cut_left, encode_texts, require_substrate
from fastgrow.nn import LanguageModel, SubstrateLike, repeat_cache


@dataclass(frozen=True)
class Prompt:
    """A prompt and settings of its answers.

    Attributes:
        text: the prompt.
        new_tokens: maximum number of tokens of an answer.
        seed_key: combined with the seed, seeds the draws of this prompt, so that they do not depend
            on the other prompts.
    """

    text: str
    new_tokens: int
    seed_key: str


@dataclass(frozen=True)
class Answers:
    """A model's answers to one prompt.

    Attributes:
        texts: one answer per run; each ends before the first special token such as `</s>`.
        cut: number of tokens removed at the start of the prompt to fit the context.
        unknown: number of the prompt's characters that are not in the substrate.
    """

    texts: tuple[str, ...]
    cut: int
    unknown: int


def sample_answers(
    model: LanguageModel,
    prompts: Sequence[Prompt],
    *,
    runs: int = 10,
    temperature: float = 1.0,
    seed: int = 0,
    batch_size: int = 16,
    document_start: bool = True,
) -> list[Answers]:
    """Sample `runs` answers to each prompt.

    Prompt and answer have to fit the model's context of max_seq_len tokens, of which an answer has
    at most half; a longer prompt is cut on the left. Prompts of equal length form batches.

    Args:
        model: any `LanguageModel` with a substrate.
        prompts: the prompts to answer.
        runs: number of answers per prompt.
        temperature: divisor of the logits; 0 for greedy decoding.
        seed: random seed of the draws.
        batch_size: prompts per batch; the batch of their answers is `runs` times as large.
        document_start: whether to start each prompt with `<s>`.

    Raises:
        ConfigError: the model has no substrate.
        ArgumentError: the logits contain NaN or +inf, or are all -inf, e.g. of a diverged model.
    """
    substrate = require_substrate(model)
    encoded = encode_texts(substrate, [p.text for p in prompts], document_start=document_start)
    half = max(1, model.max_seq_len // 2)
    steps = [min(prompt.new_tokens, half) for prompt in prompts]
    # The last token of an answer is not an input of the model.
    kept = [cut_left(e.ids, model.max_seq_len - n + 1) for e, n in zip(encoded, steps, strict=True)]
    texts: dict[int, tuple[str, ...]] = {}
    for batch in _equal_lengths(kept, steps, batch_size):
        draws = np.stack([_uniform(seed, prompts[i].seed_key, runs, steps[i]) for i in batch])
        tokens = _continue(model, [kept[i] for i in batch], draws, temperature)
        for i, rows in zip(batch, tokens.tolist(), strict=True):
            texts[i] = tuple(_text(substrate, row) for row in rows)
    return [Answers(texts[i], len(e.ids) - len(kept[i]), e.unknown) for i, e in enumerate(encoded)]


def _equal_lengths(
    kept: Sequence[list[int]], steps: Sequence[int], batch_size: int
) -> Iterator[list[int]]:
    """Yield batches of indices with equal prompt length and answer length."""

    def shape(i: int) -> tuple[int, int]:
        return len(kept[i]), steps[i]

    for _, group in groupby(sorted(range(len(kept)), key=shape), shape):
        members = list(group)
        for first in range(0, len(members), batch_size):
            yield members[first : first + batch_size]


def _uniform(seed: int, key: str, runs: int, steps: int) -> np.ndarray:
    """Return random numbers in [0, 1) that depend on seed and key, float64 [runs, steps]."""
    return np.random.default_rng([seed, zlib.crc32(key.encode())]).random((runs, steps))


def _continue(
    model: LanguageModel, rows: Sequence[list[int]], draws: np.ndarray, temperature: float
) -> Tensor:
    """Continue B prompts: int64 [B, runs, steps], drawn by numbers [B, runs, steps] in [0, 1)."""
    batch, runs, steps = draws.shape
    numbers = torch.from_numpy(draws).to(model.device)
    ids = torch.tensor(rows, device=model.device)
    length = ids.shape[1]
    with torch.no_grad():
        cache = model.new_cache(batch, length + steps - 1) if steps > 1 else None
        logits = model(ids, cache, last_only=True)[:, -1]
        tokens = _draw(logits, numbers[:, :, 0], temperature)
        answer = [tokens]
        if cache is not None:
            cache = repeat_cache(cache, runs)
            inputs = tokens.reshape(-1, 1)
            if cache is None:
                # The cache cannot be copied: the prompt is processed again for every run.
                cache = model.new_cache(batch * runs, length + steps - 1)
                inputs = torch.cat([ids.repeat_interleave(runs, dim=0), inputs], dim=1)
            for step in range(1, steps):
                logits = model(inputs, cache, last_only=True)[:, -1]
                inputs = _draw(logits, numbers[:, :, step].reshape(-1, 1), temperature)
                answer.append(inputs.view(batch, runs))
    return torch.stack(answer, dim=-1)


def _draw(logits: Tensor, numbers: Tensor, temperature: float) -> Tensor:
    """Draw tokens [B, n] by inverting the cumulative distribution at numbers [B, n] in [0, 1).

    Unlike with `torch.multinomial`, equal numbers result in equal tokens on every device and in
    every batch, unless a number is within a rounding error of the boundary between two tokens.

    Raises:
        ArgumentError: the logits of a row contain NaN or +inf, or are all -inf.
    """
    # The maximum of a row is NaN if the row contains NaN, and -inf if all its logits are -inf.
    if not bool(logits.amax(-1).isfinite().all()):
        raise ArgumentError(
            "evaluate: cannot draw an answer: the model's logits contain NaN or +inf, or are all "
            "-inf"
        )
    if temperature == 0:
        return logits.argmax(-1, keepdim=True).expand_as(numbers)
    sums = (logits.double() / temperature).softmax(-1).cumsum(-1)
    total = sums[:, -1:]
    tokens = torch.searchsorted(sums, numbers * total, right=True)
    # Rounding may increase a number to the total, beyond the last token of nonzero probability.
    return torch.minimum(tokens, (sums < total).sum(-1, keepdim=True))


def _text(substrate: SubstrateLike, tokens: list[int]) -> str:
    """Decode the tokens before the first special token, whose text is empty."""
    # Decoded twice in a row, since some tokenizers drop a space at the start of a text.
    special = (i for i, token in enumerate(tokens) if not substrate.decode([token, token]))
    return substrate.decode(tokens[: next(special, len(tokens))])
