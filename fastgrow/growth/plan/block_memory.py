"""Bytes that one block keeps for the backward pass, and needs on the way.

Counted from what each operation of `fastgrow.ops` keeps, as it is chosen by itself. On a CPU in
float32 that is compared with measured bytes; on a GPU it has not been.
"""

from __future__ import annotations

from dataclasses import dataclass

from fastgrow.growth.roles import RequiresGrad, Role, products
from fastgrow.nn import DecoderConfig

WIDE = 4  # bytes of a float32


@dataclass(frozen=True)
class Rows:
    """What a micro-batch is made of, and in which format.

    Attributes:
        count: tokens in it.
        item: bytes of a number that a product reads: 4 in float32, 2 under bf16 autocast.
        cuda: on a GPU, where attention rotates inside and norms give float32.
    """

    count: int
    item: int = WIDE
    cuda: bool = False


@dataclass(frozen=True)
class BlockBytes:
    """Of one block and one micro-batch.

    Attributes:
        kept: for the backward pass.
        forward: held at the worst moment of the forward pass beside what is kept.
        backward: held at the worst moment of the backward pass beside what is kept and the
            gradients of the blocks above.
        gradients: of the parameters that train here.
    """

    kept: int
    forward: int
    backward: int
    gradients: int


def block_bytes(config: DecoderConfig, role: Role, rows: Rows) -> BlockBytes:
    """Count."""
    d, m = config.d_model, config.mlp_width
    mlp_gradients, gradients = _gradients(config, role)
    mlp_kept, attention_kept = _mlp_kept(config, role, rows), _attention_kept(config, role, rows)
    kept = mlp_kept + attention_kept
    stream, narrow, wide = WIDE * rows.count * d, rows.item * rows.count * d, rows.item * rows.count
    wide *= m * (2 if config.activation == "swiglu" else 1)
    passing = narrow * 3 + wide
    if not role.output_grad:
        return BlockBytes(0, 2 * stream + passing, 0, 0)
    # While `down`'s gradients are made, all is still kept; while `up`'s are, the wide tensors of
    # the forward pass are gone and those of the backward pass stand.
    at_down = stream + wide + mlp_gradients // 2
    at_up = stream + 2 * narrow + wide + mlp_gradients - min(mlp_kept, 2 * wide)
    return BlockBytes(kept, passing, max(at_down, at_up), gradients)


def block_parameters(config: DecoderConfig) -> int:
    """Numbers in one block."""
    return sum(p.inputs * p.outputs for p in products(config)) + _vectors(config)


def low_rank_parameters(config: DecoderConfig, role: Role) -> int:
    """Numbers in one block's corrections."""
    adapted = [p for p in products(config) if p.name in role.adapted]
    return role.rank * sum(p.inputs * p.parts + p.outputs for p in adapted)


def _vectors(config: DecoderConfig) -> int:
    norms = 2 * config.d_model * (2 if config.norm == "layer_norm" else 1)
    biases = 0
    for layer in products(config):
        if layer.name.startswith("attention."):
            biases += layer.outputs * config.attention_bias
        elif layer.name != "mlp.gate":
            biases += layer.outputs * config.mlp_bias
    return norms + biases


def _gradients(config: DecoderConfig, role: Role) -> tuple[int, int]:
    """Bytes of the gradients of the feed-forward layer, and of the whole block."""
    low_rank = WIDE * low_rank_parameters(config, role)
    if not role.trained:
        return low_rank, low_rank
    mlp = sum(p.inputs * p.outputs for p in products(config) if p.name.startswith("mlp."))
    return WIDE * mlp + low_rank, WIDE * block_parameters(config) + low_rank


def _attention_kept(config: DecoderConfig, role: Role, rows: Rows) -> int:
    """The first norm's input, what qkv reads, what SDPA keeps, what `out` reads."""
    asks, d = RequiresGrad.of(role), config.d_model
    heads = config.n_head * config.head_dim
    keys = config.kv_heads * config.head_dim
    kept = 0
    if asks.normed:
        kept += WIDE * (d + _statistics(config))
    if role.trained or role.adapts("attention.qkv"):
        kept += rows.item * d
    if asks.heads:
        # The values are a part of qkv's output, so that all of it stays.
        kept += rows.item * (heads + 2 * keys + heads) + WIDE * config.n_head
        if not rows.cuda:
            # The rotated queries and keys.
            kept += rows.item * (heads + keys)
    # On a CPU the heads stand one after the other in SDPA's result, and `out` reads a copy.
    if (role.trained or role.adapts("attention.out")) and not (rows.cuda and asks.heads):
        kept += rows.item * heads
    kept += rows.item * _corrections(config, role, "attention.")
    return kept * rows.count


def _mlp_kept(config: DecoderConfig, role: Role, rows: Rows) -> int:
    """The second norm's input, what up and gate read, the activation's input, what down reads."""
    asks, d, m = RequiresGrad.of(role), config.d_model, config.mlp_width
    gated = config.activation == "swiglu"
    kept = 0
    if asks.mlp_in or role.trained:
        kept += WIDE * (d + _statistics(config))
    if role.trained or role.adapts("mlp.up", "mlp.gate"):
        kept += rows.item * d
    if role.trained or role.adapts("mlp.up", "mlp.gate", "mlp.down"):
        # The formula, layer by layer: what the activation is of, for a gate also its factors.
        by_up = asks.mlp_in or role.adapts("mlp.up")
        by_gate = asks.mlp_in or role.adapts("mlp.gate")
        kept += rows.item * m * (by_up + 2 * by_gate if gated else by_up)
        kept += rows.item * m * (role.trained or role.adapts("mlp.down"))
    elif asks.hidden:
        kept += rows.item * m * (2 if gated else 1)
    kept += rows.item * _corrections(config, role, "mlp.")
    return kept * rows.count


def _corrections(config: DecoderConfig, role: Role, half: str) -> int:
    """The narrow products of corrections, for one token."""
    parts = {layer.name: layer.parts for layer in products(config)}
    return role.rank * sum(parts[name] for name in role.adapted if name.startswith(half))


def _statistics(config: DecoderConfig) -> int:
    return 2 if config.norm == "layer_norm" else 1
