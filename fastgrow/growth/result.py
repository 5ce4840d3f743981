"""The result of a growth run: the model and one record per stage."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fastgrow.nn import Decoder
from fastgrow.training.lr_controller import StopDecision


@dataclass(frozen=True)
class StageResult:
    """The record of one stage.

    Attributes:
        stage: number of the stage, from 1.
        depth: number of blocks of the model at the end of the stage.
        active_parameters, total_parameters: number of active parameters, and of all parameters of
            the model at the end of the stage, the token table included.
        tokens: number of tokens trained on in this stage.
        seconds: time that the stage took, evaluations and checkpoints included.
        bits: bits per character after the stage, with LoRA merged, by the name of the text.
        bits_at_start: bits per character of the validation text right after the blocks were
            inserted, before any training: the spike that the papers describe. None without
            validation text.
        rank: rank of the stage's LoRA; None without.
        drift: largest distance of a merged weight from the sum in float32; None without LoRA.
        relative_drift: root mean square of a layer's distances over that of its correction, for the
            layer with the largest value; None without LoRA.
        decision: why and when the stage ended, and the evidence for it; None if it trained its
            planned tokens without `until`.
    """

    stage: int
    depth: int
    active_parameters: int
    total_parameters: int
    tokens: int
    seconds: float
    bits: dict[str, float]
    bits_at_start: float | None
    rank: int | None = None
    drift: float | None = None
    relative_drift: float | None = None
    decision: StopDecision | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the record as JSON values, as in `growth.json`."""
        decision = None if self.decision is None else self.decision.to_dict()
        return {**asdict(self), "decision": decision}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> StageResult:
        """Return the record that `to_dict` returned as `values`; older records have fewer keys."""
        decision = values.get("decision")
        if decision is not None:
            decision = StopDecision.from_dict(decision)
        return cls(**{**values, "decision": decision})


@dataclass(frozen=True)
class GrowthResult:
    """The grown model and the record of every stage.

    Attributes:
        model: the grown model.
        stages: the record of every stage.
        out: the run's folder; None for a run without one.
    """

    model: Decoder
    stages: list[StageResult]
    out: Path | None = None
