"""The optimizer over exactly the parameters that a run trains."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from fastgrow._checked import PositiveFloat, Proportion, check_types
from fastgrow.errors import CheckpointError, ConfigError
from fastgrow.training.config import TrainConfig

# Muon is for matrices that map hidden states to hidden states; a table or a head is not one, and
# neither is one of the two factors of a low-rank correction.
_NOT_HIDDEN = ("embedding.", "lm_head.")
_FACTORS = ("lora_A", "lora_B")


@dataclass(frozen=True)
class Rate:
    """What a group of parameters makes of a training's learning rate.

    Attributes:
        factor: on the rate.
        warmup: share of the training's steps over which the factor rises from near 0.

    Raises:
        ConfigError: a value is out of range.
    """

    factor: PositiveFloat = 1.0
    warmup: Proportion = 0.0

    def __post_init__(self) -> None:
        check_types(self)

    def at(self, step: int, steps: int) -> float:
        """The factor of step 0 … steps - 1."""
        warmup_steps = round(self.warmup * steps)
        return self.factor * (min(1.0, (step + 1) / warmup_steps) if warmup_steps else 1.0)


class Optimizer:
    """One or two of torch's optimizers, whose groups take the rate that is meant for them.

    Matrices decay, biases and norms do not. With "muon" the matrices of blocks are in
    `torch.optim.Muon`, whose updates are scaled to the size of AdamW's, so that one learning rate
    and decay serve both (Moonlight, arXiv 2502.16982, §2.2); the rest is in AdamW.

    Args:
        active: name to parameter; nothing else is held, so nothing else can move.
        config: which optimizer, and its numbers.
        rates: of parameters, by name, that do not take the training's rate as it is.

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
            raise ConfigError("there is nothing to train: no active parameter was given")
        for name, parameter in active.items():
            if not parameter.requires_grad:
                raise ConfigError(f"{name} is to be trained but does not require a gradient")
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
        """Parameters that decay alike and take the same rate together."""
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
        """Of all parts."""
        return [group for part in self._parts for group in part.param_groups]

    @property
    def held(self) -> dict[torch.Tensor, dict[str, Any]]:
        """Every parameter that has a state, and that state."""
        return {p: state for part in self._parts for p, state in part.state.items()}

    def set_rate(self, rate: float, step: int, steps: int) -> None:
        """Give each group its learning rate for step 0 … steps - 1 of the training."""
        for group in self.param_groups:
            group["lr"] = rate * group["rate"].at(step, steps)

    def step(self) -> None:
        """Move the parameters."""
        for part in self._parts:
            part.step()

    def zero_grad(self) -> None:
        """Drop the gradients."""
        for part in self._parts:
            part.zero_grad(set_to_none=True)

    # -- its state -----------------------------------------------------------------------------

    def state_dict(self) -> dict[str, dict[str, Any]]:
        """Its tensors under the parameters' names, so that no order has to be kept."""
        held = self.held
        return {name: dict(held[p]) for name, p in self._active.items() if p in held}

    def load_state_dict(self, state: Mapping[str, Mapping[str, Any]]) -> None:
        """Put back what `state_dict` returned.

        Raises:
            CheckpointError: the state holds other parameters or other shapes.
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
        """Go on from the state that some of the parameters had in an earlier training.

        Args:
            state: taken over, not copied.

        Raises:
            CheckpointError: a state is of a parameter that does not train here, or of another
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
