"""What the families' modules have in common."""

from __future__ import annotations

from torch import Tensor, nn
from transformers import activations

from fastgrow import ops
from fastgrow.interop.functions import is_plain
from fastgrow.interop.hf.family import Replacement

# Their activations and the names that `ops.mlp` has for the same functions. The tanh form of GELU
# is there three times: written out twice, with a shorter constant in one, and as torch's.
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
    """The activation of `ops.mlp` that a module computes; None where there is none or it is hooked.

    SiLU stands for `swiglu`: in a gated layer it is the gate's activation.
    """
    if not is_plain(activation, type(activation)):
        return None
    return _ACTIVATIONS.get(type(activation))


def obstacle_in_layers(module: nn.Module, kind: type[nn.Module], names: tuple[str, ...]) -> str:
    """The first of a module's layers that is not plain, in words; empty where all are."""
    for name in names:
        layer = getattr(module, name)
        if not is_plain(layer, kind):
            known = type(layer) is kind
            what = "has hooks or a forward of its own" if known else f"is a {type(layer).__name__}"
            return f"its {name} {what}"
    return ""


class FastLayerNorm(nn.LayerNorm):
    """`torch.nn.LayerNorm` over the last axis on `ops.layer_norm`."""

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
