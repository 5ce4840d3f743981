"""The user's settings for the frozen trunk."""

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
    """How the frozen blocks below the lowest active parameter are run.

    Attributes:
        cache: where their output is cached for the windows that a stage reads. `"off"` computes it
            again in every step; `"auto"` measures at the start of the stage what is faster, and
            logs the reason; `"device"`, `"ram"` and `"disk"` select a place.
        limit: largest number of bytes of all cached activations at any moment. What does not fit is
            recomputed.
        dtype: dtype of the trunk's arithmetic. `"same"` is the model's own; `"bf16"` runs
            bfloat16 copies of the blocks, `"int8"` and `"fp8"` round their matrices to one byte
            per number with a scale for each output channel. All but `"same"` change the input of
            the active blocks; the error is logged at each stage. Validation always runs the exact
            model.
        folder: folder for the files of `"disk"`; None uses the run's folder, or a temporary one.

    Raises:
        ConfigError: a value is unknown or the limit is negative.
    """

    cache: Literal["auto", "off", "device", "ram", "disk"] = "auto"
    limit: NonNegativeInt = 2 << 30
    dtype: Literal["same", "bf16", "int8", "fp8"] = "same"
    folder: str | None = None

    def __post_init__(self) -> None:
        check_types(self, plain=True)

    def folder_for(self, out: Path | None) -> Path:
        """Return the folder for the files of a run that writes to `out`; no other run uses it."""
        if out is None:
            base = Path(self.folder or tempfile.gettempdir())
            return base / f"fastgrow-trunk-{os.getpid()}-{id(self):x}"
        if self.folder is None:
            return out / "trunk"
        return Path(self.folder) / hashlib.sha256(str(out.resolve()).encode()).hexdigest()[:16]
