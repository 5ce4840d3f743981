"""The trainer updates the active parameters only, and a resumed run equals an uninterrupted one."""

from __future__ import annotations

import copy
import dataclasses
import math
import os
import random
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from standin import LetterSubstrate, TinyModel, make_stream, random_text
from torch import nn

from fastgrow.errors import CheckpointError, ConfigError, DivergenceError, Interrupted
from fastgrow.evaluation import bits_per_character
from fastgrow.training import (
    Batches,
    Checkpointer,
    MixedStream,
    RunLog,
    TrainConfig,
    Trainer,
)
from fastgrow.training.schedule import cosine

SUBSTRATE = LetterSubstrate()
TRAIN = make_stream(random_text(60, 0), SUBSTRATE)
OTHER = make_stream(random_text(15, 1, "stuvwxyz"), SUBSTRATE)
VALIDATION = make_stream(random_text(10, 2), SUBSTRATE, "validation")
STEPS = 14

Weights = dict[str, torch.Tensor]


def weights_of(model: nn.Module) -> Weights:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def same_bits(a: Weights, b: Weights) -> bool:
    return list(a) == list(b) and all(torch.equal(a[name], b[name]) for name in a)


def make_trainer(
    *,
    model: nn.Module | None = None,
    stream: Any = TRAIN,
    steps: int = STEPS,
    validation: Any = VALIDATION,
    log: RunLog | None = None,
    batch_size: int = 3,
    **settings: Any,
) -> Trainer:
    torch.manual_seed(0)
    if model is None:
        model = TinyModel(len(SUBSTRATE))
    config = TrainConfig(**{"lr": 1e-2, "eval_every": 3, "log_every": 4, **settings})
    active = {name: p for name, p in model.named_parameters() if p.requires_grad}
    batches = Batches(stream, batch_size, 16, seed=config.seed)
    return Trainer(model, active, batches, config, steps=steps, validation=validation, log=log)


# -- a step ---------------------------------------------------------------------------------------


def test_a_step_is_the_textbook_step() -> None:
    trainer = make_trainer(pick="last", validation=None, grad_clip=0.1, schedule="cosine")
    trainer.run()
    torch.manual_seed(0)
    model = TinyModel(len(SUBSTRATE))
    batches = Batches(TRAIN, 3, 16, seed=0)
    matrices = [p for p in model.parameters() if p.ndim == 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95), foreach=False, fused=False)
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = cosine(step, STEPS, peak=1e-2, warmup=0.05, min_ratio=0.0)
        ids, targets = next(batches)
        model.loss(ids, targets).backward()
        norm = torch.sqrt(sum(p.grad.square().sum() for p in model.parameters()))
        for parameter in model.parameters():
            parameter.grad *= 0.1 / max(norm.item(), 0.1)
        optimizer.step()
        optimizer.zero_grad()
    for name, expected in model.state_dict().items():
        torch.testing.assert_close(trainer.model.state_dict()[name], expected, rtol=1e-4, atol=1e-6)


def test_micro_batches_add_up_to_the_large_batch() -> None:
    """Documents of very different lengths, so the micro-batches have unequal numbers of targets."""
    text = "\n".join(["a"] * 30 + ["abcdefgh" * 6] * 6)
    stream = make_stream(text, SUBSTRATE)
    large = make_trainer(stream=stream, batch_size=8, accumulate=1, validation=None)
    small = make_trainer(stream=stream, batch_size=2, accumulate=4, validation=None)
    assert large.run().loss == pytest.approx(small.run().loss, rel=1e-5)
    for name, expected in large.model.state_dict().items():
        torch.testing.assert_close(small.model.state_dict()[name], expected, rtol=2e-4, atol=2e-5)


def test_training_learns_and_returns_a_result() -> None:
    trainer = make_trainer(steps=150)
    before = bits_per_character(trainer.model, VALIDATION).bits_per_character
    result = trainer.run()
    assert result.step == 150
    assert result.tokens == trainer.tokens == 150 * 3 * 16
    assert result.best_bits_per_character is not None
    assert result.best_bits_per_character < 0.6 * before
    assert result.loss < 2


def test_only_the_active_parameters_change() -> None:
    model = TinyModel(len(SUBSTRATE))
    for module in (model.embedding, model.hidden):
        module.requires_grad_(False)
    before = weights_of(model)
    trainer = make_trainer(model=model, weight_decay=0.5)
    trainer.run()
    held = {id(p) for group in trainer.optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in (*model.norm.parameters(), *model.head.parameters())}
    for name, value in model.state_dict().items():
        frozen = name.startswith(("embedding", "hidden"))
        assert torch.equal(value, before[name]) == frozen
        assert not frozen or model.get_parameter(name).grad is None


def test_weight_decay_changes_matrices_only() -> None:
    class Still(TinyModel):
        """Its loss has a negligible gradient, so only weight decay changes the weights."""

        def loss(self, *arguments: Any, **options: Any) -> torch.Tensor:
            return super().loss(*arguments, **options) * 0.0

    model = Still(len(SUBSTRATE))
    with torch.no_grad():
        model.norm.weight.fill_(2.0)
        model.head.bias.fill_(2.0)
    before = weights_of(model)
    make_trainer(model=model, weight_decay=0.5, validation=None).run()
    for name, value in model.state_dict().items():
        shrunk = value.norm() < before[name].norm()
        assert bool(shrunk) == (value.ndim >= 2), name


def test_the_weights_with_the_best_validation_are_restored() -> None:
    """A learning rate that rises until the model breaks: the last weights are not the best."""
    settings: dict[str, Any] = {
        "lr": 3.0,
        "warmup": 1.0,
        "decay": 0.0,
        "grad_clip": None,
        "steps": 40,
    }
    best, last = make_trainer(**settings), make_trainer(pick="last", **settings)
    result = best.run()
    last.run()
    assert result.best_step is not None
    assert 0 < result.best_step < 40
    score = bits_per_character(best.model, VALIDATION, batch_size=16, seq_len=16)
    assert score.bits_per_character == pytest.approx(result.best_bits_per_character, rel=1e-6)
    assert bits_per_character(last.model, VALIDATION).bits_per_character > score.bits_per_character
    assert result.best_bits_per_character == min(
        best.best_bits_per_character, last.best_bits_per_character
    )


def test_modes_are_restored() -> None:
    model = TinyModel(len(SUBSTRATE))
    model.eval()
    model.hidden.train()
    seen = []
    model.norm.register_forward_hook(lambda module, *_: seen.append(module.training))
    make_trainer(model=model, validation=None).run()
    assert all(seen)
    assert [module.training for module in model.modules()] == [False, False, True, False, False]


# -- stopping and resuming ------------------------------------------------------------------------


class Stop(Exception):
    """Ends a run in the middle, like a crash."""


def mixture() -> MixedStream:
    return MixedStream([(TRAIN, 0.7), (OTHER, 0.3)])


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"accumulate": 3, "grad_clip": 0.2},
        {"stream": mixture(), "accumulate": 2, "pick": "last"},
        {"validation": None},
        {"lr": 3.0, "warmup": 1.0, "decay": 0.0, "grad_clip": None, "eval_every": 1},
    ],
    ids=["plain", "accumulated", "mixture", "without validation", "best in the middle"],
)
def test_a_run_stopped_at_any_step_ends_in_the_same_bits(
    tmp_path: Path, settings: dict[str, Any]
) -> None:
    whole = make_trainer(**settings)
    expected = whole.run()
    if settings.get("eval_every") == 1:
        assert expected.best_step in range(1, STEPS)
    for stop in range(1, STEPS):
        checkpoints = Checkpointer(tmp_path / str(stop))

        def save_and_stop(
            trainer: Trainer, checkpoints: Checkpointer = checkpoints, stop: int = stop
        ) -> None:
            if trainer.step == stop:
                checkpoints.save(stop, {"model": trainer.model, "trainer": trainer})
                raise Stop

        with pytest.raises(Stop):
            make_trainer(checkpoint_every=1, **settings).run(save_and_stop)
        resumed = make_trainer(checkpoint_every=1, **settings)
        state = checkpoints.load()
        resumed.model.load_state_dict(state["model"])
        resumed.load_state_dict(state["trainer"])
        assert resumed.step == stop
        result = resumed.run()
        assert same_bits(weights_of(resumed.model), weights_of(whole.model)), stop
        assert result.best_step == expected.best_step
        assert result.best_bits_per_character == expected.best_bits_per_character
        assert result.loss == expected.loss


def test_random_generators_are_resumed() -> None:
    class Noisy(TinyModel):
        """Draws from all three generators, as dropout and augmentation do."""

        def loss(self, *arguments: Any, **options: Any) -> torch.Tensor:
            noise = random.random() + np.random.rand() + torch.rand(()).item()  # noqa: NPY002
            return super().loss(*arguments, **options) * (0.5 + noise)

    def seeded() -> Trainer:
        random.seed(0)
        np.random.seed(0)  # noqa: NPY002
        return make_trainer(model=Noisy(len(SUBSTRATE)), checkpoint_every=5, validation=None)

    torch.manual_seed(0)
    whole = seeded()
    saved: list[tuple[Weights, dict[str, Any]]] = []

    def snapshot(trainer: Trainer) -> None:
        saved.append((weights_of(trainer.model), copy.deepcopy(trainer.state_dict())))

    whole.run(snapshot)
    resumed = seeded()
    resumed.model.load_state_dict(saved[0][0])
    resumed.load_state_dict(saved[0][1])
    resumed.run()
    assert same_bits(weights_of(resumed.model), weights_of(whole.model))


PROGRAM = """
    import os, signal, sys
    from pathlib import Path
    import test_loop
    from fastgrow.training import Checkpointer, RunLog

    folder, kill_at = Path(sys.argv[1]), int(sys.argv[2])
    checkpoints = Checkpointer(folder / "checkpoints")
    log = RunLog(folder, quiet=True, tensorboard=False)
    trainer = test_loop.killable_trainer(log)

    class Batches(type(trainer.batches)):
        def __next__(self):
            if trainer.step == kill_at and sum(self._taken) % 6:
                os.kill(os.getpid(), signal.SIGKILL)
            return super().__next__()

    trainer.batches.__class__ = Batches
    trainer.run(lambda t: checkpoints.save(t.step, {"model": t.model, "trainer": t}))
"""


def killable_trainer(log: RunLog) -> Trainer:
    """Two micro-batches of three windows a step."""
    return make_trainer(stream=mixture(), accumulate=2, checkpoint_every=4, log_every=1, log=log)


def test_a_killed_process_is_resumed(tmp_path: Path) -> None:
    """SIGKILL between the two micro-batches of step 11; the last checkpoint is of step 8."""
    here = Path(__file__).parent
    paths = [str(here), str(here.parent), *sys.path]
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    killed = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(PROGRAM), str(tmp_path), "10"],
        env={**environment, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
        capture_output=True,
        text=True,
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    checkpoints = Checkpointer(tmp_path / "checkpoints")
    with RunLog(tmp_path, quiet=True, tensorboard=False) as log:
        resumed = killable_trainer(log)
        state = checkpoints.load()
        resumed.model.load_state_dict(state["model"])
        resumed.load_state_dict(state["trainer"])
        assert resumed.step == 8
        resumed.run()
    with RunLog(tmp_path / "whole", quiet=True, tensorboard=False) as log:
        whole = killable_trainer(log)
        whole.run()
    assert same_bits(weights_of(resumed.model), weights_of(whole.model))

    def rows(folder: Path) -> list[str]:
        lines = (folder / "metrics.jsonl").read_text().splitlines()
        return [line.split(', "tokens_per_second"')[0] for line in lines]

    assert rows(tmp_path) == rows(tmp_path / "whole")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"lr": 2e-2}, "lr=0.01"),
        ({"steps": STEPS + 1}, "steps=14"),
        ({"accumulate": 2}, "accumulate=1"),
        ({"pick": "last"}, "pick='best'"),
        ({"stream": OTHER}, "data="),
    ],
)
def test_a_state_of_another_run_is_refused(change: dict[str, Any], named: str) -> None:
    state = make_trainer().state_dict()
    with pytest.raises(CheckpointError, match=named):
        make_trainer(**change).load_state_dict(state)
    make_trainer(log_every=1, checkpoint_every=2).load_state_dict(state)


def test_a_state_of_other_parameters_is_refused() -> None:
    trainer = make_trainer(steps=1)
    trainer.run()
    state = trainer.state_dict()
    model = TinyModel(len(SUBSTRATE))
    model.embedding.requires_grad_(False)
    with pytest.raises(CheckpointError, match="active="):
        make_trainer(model=model, steps=1).load_state_dict(state)
    with pytest.raises(CheckpointError, match="has shape"):
        make_trainer(model=TinyModel(len(SUBSTRATE), d_model=8), steps=1).load_state_dict(state)
    del state["optimizer"]["head.bias"]
    with pytest.raises(CheckpointError, match=r"missing \['head.bias'\]"):
        make_trainer(steps=1).load_state_dict(state)


# -- Ctrl-C ---------------------------------------------------------------------------------------


class Signalling(TinyModel):
    """Sends its own process a signal while the loss of a given call is computed."""

    def __init__(self, calls: set[int], number: signal.Signals = signal.SIGINT):
        super().__init__(len(SUBSTRATE))
        self.calls = calls
        self.number = number
        self.count = 0

    def loss(self, *arguments: Any, **options: Any) -> torch.Tensor:
        self.count += 1
        if self.count in self.calls:
            os.kill(os.getpid(), self.number)
        return super().loss(*arguments, **options)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("at", [5, STEPS])
def test_a_signal_finishes_the_step_saves_and_reports_how_to_resume(
    tmp_path: Path, number: signal.Signals, at: int, capfd: pytest.CaptureFixture[str]
) -> None:
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    torch.manual_seed(0)
    trainer = make_trainer(model=Signalling({at}, number), validation=None)
    checkpoints = Checkpointer(tmp_path)
    with pytest.raises(Interrupted) as caught:
        trainer.run(lambda t: checkpoints.save(t.step, {"model": t.model, "trainer": t}))
    message = str(caught.value)
    assert f"stopped by {number.name} after step {at} of {STEPS}" in message
    assert f"the state is saved in {tmp_path / f'step-{at:08d}'}" in message
    assert 'resume="auto"' in message
    assert "a second signal stops at once" in capfd.readouterr().err
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == handlers

    torch.manual_seed(0)
    resumed = make_trainer(model=Signalling(set()), validation=None)
    state = checkpoints.load()
    resumed.model.load_state_dict(state["model"])
    resumed.load_state_dict(state["trainer"])
    resumed.run()
    torch.manual_seed(0)
    whole = make_trainer(model=Signalling(set()), validation=None)
    whole.run()
    assert same_bits(weights_of(resumed.model), weights_of(whole.model))


def test_a_second_signal_stops_at_once() -> None:
    class Twice(Signalling):
        def loss(self, *arguments: Any, **options: Any) -> torch.Tensor:
            super().loss(*arguments, **options)
            return super().loss(*arguments, **options)

    saved: list[int] = []
    trainer = make_trainer(model=Twice({5, 6}), validation=None)
    with pytest.raises(KeyboardInterrupt):
        trainer.run(lambda t: saved.append(t.step))
    assert trainer.step == 2
    assert saved == []
    terminated = make_trainer(model=Twice({5, 6}, signal.SIGTERM), validation=None)
    with pytest.raises(SystemExit):
        terminated.run()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_interrupted_run_without_checkpoints_reports_it() -> None:
    trainer = make_trainer(model=Signalling({5}), validation=None)
    with pytest.raises(Interrupted, match="keeps no checkpoints"):
        trainer.run()


# -- errors ---------------------------------------------------------------------------------------


class Breaking(TinyModel):
    """Its loss, or only the gradient of its loss, is not finite from a given call on."""

    def __init__(self, at: int, what: str):
        super().__init__(len(SUBSTRATE))
        self.at, self.what, self.count = at, what, 0

    def loss(self, *arguments: Any, **options: Any) -> torch.Tensor:
        self.count += self.training
        loss = super().loss(*arguments, **options)
        if self.count < self.at or not self.training:
            return loss
        if self.what == "loss":
            return loss * math.inf
        # sqrt has an infinite slope at 0, and the value is finite.
        return loss + (self.head.bias * 0.0).abs().sum().sqrt()


@pytest.mark.parametrize("what", ["loss", "gradient norm"])
def test_a_loss_that_is_not_finite_stops_before_a_checkpoint(what: str) -> None:
    model = Breaking(7, what)
    trainer = make_trainer(model=model, checkpoint_every=1, validation=None)
    saved: list[tuple[int, Weights]] = []
    with pytest.raises(DivergenceError, match=f"the {what} became (inf|nan) at step 7 of 14"):
        trainer.run(lambda t: saved.append((t.step, weights_of(t.model))))
    assert [step for step, _ in saved] == [1, 2, 3, 4, 5, 6]
    assert same_bits(weights_of(model), saved[-1][1])


@pytest.mark.parametrize("due", ["log_every", "checkpoint_every", "eval_every"])
def test_a_loss_that_is_not_finite_is_found_without_reading_each_step(due: str) -> None:
    """A GPU's losses are read only for logging, evaluation or a checkpoint."""
    quiet = {"log_every": 100, "checkpoint_every": 100, "eval_every": 100}
    trainer = make_trainer(model=Breaking(7, "loss"), **{**quiet, due: 5})
    trainer._reads_every_step = False
    saved: list[int] = []
    with pytest.raises(DivergenceError, match="at step 10 of 14"):
        trainer.run(lambda t: saved.append(t.step))
    assert saved == ([5] if due == "checkpoint_every" else [])
    assert trainer.best_step == (5 if due == "eval_every" else None)


def test_a_parameter_without_a_gradient_is_named() -> None:
    model = TinyModel(len(SUBSTRATE))
    model.register_parameter("forgotten", nn.Parameter(torch.zeros(2)))
    with pytest.raises(ConfigError, match="forgotten is to be trained but got no gradient"):
        make_trainer(model=model).run()


def test_a_wrong_active_set_is_named() -> None:
    model = TinyModel(len(SUBSTRATE))
    batches = Batches(TRAIN, 3, 16)
    everything = dict(model.named_parameters())

    def build(active: dict[str, nn.Parameter]) -> None:
        Trainer(model, active, batches, TrainConfig(), steps=1)

    with pytest.raises(ConfigError, match=r"head\.bias is not among the parameters to train but"):
        build({name: p for name, p in everything.items() if name != "head.bias"})
    with pytest.raises(ConfigError, match="x is to be trained but is not a parameter"):
        build({**everything, "x": nn.Parameter(torch.zeros(1))})
    model.head.bias.requires_grad_(False)
    with pytest.raises(ConfigError, match=r"head\.bias is to be trained but does not require"):
        build(everything)
    model.requires_grad_(False)
    with pytest.raises(ConfigError, match="nothing to train"):
        build({})


def test_the_length_is_steps_or_tokens() -> None:
    model = TinyModel(len(SUBSTRATE))
    active, batches = dict(model.named_parameters()), Batches(TRAIN, 3, 16)
    config = TrainConfig(accumulate=2)
    assert Trainer(model, active, batches, config, tokens=97).steps == 2
    assert Trainer(model, active, batches, config, tokens=96).steps == 1
    for lengths in ({}, {"steps": 1, "tokens": 1}):
        with pytest.raises(ConfigError, match="exactly one of steps= and tokens="):
            Trainer(model, active, batches, config, **lengths)
    with pytest.raises(ConfigError, match="at least one step"):
        Trainer(model, active, batches, config, steps=0)


def test_a_finished_run_does_not_train_again() -> None:
    trainer = make_trainer()
    first = trainer.run()
    weights = weights_of(trainer.model)
    assert dataclasses.astuple(trainer.run()) == dataclasses.astuple(first)
    assert same_bits(weights_of(trainer.model), weights)
