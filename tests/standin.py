"""A substrate of a few letters and a model with one hidden layer, small enough for tests."""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from fastgrow.errors import SubstrateError
from fastgrow.training import TokenStream


class LetterSubstrate:
    """pad 0, <s> 1, </s> 2, <unk> 3, then one token a character; "th" is one token."""

    pad_id, bos_id, eos_id, unk_id = 0, 1, 2, 3

    def __init__(
        self, letters: str = "abcdefghijklmnopqrstuvwxyz ", pairs: tuple[str, ...] = ("th",)
    ):
        self.tokens = ["<pad>", "<s>", "</s>", "<unk>", *letters, "th"]
        self._ids = {token: index for index, token in enumerate(self.tokens)}
        self.n_characters = np.array(
            [0, 0, 0, 0, *(len(token) for token in self.tokens[4:])], dtype=np.int32
        )
        self.fingerprint = hashlib.sha256("\0".join(self.tokens).encode()).hexdigest()
        self.encoded_documents = 0

    def __len__(self) -> int:
        return len(self.tokens)

    def encode_batch(self, texts: list[str], *, unknown: str = "error") -> list[list[int]]:
        self.encoded_documents += len(texts)
        return [self._encode(text, unknown) for text in texts]

    def _encode(self, text: str, unknown: str) -> list[int]:
        ids, position = [], 0
        while position < len(text):
            piece = text[position : position + 2]
            if piece not in self._ids:
                piece = text[position]
            if piece not in self._ids and unknown == "error":
                raise SubstrateError(f"unknown character U+{ord(piece):04X} at position {position}")
            ids.append(self._ids.get(piece, self.unk_id))
            position += len(piece)
        return ids


def make_stream(text: str, substrate: LetterSubstrate, name: str = "train") -> TokenStream:
    """A stream of one document a line."""
    documents = text.split("\n")
    ids: list[int] = []
    for encoded in substrate.encode_batch(documents):
        ids += [substrate.bos_id, *encoded, substrate.eos_id]
    return TokenStream(
        np.array(ids, dtype=np.uint16),
        substrate,
        n_documents=len(documents),
        n_characters=sum(map(len, documents)),
        name=name,
    )


def random_text(n_documents: int, seed: int, letters: str = "abcdefgh") -> str:
    """Words whose letters sometimes follow a fixed rule, so that there is something to learn."""
    generator = np.random.default_rng(seed)
    documents = []
    for _ in range(n_documents):
        letter, text = 0, []
        for _ in range(int(generator.integers(10, 60))):
            text.append(letters[letter])
            step = 1 if generator.random() < 0.8 else int(generator.integers(len(letters)))
            letter = (letter + step) % len(letters)
        documents.append("".join(text))
    return "\n".join(documents)


class TinyModel(nn.Module):
    """Embedding, one hidden layer, norm, head: predicts the next token from the current one."""

    def __init__(self, vocab_size: int, d_model: int = 16, max_seq_len: int = 32):
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, d_model)
        self.hidden = nn.Linear(d_model, d_model)
        self.norm = nn.LayerNorm(d_model)
        self.head = nn.Linear(d_model, vocab_size)
        self.max_seq_len = max_seq_len

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        embedded = self.embedding(ids)
        return self.head(self.norm(embedded + torch.tanh(self.hidden(embedded))))

    def loss(
        self,
        ids: torch.Tensor,
        targets: torch.Tensor,
        *,
        ignore_index: int = -100,
        reduction: str = "mean",
    ) -> torch.Tensor:
        return functional.cross_entropy(
            self(ids).flatten(0, 1),
            targets.flatten(),
            ignore_index=ignore_index,
            reduction=reduction,
        )
