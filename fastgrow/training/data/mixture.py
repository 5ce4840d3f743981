"""Several corpora read in given shares."""

from __future__ import annotations

from collections.abc import Sequence

from fastgrow.errors import ConfigError
from fastgrow.nn import SubstrateLike
from fastgrow.training.data.stream import MixedStream
from fastgrow.training.data.textdata import TextData


class Mixture:
    """Corpora mixed by weight.

    Training draws each window from a part with the part's share; validation and test hold whole
    documents of each part in the same shares.

    Args:
        parts: (data, weight) pairs; weights are positive and need not add up to 1.

    Attributes:
        train, validation, test: `MixedStream`s.

    Raises:
        ConfigError: no part, or a weight that is not positive.
        DataError: parts encoded with different substrates.
    """

    def __init__(self, parts: Sequence[tuple[TextData | Mixture, float]]) -> None:
        if not parts:
            raise ConfigError("a mixture needs at least one part")
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
