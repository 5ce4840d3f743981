"""Settings of an evaluation."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal

from msgspec import Meta

from fastgrow._checked import NonNegativeFloat, NonNegativeInt, PositiveInt, check_types

Protocol = Literal["generate", "likelihood"]


@dataclass(frozen=True)
class EvaluationSettings:
    """Settings of an evaluation; the defaults are the papers' except for `document_start`.

    Attributes:
        protocols: `generate` samples answers, as in the papers; `likelihood` compares the
            probabilities of the choices, for which a model need not know the answer format.
        runs: number of sampled answers per question.
        temperature: sampling temperature; 0 for greedy decoding.
        seed: random seed of the sampling and the bootstrap.
        batch_size: prompts or continuations per batch.
        document_start: whether prompts start with `<s>`, as documents in training do; the papers'
            script does not add it.
        chunk: number of questions whose answers are saved together.
        resamples: number of resamples of the bootstrap.

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
        """Return the settings that affect the answers, as a JSON object."""
        settings = asdict(self)
        del settings["resamples"]
        return settings | {"protocols": sorted(self.protocols)}
