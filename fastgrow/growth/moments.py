"""What becomes of the optimizer's state at the boundaries of stages, as settings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fastgrow._checked import check_types


@dataclass(frozen=True)
class Moments:
    """What becomes of the optimizer's state where one stage ends and the next begins.

    Args:
        trained_on: of parameters that train in both: kept, or begun afresh as in the papers.
        copied: of new blocks that are copies: a copy of what the original's is, where that has
            trained in the stage before; or fresh.
        thawed: of parameters that rest and train again later: fresh, or restored to what it was
            when they last trained. It is on disk meanwhile, in a run without a folder in memory.

    Raises:
        ConfigError: a value is none of these.
    """

    trained_on: Literal["keep", "fresh"] = "keep"
    copied: Literal["copy", "fresh"] = "copy"
    thawed: Literal["fresh", "restore"] = "restore"

    def __post_init__(self) -> None:
        check_types(self)


FRESH = Moments(trained_on="fresh", copied="fresh", thawed="fresh")
