"""What a growth run is made of: all that its caller has decided, checked before the first stage."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from fastgrow.errors import ConfigError
from fastgrow.growth.active import StageShape, stage_shape
from fastgrow.growth.length import stage_length
from fastgrow.growth.moments import FRESH, Moments
from fastgrow.growth.result import StageResult
from fastgrow.growth.schedule import GrowthSchedule
from fastgrow.growth.stage import Stage
from fastgrow.growth.trunk import Trunk
from fastgrow.growth.when import Budget, Plateau
from fastgrow.nn import Decoder
from fastgrow.nn.tensor_digest import tensor_digest
from fastgrow.training import Batches, MixedStream, Mixture, TextData, TokenStream, TrainConfig
from fastgrow.training.pace import Place
from fastgrow.training.schedule import decay_begins

Text = TokenStream | MixedStream


@dataclass(frozen=True)
class Setup:
    """A run as it was asked for.

    Attributes:
        model: as it grows.
        data, schedule, train, trunk: as of `grow`.
        evaluate_on: texts to measure at every boundary, the validation text among them.
        validation: None where the data has none.
        name: what progress and log call the run.
        first_depth: blocks that were there before the first stage.
        shapes: of every stage.
        steps: of every stage, as planned; the most of them where it has `until`.
    """

    model: Decoder
    data: TextData | Mixture
    schedule: GrowthSchedule
    train: TrainConfig
    trunk: Trunk
    evaluate_on: Mapping[str, Text]
    validation: Text | None
    name: str
    first_depth: int
    shapes: list[StageShape]
    steps: list[int]

    @classmethod
    def of(
        cls,
        model: Decoder,
        data: TextData | Mixture,
        schedule: GrowthSchedule,
        train: TrainConfig,
        trunk: Trunk,
        evaluate_on: Mapping[str, Text],
        name: str,
    ) -> Setup:
        """Put together and checked: a late stage that cannot be is better refused now.

        Raises:
            ConfigError: a stage does not fit the model, waits for a plateau and there is no
                validation text, or does not fit into the run's schedule of the learning rate.
        """
        first_depth = model.n_layer
        shapes = [
            stage_shape(schedule, index, model.config, first_depth)
            for index in range(len(schedule.stages))
        ]
        validation = data.validation if len(data.validation) else None
        if validation is None and any(isinstance(s.until, Plateau) for s in schedule.stages):
            raise ConfigError("Stage.until: a plateau needs validation text, and the data has none")
        if validation is not None:
            evaluate_on = {"validation": validation, **evaluate_on}
        seq_len = train.seq_len or model.max_seq_len
        steps = [
            stage_length(stage, shape, model.config, train, seq_len).steps
            for stage, shape in zip(schedule.stages, shapes, strict=True)
        ]
        check_fits(schedule, steps, train)
        return cls(
            model=model,
            data=data,
            schedule=schedule,
            train=train,
            trunk=trunk,
            evaluate_on=evaluate_on,
            validation=validation,
            name=name,
            first_depth=first_depth,
            shapes=shapes,
            steps=steps,
        )

    @property
    def n_stages(self) -> int:
        return len(self.shapes)

    @property
    def seq_len(self) -> int:
        """Tokens in a window."""
        return self.train.seq_len or self.model.max_seq_len

    @property
    def shares_schedule(self) -> bool:
        """Whether all stages are parts of one training: of its learning rate and its data."""
        return self.train.schedule != "per-stage"

    @property
    def moments(self) -> Moments:
        """What becomes of the optimizer's state between stages."""
        return self.schedule.moments or (Moments() if self.shares_schedule else FRESH)

    def batches(self, index: int, steps_before: int) -> Batches:
        """The batches of stage `index` (from 0), which begins after so many steps of the run."""
        train, stage = self.train, 0 if self.shares_schedule else index
        seed = self.seed_of(stage)
        batches = Batches(self.data.train, train.batch_size, self.seq_len, seed=seed)
        if self.shares_schedule:
            batches.skip(steps_before * train.accumulate)
        return batches

    def place(self, index: int, steps_before: int) -> Place:
        """Where stage `index` (from 0), which begins after so many steps, stands in the run."""
        # Where a stage ends by seconds its steps are no more than a bound, and say nothing.
        known = [
            steps
            for steps, stage in zip(self.steps, self.schedule.stages, strict=True)
            if not (isinstance(stage.until, Budget) and stage.until.seconds is not None)
        ]
        return Place(steps_before, sum(self.steps[index + 1 :]), sum(known) or None)

    def seed_of(self, index: int) -> int:
        """What all that is drawn in stage `index` (from 0) depends on."""
        # A large odd multiplier keeps the seeds of one run's stages apart from the next run's.
        return (self.train.seed * 1_000_003 + index) % 2**63

    def steps_of(self, results: list[StageResult]) -> int:
        """Steps of the optimizer in finished stages."""
        per_step = self.train.batch_size * self.train.accumulate * self.seq_len
        return sum(result.tokens for result in results) // per_step

    def identity(self) -> dict[str, Any]:
        """All that decides what the run computes, as JSON values."""
        substrate = self.model.substrate
        config = asdict(self.model.config)
        # A model that is resumed has grown; the depth that counts is the one it started from.
        config["n_layer"] = self.first_depth
        return {
            "kind": "growth",
            "model": config,
            "substrate": None if substrate is None else substrate.fingerprint,
            "schedule": [_stage_settings(stage) for stage in self.schedule.stages],
            # Left out where it follows from the schedule of the learning rate, as records do from
            # before there was a choice.
            **({} if self.schedule.moments is None else {"moments": asdict(self.schedule.moments)}),
            "train": self.train.identity(),
            "data": self.data.train.digest,
            "evaluate_on": {name: text.digest for name, text in self.evaluate_on.items()},
            # Where rows are kept changes no number beyond rounding; what they are computed in does.
            "trunk": None if self.trunk.dtype == "same" else self.trunk.dtype,
            # A frozen table that no substrate accounts for.
            "table": None if self.model.own_table is None else tensor_digest(self.model.own_table),
        }


def check_fits(schedule: GrowthSchedule, steps: list[int], train: TrainConfig) -> None:
    """Refuse stages that may end at any time where the run's schedule cannot be kept with them.

    Args:
        schedule: the stages.
        steps: of each, or the most of them.
        train: its schedule of the learning rate.

    Raises:
        ConfigError: it is a cosine, or the decay would have to begin in the middle of such a stage.
    """
    if train.schedule == "per-stage":
        return
    begins, end = decay_begins(sum(steps), train.decay), 0
    for index, (stage, length) in enumerate(zip(schedule.stages, steps, strict=True)):
        end += length
        if stage.until is None or (isinstance(stage.until, Budget) and stage.until.flops):
            continue
        if train.schedule == "cosine":
            raise ConfigError(
                f"stage {index + 1}: Stage.until: a cosine over the run has to know its length; "
                'take train.schedule "wsd" or "per-stage", or a stage without until'
            )
        if end > begins and index + 1 < len(steps):
            raise ConfigError(
                f"stage {index + 1}: Stage.until may not have ended the stage when the run's decay "
                f"has to begin: that is at step {begins} of {sum(steps)}, and the stage may last "
                f"to step {end}. Give it fewer tokens or the later stages more, take a smaller "
                "train.decay, or leave until to the last stage"
            )


def _stage_settings(stage: Stage) -> dict[str, Any]:
    """A stage as JSON values.

    What is left at its default is left out, beyond the fields that stages have always had: a run
    begun by an earlier version is still known as the same.
    """
    usual, always = asdict(Stage()), ("blocks", "tokens", "insertion", "lr")
    values = asdict(stage)
    return {name: v for name, v in values.items() if name in always or v != usual[name]}
