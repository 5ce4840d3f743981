"""What losses need of a head's logits, without the logits: log-sum-exp and the target's logit.

    z              = h · weightᵀ + bias
    lse_n          = log Σ_v exp(z_nv)
    target_logit_n = z_n,target

Cross-entropy is their difference. With K heads, z is the weighted sum of their logits:

    z_n = Σ_k mix_k · (h_k · weight_kᵀ + bias_k)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastgrow.errors import argument_error
from fastgrow.ops import _linear_lse_chunked, _linear_lse_triton
from fastgrow.ops._heads import Heads, Mix, Tensors, as_heads
from fastgrow.ops.core.legacy import Operation

NAME = "linear_lse_gather"


def linear_lse_gather(
    h: Tensors,
    weight: Tensors,
    targets: Tensor,
    bias: Tensor | Sequence[Tensor | None] | None = None,
    *,
    mix: Mix | None = None,
    impl: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Log-sum-exp of the logits h · weightᵀ + bias, and the logit of one target a row.

    Args:
        h: [..., d] float; or a list of K, which may differ in d, and may be float32 beside weights
            of half precision: each is rounded to their dtype after it is mixed.
        weight: [V, d]; or a list of K, used where they lie.
        targets: [...] int64 or int32, the leading shape of `h`. One outside [0, V) has no logit
            here: it gets 0, and no gradient. So says a part of a vocabulary that the target lies
            elsewhere (`merge_lse`).
        bias: [V], or None; or a list of K of these.
        mix: with lists, K numbers, a tensor [K] or [..., K] by which the logits of the K heads are
            multiplied before they are added; 1/K each by default.
        impl: force an implementation.

    Returns:
        `lse` and `target_logit`, each of the shape of `targets`, float32 (float64 for float64).

    Raises:
        ArgumentError: shapes, dtypes, devices or lengths of lists do not go together.
    """
    heads = as_heads(NAME, h, weight, bias, mix, targets)
    lse, target_logit, _ = lse_terms(heads, targets.reshape(-1), with_mean=False, impl=impl)
    return lse.view(targets.shape), target_logit.view(targets.shape)


def merge_lse(lse: Sequence[Tensor], target_logit: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Join what `linear_lse_gather` gave for parts of one vocabulary.

    The part whose weight holds rows [a, b) of the whole is given `targets - a`.

    Args:
        lse: of each part, of one shape.
        target_logit: of each part; 0 but where the target lies.

    Returns:
        `lse` and `target_logit` of the whole vocabulary, with gradients to every part.

    Raises:
        ArgumentError: no parts, or lists of unequal length.
    """
    if len(lse) == 0 or len(lse) != len(target_logit):
        expected = f"of at least one part and as long as lse, {len(lse)}"
        raise argument_error("merge_lse", "target_logit", expected, len(target_logit))
    return torch.stack(list(lse)).logsumexp(0), torch.stack(list(target_logit)).sum(0)


def lse_terms(
    heads: Heads, targets: Tensor, *, with_mean: bool, impl: str | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """lse, target_logit and, where asked for, the mean logit of each row; [N] each, or [0]."""
    terms: tuple[Tensor, Tensor, Tensor] = _OPERATION(heads, targets, with_mean, impl=impl)
    return terms


def _example(device: torch.device) -> tuple[tuple[Any, ...], dict[str, Any]]:
    h, weight = torch.zeros(2, 32, device=device), torch.zeros(64, 32, device=device)
    targets = torch.zeros(2, dtype=torch.int64, device=device)
    return (Heads([h], [weight], None), targets, False), {}


_OPERATION = Operation(NAME, example=_example)


@_OPERATION.implementation("eager")
def linear_lse_gather_eager(
    heads: Heads, targets: Tensor, with_mean: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The formula, as it stands: all logits are in memory at once."""
    logits = heads.logits()
    here = (targets >= 0) & (targets < heads.vocabulary)
    index = torch.where(here, targets, 0).long()
    target_logit = torch.where(here, logits.gather(1, index[:, None]).squeeze(1), 0)
    mean = logits.mean(1) if with_mean else logits.new_empty(0)
    return logits.logsumexp(1), target_logit, mean


_OPERATION.implementation(
    "vendor", verify=_linear_lse_chunked.can_serve, pays=_linear_lse_chunked.pays
)(_linear_lse_chunked.linear_lse_gather_vendor)
_OPERATION.implementation(
    "triton", verify=_linear_lse_triton.can_serve, pays=_linear_lse_triton.pays
)(_linear_lse_triton.linear_lse_gather_triton)
