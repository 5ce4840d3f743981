"""torch's normalisation layers on `fastgrow.ops`, with an optional residual addition."""

from __future__ import annotations

from typing import overload

import torch
from torch import Tensor, nn

from fastgrow import ops
from fastgrow.errors import argument_error, describe


class LayerNorm(nn.LayerNorm):
    """`torch.nn.LayerNorm`, with the same constructor, parameters and state dict.

    If `residual` is given, the sum is normalised, and returned in addition to the result.

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
        shape = self.normalized_shape
        _check_shape("LayerNorm", input, shape)
        weight, bias = _one_axis(self.weight, shape), _one_axis(self.bias, shape)
        x = _one_axis(input, shape)
        if residual is None:
            return _all_axes(ops.layer_norm(x, weight, bias, eps=self.eps), shape)
        residual = _one_axis(residual, shape)
        y, total = ops.layer_norm(x, weight, bias, residual=residual, eps=self.eps)
        return _all_axes(y, shape), _all_axes(total, shape)


class RMSNorm(nn.RMSNorm):
    """`torch.nn.RMSNorm`, with the same constructor, parameters and state dict.

    If `residual` is given, the sum is normalised, and returned in addition to the result. If `eps`
    is None, the machine epsilon of the statistics' dtype is used, as in torch.

    Shapes:
        x, residual [..., *normalized_shape] → y, or y and x + residual, of the same shape.
    """

    @overload
    def forward(self, x: Tensor, residual: None = None) -> Tensor: ...
    @overload
    def forward(self, x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]: ...
    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        shape, eps = self.normalized_shape, self.eps
        _check_shape("RMSNorm", x, shape)
        if eps is None:
            statistics = torch.float64 if x.dtype == torch.float64 else torch.float32
            eps = torch.finfo(statistics).eps
        x, weight = _one_axis(x, shape), _one_axis(self.weight, shape)
        if residual is None:
            return _all_axes(ops.rms_norm(x, weight, eps=eps), shape)
        y, total = ops.rms_norm(x, weight, residual=_one_axis(residual, shape), eps=eps)
        return _all_axes(y, shape), _all_axes(total, shape)


def make_norm(
    kind: str,
    dim: int,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> LayerNorm | RMSNorm:
    """Return the normalisation layer for a value of `DecoderConfig.norm`."""
    if kind == "layer_norm":
        return LayerNorm(dim, device=device, dtype=dtype)
    return RMSNorm(dim, eps=1e-6, device=device, dtype=dtype)


def _check_shape(module: str, x: Tensor, normalized_shape: tuple[int, ...]) -> None:
    if x.shape[-len(normalized_shape) :] != normalized_shape:
        axes = ", ".join(str(n) for n in normalized_shape)
        raise argument_error(module, "input", f"of shape [..., {axes}]", describe(x))


@overload
def _one_axis(tensor: Tensor, normalized_shape: tuple[int, ...]) -> Tensor: ...
@overload
def _one_axis(tensor: Tensor | None, normalized_shape: tuple[int, ...]) -> Tensor | None: ...
def _one_axis(tensor: Tensor | None, normalized_shape: tuple[int, ...]) -> Tensor | None:
    """Flatten the normalised axes into one."""
    if tensor is None or len(normalized_shape) == 1:
        return tensor
    return tensor.flatten(-len(normalized_shape))


def _all_axes(tensor: Tensor, normalized_shape: tuple[int, ...]) -> Tensor:
    if len(normalized_shape) == 1:
        return tensor
    return tensor.unflatten(-1, normalized_shape)
