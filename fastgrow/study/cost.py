"""What a training costs, counted: floating-point operations of its matrix products.

A product of [N, a] and [a, b] counts 2·N·a·b. Norms, activations, softmax, the optimizer and
evaluations are left out: they are the same few per cent for every model here.
"""

from __future__ import annotations

from collections.abc import Sequence

from fastgrow.nn import DecoderConfig
from fastgrow.study.controls import Plan


def block_weights(config: DecoderConfig) -> tuple[int, int]:
    """Numbers in a block's matrices: those that read the block's input (q, k, v), and the rest."""
    kv_width = config.kv_heads * config.head_dim
    inner = config.d_model * config.mlp_width
    mlp = inner * (3 if config.activation == "swiglu" else 2)
    return config.d_model * (config.d_model + 2 * kv_width), config.d_model**2 + mlp


def forward_flops(config: DecoderConfig, depth: int, seq_len: int) -> float:
    """Operations for one token of a forward pass through `depth` blocks and the head."""
    block = 2 * sum(block_weights(config)) + _attention(config, seq_len)
    return depth * block + 2 * config.d_model * config.vocab_size


def training_flops(
    config: DecoderConfig, depth: int, trained: Sequence[int], seq_len: int
) -> float:
    """Operations for one token of a training step, forward and backward.

    A weight that trains costs its own gradient; everything above the lowest block that trains costs
    the gradient of its input, which is all that backward costs in a frozen block. Below, there is
    no backward.

    Args:
        config: of the model.
        depth: blocks of the model.
        trained: indices of the blocks that train; the head always does.
        seq_len: T; under a causal mask a token sees (T + 1) / 2 tokens on average.
    """
    reads_input, rest = block_weights(config)
    lowest = min(trained, default=depth)
    flops = forward_flops(config, depth, seq_len) + 4 * config.d_model * config.vocab_size
    for block in range(lowest, depth):
        flops += 2 * rest + 2 * _attention(config, seq_len)
        if block in trained:
            flops += 2 * (reads_input + rest)
        if block > lowest or config.embedding == "trainable":
            flops += 2 * reads_input
    return flops


def stage_flops(config: DecoderConfig, plan: Plan, seq_len: int) -> list[float]:
    """Operations for one token of each stage of a plan."""
    depth, flops = plan.random_blocks, []
    for stage in plan.schedule.stages:
        trained = range(depth, depth + stage.blocks)
        depth += stage.blocks
        flops.append(training_flops(config, depth, trained, seq_len))
    return flops


def plan_flops(config: DecoderConfig, plan: Plan, seq_len: int) -> float:
    """Operations of a whole plan."""
    each = stage_flops(config, plan, seq_len)
    return sum(f * stage.tokens for f, stage in zip(each, plan.schedule.stages, strict=True))


def _attention(config: DecoderConfig, seq_len: int) -> float:
    """Scores and their use, for one token: 2 · 2 · d · (T + 1) / 2."""
    return 2 * config.d_model * (seq_len + 1)
