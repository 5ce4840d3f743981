"""Log-likelihoods of given continuations of a text."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from fastgrow.errors import ArgumentError
from fastgrow.evaluation.encoding import encode_texts, require_substrate
from fastgrow.nn import LanguageModel

_IGNORE_INDEX = -100


@dataclass(frozen=True)
class Candidates:
    """A nonempty text and possible continuations."""

    context: str
    continuations: tuple[str, ...]


@dataclass(frozen=True)
class Likelihoods:
    """Log-likelihoods of the continuations of one text.

    Attributes:
        log_likelihoods: ln p of each continuation, summed over its tokens.
        cut: number of tokens of the context that were cut for the longest continuation.
        unknown: number of characters of context and continuations that are not in the substrate.
    """

    log_likelihoods: tuple[float, ...]
    cut: int
    unknown: int


@dataclass(frozen=True)
class _Window:
    """A row to score: the last `targets` of its tokens, given the tokens before them."""

    index: tuple[int, int]
    tokens: list[int]
    targets: int


def log_likelihoods(
    model: LanguageModel,
    questions: Sequence[Candidates],
    *,
    batch_size: int = 16,
    document_start: bool = True,
) -> list[Likelihoods]:
    """Compute ln p of every continuation given its context.

    Context and continuation are encoded separately, so that no token spans both. A context that
    does not fit is cut on the left. A continuation longer than the model's context is scored in
    pieces, each given as many of the tokens before it as fit.

    Args:
        model: any `LanguageModel` with a substrate.
        questions: contexts and continuations.
        batch_size: rows per batch.
        document_start: whether to start each context with `<s>`.

    Raises:
        ConfigError: the model has no substrate.
        ArgumentError: a likelihood is NaN, e.g. of a diverged model.
    """
    substrate = require_substrate(model)
    contexts = encode_texts(
        substrate, [q.context for q in questions], document_start=document_start
    )
    flat = [text for question in questions for text in question.continuations]
    encoded = iter(encode_texts(substrate, flat, document_start=False))
    windows: list[_Window] = []
    cut, unknown = [], []
    for index, (question, context) in enumerate(zip(questions, contexts, strict=True)):
        pieces = [next(encoded) for _ in question.continuations]
        for choice, piece in enumerate(pieces):
            windows += _windows((index, choice), context.ids, piece.ids, model.max_seq_len)
        longest = max(len(piece.ids) for piece in pieces)
        over = len(context.ids) + longest - 1 - model.max_seq_len
        cut.append(min(max(0, over), len(context.ids)))
        unknown.append(context.unknown + sum(piece.unknown for piece in pieces))
    sums = [[0.0] * len(question.continuations) for question in questions]
    for window, value in zip(windows, _score(model, windows, batch_size), strict=True):
        index, choice = window.index
        sums[index][choice] += value
    return [Likelihoods(tuple(row), c, u) for row, c, u in zip(sums, cut, unknown, strict=True)]


def _windows(
    index: tuple[int, int], context: list[int], continuation: list[int], limit: int
) -> Iterator[_Window]:
    """Yield the windows of a continuation: one if it fits the model's context of `limit` tokens."""
    tokens = context + continuation
    step = len(continuation) if len(continuation) <= limit else max(1, limit // 2)
    for start in range(len(context), len(tokens), max(1, step)):
        end = min(start + step, len(tokens))
        # The last token is only a target.
        yield _Window(index, tokens[max(0, end - limit - 1) : end], end - start)


def _score(model: LanguageModel, windows: Sequence[_Window], batch_size: int) -> list[float]:
    """Compute the sum of ln p over the targets of each window."""
    pad_id = require_substrate(model).pad_id
    # Equal windows are scored once: in different batches rounding could make equal choices differ.
    same: dict[tuple[tuple[int, ...], int], list[int]] = {}
    for i, window in enumerate(windows):
        same.setdefault((tuple(window.tokens), window.targets), []).append(i)
    order = sorted((group[0] for group in same.values()), key=lambda i: len(windows[i].tokens))
    scores = [0.0] * len(windows)
    for first in range(0, len(order), batch_size):
        batch = order[first : first + batch_size]
        length = max(len(windows[i].tokens) for i in batch) - 1
        ids = torch.full((len(batch), length), pad_id)
        targets = torch.full((len(batch), length), _IGNORE_INDEX)
        for row, i in enumerate(batch):
            tokens = torch.tensor(windows[i].tokens)
            end = len(tokens) - 1
            ids[row, :end] = tokens[:-1]
            targets[row, end - windows[i].targets : end] = tokens[-windows[i].targets :]
        with torch.no_grad():
            nats = model.loss(
                ids.to(model.device),
                targets.to(model.device),
                ignore_index=_IGNORE_INDEX,
                reduction="none",
            )
        for i, value in zip(batch, (-nats.double().sum(-1)).tolist(), strict=True):
            if math.isnan(value):
                raise ArgumentError("evaluate: the model's likelihood of a text is NaN")
            scores[i] = value
    for group in same.values():
        for i in group:
            scores[i] = scores[group[0]]
    return scores
