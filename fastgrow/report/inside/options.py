"""The options of a page."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class PageOptions:
    """What a page shows in addition to the records of a run.

    Attributes:
        text: text whose tokens are attributed to experts, and whose beginning is the prompt of the
            samples; None selects test text of the run.
        neighbours: characters whose nearest glyphs are shown; None selects some of the vocabulary.
        seed: random seed of the samples.
        device: device of the models.
        models: whether to load models; False shows only the records.
    """

    text: str | None = None
    neighbours: str | None = None
    seed: int = 0
    device: torch.device | str = "cpu"
    models: bool = True
