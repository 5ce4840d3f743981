"""A substrate of ASCII characters, and models with prescribed answers."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

SPECIALS = ("<pad>", "<s>", "</s>", "<unk>")
CERTAIN, IMPOSSIBLE = 60.0, 1e5


class CharacterSubstrate:
    """pad 0, <s> 1, </s> 2, <unk> 3, then newline and printable ASCII, a token each."""

    pad_id, bos_id, eos_id, unk_id = range(4)
    n_embed = 4

    def __init__(self, without: str = "") -> None:
        characters = "\n" + "".join(map(chr, range(32, 127)))
        self.tokens = [*SPECIALS, *(c for c in characters if c not in without)]
        self.ids = {token: index for index, token in enumerate(self.tokens)}
        self.n_characters = np.array([0] * 4 + [1] * (len(self.tokens) - 4), dtype=np.int32)
        rows = np.random.default_rng(0).standard_normal((len(self.tokens), self.n_embed))
        self.table = rows.astype(np.float32)
        self.fingerprint = hashlib.sha256("".join(self.tokens).encode()).hexdigest()

    def __len__(self) -> int:
        return len(self.tokens)

    def encode(self, text: str) -> list[int]:
        return [self.ids[character] for character in text]

    def encode_batch(self, texts: list[str], *, unknown: str = "error") -> list[list[int]]:
        assert unknown == "unk"
        return [[self.ids.get(character, self.unk_id) for character in text] for text in texts]

    def decode(self, ids: Iterable[int]) -> str:
        return "".join(self.tokens[i] for i in ids if i >= 4)

    def shown(self, ids: Iterable[int]) -> str:
        """Decode ids including special tokens."""
        return "".join(self.tokens[i] for i in ids)


class RiggedCache:
    def __init__(self, batch_size: int, max_len: int, ids: Tensor | None = None) -> None:
        self.batch_size, self.max_len = batch_size, max_len
        self.ids = torch.empty(batch_size, 0, dtype=torch.int64) if ids is None else ids

    @property
    def length(self) -> int:
        return self.ids.shape[1]

    def repeated(self, times: int) -> RiggedCache:
        ids = self.ids.repeat_interleave(times, dim=0)
        return RiggedCache(self.batch_size * times, self.max_len, ids)


class UnrepeatableCache(RiggedCache):
    repeated = None  # type: ignore[assignment]


class Rigged:
    """A `LanguageModel` whose predictions are given by the function `say`.

    Args:
        say: maps the text so far, including `<s>`, to the next character or special token, or to
            several with their probabilities; None if all tokens are equally likely.
    """

    device = torch.device("cpu")
    cache_type: type[RiggedCache] = RiggedCache

    def __init__(
        self,
        say: Callable[[str], str | dict[str, float] | None],
        max_seq_len: int = 512,
        substrate: CharacterSubstrate | None = None,
    ) -> None:
        self.say = say
        self.max_seq_len = max_seq_len
        self.substrate = substrate or CharacterSubstrate()
        self.vocab_size = len(self.substrate)
        self.tokens_read = 0
        self.batches: list[int] = []
        self.texts_read: list[str] = []

    def __call__(self, ids: Tensor, cache: Any = None, *, last_only: bool = False) -> Tensor:
        self.tokens_read += ids.numel()
        self.batches.append(len(ids))
        known = ids
        if cache is not None:
            assert ids.shape[0] == cache.batch_size
            known = cache.ids = torch.cat([cache.ids, ids], dim=1)
            assert cache.length <= cache.max_len
        assert known.shape[1] <= self.max_seq_len
        rows = known.tolist()
        self.texts_read += [self.substrate.shown(row) for row in rows]
        first = known.shape[1] - (1 if last_only else ids.shape[1])
        return torch.stack(
            [
                torch.stack([self._logits(row[: end + 1]) for end in range(first, len(row))])
                for row in rows
            ]
        )

    def loss(
        self, ids: Tensor, targets: Tensor, *, ignore_index: int = -100, reduction: str = "mean"
    ) -> Tensor:
        logits = self(ids)
        nats = functional.cross_entropy(
            logits.flatten(0, 1), targets.flatten(), ignore_index=ignore_index, reduction=reduction
        )
        return nats.view(targets.shape) if reduction == "none" else nats

    def new_cache(self, batch_size: int, max_len: int | None = None) -> RiggedCache:
        return self.cache_type(batch_size, max_len or self.max_seq_len)

    def _logits(self, ids: list[int]) -> Tensor:
        said = self.say(self.substrate.shown(ids))
        logits = torch.zeros(self.vocab_size)
        if isinstance(said, str):
            logits[self.substrate.ids[said]] = CERTAIN
        elif said is not None:
            logits.fill_(-IMPOSSIBLE)
            for token, probability in said.items():
                logits[self.substrate.ids[token]] = float(np.log(probability))
        return logits
