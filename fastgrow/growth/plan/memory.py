"""Estimate the memory of a training step and its peak."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fastgrow.growth.plan.block_memory import WIDE, MicroBatch, block_bytes
from fastgrow.growth.roles import Role
from fastgrow.nn import DecoderConfig
from fastgrow.ops.heads import loss_workspace


@dataclass(frozen=True)
class StepBytes:
    """Memory of a step in addition to weights and optimizer state, in bytes.

    Attributes:
        activations: tensors saved for the backward pass when the loss is computed.
        loss: peak of logits and gradients in the head's loss, in addition to `activations`.
        gradients: gradients of the active parameters.
        peak: peak memory. It is less than the sum, because saved tensors are freed while the
            gradients are computed.
    """

    activations: int
    loss: int
    gradients: int
    peak: int


class _Timeline:
    """Allocated bytes over time, and their peak."""

    def __init__(self, held: int) -> None:
        self.held = self.peak = held

    def spike(self, extra: int) -> None:
        self.peak = max(self.peak, self.held + extra)

    def hold(self, change: int) -> None:
        self.held += change
        self.spike(0)


def step_bytes(
    config: DecoderConfig,
    stack: Sequence[Role],
    rows: MicroBatch,
    *,
    head: bool,
    final_norm: bool,
    table: bool,
    accumulate: int = 1,
    recompute: bool = False,
) -> StepBytes:
    """Simulate the memory of forward pass, loss and backward pass of one micro-batch.

    Args:
        config: configuration of the model.
        stack: roles of the blocks.
        rows: the micro-batch.
        head, final_norm, table: whether each is active.
        accumulate: number of micro-batches in a step; after the first one all gradients exist.
        recompute: whether active blocks save only their input and are recomputed in the backward
            pass (`TrainConfig.checkpoint_activations`).
    """
    d, vocabulary = config.d_model, config.vocab_size
    stream = WIDE * rows.count * d
    norm_size = WIDE * d * (2 if config.norm == "layer_norm" else 1)
    head_size = WIDE * vocabulary * (d + config.head_bias)
    blocks = [block_bytes(config, role, rows) for role in stack]
    of_table = WIDE * vocabulary * config.embed_width if table else 0
    gradients = sum(block.gradients for block in blocks) + of_table
    gradients += norm_size * final_norm + head_size * head
    stays = 0 if accumulate > 1 else 1  # whether computing a gradient allocates new memory
    time = _Timeline(0 if stays else gradients)

    # Token ids, targets and the residual stream.
    time.hold(2 * 8 * rows.count + stream)
    # Saved by each block when the loss is computed: all its saved tensors, or only its input.
    held = [
        stream if recompute and (role.trained or role.adapted) else block.kept
        for role, block in zip(stack, blocks, strict=True)
    ]
    for block, now in zip(blocks, held, strict=True):
        time.spike(block.forward + (block.kept if now == block.kept else 2 * stream))
        time.hold(now)
    flows = final_norm or any(role.output_grad for role in stack)
    norm_kept = (stream + WIDE * 2 * rows.count) if flows else 0
    loss = loss_workspace(
        *(rows.count, d, vocabulary),
        itemsize=rows.item,
        device="cuda" if rows.cuda else "cpu",
        head_bytes=head_size if head else 0,
    )
    # Losses that compute the head's gradients in the forward pass do not save the head's input.
    hidden = rows.item * rows.count * d if head and loss.implementation == "eager" else 0
    activations = sum(held) + norm_kept + hidden
    time.hold(norm_kept + hidden - stream)

    time.spike(loss.nbytes)
    time.hold(head_size * head * stays + stream - hidden)
    time.hold(-norm_kept + norm_size * final_norm * stays)
    for block, now in zip(reversed(blocks), reversed(held), strict=True):
        time.hold(block.kept - now)
        time.spike(block.backward)
        time.hold(block.gradients * stays - block.kept)
    if table:
        time.spike(2 * of_table)
    return StepBytes(activations, loss.nbytes, gradients, time.peak)
