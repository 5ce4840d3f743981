"""Training some parameters of a model once, in a folder that survives being stopped."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fastgrow.training.checkpoint import Checkpointer
from fastgrow.training.config import TrainConfig
from fastgrow.training.data import Batches, Mixture, TextData
from fastgrow.training.environment import describe_environment
from fastgrow.training.log import RunLog
from fastgrow.training.loop import Trainer, TrainResult
from fastgrow.training.run_folder import Resume, claim_folder


def fit(
    model: nn.Module,
    active: Mapping[str, nn.Parameter],
    data: TextData | Mixture,
    *,
    tokens: int,
    train: TrainConfig,
    settings: Mapping[str, Any],
    out: Path | None = None,
    resume: Resume = "auto",
    quiet: bool = False,
) -> TrainResult:
    """Train the parameters `active` of a model for a number of tokens.

    A run in a folder that was stopped goes on from its last checkpoint, which holds the active
    parameters alone, and ends in the same bits as one that was not (on a CPU with the same
    libraries and threads).

    Args:
        model: has `loss` and `max_seq_len`; all its other parameters are frozen.
        active: name to parameter.
        data: its validation text picks the best weights.
        tokens: rounded up to whole steps.
        train: how to train.
        settings: what else decides the run's numbers, in JSON values.
        out: folder for checkpoints and logs; None keeps everything in memory.
        resume: as `claim_folder`.
        quiet: print nothing.

    Raises:
        ConfigError, Interrupted, DivergenceError: as `claim_folder` and `Trainer`.
    """
    seq_len = train.seq_len or int(model.max_seq_len)  # type: ignore[arg-type]
    validation = data.validation if len(data.validation) else None
    checkpointer = None
    if out is not None:
        identity = {"train": train.identity(), "data": data.train.digest, "tokens": tokens}
        device = next(iter(active.values())).device
        claim_folder(out, {**settings, **identity}, resume, describe_environment(device))
        checkpointer = Checkpointer(out / "checkpoints")
    with RunLog(out, quiet=quiet) as log:
        trainer = Trainer(
            model,
            active,
            Batches(data.train, train.batch_size, seq_len, seed=train.seed),
            train,
            steps=train.steps_for(tokens, seq_len),
            validation=validation,
            log=log,
            labels={"run": str(settings.get("kind", "fit"))},
        )
        if checkpointer is None:
            return trainer.run()
        latest = checkpointer.latest()
        if latest is not None:
            saved = checkpointer.load(latest)["fit"]
            with torch.no_grad():
                for name, parameter in active.items():
                    parameter.copy_(saved["weights"][name])
            trainer.load_state_dict(saved["trainer"])

        def save(_: Trainer) -> Path:
            weights = {name: parameter.detach() for name, parameter in active.items()}
            state = {"weights": weights, "trainer": trainer.state_dict()}
            return checkpointer.save(trainer.step, {"fit": state})

        result = trainer.run(save)
        save(trainer)
        return result
