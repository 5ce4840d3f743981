"""Time a training step: on a cached trunk, on a recomputed trunk, of one block, of a monolith."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.clock import Clock
from benchmarks.growth.models import Shape, make_model, make_text
from benchmarks.interleave import order
from benchmarks.memory import peak_bytes
from benchmarks.summary import quantile
from fastgrow.growth.trunk import Trunk
from fastgrow.growth.trunk.engine import StageTrunk, TrunkEngine
from fastgrow.growth.trunk.frozen import FrozenTrunk
from fastgrow.growth.trunk.placement import StageLoad
from fastgrow.nn import Decoder
from fastgrow.training import Batches, RunLog, TrainConfig, Trainer
from fastgrow.training.activations import training_mode

DEPTHS = (1, 6, 12, 24)
MONOLITH = 9
ROUNDS = 15

# Length of the learning-rate schedule, which never ends here; steps are run one at a time.
_FAR = 1_000_000


@dataclass(frozen=True)
class StepRow:
    """A contender: the seconds of its step in each round, and its peak memory in bytes."""

    name: str
    seconds: list[float]
    peak: int

    @property
    def median(self) -> float:
        return quantile(self.seconds, 0.5)


class _Stepper:
    """Runs a trainer one step at a time."""

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer

    def __call__(self) -> None:
        with training_mode(self._trainer.model):
            self._trainer._train_step(check_gradients=False)


def measure_steps(
    shape: Shape, folder: Path, clock: Clock, device: torch.device, rounds: int = ROUNDS
) -> list[StepRow]:
    """Time all contenders interleaved: each of `DEPTHS` with a cache on disk and recomputed."""
    batch = torch.randint(3, shape.V, (shape.B, shape.T), device=device)
    runs: dict[str, Callable[[], object]] = {
        "one block": _plain(shape, 1, device),
        f"monolith of {MONOLITH}": _plain(shape, MONOLITH, device),
        "a frozen block's forward pass": _frozen_block(shape, batch),
    }
    open_trunks = []
    for n in sorted({*DEPTHS, MONOLITH - 1}):
        for place in ("disk", "off") if n in DEPTHS else ("off",):
            trainer, trunk = _on_trunk(shape, n, place, folder / f"{n}", device)
            open_trunks.append(trunk)
            kind = "kept on disk" if place == "disk" else "recomputed"
            runs[f"{n} frozen, {kind}"] = _Stepper(trainer)
    for run in runs.values():
        run()
        run()
    samples: dict[str, list[float]] = {name: [] for name in runs}
    for round_ in range(rounds):
        for name in order(list(runs), round_):
            samples[name].append(clock.seconds(runs[name], name))
    rows = [StepRow(name, samples[name], peak_bytes(run, device)) for name, run in runs.items()]
    for trunk in open_trunks:
        trunk.close()
    return rows


def _plain(shape: Shape, n_layer: int, device: torch.device) -> _Stepper:
    model = make_model(shape, n_layer).to(device)
    batches = Batches(make_text(shape).train, shape.B, shape.T)
    return _Stepper(
        Trainer(model, dict(model.named_parameters()), batches, _config(shape), steps=_FAR)
    )


def _on_trunk(
    shape: Shape, n: int, place: str, folder: Path, device: torch.device
) -> tuple[Trainer, StageTrunk]:
    model = make_model(shape, n + 1).to(device)
    active = _activate_top(model)
    batches = Batches(make_text(shape).train, shape.B, shape.T)
    settings = Trunk(cache="disk" if place == "disk" else "off")
    engine = TrunkEngine(model, settings, out=folder, log=RunLog(quiet=True))
    reads = shape.windows / shape.B
    load = StageLoad(n, reads, reads, 1.0, grown=False)
    trunk = engine.begin(1, [load], batches)
    trainer = Trainer(
        model, active, trunk.batches, _config(shape), steps=_FAR, objective=trunk.objective
    )
    return trainer, trunk


def _activate_top(model: Decoder) -> dict[str, torch.nn.Parameter]:
    """Make the topmost block, the final norm and the head active; freeze all others."""
    model.requires_grad_(False)
    parts = (model.blocks[-1], model.final_norm, model.lm_head)
    for part in parts:
        part.requires_grad_(True)
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def _frozen_block(shape: Shape, batch: torch.Tensor) -> Callable[[], object]:
    model: Decoder = make_model(shape, 1).to(batch.device).requires_grad_(False)
    trunk = FrozenTrunk(model, 1)
    x = model.embedding(batch)
    return lambda: trunk.run_from(x, 0)


def _config(shape: Shape) -> TrainConfig:
    return TrainConfig(batch_size=shape.B, seq_len=shape.T, pick="last", precision="fp32")
