"""A narrow model on random text, for checks of a run whose data or n-grams are not available."""

from __future__ import annotations

import dataclasses

import numpy as np

from fastgrow.growth.schedule import GrowthSchedule
from fastgrow.growth.stage import Stage
from fastgrow.nn import DecoderConfig
from fastgrow.substrate import Substrate
from fastgrow.substrate.codes import Code
from fastgrow.training import TextData

LETTERS = "abcdefghijklmnopqrstuvwxyz "
COMPONENTS, WIDTH, HEADS, RANK, WINDOW = 16, 64, 4, 4, 64
DOCUMENTS, DOCUMENT_LENGTH = 60, 60


def synthetic_substrate(codes: str | None, seed: int = 0) -> Substrate:
    """Return a substrate of a few letters with glyphs, or with the codes of the run.

    Args:
        codes: name of the run's token codes; None for glyphs.
        seed: random seed of random codes.
    """
    real = codes is None or Code.parse(codes).real
    return Substrate.build(
        characters=LETTERS,
        n_ngrams=0,
        codes=codes,
        seed=seed,
        n_components=COMPONENTS if real else None,
    )


def random_text(substrate: Substrate, seed: int = 0) -> TextData:
    """Return random documents of the letters of `synthetic_substrate`."""
    generator = np.random.default_rng(seed)
    documents = [
        "".join(LETTERS[i] for i in generator.integers(len(LETTERS), size=DOCUMENT_LENGTH))
        for _ in range(DOCUMENTS)
    ]
    return TextData.from_splits(train=documents, substrate=substrate)


def narrow_config(config: DecoderConfig, substrate: Substrate) -> DecoderConfig:
    """Return the configuration of a narrow model of the same kind.

    Its width is 64, or that of the substrate's codes if they are wider.
    """
    groups = config.n_head // config.kv_heads
    heads = HEADS if HEADS % groups == 0 else groups
    width = max(WIDTH, substrate.n_embed)
    if width % (2 * heads):
        heads = groups = 1
    return dataclasses.replace(
        config,
        vocab_size=len(substrate),
        n_embed=substrate.n_embed,
        d_model=width,
        n_head=heads,
        n_kv_head=heads // groups,
        # The run's ratio times this width may not be an integer.
        mlp_ratio=max(1, round(config.mlp_ratio * width)) / width,
        max_seq_len=min(config.max_seq_len, WINDOW),
    )


def narrow_schedule(schedule: GrowthSchedule) -> GrowthSchedule:
    """Return the same stages, with LoRA ranks for a narrow model."""
    stages = [_narrow_stage(stage) for stage in schedule.stages]
    return dataclasses.replace(schedule, stages=stages)


def _narrow_stage(stage: Stage) -> Stage:
    if stage.lora is None:
        return stage
    rank = min(stage.lora.rank or RANK, RANK)
    return dataclasses.replace(stage, lora=dataclasses.replace(stage.lora, rank=rank, budget=None))
