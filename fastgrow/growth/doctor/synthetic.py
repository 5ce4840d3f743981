"""A stand-in for a run whose data or n-gram lists are not at hand: narrow, on random text."""

from __future__ import annotations

import dataclasses

import numpy as np

from fastgrow.growth.schedule import GrowthSchedule, Stage
from fastgrow.nn import Decoder, DecoderConfig
from fastgrow.substrate import Substrate
from fastgrow.substrate.codes import Code
from fastgrow.training import TextData

LETTERS = "abcdefghijklmnopqrstuvwxyz "
WIDTH, HEADS, RANK, WINDOW = 64, 4, 4, 64
DOCUMENTS, DOCUMENT_LENGTH = 60, 60


def synthetic_substrate(codes: str | None, seed: int = 0) -> Substrate:
    """A few letters, drawn as glyphs or coded as the run's tokens are."""
    if codes is not None and not Code.parse(codes).real:
        return Substrate.build(characters=LETTERS, n_ngrams=0, codes=codes, seed=seed)
    return Substrate.build(
        characters=LETTERS, n_ngrams=0, codes=codes, seed=seed, n_components=min(16, WIDTH)
    )


def random_text(substrate: Substrate, seed: int = 0) -> TextData:
    """Random documents of characters that the substrate has."""
    generator = np.random.default_rng(seed)
    known = np.flatnonzero(substrate.n_characters == 1)
    characters = [substrate.decode([int(i)]) for i in known[:1000]]
    characters = [c for c in characters if len(c) == 1 and not c.isspace()]
    documents = [
        "".join(characters[i] for i in generator.integers(len(characters), size=DOCUMENT_LENGTH))
        for _ in range(DOCUMENTS)
    ]
    return TextData.from_splits(train=documents, substrate=substrate)


def narrow(config: DecoderConfig, substrate: Substrate) -> DecoderConfig:
    """A model of the same kind and depth, 64 wide or as wide as the substrate's codes."""
    width = max(WIDTH, substrate.n_embed)
    groups = config.n_head // config.kv_heads
    heads = max(HEADS, groups)
    return dataclasses.replace(
        config,
        vocab_size=len(substrate),
        n_embed=substrate.n_embed,
        d_model=width,
        n_head=heads,
        n_kv_head=heads // groups,
        max_seq_len=min(config.max_seq_len, WINDOW),
    )


def narrow_schedule(schedule: GrowthSchedule) -> GrowthSchedule:
    """The same stages, with corrections that fit a narrow model."""
    return GrowthSchedule([_narrow_stage(stage) for stage in schedule.stages])


def _narrow_stage(stage: Stage) -> Stage:
    if stage.lora is None:
        return stage
    rank = min(stage.lora.rank or RANK, RANK)
    return dataclasses.replace(
        stage, lora=dataclasses.replace(stage.lora, rank=rank, budget=None)
    )


def build(config: DecoderConfig, substrate: Substrate, seed: int) -> Decoder:
    """A model from a seed."""
    import torch

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Decoder(config, substrate)
