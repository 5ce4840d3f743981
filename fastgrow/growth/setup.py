"""The settings of a growth run, checked before its first stage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from fastgrow.errors import ConfigError
from fastgrow.growth.active import StageShape, stage_shape
from fastgrow.growth.length import stage_length
from fastgrow.growth.moments import FRESH, Moments
from fastgrow.growth.result import StageResult
from fastgrow.growth.schedule import GrowthSchedule
from fastgrow.growth.stage import Stage
from fastgrow.growth.stop_criteria import StageLength
from fastgrow.growth.trunk import Trunk
from fastgrow.nn import Decoder
from fastgrow.nn.tensor_digest import tensor_digest
from fastgrow.training import Batches, MixedStream, Mixture, TextData, TokenStream, TrainConfig
from fastgrow.training.lr_controller import RunPosition
from fastgrow.training.schedule import decay_begins

Text = TokenStream | MixedStream


@dataclass(frozen=True)
class Setup:
    """The settings of a run.

    Attributes:
        model: the model that grows.
        data, schedule, train, trunk: as in `grow`.
        evaluate_on: texts to evaluate at the end of every stage, including the validation text.
        validation: the validation text; None if the data has none.
        name: name of the run in progress lines and the log.
        first_depth: number of blocks before the first stage.
        shapes: shape of every stage.
        steps: number of steps of every stage, as planned; the upper bound if it has `until`.
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
        """Check the settings of a run, so that an impossible late stage is reported at the start.

        Raises:
            ConfigError: a stage does not fit the model, waits for a plateau without validation
                text, or does not fit the run's learning-rate schedule.
        """
        first_depth = model.n_layer
        shapes = [
            stage_shape(schedule, index, model.config, first_depth)
            for index in range(len(schedule.stages))
        ]
        validation = data.validation if len(data.validation) else None
        if validation is None:
            for number, stage in enumerate(schedule.stages, 1):
                if stage.until is not None and stage.until.needs_validation:
                    raise ConfigError(
                        f"stage {number}: Stage.until: {type(stage.until).__name__} needs "
                        "validation text, and the data has none; add validation text, or end the "
                        "stage by its tokens"
                    )
        if validation is not None:
            evaluate_on = {"validation": validation, **evaluate_on}
        seq_len = train.seq_len or model.max_seq_len
        lengths = [
            stage_length(stage, shape, model.config, train, seq_len)
            for stage, shape in zip(schedule.stages, shapes, strict=True)
        ]
        check_fits(lengths, train)
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
            steps=[length.steps for length in lengths],
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
        """Whether all stages share one learning-rate schedule and one order of the data."""
        return self.train.schedule != "per-stage"

    @property
    def moments(self) -> Moments:
        """What happens to the optimizer state at a boundary."""
        return self.schedule.moments or (Moments() if self.shares_schedule else FRESH)

    def batches(self, index: int, steps_before: int) -> Batches:
        """Return the batches of stage `index` (from 0), which starts after `steps_before` steps."""
        train, stage = self.train, 0 if self.shares_schedule else index
        seed = self.seed_of(stage)
        batches = Batches(self.data.train, train.batch_size, self.seq_len, seed=seed)
        if self.shares_schedule:
            batches.skip(steps_before * train.accumulate)
        return batches

    def position(self, index: int, steps_before: int) -> RunPosition:
        """Return the position in the run of stage `index` (from 0), for `LRController`.

        Args:
            index: index of the stage.
            steps_before: number of steps that the run made before it.
        """
        # Steps that are an upper bound only do not count for the length of the warm-up.
        planned = [
            steps
            for steps, stage in zip(self.steps, self.schedule.stages, strict=True)
            if stage.until is None or stage.until.tokens_are_planned
        ]
        return RunPosition(steps_before, sum(self.steps[index + 1 :]), sum(planned) or None)

    def seed_of(self, index: int) -> int:
        """Return the random seed of stage `index` (from 0)."""
        # A large odd multiplier keeps the seeds of this run's stages apart from those of a run with
        # the next seed.
        return (self.train.seed * 1_000_003 + index) % 2**63

    def steps_of(self, results: list[StageResult]) -> int:
        """Return the number of optimizer steps of finished stages."""
        per_step = self.train.batch_size * self.train.accumulate * self.seq_len
        return sum(result.tokens for result in results) // per_step

    def identity(self) -> dict[str, Any]:
        """Return everything that decides what the run computes, as JSON values."""
        substrate = self.model.substrate
        config = asdict(self.model.config)
        # The model of a resumed run has grown already; its first depth is compared.
        config["n_layer"] = self.first_depth
        return {
            "kind": "growth",
            "model": config,
            "substrate": None if substrate is None else substrate.fingerprint,
            "schedule": [_stage_settings(stage) for stage in self.schedule.stages],
            # Left out if it follows from the learning-rate schedule: older records have no key.
            **({} if self.schedule.moments is None else {"moments": asdict(self.schedule.moments)}),
            "train": self.train.identity(),
            "data": self.data.train.digest,
            "evaluate_on": {name: text.digest for name, text in self.evaluate_on.items()},
            # The place of the activation cache changes results by rounding only; its dtype changes
            # them.
            "trunk": None if self.trunk.dtype == "same" else self.trunk.dtype,
            # A frozen token table that does not belong to a substrate.
            "table": None if self.model.own_table is None else tensor_digest(self.model.own_table),
        }


def check_fits(lengths: Sequence[StageLength], train: TrainConfig) -> None:
    """Check that stages which may end early are compatible with the run's learning-rate schedule.

    Args:
        lengths: lengths of the stages.
        train: has the learning-rate schedule.

    Raises:
        ConfigError: a stage may end early under a cosine, or the run's decay would have to start in
            the middle of such a stage.
    """
    if train.schedule == "per-stage":
        return
    total = sum(length.steps for length in lengths)
    begins, end = decay_begins(total, train.decay), 0
    for number, length in enumerate(lengths, 1):
        end += length.steps
        if length.rule is None:
            continue
        if train.schedule == "cosine":
            raise ConfigError(
                f'stage {number}: Stage.until: train.schedule "cosine" needs the length of the run '
                'beforehand; use train.schedule "wsd" or "per-stage", or a stage without until'
            )
        if end > begins and number < len(lengths):
            raise ConfigError(
                f"stage {number}: Stage.until may not have ended the stage when the run's decay "
                f"has to start: that is at step {begins} of {total}, and the stage may last until "
                f"step {end}. Give this stage fewer tokens or later stages more, use a smaller "
                "train.decay, or use until in the last stage only"
            )


def _stage_settings(stage: Stage) -> dict[str, Any]:
    """Return the settings of a stage as JSON values.

    Fields that are not in the oldest records are left out if they have their default, so that a run
    started by an earlier version is recognised as the same.
    """
    defaults, always = asdict(Stage()), ("blocks", "tokens", "insertion", "lr")
    values = asdict(stage)
    if stage.until is not None:
        values["until"] = stage.until.identity()
    return {name: v for name, v in values.items() if name in always or v != defaults[name]}
