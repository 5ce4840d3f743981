"""`PerRequest`: separate weights for each sequence of a batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fastgrow._checked import NonNegativeFloat, check_types
from fastgrow.compose.rules import LogitRule, Rule
from fastgrow.compose.weights import listed
from fastgrow.errors import ArgumentError, ConfigError


@dataclass(frozen=True)
class PerRequest(LogitRule):
    """Weighted mean of logits with separate weights for each row of a batch.

    z_b = Σ_k w_k,b · z_k,b. An expert of weight zero is left out of the row.

    Args:
        weights: by expert name, one number for each row, each at least 0; the weights of a row are
            divided by their sum.

    Raises:
        ConfigError: the experts have different numbers of weights, a weight is negative or not
            finite, or all weights of a row are zero.
    """

    kind = "per_request"

    weights: Mapping[str, Sequence[NonNegativeFloat]]

    def __post_init__(self) -> None:
        rows = {name: [float(x) for x in row] for name, row in self.weights.items()}
        object.__setattr__(self, "weights", rows)
        check_types(self)
        lengths = {name: len(row) for name, row in rows.items()}
        if not rows or len(set(lengths.values())) != 1:
            raise ConfigError(
                f"PerRequest: expected the same number of weights for each expert, got {lengths}"
            )
        for index, row_weights in enumerate(zip(*rows.values(), strict=True)):
            if not any(row_weights):
                raise ConfigError(f"PerRequest: in row {index} every weight is zero")

    def check(self, names: Sequence[str]) -> None:
        if set(names) != set(self.weights):
            raise ConfigError(
                f"PerRequest: weights are given for {listed(list(self.weights))}, "
                f"the experts are {listed(names)}"
            )

    def coefficients(self, names: Sequence[str]) -> list[float]:
        raise ConfigError(
            "PerRequest: its weights differ between rows, so an expert has no single coefficient"
        )

    def mix(self, names: Sequence[str], ids: Tensor) -> Tensor:
        table = torch.tensor([list(self.weights[name]) for name in names], dtype=torch.float64)
        if table.shape[1] != ids.shape[0]:
            raise ArgumentError(
                f"PerRequest: has weights for {table.shape[1]} rows, got a batch of {ids.shape[0]}"
            )
        shares = (table / table.sum(0)).float().to(ids.device)
        return shares.T[:, None].expand(*ids.shape, len(names))

    def with_weights(self, weights: Mapping[str, float]) -> Rule:
        raise ConfigError("PerRequest: pass PerRequest(…) with weights for each row instead")

    def without(self, name: str) -> Rule:
        return replace(self, weights={n: row for n, row in self.weights.items() if n != name})

    def renamed(self, old: str, new: str) -> Rule:
        return replace(
            self, weights={new if n == old else n: row for n, row in self.weights.items()}
        )
