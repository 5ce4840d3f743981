"""What was measured of a model: scores on tasks, bits per character of texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fastgrow.evaluation import BitsPerCharacter, TaskResult


@dataclass(frozen=True)
class EvaluatedText:
    """Bits per character of a text.

    Attributes:
        name: as in tables.
        bits: what was measured.
        unknown: its characters outside the vocabulary. Each became `<unk>`, which is predicted and
            counts no character.
        source: False for the sum over several texts.
    """

    name: str
    bits: BitsPerCharacter
    unknown: int
    source: bool = True

    @classmethod
    def over_all(cls, name: str, parts: Sequence[EvaluatedText]) -> EvaluatedText:
        """Several texts taken together."""
        bits = BitsPerCharacter.over_all(part.bits for part in parts)
        return cls(name, bits, sum(part.unknown for part in parts), source=False)

    def to_dict(self) -> dict[str, Any]:
        """A JSON object."""
        own = {"text": self.name, "unknown": self.unknown, "source": self.source}
        return own | vars(self.bits)


@dataclass(frozen=True)
class EvaluatedModel:
    """What was measured of a model.

    Attributes:
        name: as in tables.
        path: its folder.
        key: what tells it from others (`fastgrow.evaluation.identity.model_key`).
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
        """A JSON object."""
        return {
            "name": self.name,
            "path": self.path,
            "key": self.key,
            "depth": self.depth,
            "tasks": [task.to_dict() for task in self.tasks],
            "texts": [text.to_dict() for text in self.texts],
        }
