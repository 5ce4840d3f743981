"""The settings of one training run."""

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
    """How a set of parameters is trained.

    Attributes:
        batch_size: windows in a micro-batch.
        accumulate: micro-batches whose gradients make one step.
        seq_len: tokens in a window; None takes the model's `max_seq_len`.
        schedule: of the learning rate. "wsd" warms up, stays at lr and decays in a line, and
            "cosine" warms up and decays by half a cosine, both once over a whole run, however many
            stages it has; "per-stage" is a cosine for each stage, as in the papers.
        lr: peak learning rate.
        min_lr_ratio: the decay ends at lr * min_lr_ratio.
        warmup: share of the steps over which the learning rate rises from 0 to lr.
        decay: of "wsd", share of the steps over which the learning rate falls.
        optimizer: "adamw", or "muon" for the matrices of blocks beside AdamW for all else.
        betas: of AdamW; the first is Muon's momentum too.
        eps: of AdamW.
        weight_decay: of both; matrices only, never biases or norms.
        grad_clip: largest global gradient norm; None does not clip.
        precision: "auto" is bf16 autocast on a GPU that has it and fp32 elsewhere.
        eval_every: steps between evaluations; None evaluates ten times in a run.
        eval_tokens: tokens of the validation stream to read; None reads all.
        log_every: steps between logged rows.
        checkpoint_every: steps between checkpoints; None writes one on interruption only.
        seed: of the order of the data.
        checkpoint_activations: the blocks that train save their inputs alone, and run again in the
            backward pass: less memory, a forward pass more, the same gradients.
        compile: run blocks through torch.compile while training.
        pick: "best" ends with the weights that were best on validation, "last" with the last ones;
            of stages that share a schedule only the last one picks.
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
                f"decay: warmup and decay are shares of one run, expected at most "
                f"{1 - self.warmup:g} beside warmup={self.warmup:g}, got {self.decay:g}"
            )

    def identity(self) -> dict[str, Any]:
        """What decides a run's numbers, in JSON values: not when to log, nor what to save."""
        free = {"log_every", "checkpoint_every", "checkpoint_activations"}
        if self.schedule != "wsd":
            free.add("decay")
        # As in the records of runs from before there was a choice.
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
        """Steps that read at least `tokens` tokens.

        Raises:
            ConfigError: tokens is not positive.
        """
        if not _is_count(tokens):
            raise ConfigError(f"tokens must be an integer of at least 1, got {tokens!r}")
        return math.ceil(tokens / (self.batch_size * self.accumulate * seq_len))


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1
