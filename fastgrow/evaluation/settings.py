"""Settings of an evaluation."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from fastgrow.errors import ConfigError

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

    protocols: tuple[Protocol, ...] = ("generate", "likelihood")
    runs: int = 10
    temperature: float = 1.0
    seed: int = 0
    batch_size: int = 16
    document_start: bool = True
    chunk: int = 64
    resamples: int = 1000

    def __post_init__(self) -> None:
        for name in ("runs", "batch_size", "chunk", "resamples"):
            value = getattr(self, name)
            if value < 1:
                raise ConfigError(f"evaluate: {name} must be at least 1, got {value}")
        if self.seed < 0:
            raise ConfigError(f"evaluate: seed must be 0 or more, got {self.seed}")
        if not 0 <= self.temperature < float("inf"):
            raise ConfigError(f"evaluate: temperature must be 0 or more, got {self.temperature}")
        unknown = set(self.protocols) - {"generate", "likelihood"}
        if unknown or not self.protocols:
            raise ConfigError(
                "evaluate: protocols must be 'generate', 'likelihood' or both, "
                f"got {', '.join(map(repr, self.protocols)) or 'none'}"
            )

    def of_answers(self) -> dict[str, Any]:
        """Return the settings that affect the answers, as a JSON object."""
        settings = asdict(self)
        del settings["resamples"]
        return settings | {"protocols": sorted(self.protocols)}
