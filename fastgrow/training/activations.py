"""How blocks run while a model trains: activations saved or computed again, compiled or not."""

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

# One block is compiled for the training of it, once for running it frozen, and anew for every
# other shape. Past the limit dynamo would quietly run eager; here it raises.
RECOMPILE_LIMIT = 32
BACKEND: str | Callable[..., Any] = "inductor"

Forward = Callable[..., Tensor]


@contextlib.contextmanager
def block_forwards(
    model: nn.Module, *, checkpoint_activations: bool = False, compile: bool = False
) -> Iterator[None]:
    """Within it the model's blocks run as asked; evaluation mode leaves them plain.

    Args:
        model: its `Block`s are meant, wherever they stand.
        checkpoint_activations: blocks of which something trains save their input alone and run
            again in the backward pass (arXiv 1604.06174), to the same bits. Frozen blocks below
            them save nothing anyway; those above save what a gradient on its way down needs.
        compile: blocks are compiled one by one. All of one shape share their graphs: one for those
            that train and one for those that don't. A model compiled as a whole would be compiled
            anew in every stage.
    """
    blocks = [module for module in model.modules() if isinstance(module, Block)]
    if not blocks or not (checkpoint_activations or compile):
        yield
        return
    # Bound to the block as methods are, so that a copy of the block runs the copy.
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
    """Training mode, or evaluation mode, for all modules; each gets its own mode back."""
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
        # There is no dropout, so no random numbers have to be the same again.
        return checkpoint(run, block, *arguments, use_reentrant=False, preserve_rng_state=False)
    return run(block, *arguments)


def _limited() -> contextlib.AbstractContextManager[None]:
    # Loading the compiler takes a second, which only those who use it should spend.
    import torch._dynamo.config as dynamo

    limits = {"recompile_limit": RECOMPILE_LIMIT, "fail_on_recompile_limit_hit": True}
    return dynamo.patch(limits)


@functools.cache
def _compiled(forward: Forward, backend: str | Callable[..., Any]) -> Forward:
    return torch.compile(forward, dynamic=False, fullgraph=True, backend=backend)
