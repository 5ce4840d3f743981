"""What is active in a stage, computed from the schedule and the model's shape; needs no weights."""

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
    """The depth of a stage, and what is active in it. Blocks are given by their indices.

    Attributes:
        depth: number of blocks during the stage.
        new: the inserted blocks.
        trained: blocks whose own weights are active.
        adapted: blocks with LoRA.
        rank: rank of the LoRA, computed from the budget if that is given; None without LoRA.
        head, final_norm, table: whether the head, the final norm and the token table are active.
        n_trunk: number of blocks of the frozen trunk: the lowest blocks, which are neither trained
            nor adapted; 0 if the token table is active.
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
        """The indices of the old blocks: block i before the stage is block `old[i]` in it."""
        return [index for index in range(self.depth) if index not in self.new]


def copied_from(stage: Stage, shape: StageShape) -> dict[int, int]:
    """Return for the index of each copy the index that its original had before the stage."""
    if stage.insertion != "copy":
        return {}
    sources = copied_blocks(len(shape.old), stage.blocks, stage.at, stage.copy_of)
    return dict(zip(shape.new, sources, strict=True))


def stage_shape(
    schedule: GrowthSchedule, index: int, config: DecoderConfig, first_depth: int = 0
) -> StageShape:
    """Return the shape of stage `index` (from 0) of a schedule.

    Args:
        schedule: the stages.
        index: index of the stage.
        config: configuration of the model; its `n_layer` is ignored.
        first_depth: number of blocks of the model before the first stage.

    Raises:
        ConfigError: the stage names a block that does not exist, adapts one that is trained, ties
            the head to a trainable token table, or its budget is too small for rank 1.
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
        raise ConfigError(
            f"{where}: Stage.head: the head cannot be tied to a token table that is trained in the "
            "same stage; expected 'keep', 'reset' or 'frozen'"
        )
    head = stage.head in ("keep", "reset")
    # The table is active only together with block 0; then the trunk has no blocks.
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
    """Return the number of active parameters of a stage."""
    sizes = _sizes(config)
    total = len(shape.trained) * sizes.block
    total += sizes.head * shape.head + sizes.final_norm * shape.final_norm
    total += config.vocab_size * config.embed_width * shape.table
    if stage.lora is not None and shape.rank is not None:
        total += shape.rank * len(shape.adapted) * _numbers_per_rank(stage.lora, sizes)
    return total


def qkv_parts(config: DecoderConfig) -> tuple[int, int, int]:
    """Return the number of rows of queries, keys and values in the matrix of all three."""
    return config.d_model, config.kv_heads * config.head_dim, config.kv_heads * config.head_dim


def _trained(stage: Stage, depth: int, new: tuple[int, ...], where: str) -> tuple[int, ...]:
    if stage.train == "all":
        return tuple(range(depth))
    if stage.train == "none":
        return ()
    window = stage.window or 0
    if window > depth:
        raise ConfigError(
            f"{where}: Stage.window: expected at most {depth}, the number of blocks, got {window}"
        )
    return tuple(sorted({*new, *range(depth - window, depth)}))


def _adapted(
    lora: LoRA | None, depth: int, new: tuple[int, ...], trained: tuple[int, ...], where: str
) -> tuple[int, ...]:
    if lora is None:
        return ()
    if lora.blocks == "new":
        return new
    frozen = tuple(i for i in range(depth) if i not in trained)
    if lora.blocks == "frozen":
        if not frozen:
            raise ConfigError(
                f"{where}: LoRA.blocks: 'frozen' adapts frozen blocks, but the stage has none"
            )
        return frozen
    wrong = [i for i in lora.blocks if i not in frozen]
    if wrong:
        what = "is trained itself" if wrong[0] < depth else f"does not exist ({depth} blocks)"
        raise ConfigError(f"{where}: LoRA.blocks: block {wrong[0]} {what}")
    return lora.blocks


def _rank(lora: LoRA, shape: StageShape, config: DecoderConfig, where: str) -> int:
    sizes = _sizes(config)
    present = [name for name in lora.targets if name in sizes.projections]
    if not present:
        raise ConfigError(f"{where}: LoRA.targets: the blocks have no projection in {lora.targets}")
    most = min(sizes.projections[name][1] for name in present)
    if lora.rank is not None:
        if lora.rank > most:
            raise ConfigError(
                f"{where}: LoRA.rank: expected at most {most}, the width of the narrowest "
                f"projection, got {lora.rank}"
            )
        return lora.rank
    assert lora.budget is not None
    others = active_parameters(Stage(), shape, config)
    per_rank = len(shape.adapted) * _numbers_per_rank(lora, sizes)
    if lora.budget < others + per_rank:
        raise ConfigError(
            f"{where}: LoRA.budget: expected at least {others + per_rank:,}: the other active "
            f"parameters are {others:,} and those of rank 1 {per_rank:,}, got {lora.budget:,}"
        )
    return min((lora.budget - others) // per_rank, most)


@dataclass(frozen=True)
class _Sizes:
    """Parameters of a model's parts; for projections, those of rank 1 and the largest rank."""

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
