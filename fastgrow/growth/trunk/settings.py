"""What a user says about the frozen trunk."""

from __future__ import annotations

import hashlib
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fastgrow._checked import NonNegativeInt, check_types


@dataclass(frozen=True)
class Trunk:
    """How the blocks below everything that trains are run.

    Attributes:
        cache: where their output is kept for the windows that a stage reads. `"off"` computes it
            anew in every step; `"auto"` measures at the stage's beginning what pays, and says why
            in the log; `"device"`, `"ram"` and `"disk"` ask for a place.
        limit: bytes that everything kept may take at any moment. What does not fit is recomputed.
        dtype: of the trunk's arithmetic. `"same"` is what the model computes in; `"bf16"` runs
            bfloat16 copies of the blocks, `"int8"` and `"fp8"` round their matrices to one byte a
            number with a scale for each output channel. All but `"same"` change what is trained
            on; the error is logged at each stage. Validation always runs the exact model.
        folder: for the files of `"disk"`; None takes the run's folder, or a temporary one.

    Raises:
        ConfigError: a value is unknown or the limit negative.
    """

    cache: Literal["auto", "off", "device", "ram", "disk"] = "auto"
    limit: NonNegativeInt = 2 << 30
    dtype: Literal["same", "bf16", "int8", "fp8"] = "same"
    folder: str | None = None

    def __post_init__(self) -> None:
        check_types(self, plain=True)

    def folder_for(self, out: Path | None) -> Path:
        """Where the files of a run lie that writes to `out`: a folder of this run alone."""
        if out is None:
            base = Path(self.folder or tempfile.gettempdir())
            return base / f"fastgrow-trunk-{os.getpid()}-{id(self):x}"
        if self.folder is None:
            return out / "trunk"
        return Path(self.folder) / hashlib.sha256(str(out.resolve()).encode()).hexdigest()[:16]
