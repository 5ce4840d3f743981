"""Mixtures of several corpora with given weights."""

from __future__ import annotations

from collections.abc import Sequence

from fastgrow.errors import ConfigError
from fastgrow.nn import SubstrateLike
from fastgrow.training.data.stream import MixedStream
from fastgrow.training.data.textdata import TextData


class Mixture:
    """Several corpora, sampled in proportion to weights.

    In training, the part of each window is drawn with a probability proportional to the weights.
    Validation and test contain whole documents of each part in the same proportion.

    Args:
        parts: (data, weight) pairs; weights are positive and need not add up to 1.

    Attributes:
        train, validation, test: `MixedStream`s.

    Raises:
        ConfigError: there is no part, or a weight is not positive.
        DataError: parts were encoded with different substrates.
    """

    def __init__(self, parts: Sequence[tuple[TextData | Mixture, float]]) -> None:
        if not parts:
            raise ConfigError("Mixture: expected at least one part")
        self.parts = list(parts)
        self.train = self._mixed("train")
        self.validation = self._mixed("validation")
        self.test = self._mixed("test")

    def _mixed(self, split: str) -> MixedStream:
        return MixedStream([(getattr(data, split), w) for data, w in self.parts], name=split)

    @property
    def substrate(self) -> SubstrateLike:
        """The substrate that all parts share."""
        return self.train.substrate
