"""Activation checkpointing and compilation of blocks during training."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fastgrow.nn import Block

# A block is compiled once as an active block, once as a frozen block, and again for each further
# input shape. Beyond the limit dynamo would silently run eagerly; here it raises an error.
RECOMPILE_LIMIT = 32
BACKEND: str | Callable[..., Any] = "inductor"

Forward = Callable[..., Tensor]


@contextlib.contextmanager
def block_forwards(
    model: nn.Module, *, checkpoint_activations: bool = False, compile: bool = False
) -> Iterator[None]:
    """Context manager that checkpoints or compiles the model's blocks in training mode.

    In evaluation mode the blocks run as usual.

    Args:
        model: model that contains `Block` modules, at any level.
        checkpoint_activations: blocks with an active parameter save only their input and are
            recomputed in the backward pass (arXiv 1604.06174), with bit-identical results. Frozen
            blocks below them save no activations in either case; frozen blocks above them save
            what the gradient of their input requires.
        compile: compile each block by itself. Blocks of the same shape share two graphs, one for
            active blocks and one for frozen blocks. The whole model would have to be compiled again
            in every stage.
    """
    blocks = [module for module in model.modules() if isinstance(module, Block)]
    if not blocks or not (checkpoint_activations or compile):
        yield
        return
    # Bound to the block like a method, so that a copy of the block runs its own forward.
    for block in blocks:
        run: Forward = _compiled(type(block).forward, BACKEND) if compile else type(block).forward
        chosen = functools.partial(_forward, run, checkpoint_activations)
        block.forward = MethodType(chosen, block)  # type: ignore[method-assign]
    try:
        with _limited() if compile else contextlib.nullcontext():
            yield
    finally:
        for block in blocks:
            del block.forward


@contextlib.contextmanager
def training_mode(model: nn.Module, mode: bool = True) -> Iterator[None]:
    """Context manager that sets the mode of all modules and restores each module's mode on exit."""
    modes = {module: module.training for module in model.modules()}
    model.train(mode)
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


def _forward(run: Forward, checkpointing: bool, block: Block, *arguments: Any) -> Tensor:
    if not block.training:
        return type(block).forward(block, *arguments)
    trains = torch.is_grad_enabled() and any(p.requires_grad for p in block.parameters())
    if checkpointing and trains:
        # Blocks have no dropout, so the RNG state need not be restored for the recomputation.
        return checkpoint(run, block, *arguments, use_reentrant=False, preserve_rng_state=False)
    return run(block, *arguments)


def _limited() -> contextlib.AbstractContextManager[None]:
    # Imported here because importing the compiler takes about a second.
    import torch._dynamo.config as dynamo

    limits = {"recompile_limit": RECOMPILE_LIMIT, "fail_on_recompile_limit_hit": True}
    return dynamo.patch(limits)


@functools.cache
def _compiled(forward: Forward, backend: str | Callable[..., Any]) -> Forward:
    return torch.compile(forward, dynamic=False, fullgraph=True, backend=backend)
