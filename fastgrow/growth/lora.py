"""LoRA of one stage: attached at its start, merged into plain weights at its end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from fastgrow.growth.active import StageShape, qkv_parts
from fastgrow.growth.stage import LoRA
from fastgrow.nn import Decoder, DecoderConfig, LoRALinear


@dataclass(frozen=True)
class Drift:
    """The rounding error of merged weights; each the largest over all layers.

    Attributes:
        largest: distance of a merged weight from the sum in float32.
        relative: root mean square of a layer's distances over that of its correction.
    """

    largest: float
    relative: float


def attach_lora(model: Decoder, lora: LoRA, shape: StageShape) -> None:
    """Wrap the projections that a stage adapts; at first the model's output is unchanged.

    A is drawn from torch's global generator. Half-precision weights get float32 corrections.
    """
    assert shape.rank is not None
    for index in shape.adapted:
        adapt_block(model.blocks[index], model.config, lora.targets, shape.rank, lora.alpha)


def adapt_block(
    block: nn.Module,
    config: DecoderConfig,
    targets: Sequence[str],
    rank: int,
    alpha: float | None = None,
) -> None:
    """Wrap the projections of a block that are in `targets`; those it does not have are skipped."""
    layers = dict(block.named_modules())
    for target in targets:
        layer = layers.get(target)
        if not isinstance(layer, nn.Linear):
            continue
        adapted = LoRALinear(
            layer,
            rank,
            alpha,
            parts=qkv_parts(config) if target == "attention.qkv" else None,
            dtype=torch.promote_types(layer.weight.dtype, torch.float32),
        )
        _replace(block, target, adapted.train(layer.training))


def adapters(model: nn.Module) -> dict[str, LoRALinear]:
    """Return the wrapped layers by their names in the model."""
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, LoRALinear)}


def merge_lora(model: nn.Module) -> Drift | None:
    """Replace the wrapped layers by plain ones, with the corrections added to their weights.

    Returns:
        The rounding error; None if no layer was wrapped.
    """
    merged = {name: layer.merge() for name, layer in adapters(model).items()}
    for name, result in merged.items():
        _replace(model, name, result.linear.requires_grad_(False))
    if not merged:
        return None
    return Drift(
        largest=max(result.drift for result in merged.values()),
        relative=max(result.relative_drift for result in merged.values()),
    )


def _replace(model: nn.Module, name: str, layer: nn.Module) -> None:
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, layer)
