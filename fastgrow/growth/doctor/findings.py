"""What the doctor looks at, and what it found."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

CHECKS = {
    "substrate": "the model's table is the one its fingerprint stands for, and the data's too",
    "insertion": "new blocks are where they belong; the function is preserved where that is asked",
    "active set": "what requires gradients is what the stage trains, no more and no less",
    "gradients": "every active parameter gets a finite gradient, and no frozen one gets any",
    "optimizer": "it holds the active parameters and nothing else",
    "trunk": "its kept output is that of running it again, bit for bit or within rounding",
    "training": "the steps run, and their loss is finite",
    "frozen": "every frozen tensor has the hash it had before",
    "moves": "every active parameter has changed",
    "state": "the optimizer's state comes back from a checkpoint bit for bit",
    "data cursor": "the data goes on at the window where it stopped",
    "resume": "stopped and resumed, the stage ends as it does uninterrupted",
    "merge": "merged corrections leave plain layers that compute the same",
    "run": "`grow`, killed in the middle of every stage and resumed, ends as it does alone",
}


@dataclass(frozen=True)
class Finding:
    """One check in one stage.

    Attributes:
        stage: its number, from 1.
        check: one of `CHECKS`.
        ok: whether it held; None where there was nothing to check, or it was not reached.
        detail: what failed, what was measured, or why there was nothing to check.
    """

    stage: int
    check: str
    ok: bool | None
    detail: str = ""


@dataclass(frozen=True)
class Diagnosis:
    """All findings of a run's stages, and what the run was examined on."""

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
        """JSON values."""
        return {**asdict(self), "healthy": self.healthy}
