"""Results of the evaluation of a model: scores on tasks and bits per character of texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fastgrow.evaluation import BitsPerCharacter, TaskResult


@dataclass(frozen=True)
class EvaluatedText:
    """Bits per character of a text.

    Attributes:
        name: name of the text in tables.
        bits: measured bits per character and per token.
        unknown: number of characters outside the vocabulary. Each was replaced by `<unk>`, which is
            predicted but not counted as a character.
        source: False for the sum over several texts.
    """

    name: str
    bits: BitsPerCharacter
    unknown: int
    source: bool = True

    @classmethod
    def over_all(cls, name: str, parts: Sequence[EvaluatedText]) -> EvaluatedText:
        """Return the sum over several texts."""
        bits = BitsPerCharacter.over_all(part.bits for part in parts)
        return cls(name, bits, sum(part.unknown for part in parts), source=False)

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON object."""
        own = {"text": self.name, "unknown": self.unknown, "source": self.source}
        return own | vars(self.bits)


@dataclass(frozen=True)
class EvaluatedModel:
    """Results of the evaluation of a model.

    Attributes:
        name: name of the model in tables.
        path: folder of the model.
        key: hash that identifies the model (`fastgrow.evaluation.identity.model_key`).
        depth: number of blocks; None for an ensemble.
        tasks: scores on tasks.
        texts: bits per character by text.
    """

    name: str
    path: str
    key: str
    depth: int | None
    tasks: Sequence[TaskResult]
    texts: Sequence[EvaluatedText]

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON object."""
        return {
            "name": self.name,
            "path": self.path,
            "key": self.key,
            "depth": self.depth,
            "tasks": [task.to_dict() for task in self.tasks],
            "texts": [text.to_dict() for text in self.texts],
        }
