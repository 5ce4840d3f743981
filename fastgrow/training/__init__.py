"""Training: data, the loop, checkpoints and the log. Knows nothing of growth."""

from fastgrow.training.checkpoint import Checkpointer, load_checkpoint, verify_checkpoint
from fastgrow.training.config import TrainConfig
from fastgrow.training.data import (
    Batches,
    HubDataset,
    MixedStream,
    Mixture,
    TextData,
    TokenStream,
)
from fastgrow.training.interrupt import InterruptGuard
from fastgrow.training.log import RunLog
from fastgrow.training.loop import Trainer, TrainResult
from fastgrow.training.rng import seed_everything

__all__ = [
    "Batches",
    "Checkpointer",
    "HubDataset",
    "InterruptGuard",
    "MixedStream",
    "Mixture",
    "RunLog",
    "TextData",
    "TokenStream",
    "TrainConfig",
    "TrainResult",
    "Trainer",
    "load_checkpoint",
    "seed_everything",
    "verify_checkpoint",
]
