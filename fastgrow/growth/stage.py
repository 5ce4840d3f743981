"""A stage of growth: which blocks it inserts, what is active, its length and learning rate."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, get_args

from msgspec import Meta

from fastgrow._checked import NonNegativeInt, PositiveFloat, PositiveInt, check_types
from fastgrow.errors import ConfigError
from fastgrow.growth.stop_criteria import StopCriterion
from fastgrow.training.optimizer import Rate

Insertion = Literal["random", "identity", "copy"]
Head = Literal["keep", "reset", "frozen", "tied"]
Projection = Literal["attention.qkv", "attention.out", "mlp.up", "mlp.gate", "mlp.down"]
PROJECTIONS: tuple[Projection, ...] = get_args(Projection)
_Indices = Annotated[tuple[NonNegativeInt, ...], Meta(min_length=1)]


@dataclass(frozen=True)
class LoRA:
    """Low-rank corrections that are trained in a stage and merged into plain weights at its end.

    Exactly one of `rank` and `budget` is given.

    Args:
        rank: rank of every correction.
        budget: number of active parameters of the whole stage; the rank is the largest that
            fits.
        alpha: the correction is α / r · B · A; None uses the rank, for a factor of 1.
        targets: projections of a block, by their names in the state dict. `attention.qkv` means
            three projections, each with a separate correction (all six then have 18 · d · r
            parameters per block). `mlp.gate` is skipped if the activation has no gate.
        blocks: `"frozen"` adapts every block whose own weights are frozen, `"new"` the new blocks;
            or the indices of blocks in the stage.

    Raises:
        ConfigError: a value is out of range or does not fit another.
    """

    rank: PositiveInt | None = None
    budget: PositiveInt | None = None
    alpha: PositiveFloat | None = None
    targets: Annotated[tuple[Projection, ...], Meta(min_length=1)] = PROJECTIONS
    blocks: Literal["frozen", "new"] | _Indices = "frozen"

    def __post_init__(self) -> None:
        if isinstance(self.targets, Iterable):
            object.__setattr__(self, "targets", tuple(self.targets))
        object.__setattr__(self, "blocks", _as_tuple(self.blocks))
        check_types(self)
        if (self.rank is None) == (self.budget is None):
            raise ConfigError("LoRA: expected exactly one of rank and budget")
        if len(set(self.targets)) < len(self.targets):
            raise ConfigError(f"LoRA.targets: expected each projection once, got {self.targets}")
        if not isinstance(self.blocks, str):
            _require_ascending("LoRA.blocks", self.blocks, strictly=True)


_UNCHANGED = Rate()


@dataclass(frozen=True)
class Rates:
    """Factors on a stage's learning rate, and warm-ups, for groups of its parameters.

    Args:
        new: new blocks and LoRA.
        old: old blocks and the token table.
        head: the head and the final norm.
    """

    new: Rate = _UNCHANGED
    old: Rate = _UNCHANGED
    head: Rate = _UNCHANGED


_ALL_UNCHANGED = Rates()


@dataclass(frozen=True)
class Stage:
    """One stage of growth: insert new blocks, then train them with the final norm and the head.

    The token table is active only if the model's configuration has `embedding="trainable"`, and
    then in stages in which block 0 is active.

    Args:
        blocks: number of new blocks; 0 if `lora`, `train="all"` or `window` selects what to train.
        tokens: training tokens of the stage (targets seen by the optimizer), at least 1. Rounded up
            to whole optimizer steps. The upper bound if `until` is given.
        insertion: `"random"` initialises new blocks as in the paper (Growing Transformers §3).
            `"identity"` starts their output projections at zero, so the model's output is unchanged
            at first. `"copy"` copies old blocks (depth up-scaling, arXiv 2312.15166; of a whole
            stack: G_stack, arXiv 2405.15319).
        lr: peak learning rate of this stage; None uses that of the run.
        at: for each new block the index of the old block that it is inserted before, ascending;
            None inserts all on top.
        copy_of: for `"copy"`, the old block that each new block copies; None copies the blocks
            below its position, in order, and repeats them if there are too few.
        train: the blocks whose own weights are active: `"new"`, `"all"` or `"none"`. With LoRA on
            the new blocks only, copies with frozen weights are relaxed recursion (arXiv
            2410.20672); they share the memory of their originals during the stage.
        window: the topmost `window` blocks are active in addition to the new ones, so that the
            windows of consecutive stages overlap. None trains the new blocks only.
        lora: low-rank corrections that are trained in this stage.
        head: the head continues to train (`"keep"`), is initialised again and trained (`"reset"`),
            is frozen (`"frozen"`), or is replaced by the token table and frozen (`"tied"`: logits =
            h · lift(table)ᵀ, bias 0). A later stage with `"keep"` then trains it from the table.
        final_norm: whether the final norm is active.
        until: a `StopCriterion` that may end the stage earlier (`fastgrow.growth.Plateau`,
            `fastgrow.growth.Budget`, or a user-defined one). A share of the steps, such as the
            warm-up, is then a share of `tokens`.
        rates: factors on the learning rate, and separate warm-ups, for new blocks, old blocks and
            the head.

    Raises:
        ConfigError: a value is out of range or does not fit another.
    """

    blocks: NonNegativeInt = 1
    tokens: PositiveInt = 1_000_000
    insertion: Insertion = "random"
    lr: PositiveFloat | None = None
    at: tuple[NonNegativeInt, ...] | None = None
    copy_of: tuple[NonNegativeInt, ...] | None = None
    train: Literal["new", "all", "none"] = "new"
    window: PositiveInt | None = None
    lora: LoRA | None = None
    head: Head = "keep"
    final_norm: bool = True
    until: StopCriterion | None = None
    rates: Rates = _ALL_UNCHANGED

    def __post_init__(self) -> None:
        object.__setattr__(self, "at", _as_tuple(self.at))
        object.__setattr__(self, "copy_of", _as_tuple(self.copy_of))
        check_types(self)
        self._check_positions()
        self._check_active()

    def _check_positions(self) -> None:
        for name in ("at", "copy_of"):
            value = getattr(self, name)
            if value is not None and len(value) != self.blocks:
                raise ConfigError(
                    f"Stage.{name}: expected {self.blocks} indices of old blocks, got {value}"
                )
        if self.at is not None:
            _require_ascending("Stage.at", self.at, strictly=False)
        if self.copy_of is not None and self.insertion != "copy":
            raise ConfigError(
                f"Stage.copy_of: only for insertion='copy', got insertion={self.insertion!r}"
            )
        if self.window is None:
            return
        on_top = self.blocks if self.at is None else 0
        if self.train != "new" or self.window < max(on_top, 1):
            raise ConfigError(
                f"Stage.window: expected train='new' and at least {max(on_top, 1)} blocks, "
                f"got train={self.train!r} and {self.window}"
            )

    def _check_active(self) -> None:
        if not self.blocks and self.lora is None and self.train != "all" and self.window is None:
            raise ConfigError(
                "Stage.blocks: 0 is possible only with lora, train='all' or window, which select "
                "what to train; expected at least 1 without these"
            )
        top_is_frozen = self.head in ("frozen", "tied") and not self.final_norm
        if self.train == "none" and self.lora is None and top_is_frozen:
            raise ConfigError(
                "Stage: nothing is active: expected blocks, lora, final_norm or the head to train"
            )
        if self.lora is not None and self.lora.blocks == "new":
            if not self.blocks:
                raise ConfigError("LoRA.blocks: 'new' needs a stage with new blocks, got 0")
            if self.train != "none":
                raise ConfigError(
                    "LoRA.blocks: 'new' needs train='none', because a block has either corrections "
                    f"or active weights, got train={self.train!r}"
                )


def _as_tuple(value: object) -> object:
    """Convert a sequence to a tuple; return other values unchanged, for `check_types` to reject."""
    return tuple(value) if isinstance(value, Sequence) and not isinstance(value, str) else value


def _require_ascending(name: str, indices: tuple[int, ...], *, strictly: bool) -> None:
    expected = sorted(set(indices) if strictly else indices)
    if list(indices) != expected:
        raise ConfigError(f"{name}: expected ascending indices, got {indices}")
