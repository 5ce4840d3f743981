"""AdamW over exactly the parameters that a run trains."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from fastgrow.errors import CheckpointError, ConfigError
from fastgrow.training.config import TrainConfig


def build_optimizer(active: Mapping[str, nn.Parameter], config: TrainConfig) -> torch.optim.AdamW:
    """Fused AdamW with two groups: tensors of two or more dimensions decay, the rest does not.

    Args:
        active: name to parameter; nothing else is held, so nothing else can move.
        config: learning rate, betas, eps and weight decay.

    Raises:
        ConfigError: no parameter is given, or one does not require a gradient.
    """
    if not active:
        raise ConfigError("there is nothing to train: no active parameter was given")
    for name, parameter in active.items():
        if not parameter.requires_grad:
            raise ConfigError(f"{name} is to be trained but does not require a gradient")
    matrices = [parameter for parameter in active.values() if parameter.ndim >= 2]
    vectors = [parameter for parameter in active.values() if parameter.ndim < 2]
    groups = [
        {"params": matrices, "weight_decay": config.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=config.lr,
        betas=config.betas,
        eps=config.eps,
        fused=all(parameter.device.type in ("cpu", "cuda") for parameter in active.values()),
    )


def optimizer_state(
    optimizer: torch.optim.Optimizer, active: Mapping[str, nn.Parameter]
) -> dict[str, Any]:
    """The optimizer's tensors under the parameters' names, so that no order has to be kept."""
    return {name: dict(optimizer.state[p]) for name, p in active.items() if p in optimizer.state}


def load_optimizer_state(
    optimizer: torch.optim.Optimizer,
    active: Mapping[str, nn.Parameter],
    state: Mapping[str, Any],
) -> None:
    """Put back what `optimizer_state` returned.

    Raises:
        CheckpointError: the state holds other parameters or other shapes.
    """
    missing, foreign = sorted(set(active) - set(state)), sorted(set(state) - set(active))
    # Before its first step an optimizer has no state at all.
    if state and (missing or foreign):
        raise CheckpointError(
            "the optimizer state was saved for other parameters: "
            f"missing {missing[:3]}, not active here {foreign[:3]}"
        )
    optimizer.state.clear()
    for name, tensors in state.items():
        parameter = active[name]
        for key, value in tensors.items():
            if value.ndim and value.shape != parameter.shape:
                raise CheckpointError(
                    f"optimizer state {key} of {name} has shape {tuple(value.shape)}, "
                    f"the parameter has {tuple(parameter.shape)}"
                )
        optimizer.state[parameter] = {
            key: value.detach().clone().to(parameter.device) for key, value in tensors.items()
        }
