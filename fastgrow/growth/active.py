"""What trains in a stage, from the schedule and the model's shape alone: no weights are needed."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

from torch import nn

from fastgrow.errors import ConfigError
from fastgrow.growth.schedule import GrowthSchedule
from fastgrow.growth.stage import LoRA, Stage
from fastgrow.nn import Block, DecoderConfig
from fastgrow.nn.insertion import copied_blocks, insertion_indices
from fastgrow.nn.norm import make_norm


@dataclass(frozen=True)
class StageShape:
    """What stands and what moves in a stage.

    Attributes:
        depth: blocks during the stage.
        new: indices, in the stage's stack, of the inserted blocks.
        trained: blocks whose own weights train.
        adapted: blocks with LoRA.
        rank: of the LoRA, derived from the budget where that is given; None without LoRA.
        head, final_norm, table: whether each trains.
        n_trunk: the frozen trunk, the lowest blocks that neither train nor are adapted; 0 where the
            table trains.
    """

    depth: int
    new: tuple[int, ...]
    trained: tuple[int, ...]
    adapted: tuple[int, ...]
    rank: int | None
    head: bool
    final_norm: bool
    table: bool
    n_trunk: int

    @property
    def old(self) -> list[int]:
        """For each block of the stack before the stage its index in the stage's stack."""
        return [index for index in range(self.depth) if index not in self.new]


def copied_from(stage: Stage, shape: StageShape) -> dict[int, int]:
    """Index of a new block that is a copy → index, in the stack before, of what it copies."""
    if stage.insertion != "copy":
        return {}
    sources = copied_blocks(len(shape.old), stage.blocks, stage.at, stage.copy_of)
    return dict(zip(shape.new, sources, strict=True))


def stage_shape(
    schedule: GrowthSchedule, index: int, config: DecoderConfig, first_depth: int = 0
) -> StageShape:
    """The shape of stage `index` (from 0) of a schedule.

    Args:
        schedule: the stages.
        index: of the stage.
        config: the model's; its `n_layer` is not looked at.
        first_depth: blocks that the model has before the first stage.

    Raises:
        ConfigError: the stage names a block that is not there, adapts one that trains, ties the
            head to a table that trains, or its budget does not pay for rank 1.
    """
    stage = schedule.stages[index]
    where = f"stage {index + 1}"
    old = first_depth + sum(before.blocks for before in schedule.stages[:index])
    depth = old + stage.blocks
    try:
        new = insertion_indices(old, stage.blocks, stage.at)
        if stage.insertion == "copy":
            copied_blocks(old, stage.blocks, stage.at, stage.copy_of)
    except ConfigError as error:
        raise ConfigError(f"{where}: Stage.{error}") from None
    trained = _trained(stage, depth, new, where)
    adapted = _adapted(stage.lora, depth, new, trained, where)
    table = config.embedding == "trainable" and (stage.train == "all" or 0 in trained)
    if stage.head == "tied" and table:
        raise ConfigError(f"{where}: the head cannot be tied to a table that trains")
    head = stage.head in ("keep", "reset")
    # A table trains with block 0, so that a trunk above it has no block.
    lowest = min((*trained, *adapted), default=depth)
    shape = StageShape(
        depth=depth,
        new=new,
        trained=trained,
        adapted=adapted,
        rank=None,
        head=head,
        final_norm=stage.final_norm,
        table=table,
        n_trunk=lowest,
    )
    if stage.lora is None:
        return shape
    rank = _rank(stage.lora, shape, config, where)
    return replace(shape, rank=rank)


def active_parameters(stage: Stage, shape: StageShape, config: DecoderConfig) -> int:
    """Numbers that train in a stage."""
    sizes = _sizes(config)
    total = len(shape.trained) * sizes.block
    total += sizes.head * shape.head + sizes.final_norm * shape.final_norm
    total += config.vocab_size * config.embed_width * shape.table
    if stage.lora is not None and shape.rank is not None:
        total += shape.rank * len(shape.adapted) * _numbers_per_rank(stage.lora, sizes)
    return total


def qkv_parts(config: DecoderConfig) -> tuple[int, int, int]:
    """Rows of the queries, keys and values in the one matrix that holds the three."""
    return config.d_model, config.kv_heads * config.head_dim, config.kv_heads * config.head_dim


def _trained(stage: Stage, depth: int, new: tuple[int, ...], where: str) -> tuple[int, ...]:
    if stage.train == "all":
        return tuple(range(depth))
    if stage.train == "none":
        return ()
    window = stage.window or 0
    if window > depth:
        raise ConfigError(f"{where}: Stage.window: there are {depth} blocks, got {window}")
    return tuple(sorted({*new, *range(depth - window, depth)}))


def _adapted(
    lora: LoRA | None, depth: int, new: tuple[int, ...], trained: tuple[int, ...], where: str
) -> tuple[int, ...]:
    if lora is None:
        return ()
    if lora.blocks == "new":
        return new
    resting = tuple(i for i in range(depth) if i not in trained)
    if lora.blocks == "frozen":
        if not resting:
            raise ConfigError(f"{where}: LoRA: no block rests whose weights it could correct")
        return resting
    wrong = [i for i in lora.blocks if i not in resting]
    if wrong:
        what = "trains its own weights" if wrong[0] < depth else f"is not there ({depth} blocks)"
        raise ConfigError(f"{where}: LoRA.blocks: block {wrong[0]} {what}")
    return lora.blocks


def _rank(lora: LoRA, shape: StageShape, config: DecoderConfig, where: str) -> int:
    sizes = _sizes(config)
    present = [name for name in lora.targets if name in sizes.projections]
    if not present:
        raise ConfigError(f"{where}: LoRA.targets: the blocks have none of {lora.targets}")
    most = min(sizes.projections[name][1] for name in present)
    if lora.rank is not None:
        if lora.rank > most:
            raise ConfigError(
                f"{where}: LoRA.rank: the narrowest projection has width {most}, got {lora.rank}"
            )
        return lora.rank
    assert lora.budget is not None
    rest = active_parameters(Stage(), shape, config)
    per_rank = len(shape.adapted) * _numbers_per_rank(lora, sizes)
    if lora.budget < rest + per_rank:
        raise ConfigError(
            f"{where}: LoRA.budget: what else trains takes {rest:,} numbers and rank 1 "
            f"{per_rank:,}, got a budget of {lora.budget:,}"
        )
    return min((lora.budget - rest) // per_rank, most)


@dataclass(frozen=True)
class _Sizes:
    """Numbers in a model's parts; of a projection, those of rank 1 and the largest rank."""

    block: int
    head: int
    final_norm: int
    projections: dict[str, tuple[int, int]]


@lru_cache(maxsize=16)
def _sizes(config: DecoderConfig) -> _Sizes:
    block = Block(config, device="meta")
    norm = make_norm(config.norm, config.d_model, device="meta")
    projections = {}
    for name, layer in block.named_modules():
        if isinstance(layer, nn.Linear):
            parts = qkv_parts(config) if name == "attention.qkv" else (layer.out_features,)
            numbers = len(parts) * layer.in_features + layer.out_features
            projections[name] = (numbers, min(layer.in_features, *parts))
    return _Sizes(
        block=sum(p.numel() for p in block.parameters()),
        head=config.vocab_size * (config.d_model + config.head_bias),
        final_norm=sum(p.numel() for p in norm.parameters()),
        projections=projections,
    )


def _numbers_per_rank(lora: LoRA, sizes: _Sizes) -> int:
    return sum(sizes.projections[name][0] for name in lora.targets if name in sizes.projections)
