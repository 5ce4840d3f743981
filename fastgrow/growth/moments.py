"""Settings for the optimizer state at the boundaries of stages."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fastgrow._checked import check_types


@dataclass(frozen=True)
class Moments:
    """What happens to the optimizer state at the boundary between two stages.

    Args:
        trained_on: state of parameters that are active in both stages: `"keep"`, or `"fresh"` to
            initialise it newly, as in the papers.
        copied: state of new blocks that are copies: `"copy"` that of the original, if it was active
            in the stage before, or `"fresh"`.
        thawed: state of parameters that were frozen and are active again: `"restore"` the one they
            had when they were last active, or `"fresh"`. Until then it is saved on disk, or in
            memory in a run without a folder.

    Raises:
        ConfigError: a value is not one of these.
    """

    trained_on: Literal["keep", "fresh"] = "keep"
    copied: Literal["copy", "fresh"] = "copy"
    thawed: Literal["fresh", "restore"] = "restore"

    def __post_init__(self) -> None:
        check_types(self)


FRESH = Moments(trained_on="fresh", copied="fresh", thawed="fresh")
