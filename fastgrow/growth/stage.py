"""A stage of growth: what is put in, what trains, for how long and how fast."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, get_args

from msgspec import Meta

from fastgrow._checked import NonNegativeInt, PositiveFloat, PositiveInt, check_types
from fastgrow.errors import ConfigError
from fastgrow.growth.when import Until
from fastgrow.training.optimizer import Rate

Insertion = Literal["random", "identity", "copy"]
Head = Literal["keep", "reset", "frozen", "tied"]
Projection = Literal["attention.qkv", "attention.out", "mlp.up", "mlp.gate", "mlp.down"]
PROJECTIONS: tuple[Projection, ...] = get_args(Projection)
_Indices = Annotated[tuple[NonNegativeInt, ...], Meta(min_length=1)]


@dataclass(frozen=True)
class LoRA:
    """Low-rank corrections that train in a stage and are merged into plain weights at its end.

    Args:
        rank: of every correction; or
        budget: numbers that train in the whole stage; the rank is the largest that stays within.
        alpha: the correction is α / r · B · A; None takes the rank, for a factor of 1.
        targets: projections of a block, by their names in the state dict. `attention.qkv` stands
            for three, each with a correction of its own (so that all six cost 18 · d · r numbers a
            block); `mlp.gate` is passed over where the activation has none.
        blocks: `"frozen"` adapts every block whose own weights don't train, `"new"` the new ones,
            or the blocks of these indices in the stage's stack.

    Raises:
        ConfigError: a value is out of range or does not go with another.
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


_AS_IT_IS = Rate()


@dataclass(frozen=True)
class Rates:
    """What the groups of a stage's parameters make of its learning rate.

    Args:
        new: blocks that the stage puts in, and LoRA.
        old: blocks that were there, and the token table.
        head: the head and the final norm.
    """

    new: Rate = _AS_IT_IS
    old: Rate = _AS_IT_IS
    head: Rate = _AS_IT_IS


_ALL_AS_IT_IS = Rates()


@dataclass(frozen=True)
class Stage:
    """One stage of growth: put in new blocks, then train them with the final norm and the head.

    The token table trains only where the model's configuration says `embedding="trainable"`, and
    then while block 0 does.

    Args:
        blocks: new blocks. 0 where `lora`, `train="all"` or `window` gives something to train.
        tokens: training tokens of the stage (targets seen by the optimizer), at least 1. Rounded up
            to whole optimizer steps. The most that are used where `until` is given.
        insertion: `"random"` as in the paper (Growing Transformers §3); `"identity"`: the new
            blocks' output projections start at zero, so the model computes what it did before; or
            `"copy"`: copies of blocks that are there (depth up-scaling, arXiv 2312.15166; a stack
            copied whole, G_stack, arXiv 2405.15319).
        lr: peak learning rate of this stage; None takes the run's.
        at: for each new block the index of the old block it goes before, ascending; None is on top.
        copy_of: for `"copy"`, the old block that each new one copies; None takes those below its
            place, in order and from the start again where there are too few.
        train: whose own block weights train: the `"new"` ones', `"all"` or `"none"`. With LoRA on
            the new ones alone, copies that do not train are relaxed recursion (arXiv 2410.20672);
            they take no memory of their own while the stage lasts.
        window: the topmost `window` blocks train, beside the new ones: windows that overlap from
            stage to stage. None trains the new ones alone.
        lora: corrections that train in this stage.
        head: trains on (`"keep"`), starts again from random weights (`"reset"`), rests (`"frozen"`)
            or becomes the token table and rests (`"tied"`: logits = h · lift(table)ᵀ, its bias 0).
            A later stage that keeps the head trains on from the table.
        final_norm: whether it trains.
        until: ends the stage earlier (`fastgrow.growth.Plateau`, `fastgrow.growth.Budget`). A share
            of the steps, as the warm-up is, is then one of `tokens`.
        rates: factors on the learning rate, and warm-ups of their own, for new blocks, old ones and
            the head.

    Raises:
        ConfigError: a value is out of range or does not go with another.
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
    until: Until | None = None
    rates: Rates = _ALL_AS_IT_IS

    def __post_init__(self) -> None:
        object.__setattr__(self, "at", _as_tuple(self.at))
        object.__setattr__(self, "copy_of", _as_tuple(self.copy_of))
        check_types(self)
        self._check_places()
        self._check_something_trains()

    def _check_places(self) -> None:
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
                f"Stage.copy_of: goes with insertion='copy', got insertion={self.insertion!r}"
            )
        if self.window is None:
            return
        on_top = self.blocks if self.at is None else 0
        if self.train != "new" or self.window < max(on_top, 1):
            raise ConfigError(
                f"Stage.window: expected train='new' and at least {max(on_top, 1)} blocks, "
                f"got train={self.train!r} and {self.window}"
            )

    def _check_something_trains(self) -> None:
        if not self.blocks and self.lora is None and self.train != "all" and self.window is None:
            raise ConfigError(
                "Stage.blocks: 0 goes with lora, train='all' or window, which give something to "
                "train; expected at least 1 without"
            )
        rests = self.head in ("frozen", "tied") and not self.final_norm
        if self.train == "none" and self.lora is None and rests:
            raise ConfigError("Stage: nothing trains: no block, no LoRA, no norm and no head")
        if self.lora is not None and self.lora.blocks == "new":
            if not self.blocks:
                raise ConfigError("LoRA.blocks: 'new' expects a stage with new blocks, got 0")
            if self.train != "none":
                raise ConfigError(
                    "LoRA.blocks: 'new' expects train='none': a block has corrections or trains "
                    f"its own weights, got train={self.train!r}"
                )


def _as_tuple(value: object) -> object:
    """A sequence as a tuple; other values are returned for `check_types` to reject."""
    return tuple(value) if isinstance(value, Sequence) and not isinstance(value, str) else value


def _require_ascending(name: str, indices: tuple[int, ...], *, strictly: bool) -> None:
    expected = sorted(set(indices) if strictly else indices)
    if list(indices) != expected:
        raise ConfigError(f"{name}: expected ascending indices, got {indices}")
