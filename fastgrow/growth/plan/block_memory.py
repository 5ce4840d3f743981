"""Estimate the memory of one block: tensors saved for the backward pass, and temporary tensors.

The bytes are counted from the tensors that each operation of `fastgrow.ops` saves with its default
implementation. On a CPU in float32 a test compares them with measured bytes; on a GPU they have not
been compared.
"""

from __future__ import annotations

from dataclasses import dataclass

from fastgrow.growth.roles import RequiresGrad, Role, products
from fastgrow.nn import DecoderConfig

WIDE = 4  # bytes of a float32


@dataclass(frozen=True)
class MicroBatch:
    """Size and number format of a micro-batch.

    Attributes:
        count: number of tokens.
        item: bytes per element of the inputs of matrix products: 4 in float32, 2 with bf16
            autocast.
        cuda: whether it is on a GPU, where attention applies the rotary embedding itself and norms
            return float32.
    """

    count: int
    item: int = WIDE
    cuda: bool = False


@dataclass(frozen=True)
class BlockBytes:
    """Memory of one block for one micro-batch, in bytes.

    Attributes:
        kept: tensors saved for the backward pass.
        forward: peak of temporary tensors in the forward pass, in addition to `kept`.
        backward: peak of temporary tensors in the backward pass, in addition to `kept` and to the
            gradients of the blocks above.
        gradients: gradients of the block's active parameters.
    """

    kept: int
    forward: int
    backward: int
    gradients: int


def block_bytes(config: DecoderConfig, role: Role, rows: MicroBatch) -> BlockBytes:
    """Estimate the memory of a block in a given role."""
    d, m = config.d_model, config.mlp_width
    mlp_gradients, gradients = _gradients(config, role)
    mlp_kept, attention_kept = _mlp_kept(config, role, rows), _attention_kept(config, role, rows)
    kept = mlp_kept + attention_kept
    stream, narrow, wide = WIDE * rows.count * d, rows.item * rows.count * d, rows.item * rows.count
    wide *= m * (2 if config.activation == "swiglu" else 1)
    passing = narrow * 3 + wide
    if not role.output_grad:
        return BlockBytes(0, 2 * stream + passing, 0, 0)
    # While the gradients of `down` are computed, all saved tensors are still alive. While those of
    # `up` are computed, the wide tensors of the forward pass have been freed and those of the
    # backward pass are alive.
    at_down = stream + wide + mlp_gradients // 2
    at_up = stream + 2 * narrow + wide + mlp_gradients - min(mlp_kept, 2 * wide)
    return BlockBytes(kept, passing, max(at_down, at_up), gradients)


def block_parameters(config: DecoderConfig) -> int:
    """Return the number of parameters of a block."""
    return sum(p.inputs * p.outputs for p in products(config)) + _vectors(config)


def low_rank_parameters(config: DecoderConfig, role: Role) -> int:
    """Return the number of parameters of a block's LoRA adapters."""
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
    """Return the bytes of the gradients of the feed-forward layer, and of the whole block."""
    low_rank = WIDE * low_rank_parameters(config, role)
    if not role.trained:
        return low_rank, low_rank
    mlp = sum(p.inputs * p.outputs for p in products(config) if p.name.startswith("mlp."))
    return WIDE * mlp + low_rank, WIDE * block_parameters(config) + low_rank


def _attention_kept(config: DecoderConfig, role: Role, rows: MicroBatch) -> int:
    """Bytes saved by attention: inputs of the first norm, qkv and out, and SDPA's tensors."""
    needs, d = RequiresGrad.of(role), config.d_model
    heads = config.n_head * config.head_dim
    keys = config.kv_heads * config.head_dim
    kept = 0
    if needs.normed:
        kept += WIDE * (d + _statistics(config))
    if role.trained or role.adapts("attention.qkv"):
        kept += rows.item * d
    if needs.heads:
        # The values are a view of qkv's output, which keeps all of it alive.
        kept += rows.item * (heads + 2 * keys + heads) + WIDE * config.n_head
        if not rows.cuda:
            # The queries and keys with rotary embedding applied.
            kept += rows.item * (heads + keys)
    # On a CPU the heads are the outer dimension of SDPA's result, and `out` reads a copy of it.
    if (role.trained or role.adapts("attention.out")) and not (rows.cuda and needs.heads):
        kept += rows.item * heads
    kept += rows.item * _corrections(config, role, "attention.")
    return kept * rows.count


def _mlp_kept(config: DecoderConfig, role: Role, rows: MicroBatch) -> int:
    """Bytes saved by the MLP: inputs of the second norm, up and gate, the activation, and down."""
    needs, d, m = RequiresGrad.of(role), config.d_model, config.mlp_width
    gated = config.activation == "swiglu"
    kept = 0
    if needs.mlp_in or role.trained:
        kept += WIDE * (d + _statistics(config))
    if role.trained or role.adapts("mlp.up", "mlp.gate"):
        kept += rows.item * d
    if role.trained or role.adapts("mlp.up", "mlp.gate", "mlp.down"):
        # Layer by layer: the input of the activation, and for a gate also its two factors.
        by_up = needs.mlp_in or role.adapts("mlp.up")
        by_gate = needs.mlp_in or role.adapts("mlp.gate")
        kept += rows.item * m * (by_up + 2 * by_gate if gated else by_up)
        kept += rows.item * m * (role.trained or role.adapts("mlp.down"))
    elif needs.hidden:
        kept += rows.item * m * (2 if gated else 1)
    kept += rows.item * _corrections(config, role, "mlp.")
    return kept * rows.count


def _corrections(config: DecoderConfig, role: Role, half: str) -> int:
    """Elements per token of the products of LoRA adapters with rank as their width."""
    parts = {layer.name: layer.parts for layer in products(config)}
    return role.rank * sum(parts[name] for name in role.adapted if name.startswith(half))


def _statistics(config: DecoderConfig) -> int:
    return 2 if config.norm == "layer_norm" else 1
