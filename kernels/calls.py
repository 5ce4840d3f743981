"""Argument records that operations pass to their implementations and kernels.

This module does not import Triton, so operations can build the records wherever torch runs.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


# A NamedTuple, because one is created in every call and a dataclass takes three times as long.
class NormCall(NamedTuple):
    """Arguments of `layer_norm` (centred) or `rms_norm` of x + residual [..., d].

    Args:
        x: [..., d].
        residual: tensor of x's shape.
        weight, bias: [d].
        eps: value added to the variance or mean square.
        centred: whether the mean is subtracted.
        dtype: dtype of the result.
    """

    x: Tensor
    residual: Tensor | None
    weight: Tensor | None
    bias: Tensor | None
    eps: float
    centred: bool
    dtype: torch.dtype


class RopeCall(NamedTuple):
    """Arguments of `rope` of x [B, H, T, D].

    Args:
        cos, sin: [positions, R/2].
        position_ids: [T] or [B, T]; None: offset … offset + T − 1.
        inverse: whether to rotate back.
    """

    x: Tensor
    cos: Tensor
    sin: Tensor
    position_ids: Tensor | None = None
    offset: int = 0
    inverse: bool = False


class AttentionCall(NamedTuple):
    """Arguments of `attention` of q [B, H, Tq, D] over k and v [B, H_kv, Tk, D]; see that function.

    Tensors come first, so that an autograd function can save them separately from the others.

    Args:
        cos, sin: [positions, R/2], or None for no rotation.
        position_ids: positions of the keys, [Tk] or [B, Tk]; None: 0 … Tk − 1.
        k_rotated: whether the keys are already rotated.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    cos: Tensor | None = None
    sin: Tensor | None = None
    position_ids: Tensor | None = None
    cu_seqlens: Tensor | None = None
    lengths: Tensor | None = None
    starts: Tensor | None = None
    mask: Tensor | None = None
    k_rotated: bool = False
    scale: float = 1.0
    causal: bool = True
    window: int | None = None
    dropout: float = 0.0


class MlpCall(NamedTuple):
    """Arguments of `mlp` of x [..., d].

    Args:
        up, gate: [m, d].
        down: [d, m].
        up_bias: [m].
        down_bias: [d].
    """

    x: Tensor
    up: Tensor
    down: Tensor
    gate: Tensor | None
    up_bias: Tensor | None
    down_bias: Tensor | None
    activation: str
    residual: Tensor | None


class MlpHidden(NamedTuple):
    """Arguments of `mlp`'s first step on rows x [N, d].

    Args:
        kept: whether the pre-activation is returned too.
    """

    x: Tensor
    up: Tensor
    gate: Tensor | None
    up_bias: Tensor | None
    activation: str
    kept: bool


class MlpOutput(NamedTuple):
    """Arguments of `mlp`'s second step, hidden [N, m] · downᵀ + down_bias + residual [N, d]."""

    hidden: Tensor
    down: Tensor
    down_bias: Tensor | None
    residual: Tensor | None


class MlpHiddenGradient(NamedTuple):
    """Arguments of the gradients of `mlp`'s pre-activations, from dy [N, d].

    Args:
        pre, pre_gate: pre-activations [N, m].
        with_hidden: whether the activation is returned too.
        with_sums: whether the gradient of up_bias is returned too.
    """

    dy: Tensor
    down: Tensor
    pre: Tensor
    pre_gate: Tensor | None
    activation: str
    with_hidden: bool
    with_sums: bool


class LoraCall(NamedTuple):
    """Arguments of `lora_linear` of x [..., in].

    Args:
        weight: [out, in].
        a, b: [r, in] and [out, r].
        bias: [out].
    """

    x: Tensor
    weight: Tensor
    a: Tensor
    b: Tensor
    bias: Tensor | None
    scale: float


class LoraGradient(NamedTuple):
    """Arguments of the gradients of `lora_linear` from dy [N, out].

    The gradient of x needs `weight`, that of a needs `x`, that of b needs `u`; each may be None.

    Args:
        u: x · aᵀ, [N, r].
    """

    dy: Tensor
    x: Tensor | None
    u: Tensor | None
    weight: Tensor | None
    a: Tensor
    b: Tensor
    scale: float


class LseCall(NamedTuple):
    """Arguments of `linear_lse_gather` of z = Σ_k h[k] · weight[k]ᵀ + bias.

    The other operations on linear heads use it as well.

    Args:
        h: [N, d_k] each.
        weight: [V, d_k] each.
        bias: [V].
        targets: [N].
        with_mean: whether the mean logit of each row is returned too.
    """

    h: list[Tensor]
    weight: list[Tensor]
    bias: Tensor | None
    targets: Tensor
    with_mean: bool = False


class LseGradientCall(NamedTuple):
    """Arguments of the backward pass of an `LseCall`.

    Args:
        lse: [N], result of the forward pass.
        dlse, dtarget, dmean: [N], gradients of its results.
        needs: whether each h, each weight and the bias need a gradient.
    """

    h: list[Tensor]
    weight: list[Tensor]
    bias: Tensor | None
    targets: Tensor
    lse: Tensor
    dlse: Tensor
    dtarget: Tensor
    dmean: Tensor | None
    needs: list[bool]


class HeadLossCall(NamedTuple):
    """Arguments of `linear_cross_entropy`; heads as in an `LseCall`."""

    h: list[Tensor]
    weight: list[Tensor]
    bias: Tensor | None
    targets: Tensor
    ignore_index: int = -100
    reduction: str = "mean"
    label_smoothing: float = 0.0
    z_loss: float = 0.0


class KlCall(NamedTuple):
    """Arguments of `linear_kl` of one head, as in an `LseCall`, to a weighted sum of teachers.

    Args:
        teacher_h: [N, d_k] each.
        teacher_weight: [V, d_k] each.
        teacher_bias: [V] each, or None.
        shares: weight of each teacher.
        counts: [N] bool, whether a row counts.
    """

    h: list[Tensor]
    weight: list[Tensor]
    bias: Tensor | None
    teacher_h: list[Tensor]
    teacher_weight: list[Tensor]
    teacher_bias: list[Tensor | None]
    shares: list[float]
    counts: Tensor
    temperature: float
    reduction: str


class EmbeddingCall(NamedTuple):
    """Arguments of `embedding` of ids [...].

    Args:
        table: floats [V, n_embed], packed bits [V, bytes] or codes [V]; None: ids are codes.
        rows: V.
        repeat: number of copies of each feature.
        bits: n_embed of a table of bits or codes; None for floats.
        low, high: value of a bit that is 0, and of a bit that is 1.
        dtype: dtype of the result.
    """

    ids: Tensor
    table: Tensor | None
    rows: int
    repeat: int
    bits: int | None
    low: float
    high: float
    dtype: torch.dtype

    @property
    def width(self) -> int:
        """Number of features of a row of the result."""
        if self.bits is not None:
            return self.bits * self.repeat
        assert self.table is not None
        return self.table.shape[1] * self.repeat
