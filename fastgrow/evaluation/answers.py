"""Sampled answers to prompts: all runs on a question share one reading of its prompt."""

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
    """A prompt and how it is answered.

    Attributes:
        text: the prompt.
        new_tokens: the most tokens of an answer.
        seed_key: what, with the seed, its draws depend on; a question's own, so that the draws do
            not depend on the questions around it.
    """

    text: str
    new_tokens: int
    seed_key: str


@dataclass(frozen=True)
class Answers:
    """What a model answered to one prompt.

    Attributes:
        texts: one for each run; each ends before the first special token such as `</s>`.
        cut: how many of the prompt's tokens were cut on the left to fit the context.
        unknown: how many of its characters the substrate lacks.
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
    """Answer each prompt `runs` times.

    Prompt and answer have to fit the model's context of max_seq_len tokens, of which an answer
    takes at most half; of a longer prompt the last tokens are read. Prompts of equally many tokens
    are read together.

    Args:
        model: any `LanguageModel` with a substrate.
        prompts: what to answer.
        runs: answers to each.
        temperature: divides the logits; 0 always takes the most likely token.
        seed: of the draws.
        batch_size: prompts read at once; their answers are `runs` times as many rows.
        document_start: whether a prompt begins with `<s>`.

    Raises:
        ConfigError: the model has no substrate.
        ArgumentError: a prediction is no distribution, as that of a diverged model.
    """
    substrate = require_substrate(model)
    encoded = encode_texts(substrate, [p.text for p in prompts], document_start=document_start)
    half = max(1, model.max_seq_len // 2)
    steps = [min(prompt.new_tokens, half) for prompt in prompts]
    # The last token of an answer is never read.
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
    """Indices in batches that agree in the prompt's length and the answer's."""

    def shape(i: int) -> tuple[int, int]:
        return len(kept[i]), steps[i]

    for _, group in groupby(sorted(range(len(kept)), key=shape), shape):
        members = list(group)
        for first in range(0, len(members), batch_size):
            yield members[first : first + batch_size]


def _uniform(seed: int, key: str, runs: int, steps: int) -> np.ndarray:
    """Numbers in [0, 1), float64 [runs, steps], that a question always gets."""
    return np.random.default_rng([seed, zlib.crc32(key.encode())]).random((runs, steps))


def _continue(
    model: LanguageModel, rows: Sequence[list[int]], draws: np.ndarray, temperature: float
) -> Tensor:
    """The next tokens of B rows, int64 [B, runs, steps], by numbers [B, runs, steps] in [0, 1)."""
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
            unread = tokens.reshape(-1, 1)
            if cache is None:
                # A cache that cannot be copied: the prompt is read anew for every run.
                cache = model.new_cache(batch * runs, length + steps - 1)
                unread = torch.cat([ids.repeat_interleave(runs, dim=0), unread], dim=1)
            for step in range(1, steps):
                logits = model(unread, cache, last_only=True)[:, -1]
                unread = _draw(logits, numbers[:, :, step].reshape(-1, 1), temperature)
                answer.append(unread.view(batch, runs))
    return torch.stack(answer, dim=-1)


def _draw(logits: Tensor, numbers: Tensor, temperature: float) -> Tensor:
    """Tokens [B, n] by inverting the distribution's cumulative sum at numbers [B, n].

    Unlike `torch.multinomial`, the same numbers give the same tokens on every device and in every
    batch, unless a number lies within rounding of the boundary between two.

    Raises:
        ArgumentError: a row has no distribution.
    """
    # NaN passes through the maximum, and a row of -inf alone has one of -inf.
    if not bool(logits.amax(-1).isfinite().all()):
        raise ArgumentError(
            "evaluate: there is nothing to draw an answer from; the model's logits have NaN, "
            "+inf or nothing but -inf"
        )
    if temperature == 0:
        return logits.argmax(-1, keepdim=True).expand_as(numbers)
    sums = (logits.double() / temperature).softmax(-1).cumsum(-1)
    total = sums[:, -1:]
    tokens = torch.searchsorted(sums, numbers * total, right=True)
    # Rounding may take a number up to the total, beyond the last token that has any probability.
    return torch.minimum(tokens, (sums < total).sum(-1, keepdim=True))


def _text(substrate: SubstrateLike, tokens: list[int]) -> str:
    """The tokens' text up to the first special one, which has no text."""
    # Twice, since some tokenizers drop the space that a text begins with.
    special = (i for i, token in enumerate(tokens) if not substrate.decode([token, token]))
    return substrate.decode(tokens[: next(special, len(tokens))])
