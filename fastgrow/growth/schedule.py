"""Growth schedules: lists of stages, built by hand or by a recipe, and their controls.

A schedule is plain data. The controls that a grown model is compared with are schedules too, so
that one function (`fastgrow.grow`) runs all three and they differ in nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Literal, get_args

from msgspec import Meta

from fastgrow._checked import check_types
from fastgrow.errors import ConfigError
from fastgrow.growth.moments import Moments
from fastgrow.growth.stage import Insertion, Stage
from fastgrow.growth.stop_criteria import Budget

Recipe = Literal["gradual", "windows", "published"]


@dataclass(frozen=True)
class GrowthSchedule:
    """The stages of a run, in order.

    Args:
        stages: the stages, at least one.
        moments: what happens to the optimizer state between stages. None keeps it if the run has
            one learning-rate schedule (`TrainConfig.schedule`), and initialises it newly if each
            stage has its own.

    Raises:
        ConfigError: there is no stage.
    """

    stages: Annotated[Sequence[Stage], Meta(min_length=1)]
    moments: Moments | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "stages", tuple(self.stages))
        check_types(self)

    @classmethod
    def blocks(
        cls,
        n_stages: int,
        *,
        tokens: int,
        blocks_per_stage: int = 1,
        recipe: Recipe = "gradual",
        insertion: Insertion | None = None,
        overlap: int | None = None,
    ) -> GrowthSchedule:
        """Return a schedule to `n_stages * blocks_per_stage` blocks on `n_stages * tokens` tokens.

        The default recipe, `"gradual"`, did best in our study (docs/study.md). The other recipes
        have equal stages. In `"windows"` new blocks start as copies of the blocks below them, and
        the topmost `overlap` old blocks are active together with them, so that few blocks are
        active at a time. In `"published"` new blocks start from random weights and are the only
        active blocks (Growing Transformers §3).

        Args:
            n_stages: number of equal stages; for "gradual" only the total of tokens depends on it.
            tokens: tokens of each stage.
            blocks_per_stage: new blocks of each stage.
            recipe: the recipe.
            insertion: for "windows": how blocks are inserted; "copy" by default, and random in the
                first stage, which has nothing to copy.
            overlap: for "windows": number of old blocks that are active together with the new ones,
                2 by default.

        Raises:
            ConfigError: a value is out of range, or does not fit the recipe.
        """
        if n_stages < 1:
            raise ConfigError(f"GrowthSchedule.blocks: expected at least 1 stage, got {n_stages}")
        if recipe not in get_args(Recipe):
            raise ConfigError(
                "GrowthSchedule.blocks: recipe: expected "
                f"{' or '.join(map(repr, get_args(Recipe)))}, got {recipe!r}"
            )
        if recipe != "windows" and (insertion is not None or overlap is not None):
            raise ConfigError(
                "GrowthSchedule.blocks: insertion and overlap are only for recipe='windows', "
                f"got recipe={recipe!r}"
            )
        if recipe == "gradual":
            return cls.gradual(n_stages * blocks_per_stage, tokens=n_stages * tokens)
        if recipe == "published":
            return cls([Stage(blocks_per_stage, tokens)] * n_stages)
        insertion = "copy" if insertion is None else insertion
        overlap = 2 if overlap is None else overlap
        if overlap < 0:
            raise ConfigError(f"GrowthSchedule.blocks: expected overlap ≥ 0, got {overlap}")
        stages = [Stage(blocks_per_stage, tokens, "random" if insertion == "copy" else insertion)]
        for depth in range(blocks_per_stage, n_stages * blocks_per_stage, blocks_per_stage):
            window = blocks_per_stage + min(overlap, depth) if overlap else None
            stages.append(Stage(blocks_per_stage, tokens, insertion, window=window))
        return cls(stages)

    @classmethod
    def doubling(
        cls,
        n_blocks: int,
        *,
        tokens: int,
        at: float | Sequence[float] = 0.5,
        place: Literal["top", "middle"] = "top",
        train: Literal["all", "new"] = "all",
    ) -> GrowthSchedule:
        """Return a schedule that copies the whole stack (G_stack, arXiv 2405.15319) at each share.

        Args:
            n_blocks: number of blocks at the end. With one share in `at`, training starts with half
                of them, with two shares with a quarter. An odd number is halved upwards; its last
                copy is a part of the stack.
            tokens: tokens of the whole run.
            at: the shares of the tokens after which the stack is doubled, ascending.
            place: `"top"` inserts the copies on top of the stack, `"middle"` each above the block
                that it copies, which keeps the order of the blocks' functions (arXiv 2512.08819).
            train: `"all"` trains all blocks after doubling, `"new"` only the copies. The older half
                is then frozen, which saves memory and the backward pass of that half.

        Raises:
            ConfigError: a value is out of range, or there are too few blocks to halve.
        """
        _require_counts("GrowthSchedule.doubling", n_blocks=n_blocks, tokens=tokens)
        shares = [at] if isinstance(at, int | float) else list(at)
        _require_shares("GrowthSchedule.doubling", shares)
        depths = [n_blocks]
        for _ in shares if n_blocks > 1 else ():
            depths.insert(0, -(-depths[0] // 2))
        if len(set(depths)) < len(depths):
            raise ConfigError(
                f"GrowthSchedule.doubling: {n_blocks} blocks cannot be halved {len(shares)} times"
            )
        return cls._jumps(depths, shares, tokens, place=place, train=train, what="doubling")

    @classmethod
    def gradual(
        cls,
        n_blocks: int,
        *,
        tokens: int,
        start: int | None = None,
        grown_by: float = 0.6,
        window: int | None = None,
    ) -> GrowthSchedule:
        """Return a schedule that adds one block per stage, a copy of the block below it.

        All stages but the last one are equally long. The last one has the remaining tokens, so that
        the full depth is trained for a while.

        Args:
            n_blocks: number of blocks at the end.
            tokens: tokens of the whole run.
            start: number of blocks at the start; None for a third of `n_blocks`, rounded up.
            grown_by: share of the tokens after which the last block is added.
            window: number of topmost blocks that are active; the others are frozen, which saves
                memory and their backward pass. None trains everything.

        Raises:
            ConfigError: a value is out of range.
        """
        where = "GrowthSchedule.gradual"
        _require_counts(where, n_blocks=n_blocks, tokens=tokens, start=start, window=window)
        start = -(-n_blocks // 3) if start is None else start
        if start > n_blocks:
            raise ConfigError(f"{where}: expected a start from 1 to {n_blocks} blocks, got {start}")
        if window is not None and window < start:
            raise ConfigError(
                f"{where}: expected a window of at least the {start} blocks at the start, "
                f"got {window}"
            )
        if not 0 < grown_by < 1:
            raise ConfigError(f"{where}: expected grown_by between 0 and 1, got {grown_by}")
        steps = n_blocks - start
        ends = [round(grown_by * tokens * step / max(steps, 1)) for step in range(steps + 1)]
        lengths = [end - begin for begin, end in zip(ends, [*ends[1:], tokens], strict=True)]
        if min(lengths) < 1:
            raise ConfigError(f"{where}: tokens: expected at least 1 per stage, got {tokens}")
        stages = [Stage(start, lengths[0])]
        for depth, length in enumerate(lengths[1:], start=start + 1):
            if window is None or window >= depth:
                stages.append(Stage(1, length, "copy", train="all"))
            else:
                stages.append(Stage(1, length, "copy", window=window if window > 1 else None))
        return cls(stages)

    @classmethod
    def jump(cls, n_blocks: int, *, tokens: int, start: int = 1, at: float = 0.5) -> GrowthSchedule:
        """Return a schedule with one jump from `start` to `n_blocks` blocks, all of them trained.

        The new blocks are repeated copies of the stack, on top of it.

        Args:
            n_blocks: number of blocks at the end.
            tokens: tokens of the whole run.
            start: number of blocks before the jump.
            at: share of the tokens after which the jump is made.

        Raises:
            ConfigError: a value is out of range.
        """
        _require_counts("GrowthSchedule.jump", n_blocks=n_blocks, tokens=tokens, start=start)
        _require_shares("GrowthSchedule.jump", [at])
        if start >= n_blocks:
            raise ConfigError(
                f"GrowthSchedule.jump: expected a start from 1 to {n_blocks - 1} blocks, "
                f"got {start}"
            )
        return cls._jumps([start, n_blocks], [at], tokens, place="top", train="all", what="jump")

    @classmethod
    def _jumps(
        cls,
        depths: Sequence[int],
        shares: Sequence[float],
        tokens: int,
        *,
        place: str,
        train: Literal["all", "new"],
        what: str,
    ) -> GrowthSchedule:
        """Return a schedule whose stages have these depths and end after these shares."""
        where = f"GrowthSchedule.{what}"
        if place not in ("top", "middle") or train not in ("all", "new"):
            raise ConfigError(
                f"{where}: expected place 'top' or 'middle' and train 'all' or 'new', "
                f"got {place!r} and {train!r}"
            )
        if len(depths) == 1:
            return cls([Stage(depths[0], tokens)])
        ends = [round(share * tokens) for share in [*shares, 1.0]]
        lengths = [end - begin for begin, end in zip([0, *ends], ends, strict=False)]
        if min(lengths) < 1:
            raise ConfigError(f"{where}: tokens: expected at least 1 per stage, got {tokens}")
        stages = [Stage(depths[0], lengths[0])]
        for old, depth, length in zip(depths, depths[1:], lengths[1:], strict=False):
            new, at, copied = depth - old, None, None
            if place == "middle":
                at = tuple(range(old - new + 1, old + 1))
                copied = tuple(index - 1 for index in at)
            elif new > old > 1:
                # Copies of the whole stack from the lowest block on; the last may be incomplete.
                copied = tuple(index % old for index in range(new))
            stages.append(Stage(new, length, "copy", at=at, copy_of=copied, train=train))
        return cls(stages)

    def with_polish(self, share: float = 0.2) -> GrowthSchedule:
        """Return the same schedule with an additional last stage in which everything is active.

        A share of the tokens of each stage is moved to the last stage; the total stays the same.

        Raises:
            ConfigError: the share is not between 0 and 1, or a stage has too few tokens or a
                budget.
        """
        if not 0 < share < 1:
            raise ConfigError(
                f"GrowthSchedule.with_polish: expected a share between 0 and 1, got {share}"
            )
        kept = [round(stage.tokens * share) for stage in self.stages]
        for number, (stage, tokens) in enumerate(zip(self.stages, kept, strict=True), 1):
            if isinstance(stage.until, Budget) or not 0 < tokens < stage.tokens:
                raise ConfigError(
                    f"GrowthSchedule.with_polish: stage {number}: expected a length in tokens, not "
                    f"a budget, and enough tokens for a share of {share}, got {stage.tokens} tokens"
                )
        stages = [
            replace(stage, tokens=stage.tokens - tokens)
            for stage, tokens in zip(self.stages, kept, strict=True)
        ]
        return replace(self, stages=[*stages, Stage(0, sum(kept), train="all")])

    @property
    def n_blocks(self) -> int:
        """Number of blocks that the whole schedule adds."""
        return sum(stage.blocks for stage in self.stages)

    @property
    def tokens(self) -> int:
        """Training tokens of the whole schedule; an upper bound if a stage has `until`."""
        return sum(stage.tokens for stage in self.stages)

    def as_monolith(self) -> GrowthSchedule:
        """Return the control of equal depth and tokens: all blocks from the beginning, all trained.

        Blocks that the model has before the first stage are frozen, even if the schedule trains
        them. Learning rate, head and final norm are those of the first stage, because it starts
        from new blocks like the monolith. `Stage.rates` and `moments` are not used. If every stage
        has a budget in the same unit, the budgets are added up; a plateau is not used.

        Raises:
            ConfigError: the schedule adds no block.
        """
        first = self.stages[0]
        return GrowthSchedule(
            [
                Stage(
                    self.n_blocks,
                    self.tokens,
                    lr=first.lr,
                    head=first.head,
                    final_norm=first.final_norm,
                    until=self._whole_budget(),
                )
            ]
        )

    def as_never_grown(self) -> GrowthSchedule:
        """Return the control that does not grow: the first stage, trained on all tokens.

        Budgets are added up as in `as_monolith`.
        """
        first = replace(self.stages[0], tokens=self.tokens, until=self._whole_budget())
        return GrowthSchedule([first])

    def _whole_budget(self) -> Budget | None:
        budgets = [stage.until for stage in self.stages if isinstance(stage.until, Budget)]
        if len(budgets) < len(self.stages):
            return None
        flops = [budget.flops for budget in budgets if budget.flops is not None]
        seconds = [budget.seconds for budget in budgets if budget.seconds is not None]
        if flops and seconds:
            return None
        return Budget(math.fsum(flops)) if flops else Budget(seconds=math.fsum(seconds))


def _require_shares(where: str, shares: Sequence[float]) -> None:
    """Raise unless the shares are numbers between 0 and 1, ascending."""
    numbers = all(isinstance(share, int | float) for share in shares)
    if not (numbers and list(shares) == sorted(set(shares)) and all(0 < s < 1 for s in shares)):
        raise ConfigError(
            f"{where}: at: expected ascending shares between 0 and 1, got {list(shares)}"
        )


def _require_counts(where: str, **values: int | None) -> None:
    """Raise unless each value is an integer of at least 1, or None."""
    for name, value in values.items():
        if value is None:
            continue
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ConfigError(f"{where}: {name}: expected at least 1, got {value!r}")
