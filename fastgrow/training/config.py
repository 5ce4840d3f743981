"""Settings of a training run."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from msgspec import Meta

from fastgrow._checked import (
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    Proportion,
    check_types,
)
from fastgrow._records import before, left_out
from fastgrow.errors import ConfigError

Schedule = Literal["wsd", "cosine", "per-stage"]
_Beta = Annotated[float, Meta(ge=0, lt=1)]


@dataclass(frozen=True)
class TrainConfig:
    """Batch size, learning rate, optimizer and other settings of a training run.

    Attributes:
        batch_size: number of windows in a micro-batch.
        accumulate: number of micro-batches whose gradients are accumulated for one optimizer step.
        seq_len: number of tokens in a window; None for the model's `max_seq_len`.
        schedule: learning-rate schedule. "wsd" (warmup, stable, decay) warms up, stays at lr and
            decays linearly; "cosine" warms up and decays along half a cosine. Both extend over the
            whole run, for any number of stages. "per-stage" is one cosine schedule for each
            stage, as in the papers.
        lr: peak learning rate.
        min_lr_ratio: ratio of the final learning rate to lr.
        warmup: share of the steps over which the learning rate rises from 0 to lr.
        decay: share of the steps over which the learning rate falls ("wsd" only).
        optimizer: "adamw", or "muon": Muon for the matrices of blocks and AdamW for all other
            parameters.
        betas: betas of AdamW; the first one is also Muon's momentum.
        eps: eps of AdamW.
        weight_decay: weight decay of both optimizers, applied to matrices only, not to biases and
            norms.
        grad_clip: maximum global gradient norm; None for no clipping.
        precision: "auto" is bf16 autocast on a GPU that supports it, and fp32 elsewhere.
        eval_every: number of steps between evaluations; None for ten evaluations in a run.
        eval_tokens: number of tokens of the validation stream to evaluate; None for all.
        log_every: number of steps between logged rows.
        checkpoint_every: number of steps between checkpoints. In a run folder, one is also written
            at the end of each stage and if the run is interrupted; None writes only those.
        seed: random seed of the data order.
        checkpoint_activations: active blocks save only their inputs and are recomputed in the
            backward pass. This takes less memory and one more forward pass; gradients are the same.
        compile: run blocks through torch.compile while training.
        pick: "best" restores the weights with the best validation loss at the end, "last" keeps the
            last weights. If stages share a learning-rate schedule, only the last stage restores.
    """

    batch_size: PositiveInt = 16
    accumulate: PositiveInt = 1
    seq_len: PositiveInt | None = None
    schedule: Schedule = field(default="wsd", metadata=before("per-stage"))
    lr: PositiveFloat = 1e-3
    min_lr_ratio: Proportion = field(default=0.0, metadata=before(0.1))
    warmup: Proportion = 0.05
    decay: Proportion = 0.4
    optimizer: Literal["adamw", "muon"] = "adamw"
    betas: tuple[_Beta, _Beta] = (0.9, 0.95)
    eps: PositiveFloat = 1e-8
    weight_decay: NonNegativeFloat = 0.1
    grad_clip: PositiveFloat | None = 1.0
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    eval_every: PositiveInt | None = None
    eval_tokens: PositiveInt | None = None
    log_every: PositiveInt = 10
    checkpoint_every: PositiveInt | None = None
    seed: int = 0
    checkpoint_activations: bool = False
    compile: bool = False
    pick: Literal["best", "last"] = "best"

    def __post_init__(self) -> None:
        check_types(self, plain=True)
        if self.schedule == "wsd" and self.warmup + self.decay > 1:
            raise ConfigError(
                f"TrainConfig.decay: warmup and decay are shares of one run; expected at most "
                f"{1 - self.warmup:g} with warmup={self.warmup:g}, got {self.decay:g}"
            )

    def identity(self) -> dict[str, Any]:
        """Return the settings that affect the results of a run, as JSON values.

        Settings of logging and checkpoints are left out.
        """
        free = {"log_every", "checkpoint_every", "checkpoint_activations"}
        if self.schedule != "wsd":
            free.add("decay")
        # Left out at the value of runs recorded before these settings existed.
        free |= {
            choice.name
            for choice in dataclasses.fields(self)
            if choice.name in ("compile", "schedule", "optimizer")
            and getattr(self, choice.name) == left_out(choice)
        }
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in dataclasses.asdict(self).items()
            if name not in free
        }

    def steps_for(self, tokens: int, seq_len: int) -> int:
        """Return the number of steps that read at least `tokens` tokens.

        Raises:
            ConfigError: tokens is not positive.
        """
        if not _is_count(tokens):
            raise ConfigError(f"tokens must be an integer of at least 1, got {tokens!r}")
        return math.ceil(tokens / (self.batch_size * self.accumulate * seq_len))


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1
