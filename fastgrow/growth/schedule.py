"""What to grow and when: stages, and schedules made of them.

A schedule is plain data. The controls that a grown model is judged against are schedules too, so
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
from fastgrow.growth.when import Budget

Recipe = Literal["gradual", "windows", "published"]


@dataclass(frozen=True)
class GrowthSchedule:
    """The stages of a run, in order.

    Args:
        stages: at least one.
        moments: what becomes of the optimizer's state between them; None keeps it where the run has
            one schedule of the learning rate (`TrainConfig.schedule`), and begins it afresh where
            each stage has its own.

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
        """Growth to `n_stages * blocks_per_stage` blocks on `n_stages * tokens` tokens.

        The default is the recipe that did best in our study (docs/study.md): `gradual`. The others
        grow in equal stages: in `"windows"` new blocks start as copies of those below them and the
        topmost `overlap` of the old blocks train on beside them, so that few blocks train at a
        time; in `"published"` they start from random weights and train alone (Growing Transformers
        §3).

        Args:
            n_stages: how many stages of equal length, or as many tokens as they would read.
            tokens: of each.
            blocks_per_stage: new blocks of each.
            recipe: of the growth.
            insertion: of "windows": how blocks are put in, "copy" without; where there is nothing
                to copy, at random.
            overlap: of "windows": old blocks that train beside the new ones, 2 without.

        Raises:
            ConfigError: a value is out of range, or does not go with the recipe.
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
                "GrowthSchedule.blocks: insertion and overlap go with recipe='windows', "
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
        """Growth by copying the whole stack (G_stack, arXiv 2405.15319), once or several times.

        Args:
            n_blocks: at the end. With one share in `at`, training begins with half of them, with
                two with a quarter; an odd number is halved upwards, and its last copy is a part of
                the stack.
            tokens: of the whole run.
            at: the shares of the tokens after which the stack is doubled, ascending.
            place: copies go on top of the stack, or each behind the block that it copies, which
                keeps the order of what the blocks do (arXiv 2512.08819).
            train: everything from then on, or the copies alone while the older half rests, which
                saves memory and the backward pass of that half.

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
        """Growth block by block: each new one is a copy of the one below it.

        The first stages are equally long, and the last one takes what is left of the tokens, so
        that the whole depth trains for a while.

        Args:
            n_blocks: at the end.
            tokens: of the whole run.
            start: blocks at the beginning; None for a third of them all, rounded up.
            grown_by: share of the tokens after which the last block comes.
            window: blocks, the topmost, that train at a time; the others are frozen, which takes
                less memory and no backward pass through them. None trains everything.

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
                f"{where}: expected a window of at least the {start} blocks of the start, "
                f"got {window}"
            )
        if not 0 < grown_by < 1:
            raise ConfigError(f"{where}: expected grown_by between 0 and 1, got {grown_by}")
        steps = n_blocks - start
        ends = [round(grown_by * tokens * step / max(steps, 1)) for step in range(steps + 1)]
        lengths = [end - begin for begin, end in zip(ends, [*ends[1:], tokens], strict=True)]
        if min(lengths) < 1:
            raise ConfigError(f"{where}: tokens: expected some for each stage, got {tokens}")
        stages = [Stage(start, lengths[0])]
        for depth, length in enumerate(lengths[1:], start=start + 1):
            if window is None or window >= depth:
                stages.append(Stage(1, length, "copy", train="all"))
            else:
                stages.append(Stage(1, length, "copy", window=window if window > 1 else None))
        return cls(stages)

    @classmethod
    def jump(cls, n_blocks: int, *, tokens: int, start: int = 1, at: float = 0.5) -> GrowthSchedule:
        """One jump from `start` blocks to all: copies of the stack, repeated, on top; all train.

        Args:
            n_blocks: at the end.
            tokens: of the whole run.
            start: blocks until then.
            at: share of the tokens after which the others come.

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
        """Stages that end at shares of the tokens, each of one depth."""
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
            raise ConfigError(f"{where}: tokens: expected some for each stage, got {tokens}")
        stages = [Stage(depths[0], lengths[0])]
        for old, depth, length in zip(depths, depths[1:], lengths[1:], strict=False):
            new, at, copied = depth - old, None, None
            if place == "middle":
                at = tuple(range(old - new + 1, old + 1))
                copied = tuple(index - 1 for index in at)
            elif new > old > 1:
                # Whole stacks from the lowest block on; the last one may be a part.
                copied = tuple(index % old for index in range(new))
            stages.append(Stage(new, length, "copy", at=at, copy_of=copied, train=train))
        return cls(stages)

    def with_polish(self, share: float = 0.2) -> GrowthSchedule:
        """The same with everything training in the last `share` of the tokens of every stage.

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
                    f"GrowthSchedule.with_polish: stage {number}: expected a length in tokens, "
                    "and enough of them to share"
                )
        stages = [
            replace(stage, tokens=stage.tokens - tokens)
            for stage, tokens in zip(self.stages, kept, strict=True)
        ]
        return replace(self, stages=[*stages, Stage(0, sum(kept), train="all")])

    @property
    def n_blocks(self) -> int:
        """Blocks that the whole schedule adds."""
        return sum(stage.blocks for stage in self.stages)

    @property
    def tokens(self) -> int:
        """Training tokens of the whole schedule, or the most of them where a stage has `until`."""
        return sum(stage.tokens for stage in self.stages)

    def as_monolith(self) -> GrowthSchedule:
        """The control of equal depth and equal tokens: all blocks at once, and all of them train.

        Blocks that the model has before the first stage rest, as they do when it grows. Learning
        rate, head and final norm are the first stage's, which starts from nothing too; factors of
        groups on it, and what becomes of the optimizer's state between stages, are not taken over.
        Budgets of every stage in one unit are added up; a plateau is not taken over.

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
        """The control that stops growing: the first stage as it is, trained on all the tokens.

        Budgets as for `as_monolith`.
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
    """Numbers between 0 and 1, ascending."""
    numbers = all(isinstance(share, int | float) for share in shares)
    if not (numbers and list(shares) == sorted(set(shares)) and all(0 < s < 1 for s in shares)):
        raise ConfigError(
            f"{where}: at: expected ascending shares between 0 and 1, got {list(shares)}"
        )


def _require_counts(where: str, **values: int | None) -> None:
    """Each a whole number of at least 1, or None."""
    for name, value in values.items():
        if value is None:
            continue
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ConfigError(f"{where}: {name}: expected at least 1, got {value!r}")
