"""The trainer costs next to nothing beside the step it runs."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
import torch
from standin import LetterSubstrate, TinyModel, make_stream, random_text
from torch import nn

from fastgrow.nn import Decoder, DecoderConfig
from fastgrow.training import Batches, TrainConfig, Trainer
from fastgrow.training.optimizer import build_optimizer
from fastgrow.training.schedule import learning_rate

SUBSTRATE = LetterSubstrate()
STREAM = make_stream(random_text(300, 0), SUBSTRATE)
STEPS = 100


def bare_loop(model: nn.Module, batches: Batches, config: TrainConfig) -> None:
    """The same step in the fewest lines."""
    parameters = dict(model.named_parameters())
    optimizer = build_optimizer(parameters, config)
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, STEPS, peak=config.lr, warmup=0.05, min_ratio=0.1)
        ids, targets = next(batches)
        model.loss(ids, targets).backward()  # type: ignore[operator]
        nn.utils.clip_grad_norm_(list(parameters.values()), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


def trainer_loop(model: nn.Module, batches: Batches, config: TrainConfig) -> None:
    Trainer(model, dict(model.named_parameters()), batches, config, steps=STEPS).run()


def seconds_per_step(
    loop: Callable[[nn.Module, Batches, TrainConfig], None], model: nn.Module
) -> float:
    """Processor time, so that other processes do not count."""
    batches = Batches(STREAM, 4, 64)
    started = time.process_time()
    loop(model, batches, TrainConfig(pick="last"))
    return (time.process_time() - started) / STEPS


@pytest.mark.slow
def test_overhead_is_at_most_two_percent_of_a_small_step() -> None:
    """The difference is taken on a model of no size, where it is not lost in the noise, and set
    against one block of width 128 on four windows of 64 tokens."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        tiny = TinyModel(len(SUBSTRATE))
        times: dict[str, list[float]] = {"bare": [], "trainer": []}
        for _ in range(8):
            times["bare"].append(seconds_per_step(bare_loop, tiny))
            times["trainer"].append(seconds_per_step(trainer_loop, tiny))
        overhead = min(times["trainer"]) - min(times["bare"])
        config = DecoderConfig(vocab_size=len(SUBSTRATE), d_model=128, n_layer=1, n_head=4)
        block = Decoder(config, table=torch.randn(len(SUBSTRATE), 128))
        step = min(seconds_per_step(bare_loop, block) for _ in range(3))
    finally:
        torch.set_num_threads(threads)
    assert overhead <= 0.02 * step, f"{overhead * 1e6:.0f} µs on a step of {step * 1e6:.0f} µs"
