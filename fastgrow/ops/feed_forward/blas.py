"""The feed-forward layer with a library's matrix products.

The activation is computed in the product's epilogue or in place.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fastgrow.kernels.calls import MlpCall
from fastgrow.ops.core.dispatch import Answer
from fastgrow.ops.core.dtypes import compute_dtype, wide_dtype
from fastgrow.ops.core.registration import needs_gradient
from fastgrow.ops.feed_forward.layer import Steps, layer_of
from fastgrow.ops.feed_forward.reference import APPROXIMATION


def pays(call: MlpCall) -> Answer:
    """True on a CPU if all weights are frozen, and on a GPU if cuBLASLt fuses the activation.

    With trainable weights on a CPU `eager` is as fast: this implementation recomputes the
    activation in the backward pass, to save less memory. With frozen weights the activation is
    needed once, and computed in place.
    """
    if call.x.device.type == "cpu":
        if needs_gradient(call.up, call.down, call.gate, call.up_bias, call.down_bias):
            return False, "it would compute the activation again in the backward pass"
        return True, "the weights are frozen: the activation is computed in place, or not saved"
    if is_in_epilogue(call):
        return True, "cuBLASLt has this activation in its epilogue"
    return False, "eager makes the same calls"


def is_in_epilogue(call: MlpCall) -> bool:
    """Whether cuBLASLt can apply the activation, and its input is not needed for gradients."""
    frozen = not needs_gradient(call.x, call.up, call.up_bias)
    return frozen and _has_epilogue(call.x, call.up_bias, call.activation)


def _has_epilogue(x: Tensor, up_bias: Tensor | None, activation: str) -> bool:
    """Whether cuBLASLt, as exposed by torch, can add the bias and apply the activation.

    Its GELU is the tanh form, and the input of the activation is not returned.
    """
    half = compute_dtype(x) in (torch.bfloat16, torch.float16)
    return x.device.type == "cuda" and half and activation == "gelu_tanh" and up_bias is not None


def _hidden(
    x: Tensor,
    up: Tensor,
    gate: Tensor | None,
    up_bias: Tensor | None,
    activation: str,
    kept: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    if not kept and up_bias is not None and _has_epilogue(x, up_bias, activation):
        return torch._addmm_activation(up_bias, x, up.mT, use_gelu=True), None, None
    pre = F.linear(x, up, up_bias)
    pre_gate = None if gate is None else F.linear(x, gate)
    if pre_gate is None:
        hidden = _activated(pre, activation, in_place=not kept)
    else:
        hidden = F.silu(pre_gate, inplace=not kept).mul_(pre)
    return (hidden, pre, pre_gate) if kept else (hidden, None, None)


def _activated(pre: Tensor, activation: str, *, in_place: bool = False) -> Tensor:
    if activation == "relu2":
        return F.relu(pre, inplace=in_place).square_()
    gelu = torch.ops.aten.gelu_ if in_place else F.gelu
    return gelu(pre, approximate=APPROXIMATION[activation])


def _output(
    hidden: Tensor, down: Tensor, down_bias: Tensor | None, residual: Tensor | None
) -> Tensor:
    y = F.linear(hidden, down, down_bias)
    return y if residual is None else y + residual


def _d_hidden(
    dy: Tensor,
    down: Tensor,
    pre: Tensor,
    pre_gate: Tensor | None,
    activation: str,
    with_hidden: bool,
    with_sums: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    d = dy @ down
    d_gate = hidden = None
    if pre_gate is not None:
        d_gate = torch.ops.aten.silu_backward(d * pre, pre_gate)
        silu = F.silu(pre_gate)
        d_pre = d.mul_(silu)
        hidden = silu.mul_(pre) if with_hidden else None
    elif activation == "relu2":
        positive = F.relu(pre)
        d_pre = d.mul_(positive).mul_(2)
        hidden = positive.square_() if with_hidden else None
    else:
        d_pre = torch.ops.aten.gelu_backward(d, pre, approximate=APPROXIMATION[activation])
        hidden = _activated(pre, activation) if with_hidden else None
    sums = d_pre.sum(0, dtype=wide_dtype(d_pre.dtype)) if with_sums else None
    return d_pre, d_gate, hidden, sums


run = layer_of(Steps(_hidden, _output, _d_hidden))
