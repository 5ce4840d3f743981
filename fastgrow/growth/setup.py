"""What a growth run is made of: all that its caller has decided, checked before the first stage."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from fastgrow.errors import ConfigError
from fastgrow.growth.active import StageShape, stage_shape
from fastgrow.growth.result import StageResult
from fastgrow.growth.schedule import GrowthSchedule, Stage
from fastgrow.growth.trunk import Trunk
from fastgrow.growth.when import Plateau
from fastgrow.nn import Decoder
from fastgrow.nn.tensor_digest import tensor_digest
from fastgrow.training import MixedStream, Mixture, TextData, TokenStream, TrainConfig

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
            ConfigError: a stage does not fit the model, or waits for a plateau and there is no
                validation text.
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
        return cls(
            model, data, schedule, train, trunk, evaluate_on, validation, name, first_depth, shapes
        )

    @property
    def n_stages(self) -> int:
        return len(self.shapes)

    @property
    def seq_len(self) -> int:
        """Tokens in a window."""
        return self.train.seq_len or self.model.max_seq_len

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
            "train": self.train.identity(),
            "data": self.data.train.digest,
            "evaluate_on": {name: text.digest for name, text in self.evaluate_on.items()},
            # Where rows are kept changes no number beyond rounding; what they are computed in does.
            "trunk": None if self.trunk.dtype == "same" else self.trunk.dtype,
            # A frozen table that no substrate accounts for.
            "table": None if self.model.own_table is None else tensor_digest(self.model.own_table),
        }


def _stage_settings(stage: Stage) -> dict[str, Any]:
    """A stage as JSON values.

    What is left at its default is left out, beyond the fields that stages have always had: a run
    begun by an earlier version is still known as the same.
    """
    usual, always = asdict(Stage()), ("blocks", "tokens", "insertion", "lr")
    values = asdict(stage)
    return {name: v for name, v in values.items() if name in always or v != usual[name]}
