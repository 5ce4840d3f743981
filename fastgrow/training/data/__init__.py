"""Text to batches: sources, token streams, mixtures, windows."""

from fastgrow.training.data.batches import IGNORE_INDEX, Batches
from fastgrow.training.data.stream import MixedStream, TokenStream

__all__ = ["IGNORE_INDEX", "Batches", "MixedStream", "TokenStream"]
