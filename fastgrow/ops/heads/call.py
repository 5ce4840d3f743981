"""Linear heads and their cross-entropy, without storing all logits in memory.

    z              = h · weightᵀ + bias
    lse_n          = log Σ_v exp(z_nv)
    target_logit_n = z_n,target

`linear_lse_gather` returns lse and target_logit; cross-entropy is their difference. With K heads, z
is the weighted sum of their logits:

    z_n = Σ_k mix_k · (h_k · weight_kᵀ + bias_k)

Mixing weights are multiplied into h, which is small, so that a plain sum of matrix products
remains. The weight matrices, which have the size of the vocabulary, are not copied.

`linear_cross_entropy` computes the logits and their cross-entropy as one operation:

    loss_n = (1 − s) · (lse − z_target) + s · (lse − mean_v z_v) + z_loss · lse²

with s the label smoothing. `mean` divides by the number of targets that are not `ignore_index`.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastgrow.errors import argument_error, describe
from fastgrow.kernels.calls import HeadLossCall, LseCall
from fastgrow.ops.core import dispatch
from fastgrow.ops.core.checks import check_float, check_like, check_targets, run_in_range
from fastgrow.ops.core.dispatch import Answer, Implementation, Operation, triton_kernels
from fastgrow.ops.heads import chunked, cublas, reference, triton
from fastgrow.ops.heads.heads import HeadsCall, autocast_dtype, check_reduction, differentiated

Tensors = Tensor | Sequence[Tensor]
Mix = Tensor | Sequence[float]
Heads = tuple[list[Tensor], list[Tensor], Tensor | None]  # h, weight and bias of a call
MAX_HEADS = 8  # that the Triton kernels support
FEW_ELEMENTS = 1 << 21  # up to this many logits, a CPU is faster if it computes all at once


def linear_lse_gather(
    h: Tensors,
    weight: Tensors,
    targets: Tensor,
    bias: Tensor | Sequence[Tensor | None] | None = None,
    *,
    mix: Mix | None = None,
    impl: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the log-sum-exp of the logits h · weightᵀ + bias, and one target's logit per row.

    Args:
        h: [..., d] float; or a list of K such tensors, which may differ in d. In a list they may be
            float32 with half-precision weights: each is rounded to the weights' dtype after it is
            multiplied by its `mix`.
        weight: [V, d]; or a list of K such tensors, which are not copied.
        targets: [...] int64 or int32, the leading shape of `h`. The target logit of a target
            outside [0, V) is 0, without a gradient. This is for a part of a vocabulary that does
            not contain the target (`merge_lse`).
        bias: [V], or None; or a list of K of these.
        mix: only with lists: K numbers, or a tensor [K] or [..., K], by which the logits of the K
            heads are multiplied before they are added; 1/K each by default. A number 0 excludes its
            head, which then gets no gradient; for a 0 in a tensor, infinities and NaN in h are
            replaced by 0.
        impl: force an implementation.

    Returns:
        `lse` and `target_logit`, each of the shape of `targets`, float32 (float64 for float64).

    Raises:
        ArgumentError: shapes, dtypes, devices or lengths of lists do not match.
    """
    heads = as_heads("linear_lse_gather", h, weight, bias, mix, targets)
    lse, target_logit, _ = _LSE_GATHER(LseCall(*heads, targets.reshape(-1)), impl)
    return lse.view(targets.shape), target_logit.view(targets.shape)


def merge_lse(lse: Sequence[Tensor], target_logit: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Combine the results of `linear_lse_gather` for parts of one vocabulary.

    For the part whose weight has the rows [a, b) of the whole weight, call `linear_lse_gather` with
    `targets - a`.

    Args:
        lse: log-sum-exps of each part, all of one shape.
        target_logit: target logits of each part; 0 in parts that do not contain the target.

    Returns:
        `lse` and `target_logit` of the whole vocabulary, with gradients to every part.

    Raises:
        ArgumentError: no parts, or lists of unequal length.
    """
    if len(lse) == 0 or len(lse) != len(target_logit):
        expected = f"of at least one part and as long as lse, {len(lse)}"
        raise argument_error("merge_lse", "target_logit", expected, len(target_logit))
    return torch.stack(list(lse)).logsumexp(0), torch.stack(list(target_logit)).sum(0)


def linear_cross_entropy(
    h: Tensors,
    weight: Tensors,
    targets: Tensor,
    bias: Tensor | Sequence[Tensor | None] | None = None,
    *,
    mix: Mix | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    impl: str | None = None,
) -> Tensor:
    """Return the cross-entropy of the targets under the logits h · weightᵀ + bias, in nats.

    Args:
        h: [..., d] float; or a list of K such tensors, which may differ in d. In a list they may be
            float32 with half-precision weights: each is rounded to the weights' dtype after it is
            multiplied by its `mix`.
        weight: [V, d]; or a list of K such tensors, which are not copied.
        targets: [...] int64 or int32, the leading shape of `h`; each in [0, V) or `ignore_index`.
        bias: [V], or None; or a list of K of these.
        mix: only with lists: K numbers, or a tensor [K] or [..., K], by which the logits of the K
            heads are multiplied before they are added; 1/K each by default. A number 0 excludes its
            head, which then gets no gradient; for a 0 in a tensor, infinities and NaN in h are
            replaced by 0.
        ignore_index: targets of this value do not contribute to the loss or the gradients.
        reduction: `mean` (NaN if every target is ignored, as in torch), `sum` or `none`.
        label_smoothing: probability in [0, 1] that is spread evenly over the vocabulary.
        z_loss: weight of the squared log-partition (PaLM, arXiv 2204.02311, §5).
        impl: force an implementation. `chunked` uses only torch and never stores all logits.

    Returns:
        A scalar, or the shape of `targets` for `none`; float32 for half-precision inputs. On a GPU
        the loss of a row whose target is out of range is NaN.

    Raises:
        ArgumentError: the reduction is unknown, label_smoothing is out of range, or shapes, dtypes
            or devices do not match. A target out of range raises on a CPU, and on other devices
            only under FASTGROW_DEBUG=1.
    """
    name = "linear_cross_entropy"
    check_reduction(name, reduction)
    if not 0 <= label_smoothing <= 1:
        raise argument_error(name, "label_smoothing", "in [0, 1]", label_smoothing)
    heads = as_heads(name, h, weight, bias, mix, targets)
    vocabulary = heads[1][0].shape[0]
    call = HeadLossCall(
        *heads, targets.reshape(-1), ignore_index, reduction, float(label_smoothing), float(z_loss)
    )
    loss = run_in_range(
        lambda: _CROSS_ENTROPY(call, impl), name, "targets", targets, vocabulary, ignore_index
    )
    return loss.view(targets.shape) if reduction == "none" else loss


def as_heads(
    name: str,
    h: Tensors,
    weight: Tensors,
    bias: Tensor | Sequence[Tensor | None] | None,
    mix: Mix | None,
    targets: Tensor,
) -> Heads:
    """Check the arguments of an operation, and convert them to lists with `mix` multiplied in.

    Raises:
        ArgumentError: shapes, dtypes, devices or lengths of lists do not match.
    """
    if isinstance(h, Tensor):
        if mix is not None:
            raise argument_error(name, "mix", "None if h is one tensor", "weights")
        if not isinstance(weight, Tensor):
            raise argument_error(name, "weight", "a tensor like h", f"a {type(weight).__name__}")
        if not (bias is None or isinstance(bias, Tensor)):
            raise argument_error(
                name, "bias", "a tensor like h, or None", f"a {type(bias).__name__}"
            )
        check_head(name, ("h", "weight", "bias"), h, weight, bias)
        check_targets(name, targets, h)
        return [h.reshape(-1, h.shape[-1])], [weight], bias
    hidden, weights = list(h), _listed(name, "weight", weight, len(h))
    biases = [None] * len(h) if bias is None else _listed(name, "bias", bias, len(h))
    if not hidden:
        raise argument_error(name, "h", "a tensor, or a list of at least one", "an empty list")
    for k, head in enumerate(zip(hidden, weights, biases, strict=True)):
        names = f"h[{k}]", f"weight[{k}]", f"bias[{k}]"
        like = (hidden[0], weights[0].shape[0]) if k else None
        check_head(name, names, *head, like=like, narrow=True)
    check_targets(name, targets, hidden[0])
    return _mixed(name, hidden, weights, biases, mix, targets)


def _listed(name: str, argument: str, given: object, count: int) -> list[Any]:
    if isinstance(given, Tensor) or not isinstance(given, Sequence) or len(given) != count:
        got = len(given) if isinstance(given, Sequence) else f"a {type(given).__name__}"
        raise argument_error(name, argument, f"a list of {count}, one for each h", got)
    return list(given)


def check_head(
    operation: str,
    names: tuple[str, str, str],
    h: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    like: tuple[Tensor, int] | None = None,
    narrow: bool = False,
) -> None:
    """Raise an error if shapes, dtypes or devices of one head do not match.

    Args:
        names: names of the three arguments, h [..., d], weight [V, d] and bias [V].
        like: the h and V of an earlier head.
        narrow: whether the weight may be of half precision if h is float32.
    """
    of_h, of_weight, of_bias = names
    leading, vocabulary = (["..."], "V") if like is None else ([*like[0].shape[:-1]], like[1])
    check_float(operation, of_h, h)
    if h.dim() == 0 or (like is not None and h.shape[:-1] != like[0].shape[:-1]):
        shape = ", ".join(map(str, [*leading, "d"]))
        raise argument_error(operation, of_h, f"of shape [{shape}]", describe(h))
    if like is not None:
        check_like(operation, of_h, h, tuple(h.shape), like[0])
    fits = weight.dim() == 2 and weight.shape[1] == h.shape[-1]
    if not fits or (like is not None and weight.shape[0] != vocabulary):
        expected = f"of shape [{vocabulary}, {h.shape[-1]}]"
        raise argument_error(operation, of_weight, expected, describe(weight))
    if weight.shape[0] == 0:
        raise argument_error(operation, of_weight, "of at least one row", describe(weight))
    if not (narrow and _is_wider(h, weight)):
        check_like(operation, of_weight, weight, tuple(weight.shape), h)
    check_like(operation, of_bias, bias, (weight.shape[0],), weight)


def _mixed(
    name: str,
    hidden: list[Tensor],
    weights: list[Tensor],
    biases: list[Tensor | None],
    mix: Mix | None,
    targets: Tensor,
) -> Heads:
    """Return h, weight and bias of the weighted sum of several heads, which have been checked.

    Raises:
        ArgumentError: `mix` has a wrong length, shape or device.
    """
    count = len(hidden)
    shares: list[Any]
    per_row = isinstance(mix, Tensor) and mix.dim() > 1
    if isinstance(mix, Tensor):
        of_rows = (*targets.shape, count)
        if tuple(mix.shape) not in ((count,), of_rows) or mix.device != targets.device:
            expected = f"of shape [{count}] or {list(of_rows)} on {targets.device}"
            raise argument_error(name, "mix", expected, describe(mix))
        shares = list(mix.reshape(-1, count).split(1, dim=1) if per_row else mix.unbind())
    else:
        shares = [1 / count] * count if mix is None else list(mix)
        if len(shares) != count:
            raise argument_error(name, "mix", f"of {count} numbers, one for each h", len(shares))
    heads = [
        head
        for head in zip(hidden, weights, biases, shares, strict=True)
        if isinstance(head[3], Tensor) or head[3] != 0
    ] or [(hidden[0], weights[0], biases[0], 0.0)]
    h = [_folded(x.reshape(-1, x.shape[-1]), share, w) for x, w, _, share in heads]
    weights = [w for _, w, _, _ in heads]
    given = [(b, share) for _, _, b, share in heads if b is not None]
    if not given:
        return h, weights, None
    if not per_row:
        scaled = [_scaled(b, share) for b, share in given]
        return h, weights, functools.reduce(torch.add, scaled)
    # Biases with different weights in each row are one more matrix product, over the heads.
    of_bias = torch.stack([b for b, _ in given], dim=1)
    columns = torch.cat([share for _, share in given], dim=1)
    return [*h, columns.to(of_bias.dtype)], [*weights, of_bias], None


def _is_wider(h: Tensor, weight: Tensor) -> bool:
    """Whether h is float32 and the weight is of half precision."""
    half = (torch.bfloat16, torch.float16)
    return h.dtype == torch.float32 and weight.dtype in half and weight.device == h.device


def _folded(h: Tensor, share: Tensor | float, weight: Tensor) -> Tensor:
    """Multiply h by its share and round once, to the weight's dtype if it is narrower."""
    return _scaled(h, share).to(weight.dtype if _is_wider(h, weight) else h.dtype)


def _scaled(x: Tensor, share: Tensor | float) -> Tensor:
    if isinstance(share, Tensor):
        # Finite numbers are kept where the share is 0, for its gradient; 0 · inf would be NaN.
        x = torch.where(share == 0, x.nan_to_num(0.0, 0.0, 0.0), x)
    elif share == 1:
        return x
    return (x * share).to(x.dtype)


def _kernels_can_serve(call: HeadsCall) -> Answer:
    if len(call.h) > MAX_HEADS:
        return False, f"it supports at most {MAX_HEADS} products, got {len(call.h)}"
    return True, ""


def _kernels_pay(call: LseCall | HeadLossCall) -> Answer:
    """Estimated, not measured: true for half-precision products, which run on the tensor cores.

    This includes rows that load slowly because their stride is not a multiple of 16 elements, since
    the alternative would store all logits.
    """
    if autocast_dtype(call) == torch.float32:
        return False, "the library's float32 products are faster"
    return True, ""


def _kernels_pay_for_a_loss(call: HeadLossCall) -> Answer:
    """Estimated from the number of products and passes over memory, not measured."""
    if call.reduction == "none" or not _gradients_fit(call)[0]:
        return True, ""
    if differentiated(call):
        return False, "gradients computed with the loss take three products, afterwards four"
    if any(x.stride(0) % 16 for x in (*call.h, *call.weight) if x.shape[-1] > MAX_HEADS):
        return False, "rows whose stride is not a multiple of 16 elements load slowly"
    return _kernels_pay(call)


def _library_can_serve(call: HeadLossCall) -> Answer:
    ok, reason = dispatch.triton_can_run(call.h[0])
    if ok and call.reduction == "none" and differentiated(call):
        return False, "gradients of single rows' losses cannot be computed with the loss"
    return _gradients_fit(call) if ok else (False, reason)


def _gradients_fit(call: HeadLossCall) -> Answer:
    """Whether the dtype can represent gradients that have not been multiplied by a loss scale.

    A loss scale is applied to the loss, after its gradients have been computed; a probability
    divided by the number of rows is often below the smallest float16 number.
    """
    if autocast_dtype(call) == torch.float16 and differentiated(call):
        reason = "float16 gradients computed with the loss underflow before a loss scale is applied"
        return False, reason
    return True, ""


def saves(call: HeadsCall) -> Answer:
    """Whether chunks save memory: not for few logits on a CPU, which are faster without chunks."""
    h = call.h[0]
    if h.device.type == "cpu" and h.shape[0] * call.weight[0].shape[0] <= FEW_ELEMENTS:
        return False, f"at most {FEW_ELEMENTS} logits take little memory"
    return True, ""


def _chunks_pay(call: LseCall | HeadLossCall) -> Answer:
    """True if it saves memory and its products are as fast as the formula's."""
    dtype = call.h[0].dtype
    if dtype not in (torch.float32, torch.float64):
        many = f"; eager supports more than {MAX_HEADS} heads, with all logits in memory"
        more = many if len(call.h) > MAX_HEADS else ""
        return False, f"it converts {dtype} products to float32{more}"
    if dtype == torch.float32 and autocast_dtype(call) != torch.float32:
        return False, "its products would be float32, slower than autocast's"
    return saves(call)


def _example(device: torch.device) -> HeadLossCall:
    h, weight = torch.zeros(2, 32, device=device), torch.zeros(64, 32, device=device)
    return HeadLossCall([h], [weight], None, torch.zeros(2, dtype=torch.int64, device=device))


_LSE_GATHER = Operation(
    "linear_lse_gather",
    (
        triton_kernels(triton.linear_lse_gather, _kernels_can_serve, _kernels_pay),
        Implementation("chunked", chunked.linear_lse_gather, pays=_chunks_pay),
        Implementation("eager", reference.linear_lse_gather),
    ),
    lambda device: LseCall(*_example(device)[:4]),
)
_CROSS_ENTROPY = Operation(
    "linear_cross_entropy",
    (
        triton_kernels(triton.linear_cross_entropy, _kernels_can_serve, _kernels_pay_for_a_loss),
        Implementation("cublas", cublas.linear_cross_entropy, _library_can_serve, saves),
        Implementation("chunked", chunked.linear_cross_entropy, pays=_chunks_pay),
        Implementation("eager", reference.linear_cross_entropy),
    ),
    _example,
)


class Workspace(NamedTuple):
    """Memory that `linear_cross_entropy` needs in addition to its inputs, for loss and gradients.

    Args:
        implementation: name of the implementation that is used.
        rows: number of rows whose logits are in memory at the same time.
        nbytes: peak number of bytes.
    """

    implementation: str
    rows: int
    nbytes: int


def loss_workspace(
    rows: int, width: int, vocabulary: int, *, itemsize: int, device: str, head_bytes: int
) -> Workspace:
    """Return the workspace of a loss with reduction `mean` or `sum` and gradients.

    The implementation is the automatic choice's.

    Args:
        rows: N.
        width: d.
        vocabulary: V.
        itemsize: bytes of an element of the products' inputs: 4 in float32, 2 under bf16 autocast.
        device: device type, `cpu` or `cuda`.
        head_bytes: bytes of the gradients of weight and bias; 0 if these are frozen.
    """
    if device != "cuda" and rows * vocabulary <= FEW_ELEMENTS:
        # The log-probabilities, and the gradients of these and of the logits.
        return Workspace("eager", rows, 3 * torch.float32.itemsize * rows * vocabulary)
    gradients = itemsize * rows * width + head_bytes
    if device == "cuda":
        name, part = "cublas", cublas.rows_at_a_time(rows, vocabulary, itemsize, head_bytes > 0)
    else:
        name, part = "chunked", chunked.rows_at_a_time(rows, vocabulary)
    # At the end the gradients are multiplied by the gradient of the loss, into new memory.
    return Workspace(name, part, gradients + max(itemsize * part * vocabulary, gradients))
