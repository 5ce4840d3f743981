"""Training: data, training loop, checkpoints and log. It does not depend on `fastgrow.growth`."""

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
from fastgrow.training.fit import fit
from fastgrow.training.interrupt import InterruptGuard
from fastgrow.training.log import RunLog
from fastgrow.training.loop import Trainer, TrainResult
from fastgrow.training.rng import seed_everything
from fastgrow.training.run_folder import Resume, claim_folder

__all__ = [
    "Batches",
    "Checkpointer",
    "HubDataset",
    "InterruptGuard",
    "MixedStream",
    "Mixture",
    "Resume",
    "RunLog",
    "TextData",
    "TokenStream",
    "TrainConfig",
    "TrainResult",
    "Trainer",
    "claim_folder",
    "fit",
    "load_checkpoint",
    "seed_everything",
    "verify_checkpoint",
]
