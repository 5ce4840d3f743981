"""The optimizer of the active parameters: AdamW, or Muon combined with AdamW."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from fastgrow._checked import PositiveFloat, Proportion, check_types
from fastgrow.errors import CheckpointError, ConfigError
from fastgrow.training.config import TrainConfig

# Muon is meant for matrices that map hidden states to hidden states. It is not used for the token
# table, the head, or the two factors of a LoRA adapter.
_NOT_HIDDEN = ("embedding.", "lm_head.")
_FACTORS = ("lora_A", "lora_B")


@dataclass(frozen=True)
class Rate:
    """Learning-rate multiplier of a parameter group, with an optional warmup.

    Attributes:
        factor: multiplier of the learning rate.
        warmup: share of the training steps over which the multiplier rises from near 0 to `factor`.

    Raises:
        ConfigError: a value is out of range.
    """

    factor: PositiveFloat = 1.0
    warmup: Proportion = 0.0

    def __post_init__(self) -> None:
        check_types(self)

    def at(self, step: int, steps: int) -> float:
        """Return the multiplier at a step from 0 to steps - 1."""
        warmup_steps = round(self.warmup * steps)
        return self.factor * (min(1.0, (step + 1) / warmup_steps) if warmup_steps else 1.0)


class Optimizer:
    """Wrapper of one or two torch optimizers with a learning rate for each parameter group.

    Weight decay is applied to matrices, not to biases and norms. With "muon", the matrices of
    blocks are updated by `torch.optim.Muon` and all other parameters by AdamW. Muon's updates are
    scaled to the RMS of AdamW's, so that both use the same learning rate and weight decay
    (Moonlight, arXiv 2502.16982, §2.2).

    Args:
        active: parameters to update, by name. The optimizer holds no other parameters.
        config: optimizer and its hyperparameters.
        rates: learning-rate multipliers by parameter name; parameters without one use the learning
            rate itself.

    Raises:
        ConfigError: no parameter is given, or one does not require a gradient.
    """

    def __init__(
        self,
        active: Mapping[str, nn.Parameter],
        config: TrainConfig,
        rates: Mapping[str, Rate] | None = None,
    ) -> None:
        if not active:
            raise ConfigError("there is nothing to train: `active` has no parameters")
        for name, parameter in active.items():
            if not parameter.requires_grad:
                raise ConfigError(
                    f"{name} is to be trained but does not require a gradient; call "
                    "requires_grad_(True) on it"
                )
        self._active = dict(active)
        self._rates = dict(rates or {})
        muon = config.optimizer == "muon"
        hidden = [name for name, p in active.items() if muon and _is_hidden(name, p)]
        rest = [name for name in active if name not in set(hidden)]
        self._parts: list[torch.optim.Optimizer] = []
        if hidden:
            self._parts.append(self._muon(hidden, config))
        if rest:
            self._parts.append(self._adamw(rest, config))
        self._part_of = {
            parameter: part
            for part in self._parts
            for group in part.param_groups
            for parameter in group["params"]
        }

    def _adamw(self, names: Iterable[str], config: TrainConfig) -> torch.optim.AdamW:
        return torch.optim.AdamW(
            self._groups(names, config.weight_decay),
            lr=config.lr,
            betas=config.betas,
            eps=config.eps,
            fused=all(p.device.type in ("cpu", "cuda") for p in self._active.values()),
        )

    def _muon(self, names: Iterable[str], config: TrainConfig) -> torch.optim.Optimizer:
        return torch.optim.Muon(
            self._groups(names, config.weight_decay),
            lr=config.lr,
            momentum=config.betas[0],
            adjust_lr_fn="match_rms_adamw",
        )

    def _groups(self, names: Iterable[str], weight_decay: float) -> list[dict[str, Any]]:
        """Group parameters by weight decay and learning-rate multiplier."""
        groups: dict[tuple[bool, Rate], list[nn.Parameter]] = {}
        for name in names:
            parameter = self._active[name]
            decays = parameter.ndim >= 2
            groups.setdefault((decays, self._rates.get(name, Rate())), []).append(parameter)
        return [
            {"params": members, "weight_decay": weight_decay * decays, "rate": rate}
            for (decays, rate), members in sorted(groups.items(), key=lambda g: not g[0][0])
        ]

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The parameter groups of all torch optimizers."""
        return [group for part in self._parts for group in part.param_groups]

    @property
    def held(self) -> dict[torch.Tensor, dict[str, Any]]:
        """The optimizer state of each parameter that has one."""
        return {p: state for part in self._parts for p, state in part.state.items()}

    def set_rate(self, rate: float, step: int, steps: int) -> None:
        """Set the learning rate of each group for a step from 0 to steps - 1."""
        for group in self.param_groups:
            group["lr"] = rate * group["rate"].at(step, steps)

    def step(self) -> None:
        """Update the parameters."""
        for part in self._parts:
            part.step()

    def zero_grad(self) -> None:
        """Set the gradients to None."""
        for part in self._parts:
            part.zero_grad(set_to_none=True)

    # -- its state -----------------------------------------------------------------------------

    def state_dict(self) -> dict[str, dict[str, Any]]:
        """Return the state tensors by parameter name, independent of the parameters' order."""
        held = self.held
        return {name: dict(held[p]) for name, p in self._active.items() if p in held}

    def load_state_dict(self, state: Mapping[str, Mapping[str, Any]]) -> None:
        """Restore a state that `state_dict` returned.

        Raises:
            CheckpointError: the state belongs to different parameters or shapes.
        """
        missing = sorted(set(self._active) - set(state))
        # Before its first step an optimizer has no state at all.
        if state and missing:
            raise CheckpointError(
                f"the optimizer state was saved for other parameters: missing {missing[:3]}"
            )
        for part in self._parts:
            part.state.clear()
        self.adopt({n: {k: v.clone() for k, v in parts.items()} for n, parts in state.items()})

    def adopt(self, state: Mapping[str, Mapping[str, Any]]) -> None:
        """Continue from the state that some of the parameters had in an earlier stage.

        Args:
            state: optimizer state by parameter name; its tensors are used without a copy.

        Raises:
            CheckpointError: a state belongs to a parameter that is not active, or has a different
                shape.
        """
        if foreign := sorted(set(state) - set(self._active)):
            raise CheckpointError(
                f"the optimizer state was saved for other parameters: not active {foreign[:3]}"
            )
        for name, tensors in state.items():
            parameter = self._active[name]
            for key, value in tensors.items():
                if value.ndim and value.shape != parameter.shape:
                    raise CheckpointError(
                        f"optimizer state {key} of {name} has shape {tuple(value.shape)}, "
                        f"the parameter has {tuple(parameter.shape)}"
                    )
            self._part_of[parameter].state[parameter] = {
                key: value.detach().to(parameter.device) for key, value in tensors.items()
            }


def _is_hidden(name: str, parameter: nn.Parameter) -> bool:
    return parameter.ndim == 2 and not name.startswith(_NOT_HIDDEN) and not name.endswith(_FACTORS)
