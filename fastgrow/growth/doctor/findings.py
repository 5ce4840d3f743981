"""The checks of `diagnose`, and their results."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

CHECKS = {
    "substrate": "the token table and the data match the fingerprint of the model's substrate",
    "insertion": "new blocks are at their positions; an insertion that must preserve the model's "
    "function does so",
    "active set": "exactly the active parameters of the stage require gradients",
    "gradients": "every active parameter gets a finite gradient, and no frozen parameter gets one",
    "optimizer": "the optimizer holds exactly the active parameters",
    "trunk": "cached activations equal recomputed ones, bit for bit or within rounding",
    "training": "the steps run, and their loss is finite",
    "frozen": "the hash of every frozen tensor is unchanged",
    "moves": "every active parameter has changed",
    "state": "the optimizer state is restored from a checkpoint bit for bit",
    "data cursor": "the data continues at the window where it stopped",
    "resume": "the stage, stopped and resumed, ends with the weights of an uninterrupted one",
    "merge": "after LoRA adapters are merged, the layers are plain and compute the same",
    "run": "`grow`, killed in every stage and resumed, ends with the weights of an "
    "uninterrupted run",
}


@dataclass(frozen=True)
class Finding:
    """The result of one check in one stage.

    Attributes:
        stage: number of the stage, from 1.
        check: name of the check, a key of `CHECKS`.
        ok: whether the check passed; None if there was nothing to check or it was not reached.
        detail: what failed, what was measured, or why there was nothing to check.
    """

    stage: int
    check: str
    ok: bool | None
    detail: str = ""


@dataclass(frozen=True)
class Diagnosis:
    """The findings of all stages, and notes on the setting of the checks."""

    findings: list[Finding]
    notes: list[str]

    @property
    def failures(self) -> list[Finding]:
        return [finding for finding in self.findings if finding.ok is False]

    @property
    def healthy(self) -> bool:
        """Whether no check failed."""
        return not self.failures

    def to_dict(self) -> dict[str, Any]:
        """Return the diagnosis as JSON values."""
        return {**asdict(self), "healthy": self.healthy}
