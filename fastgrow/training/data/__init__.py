"""Training data: text sources, token streams, mixtures and batches of windows."""

from fastgrow.training.data.batches import IGNORE_INDEX, Batches
from fastgrow.training.data.mixture import Mixture
from fastgrow.training.data.sources import HubDataset
from fastgrow.training.data.stream import MixedStream, TokenStream
from fastgrow.training.data.textdata import TextData

__all__ = [
    "IGNORE_INDEX",
    "Batches",
    "HubDataset",
    "MixedStream",
    "Mixture",
    "TextData",
    "TokenStream",
]
