"""The feed-forward layer."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastgrow import ops
from fastgrow.errors import ArgumentError
from fastgrow.nn.lora import LoRALinear
from fastgrow.ops.feed_forward import ACTIVATIONS, activate


class MLP(nn.Module):
    """Widens, applies an activation, narrows again.

    Args:
        d_model: width of input and output.
        width: width in between.
        activation: `gelu`, `gelu_tanh`, `relu2` or `swiglu` (which has a third matrix, `gate`).
        bias: whether `up` and `down` have biases.

    Raises:
        ArgumentError: the activation is unknown.

    Shapes:
        x, residual [..., d_model] → [..., d_model]; a residual is added to the result.

    The state dict has `up`, `down` and `gate` (`weight`, `bias`) as `nn.Linear` keeps them, of
    GPT-2's (c_fc, c_proj) and Llama's (gate_proj, up_proj, down_proj) shapes.
    """

    gate: nn.Linear | None

    def __init__(
        self,
        d_model: int,
        width: int,
        *,
        activation: str = "gelu",
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if activation not in ACTIVATIONS:
            raise ArgumentError(
                f"MLP: activation must be one of {', '.join(ACTIVATIONS)}, got {activation!r}"
            )
        self.activation = activation
        self.up = nn.Linear(d_model, width, bias, device, dtype)
        self.down = nn.Linear(width, d_model, bias, device, dtype)
        self.gate = None
        if activation == "swiglu":
            self.gate = nn.Linear(d_model, width, False, device, dtype)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        if any(isinstance(layer, LoRALinear) for layer in (self.up, self.gate, self.down)):
            return self._layer_by_layer(x, residual)
        return ops.mlp(
            x,
            self.up.weight,
            self.down.weight,
            gate=None if self.gate is None else self.gate.weight,
            up_bias=self.up.bias,
            down_bias=self.down.bias,
            activation=self.activation,
            residual=residual,
        )

    def _layer_by_layer(self, x: Tensor, residual: Tensor | None) -> Tensor:
        """The same where a layer has a low-rank correction, which the fused operation lacks."""
        gate = None if self.gate is None else self.gate(x)
        y: Tensor = self.down(activate(self.up(x), self.activation, gate))
        return y if residual is None else y + residual

    def extra_repr(self) -> str:
        return f"activation={self.activation}"
