"""Models, text and counted work of the growth benchmark."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import torch

from fastgrow.nn import Decoder, DecoderConfig
from fastgrow.training import TextData


@dataclass(frozen=True)
class Shape:
    """Sizes of a model and its training data.

    Attributes:
        d: width of the model; heads have width 32.
        V: vocabulary size.
        T: sequence length.
        B: batch size.
        windows: number of sequences in the text.
    """

    d: int = 256
    V: int = 4096
    T: int = 256
    B: int = 4
    windows: int = 32

    @property
    def block(self) -> float:
        """Forward FLOPs per token of a block: products, and attention to T/2 tokens on average."""
        return 24 * self.d**2 + 2 * self.T * self.d

    @property
    def head(self) -> float:
        """Forward FLOPs per token of the head."""
        return 2 * self.d * self.V

    @property
    def active(self) -> float:
        """FLOPs per token of a training step of one block and the head, on a frozen trunk.

        The first product (queries, keys and values) has no gradient of the block's input, which
        nothing below needs.
        """
        return 3 * self.block - 6 * self.d**2 + 3 * self.head


class Codes:
    """A minimal substrate with V - 3 characters, for a text of random characters."""

    pad_id, bos_id, eos_id = 0, 1, 2

    def __init__(self, vocab_size: int) -> None:
        self._size = vocab_size
        self.n_embed = 32
        self.table = np.random.default_rng(0).standard_normal((vocab_size, 32), dtype=np.float32)
        self.n_characters = (np.arange(vocab_size) > self.eos_id).astype(np.int32)
        self.fingerprint = hashlib.sha256(self.table.tobytes()).hexdigest()

    def __len__(self) -> int:
        return self._size

    def encode_batch(self, texts: list[str], *, unknown: str = "error") -> list[list[int]]:
        return [[ord(c) - 0x4E00 for c in text] for text in texts]

    def decode(self, ids: list[int], *, skip_special: bool = True) -> str:
        return "".join(chr(0x4E00 + i) for i in ids if not skip_special or i > self.eos_id)


def make_text(shape: Shape) -> TextData:
    """Make a document of random characters that fills `shape.windows` sequences exactly."""
    ids = np.random.default_rng(1).integers(3, shape.V, shape.windows * shape.T - 1)
    text = "".join(chr(0x4E00 + int(i)) for i in ids)
    return TextData.from_splits(train=[text], substrate=Codes(shape.V))  # type: ignore[arg-type]


def make_model(shape: Shape, n_layer: int) -> Decoder:
    torch.manual_seed(0)
    config = DecoderConfig(
        vocab_size=shape.V,
        d_model=shape.d,
        n_head=shape.d // 32,
        n_layer=n_layer,
        max_seq_len=shape.T,
        n_embed=32,
    )
    return Decoder(config, table=torch.from_numpy(Codes(shape.V).table))


def counted_gain(shape: Shape, stages: int, passes: float) -> float:
    """Return the FLOPs of growing by one block per stage without a cache, over those with one.

    Without a cache, each stage runs all frozen blocks for every token. With a cache, the cached
    activations of the previous stage are advanced by one block, once for every sequence, that is
    for one token in `passes`.
    """
    active = stages * shape.active
    recomputed = active + shape.block * stages * (stages - 1) / 2
    cached = active + shape.block * (stages - 1) / passes
    return recomputed / cached
