"""Normalisation layers with the constructors and state dicts of torch's."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastgrow import ops


class LayerNorm(nn.Module):
    """`torch.nn.LayerNorm` over the last axis, on `ops.layer_norm`.

    Args:
        dim: length of the last axis.
        eps: added to the variance.
        bias: whether there is a bias.
    """

    bias: nn.Parameter | None

    def __init__(
        self,
        dim: int,
        eps: float = 1e-5,
        *,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim, device=device, dtype=dtype))
        if bias:
            self.bias = nn.Parameter(torch.zeros(dim, device=device, dtype=dtype))
        else:
            self.register_parameter("bias", None)

    def forward(self, x: Tensor) -> Tensor:
        return ops.layer_norm(x, self.weight, self.bias, eps=self.eps)

    def extra_repr(self) -> str:
        return f"{self.weight.shape[0]}, eps={self.eps}"


class RMSNorm(nn.Module):
    """`torch.nn.RMSNorm` over the last axis, on `ops.rms_norm`.

    Args:
        dim: length of the last axis.
        eps: added to the mean square.
    """

    def __init__(
        self,
        dim: int,
        eps: float = 1e-6,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim, device=device, dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        return ops.rms_norm(x, self.weight, eps=self.eps)

    def extra_repr(self) -> str:
        return f"{self.weight.shape[0]}, eps={self.eps}"


def make_norm(
    kind: str,
    dim: int,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> LayerNorm | RMSNorm:
    """The norm that `DecoderConfig.norm` names."""
    if kind == "layer_norm":
        return LayerNorm(dim, device=device, dtype=dtype)
    return RMSNorm(dim, device=device, dtype=dtype)
