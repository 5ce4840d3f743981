"""How tasks are asked."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal

from msgspec import Meta

from fastgrow._checked import NonNegativeFloat, NonNegativeInt, PositiveInt, check_types

Protocol = Literal["generate", "likelihood"]


@dataclass(frozen=True)
class EvaluationSettings:
    """Settings of an evaluation; the defaults are the papers' but for `document_start`.

    Attributes:
        protocols: `generate` samples answers, as the papers do; `likelihood` compares the choices'
            probabilities, which a model can win without having learned the format.
        runs: sampled answers to each question.
        temperature: of the sampling; 0 always takes the most likely token.
        seed: of the sampling and the bootstrap.
        batch_size: prompts, or continuations, read at once.
        document_start: whether prompts begin with `<s>`, as documents do in training here; the
            papers' script gives none.
        chunk: questions answered between two writes to the folder.
        resamples: of the bootstrap.

    Raises:
        ConfigError: a value is out of range; the message names it.
    """

    protocols: Annotated[tuple[Protocol, ...], Meta(min_length=1)] = ("generate", "likelihood")
    runs: PositiveInt = 10
    temperature: NonNegativeFloat = 1.0
    seed: NonNegativeInt = 0
    batch_size: PositiveInt = 16
    document_start: bool = True
    chunk: PositiveInt = 64
    resamples: PositiveInt = 1000

    def __post_init__(self) -> None:
        check_types(self, where="evaluate: ")

    def of_answers(self) -> dict[str, Any]:
        """Those that the answers depend on, as a JSON object."""
        settings = asdict(self)
        del settings["resamples"]
        return settings | {"protocols": sorted(self.protocols)}
