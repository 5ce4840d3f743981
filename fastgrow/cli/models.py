"""Opening the models that commands are given."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fastgrow.compose.files import Model


def load_model(path: Path | str) -> Model:
    """A model's folder, or the folder of the run that grew it, on the machine's GPU if it has one.

    Raises:
        CheckpointError: there is no whole model.
    """
    import fastgrow
    from fastgrow.info import device

    folder = Path(path)
    grown = folder / "model"
    if grown.is_dir() and not (folder / "config.json").exists():
        folder = grown
    return fastgrow.load(folder, device=device())
