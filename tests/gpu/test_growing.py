"""A run of two stages in bf16, the second with LoRA, has the CPU's losses for every cache place."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from against_cpu import assert_follows

from fastgrow.errors import Interrupted
from fastgrow.growth import GrowthSchedule, LoRA, Stage, Trunk, grow
from fastgrow.growth.trunk.stores import MemoryStore
from fastgrow.nn import Decoder, DecoderConfig, LoRALinear
from fastgrow.substrate import Substrate
from fastgrow.training import TextData, TrainConfig, Trainer

# On a CPU it is; it is small.
pytestmark = pytest.mark.filterwarnings("ignore:.*is several times slower")

STEPS = 10  # of a stage
BATCH, LENGTH = 8, 32
# Block 0 is the trunk of both stages. The second one trains a copy of block 1, and LoRA on that.
SCHEDULE = GrowthSchedule(
    [
        Stage(1, STEPS * BATCH * LENGTH),
        Stage(1, STEPS * BATCH * LENGTH, insertion="copy", lora=LoRA(rank=4, blocks=(1,))),
    ]
)
CPU = torch.device("cpu")
Run = Callable[..., list[float]]


@pytest.fixture(scope="module")
def run(substrate: Substrate, data: TextData, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The losses of all steps, and the validation's after each stage."""

    def train(
        device: torch.device, precision: str, trunk: Trunk | None = None, out: Path | None = None
    ) -> list[float]:
        out = out or tmp_path_factory.mktemp("run")
        config = DecoderConfig(
            vocab_size=len(substrate), d_model=64, n_layer=1, n_head=2, max_seq_len=LENGTH
        )
        torch.manual_seed(0)
        result = grow(
            Decoder(config, substrate).to(device),
            data,
            SCHEDULE,
            train=TrainConfig(
                batch_size=BATCH,
                lr=3e-3,
                precision=precision,
                log_every=1,
                eval_every=STEPS,
                pick="last",
            ),
            trunk=trunk,
            out=out,
            quiet=True,
        )
        assert result.model.device.type == device.type
        rows = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
        losses = {(row["stage"], row["step"]): row["loss"] for row in rows if "loss" in row}
        assert len(losses) == 2 * STEPS
        return [*losses.values(), *(stage.bits["validation"] for stage in result.stages)]

    return train


@pytest.fixture(scope="module")
def truth(run: Run) -> list[float]:
    return run(CPU, "fp32")


@pytest.fixture(scope="module")
def in_bf16(run: Run) -> list[float]:
    return run(CPU, "bf16")


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str, bool]]:
    """For each store in memory: its place, and device and pinning of an entry that is read."""
    made: list[tuple[str, str, bool]] = []
    initialise = MemoryStore.__init__

    def noted(self: MemoryStore, *arguments: Any) -> None:
        initialise(self, *arguments)
        row = self.read(np.arange(1))
        made.append((self.place, row.device.type, row.is_pinned()))

    monkeypatch.setattr(MemoryStore, "__init__", noted)
    return made


def test_losses_are_the_cpu_s(
    run: Run, device: torch.device, truth: list[float], in_bf16: list[float]
) -> None:
    assert truth[STEPS - 1] < 0.9 * truth[0], "nothing is learnt that could go wrong"
    assert_follows(run(device, "bf16"), truth, in_bf16)


@pytest.mark.parametrize("place", ["device", "ram", "disk"])
def test_also_on_a_kept_trunk(
    place: str,
    run: Run,
    device: torch.device,
    truth: list[float],
    in_bf16: list[float],
    kept: list[tuple[str, str, bool]],
) -> None:
    if place == "device" and device.type == "cpu":
        pytest.skip("main memory is the CPU's own")
    losses = run(device, "bf16", Trunk(cache=place))  # type: ignore[arg-type]
    lies_on = device.type if place == "device" else "cpu"
    is_pinned = place == "ram" and device.type == "cuda"
    assert set(kept) == (set() if place == "disk" else {(place, lies_on, is_pinned)})
    assert_follows(losses, truth, in_bf16)


@pytest.mark.parametrize("seeded", [True, False])
def test_a_seed_gives_the_same_weights(
    seeded: bool, substrate: Substrate, device: torch.device
) -> None:
    config = DecoderConfig(vocab_size=len(substrate), d_model=64, n_layer=1, n_head=2)
    made = []
    for place in (CPU, device):
        torch.manual_seed(3)
        generator = torch.Generator().manual_seed(4) if seeded else None
        model = Decoder(config, substrate, generator=generator, device=place)
        model.append_blocks(1, generator=generator)
        adapted = LoRALinear(model.blocks[0].mlp.up, 2, generator=generator)
        weights = {**model.state_dict(), "A": adapted.lora_A}
        assert all(weight.device.type == place.type for weight in weights.values())
        made.append({name: weight.detach().cpu() for name, weight in weights.items()})
    assert made[0].keys() == made[1].keys()
    assert all(torch.equal(weight, made[1][name]) for name, weight in made[0].items())


@pytest.mark.parametrize("stopped_at", [STEPS // 2, STEPS + STEPS // 2])
def test_a_run_that_was_stopped_goes_on(
    stopped_at: int,
    run: Run,
    device: torch.device,
    truth: list[float],
    in_bf16: list[float],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Resume in the first stage, or in the second with LoRA, where optimizer state exists."""
    steps = 0
    train_step = Trainer._train_step

    def stopping(self: Trainer, **options: Any) -> None:
        nonlocal steps
        train_step(self, **options)
        steps += 1
        if steps == stopped_at:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Trainer, "_train_step", stopping)
    arguments = (device, "bf16", Trunk(cache="ram"), tmp_path / "run")
    with pytest.raises(Interrupted):
        run(*arguments)
    assert steps == stopped_at
    losses = run(*arguments)
    assert steps == 2 * STEPS, "steps that were done are done again"
    assert_follows(losses, truth, in_bf16)
