"""Load the models whose folders are given to commands."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from fastgrow.compose.files import Model


def load_model(path: Path | str) -> Model:
    """Load a model from its folder or its run's folder, onto the GPU if the machine has one.

    Raises:
        CheckpointError: the folder holds no complete model.
    """
    import fastgrow
    from fastgrow.info import device

    return fastgrow.load(path, device=device())
