"""Train some parameters of a model in one run that can be stopped and resumed."""

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

    If the folder has a run that was stopped, the run is resumed from its last checkpoint, which
    contains the active parameters only. On a CPU, with the same libraries and number of threads, a
    resumed run ends with bit-identical weights to an uninterrupted one.

    Args:
        model: a model with `loss` and `max_seq_len`; all parameters not in `active` are frozen.
        active: parameters to train, by name.
        data: training text, and validation text to select the best weights.
        tokens: number of tokens to train on, rounded up to whole steps.
        train: training settings.
        settings: all other settings that affect the results of the run, as JSON values.
        out: folder for checkpoints and logs; None to write no files.
        resume: "auto" resumes a run in `out`; "never" raises an error if there is one (see
            `claim_folder`).
        quiet: whether to print nothing.

    Raises:
        ConfigError, Interrupted, DivergenceError: see `claim_folder` and `Trainer`.
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
