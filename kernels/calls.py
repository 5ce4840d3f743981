"""The arguments of one call of an operation, as its implementations and kernels take them.

Without Triton, so that operations can make them wherever torch runs.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


# A NamedTuple, because one is made at every call: a dataclass takes three times as long.
class NormCall(NamedTuple):
    """`layer_norm` (centred) or `rms_norm` of x + residual [..., d].

    Args:
        x: [..., d].
        residual: the shape of x.
        weight, bias: [d].
        eps: added to the variance or mean square.
        centred: whether the mean is subtracted.
        dtype: of the result.
    """

    x: Tensor
    residual: Tensor | None
    weight: Tensor | None
    bias: Tensor | None
    eps: float
    centred: bool
    dtype: torch.dtype


class RopeCall(NamedTuple):
    """`rope` of x [B, H, T, D].

    Args:
        cos, sin: [positions, R/2].
        position_ids: [T] or [B, T]; offset … offset + T − 1 without.
        inverse: rotate back.
    """

    x: Tensor
    cos: Tensor
    sin: Tensor
    position_ids: Tensor | None = None
    offset: int = 0
    inverse: bool = False


class AttentionCall(NamedTuple):
    """`attention` of q [B, H, Tq, D] over k and v [B, H_kv, Tk, D]; see there for the rules.

    Tensors come first, so that a gradient's function can keep them and the rest apart.

    Args:
        cos, sin: [positions, R/2], or None for no rotation.
        position_ids: [Tk] or [B, Tk], of the keys; 0 … Tk − 1 without.
        k_rotated: the keys are rotated already.
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
    """`mlp` of x [..., d]: up and gate [m, d], down [d, m], up_bias [m], down_bias [d]."""

    x: Tensor
    up: Tensor
    down: Tensor
    gate: Tensor | None
    up_bias: Tensor | None
    down_bias: Tensor | None
    activation: str
    residual: Tensor | None


class MlpHidden(NamedTuple):
    """The activation of `mlp`'s rows x [N, d]; `kept`: what it is of is a result too."""

    x: Tensor
    up: Tensor
    gate: Tensor | None
    up_bias: Tensor | None
    activation: str
    kept: bool


class MlpOutput(NamedTuple):
    """The result of `mlp`: hidden [N, m] · downᵀ + down_bias + residual [N, d]."""

    hidden: Tensor
    down: Tensor
    down_bias: Tensor | None
    residual: Tensor | None


class MlpHiddenGradient(NamedTuple):
    """Gradients of what `mlp`'s activation is of, from dy [N, d].

    Args:
        pre, pre_gate: what it is of, [N, m].
        with_hidden: whether the activation is a result too.
        with_sums: whether the gradient of up_bias is one.
    """

    dy: Tensor
    down: Tensor
    pre: Tensor
    pre_gate: Tensor | None
    activation: str
    with_hidden: bool
    with_sums: bool


class LoraCall(NamedTuple):
    """`lora_linear` of x [..., in]: weight [out, in], a [r, in], b [out, r], bias [out]."""

    x: Tensor
    weight: Tensor
    a: Tensor
    b: Tensor
    bias: Tensor | None
    scale: float


class LoraGradient(NamedTuple):
    """Gradients of `lora_linear` from dy [N, out]: of x with `weight`, of a with x, of b with u.

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
    """`linear_lse_gather` of z = Σ_k h[k] · weight[k]ᵀ + bias, and of every call on linear heads.

    Args:
        h: [N, d_k] each.
        weight: [V, d_k] each.
        bias: [V].
        targets: [N].
        with_mean: whether the mean logit of each row is wanted too.
    """

    h: list[Tensor]
    weight: list[Tensor]
    bias: Tensor | None
    targets: Tensor
    with_mean: bool = False


class LseGradientCall(NamedTuple):
    """The backward pass of an `LseCall`.

    Args:
        lse: [N], what the forward pass gave.
        dlse, dtarget, dmean: [N], the gradients of its results.
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
    """`linear_cross_entropy` of heads as in an `LseCall`."""

    h: list[Tensor]
    weight: list[Tensor]
    bias: Tensor | None
    targets: Tensor
    ignore_index: int = -100
    reduction: str = "mean"
    label_smoothing: float = 0.0
    z_loss: float = 0.0


class KlCall(NamedTuple):
    """`linear_kl` of one head, as in an `LseCall`, to the sum of its teachers' shares.

    Args:
        teacher_h: [N, d_k] each.
        teacher_weight: [V, d_k] each.
        teacher_bias: [V] each, or None.
        shares: of each teacher.
        counts: [N] bool, the rows that count.
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
    """`embedding` of ids [...].

    Args:
        table: floats [V, n_embed], packed bits [V, bytes] or codes [V]; None: ids are codes.
        rows: V.
        repeat: copies of each feature.
        bits: n_embed of bits and codes.
        low, high: the value of a bit that is 0, and of one that is 1.
        dtype: of the result.
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
        """Features of a row of the result."""
        if self.bits is not None:
            return self.bits * self.repeat
        assert self.table is not None
        return self.table.shape[1] * self.repeat
