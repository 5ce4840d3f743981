"""torch's normalisation layers on `fastgrow.ops`, with the residual addition before them."""

from __future__ import annotations

from typing import overload

import torch
from torch import Tensor, nn

from fastgrow import ops
from fastgrow.ops._check import describe, refuse


class LayerNorm(nn.LayerNorm):
    """`torch.nn.LayerNorm`: the same constructor, parameters and state dict.

    With `residual` the sum is normalised, and given back beside the result.

    Shapes:
        input, residual [..., *normalized_shape] → y, or y and input + residual, of the same shape.
    """

    @overload
    def forward(self, input: Tensor, residual: None = None) -> Tensor: ...
    @overload
    def forward(self, input: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]: ...
    def forward(
        self, input: Tensor, residual: Tensor | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        check_shape("LayerNorm", input, self.normalized_shape)
        axes = len(self.normalized_shape)
        x, weight, bias = _one_axis(input, axes), _flat(self.weight), _flat(self.bias)
        if residual is None:
            return ops.layer_norm(x, weight, bias, eps=self.eps).view(input.shape)
        residual = _one_axis(residual, axes)
        y, total = ops.layer_norm(x, weight, bias, residual=residual, eps=self.eps)
        return y.view(input.shape), total.view(input.shape)


class RMSNorm(nn.RMSNorm):
    """`torch.nn.RMSNorm`: the same constructor, parameters and state dict.

    With `residual` the sum is normalised, and given back beside the result. Without `eps` that is
    the machine epsilon of the statistics' dtype, as in torch.

    Shapes:
        input, residual [..., *normalized_shape] → y, or y and input + residual, of the same shape.
    """

    @overload
    def forward(self, x: Tensor, residual: None = None) -> Tensor: ...
    @overload
    def forward(self, x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]: ...
    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        check_shape("RMSNorm", x, self.normalized_shape)
        axes, shape = len(self.normalized_shape), x.shape
        statistics = torch.float64 if x.dtype == torch.float64 else torch.float32
        eps = torch.finfo(statistics).eps if self.eps is None else self.eps
        x, weight = _one_axis(x, axes), _flat(self.weight)
        if residual is None:
            return ops.rms_norm(x, weight, eps=eps).view(shape)
        y, total = ops.rms_norm(x, weight, residual=_one_axis(residual, axes), eps=eps)
        return y.view(shape), total.view(shape)


def check_shape(module: str, x: Tensor, normalized_shape: tuple[int, ...]) -> None:
    """Refuse an input that does not end in the axes to normalise."""
    if tuple(x.shape[-len(normalized_shape) :]) != normalized_shape:
        axes = ", ".join(str(n) for n in normalized_shape)
        raise refuse(module, "input", f"of shape [..., {axes}]", describe(x))


def _one_axis(tensor: Tensor, axes: int) -> Tensor:
    return tensor if axes == 1 else tensor.flatten(-axes)


def _flat(parameter: Tensor | None) -> Tensor | None:
    return parameter if parameter is None or parameter.dim() == 1 else parameter.flatten()


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
    return RMSNorm(dim, eps=1e-6, device=device, dtype=dtype)
