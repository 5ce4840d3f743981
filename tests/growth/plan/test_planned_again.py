"""Plans of blocks that are computed again in the backward pass (checkpoint_activations)."""

from __future__ import annotations

from dataclasses import replace

import torch

from fastgrow.growth import GrowthSchedule, Stage
from fastgrow.growth.plan import make_plan
from fastgrow.growth.plan.calibrate import Bench, Role, _block_call
from fastgrow.nn import Block, DecoderConfig
from fastgrow.nn.rotary import RotaryTable
from fastgrow.training import TrainConfig

CONFIG = DecoderConfig(300, 64, n_head=4, n_embed=32, max_seq_len=32)
TRAIN = TrainConfig(batch_size=4, seq_len=32)
AGAIN = replace(TRAIN, checkpoint_activations=True)


def test_they_save_memory() -> None:
    plans = [
        make_plan(CONFIG, GrowthSchedule([Stage(4)]), t, measure=False) for t in (TRAIN, AGAIN)
    ]
    plain, spared = (plan.stages[0] for plan in plans)
    assert spared.step.activations < plain.step.activations / 2
    assert spared.peak < plain.peak


def test_they_are_timed_with_their_second_forward_pass(monkeypatch) -> None:
    runs: list[int] = []
    forward = Block.forward

    def counting(block: Block, *arguments: object) -> object:
        runs.append(id(block))
        return forward(block, *arguments)

    monkeypatch.setattr(Block, "forward", counting)
    rope = RotaryTable(32, CONFIG.head_dim, CONFIG.rope_base)
    for train, passes in ((TRAIN, 1), (AGAIN, 2)):
        runs.clear()
        bench = Bench(CONFIG, train, 32, torch.device("cpu"), torch.float32)
        _block_call(bench, Role(trained=True), 1, rope(32))()
        assert len(runs) == passes
