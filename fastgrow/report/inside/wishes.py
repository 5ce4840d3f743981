"""What the reader of a page asked for."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Wishes:
    """What to show beside the records.

    Attributes:
        text: whose tokens are divided among experts, and whose beginning is the samples' prompt;
            None takes test text of the run's own.
        neighbours: characters whose nearest glyphs are shown; None takes some that are there.
        seed: of the samples.
        device: where the models run.
        models: False shows the records alone and loads no model.
    """

    text: str | None = None
    neighbours: str | None = None
    seed: int = 0
    device: torch.device | str = "cpu"
    models: bool = True
