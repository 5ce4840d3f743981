"""Feed-forward layer (MLP)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastgrow import ops
from fastgrow.errors import ArgumentError
from fastgrow.nn.lora import LoRALinear
from fastgrow.ops.feed_forward import ACTIVATIONS, activate


class MLP(nn.Module):
    """Two linear layers with an activation between them.

    Args:
        d_model: width of input and output.
        width: width of the hidden layer.
        activation: `gelu`, `gelu_tanh`, `relu2` or `swiglu` (which has a third matrix, `gate`).
        bias: whether `up` and `down` have biases.

    Raises:
        ArgumentError: the activation is unknown.

    Shapes:
        x, residual [..., d_model] → [..., d_model]; a residual is added to the result.

    The state dict has `weight` and `bias` of `up`, `down` and `gate` in the layout of `nn.Linear`;
    they correspond to c_fc and c_proj of GPT-2, and to up_proj, down_proj and gate_proj of Llama.
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
        """Compute the MLP with separate layers, because the fused operation has no LoRA."""
        gate = None if self.gate is None else self.gate(x)
        y: Tensor = self.down(activate(self.up(x), self.activation, gate))
        return y if residual is None else y + residual

    def extra_repr(self) -> str:
        return f"activation={self.activation}"
