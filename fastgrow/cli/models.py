"""Load the models whose folders are given to commands."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fastgrow.compose.files import Model


def load_model(path: Path | str) -> Model:
    """Load a model from its folder or its run's folder, onto the GPU if the machine has one.

    Raises:
        CheckpointError: the folder holds no complete model.
    """
    import fastgrow
    from fastgrow.info import device

    folder = Path(path)
    grown = folder / "model"
    if grown.is_dir() and not (folder / "config.json").exists():
        folder = grown
    return fastgrow.load(folder, device=device())
