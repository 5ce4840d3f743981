"""What a growth run gives back."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastgrow.nn import Decoder


@dataclass(frozen=True)
class StageResult:
    """What one stage did.

    Attributes:
        stage: its number, from 1.
        depth: blocks of the model when it ended.
        active_parameters, total_parameters: numbers that trained, and all that the model has when
            the stage has ended, the table included.
        tokens: trained on in this stage.
        seconds: it took, evaluations and checkpoints included.
        bits: bits per character after the stage, LoRA merged, by the name of the text.
        bits_at_start: on the validation text right after its blocks were stacked, before any
            training: the spike that the papers describe. None without validation text.
        rank: of the stage's LoRA; None without.
        drift: largest distance of a merged weight from the sum in float32; None without LoRA.
        relative_drift: root mean square of a layer's distances over that of its correction, of the
            layer where that is largest; None without LoRA.
        decision: why and when `until` ended the stage, and on what evidence; None without `until`.
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
    decision: dict[str, Any] | None = None


@dataclass(frozen=True)
class GrowthResult:
    """The grown model and the record of every stage."""

    model: Decoder
    stages: list[StageResult]
    out: Path | None = None
