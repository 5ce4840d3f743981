"""A model and a text small enough that a whole growth run takes a second."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch

from fastgrow.nn import Decoder, DecoderConfig
from fastgrow.substrate import Substrate
from fastgrow.training import TextData, TrainConfig

LETTERS = "abcdefghij "


def make_substrate() -> Substrate:
    return Substrate.build(characters=LETTERS, n_components=8)


def make_model(substrate: Substrate, seed: int = 0, embedding: str = "frozen") -> Decoder:
    torch.manual_seed(seed)
    config = DecoderConfig(
        vocab_size=len(substrate),
        d_model=16,
        n_layer=0,
        n_head=2,
        n_embed=8,
        max_seq_len=16,
        embedding=embedding,
    )
    return Decoder(config, substrate)


def make_data(substrate: Substrate, cache_dir: Path) -> TextData:
    generator = torch.Generator().manual_seed(7)
    documents = [
        "".join(LETTERS[i] for i in torch.randint(len(LETTERS), (40,), generator=generator))
        for _ in range(60)
    ]
    return TextData.from_splits(
        train=documents[:50],
        validation=documents[50:55],
        test=documents[55:],
        substrate=substrate,
        cache_dir=cache_dir,
    )


def make_train(**changes: object) -> TrainConfig:
    settings: dict = {"batch_size": 4, "seq_len": 16, "lr": 1e-2, "eval_every": 4, **changes}
    return TrainConfig(**settings)


def digest(model: torch.nn.Module) -> str:
    """SHA-256 over a model's whole state."""
    h = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        h.update(name.encode() + tensor.numpy().tobytes())
    return h.hexdigest()
