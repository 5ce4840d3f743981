"""A small growth run and a small ensemble, made once per session."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

import fastgrow as fg

CHARACTERS = "abcdefghijklmnopqrstuvwxyz ,.<>/()1AАжЖ汉没"
LINES = [f"the cat {chr(97 + i % 26)} sat on a mat and the dog ran past it all {i % 2}" for i in
         range(160)]  # fmt: skip


@pytest.fixture(scope="session")
def substrate() -> fg.Substrate:
    return fg.Substrate.build(characters=CHARACTERS, n_ngrams=0, n_components=16)


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory, substrate: fg.Substrate) -> Path:
    """A folder with `grown` (a run), `tokens` (its token files) and `duo` (an ensemble)."""
    root = tmp_path_factory.mktemp("made")
    corpus = root / "corpus.txt"
    corpus.write_text("\n".join(LINES).replace("0", "z") + "\n")
    data = fg.TextData(corpus, substrate, split=(0.8, 0.1, 0.1), cache_dir=root / "tokens")
    config = fg.DecoderConfig(vocab_size=len(substrate), d_model=16, n_head=2, max_seq_len=32)
    torch.manual_seed(0)
    fg.grow(
        fg.Decoder(config, substrate),
        data,
        fg.GrowthSchedule.blocks(2, tokens=2048),
        train=fg.TrainConfig(batch_size=4, lr=1e-2, eval_every=4, eval_tokens=256),
        out=root / "grown",
        evaluate_on={"test": data.test},
        quiet=True,
    )
    experts = {}
    for name in ("en", "other"):
        experts[name] = fg.Decoder(config, substrate)
        experts[name].append_blocks(2)
    fg.Ensemble(experts).save(root / "duo")
    return root


@pytest.fixture
def runs(made: Path, tmp_path: Path) -> Path:
    """A copy of `made` that a test may modify."""
    return Path(shutil.copytree(made, tmp_path / "runs"))
