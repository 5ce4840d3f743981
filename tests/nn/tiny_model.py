"""A tiny substrate, and a decoder's configuration for it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from fastgrow.nn import DecoderConfig


class TinySubstrate:
    """Latin-1 characters after four special tokens; random unit vectors of width 8."""

    pad_id, bos_id, eos_id, unk_id = range(4)
    n_embed = 8

    def __init__(self, seed: int = 0) -> None:
        rows = np.random.default_rng(seed).standard_normal((len(self), self.n_embed))
        self.table = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
        self.fingerprint = f"{seed:064x}"

    def __len__(self) -> int:
        return 260

    def encode(self, text: str) -> list[int]:
        return [4 + byte for byte in text.encode("latin-1")]

    def decode(self, ids: Iterable[int]) -> str:
        return bytes(i - 4 for i in ids if i >= 4).decode("latin-1")

    def save(self, path: Path) -> None:
        (path / "substrate.json").write_text(json.dumps({"fingerprint": self.fingerprint}))


def small_config(**changes: Any) -> DecoderConfig:
    fields = {"vocab_size": 260, "d_model": 32, "n_layer": 3, "n_head": 4, "max_seq_len": 24}
    return DecoderConfig(**(fields | changes))  # type: ignore[arg-type]
