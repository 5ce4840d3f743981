"""Functions and classes shared by the model families."""

from __future__ import annotations

from torch import Tensor, nn
from transformers import activations

from fastgrow import ops
from fastgrow.interop.functions import is_plain
from fastgrow.interop.hf.family import Replacement

# transformers' activations and their names in `ops.mlp`. transformers has the tanh form of GELU in
# three classes: two explicit formulas, one with a constant of fewer digits, and torch's function.
_ACTIVATIONS: dict[type[nn.Module], str] = {
    activations.GELUActivation: "gelu",
    activations.NewGELUActivation: "gelu_tanh",
    activations.FastGELUActivation: "gelu_tanh",
    activations.GELUTanh: "gelu_tanh",
    activations.ReLUSquaredActivation: "relu2",
    activations.SiLUActivation: "swiglu",
    nn.SiLU: "swiglu",
}


def activation_name(activation: nn.Module) -> str | None:
    """Return the name of an activation module in `ops.mlp`; None if it has none or has hooks.

    SiLU is `swiglu`, because it is the activation of the gate in a gated layer.
    """
    if not is_plain(activation, type(activation)):
        return None
    return _ACTIVATIONS.get(type(activation))


def obstacle_in_layers(module: nn.Module, kind: type[nn.Module], names: tuple[str, ...]) -> str:
    """Describe the first of a module's layers that is not plain; "" if all are."""
    for name in names:
        layer = getattr(module, name)
        if not is_plain(layer, kind):
            known = type(layer) is kind
            what = "has hooks or a replaced forward" if known else f"is a {type(layer).__name__}"
            return f"its {name} {what}"
    return ""


class FastLayerNorm(nn.LayerNorm):
    """`torch.nn.LayerNorm` over the last axis that calls `ops.layer_norm`."""

    original_name = "LayerNorm"

    def forward(self, input: Tensor) -> Tensor:
        if self.weight.dtype != input.dtype:
            return super().forward(input)
        return ops.layer_norm(input, self.weight, self.bias, eps=self.eps)


def _layer_norm_obstacle(module: nn.Module) -> str:
    assert isinstance(module, nn.LayerNorm)
    if len(module.normalized_shape) != 1:
        return f"it normalises the last {len(module.normalized_shape)} axes, not one"
    return "" if module.elementwise_affine else "it has no weight"


LAYER_NORM = Replacement(
    "norm", nn.LayerNorm, FastLayerNorm, "ops.layer_norm", _layer_norm_obstacle
)
