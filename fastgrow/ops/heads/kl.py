"""Distillation loss: KL divergence of a linear head's predictions from a teacher's.

    z_n = h_n · weightᵀ + bias                                       the student's logits
    t_n = Σ_k w_k · (h_k,n · weight_kᵀ + bias_k)                     the teacher's, of K heads
    p   = softmax(t / T),  q = softmax(z / T)
    loss_n = T² · Σ_v p_v · (log p_v − log q_v)                      T² · KL(p ‖ q), in nats

with T the temperature; T² keeps the size of gradients (Hinton et al. 2015, arXiv 1503.02531, §2).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastgrow.errors import argument_error, describe
from fastgrow.kernels.calls import KlCall
from fastgrow.ops.core.dispatch import Implementation, Operation
from fastgrow.ops.heads import chunked, native, reference
from fastgrow.ops.heads.call import check_head
from fastgrow.ops.heads.heads import check_reduction

Head = tuple[Tensor, Tensor, Tensor | None]


def linear_kl(
    h: Tensor,
    weight: Tensor,
    teacher: Sequence[Head],
    bias: Tensor | None = None,
    *,
    teacher_weights: Sequence[float] | None = None,
    counts: Tensor | None = None,
    temperature: float = 1.0,
    reduction: str = "mean",
    impl: str | None = None,
) -> Tensor:
    """Return the KL divergence from a teacher to a student; only the student gets gradients.

    Args:
        h: [..., d] float, the student's hidden states.
        weight: [V, d], the student's head.
        teacher: K heads (h_k [..., d_k], weight_k [V, d_k], bias_k [V] or None), whose weighted
            logits are the teacher's logits; of the student's dtype and device.
        bias: [V], optional bias of the student's head.
        teacher_weights: w_k; 1/K each by default.
        counts: [...] bool, the rows that contribute to the loss; all by default.
        temperature: T > 0.
        reduction: `mean` over the rows that count (NaN if there are none), `sum`, or `none`.
        impl: force an implementation.

    Returns:
        A scalar, or the leading shape of `h` for `none`; float32 for half-precision inputs.

    Raises:
        ArgumentError: an option is out of range, or shapes, dtypes or devices do not match.
    """
    name = "linear_kl"
    check_reduction(name, reduction)
    if not temperature > 0:
        raise argument_error(name, "temperature", "above 0", temperature)
    check_head(name, ("h", "weight", "bias"), h, weight, bias)
    if not teacher:
        raise argument_error(name, "teacher", "at least one head", "none")
    shares = [1 / len(teacher)] * len(teacher) if teacher_weights is None else [*teacher_weights]
    if len(shares) != len(teacher):
        raise argument_error(name, "teacher_weights", f"{len(teacher)} numbers", len(shares))
    for k, head in enumerate(teacher):
        names = f"teacher[{k}][0]", f"teacher[{k}][1]", f"teacher[{k}][2]"
        check_head(name, names, *head, like=(h, weight.shape[0]))
    leading = h.shape[:-1]
    if counts is None:
        counts = h.new_ones(leading, dtype=torch.bool)
    elif counts.shape != leading or counts.dtype != torch.bool:
        raise argument_error(name, "counts", f"a bool tensor {list(leading)}", describe(counts))
    call = KlCall(
        [h.reshape(-1, h.shape[-1])],
        [weight],
        bias,
        [t.detach().reshape(-1, t.shape[-1]) for t, _, _ in teacher],
        [w.detach() for _, w, _ in teacher],
        [None if b is None else b.detach() for _, _, b in teacher],
        shares,
        counts.reshape(-1),
        float(temperature),
        reduction,
    )
    loss: Tensor = _OPERATION(call, impl)
    return loss.view(leading) if reduction == "none" else loss


def _example(device: torch.device) -> KlCall:
    h, weight = torch.zeros(2, 32, device=device), torch.zeros(64, 32, device=device)
    counts = torch.ones(2, dtype=torch.bool, device=device)
    return KlCall([h], [weight], None, [h], [weight], [None], [1.0], counts, 1.0, "mean")


_OPERATION = Operation(
    "linear_kl",
    (
        Implementation("native", native.linear_kl, native.can_serve, native.pays),
        Implementation("chunked", chunked.linear_kl, chunked.can_differentiate),
        Implementation("eager", reference.linear_kl),
    ),
    _example,
)
