"""What losses need of linear heads, and the loss itself, without the logits.

    z              = h · weightᵀ + bias
    lse_n          = log Σ_v exp(z_nv)
    target_logit_n = z_n,target

`linear_lse_gather` gives these two, of which cross-entropy is the difference. With K heads, z is
the weighted sum of their logits:

    z_n = Σ_k mix_k · (h_k · weight_kᵀ + bias_k)

Mixing weights are multiplied into h, which is small, so that what is left is a plain sum of
products. Weights of a vocabulary's size are used where they lie.

`linear_cross_entropy` is the head's product and the cross-entropy of its logits, as one operation:

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
MAX_HEADS = 8  # of the kernels
FEW_ELEMENTS = 1 << 21  # logits that are sooner made at once on a CPU


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
            multiplied before they are added; 1/K each by default. A number 0 leaves its head out,
            which then gets no gradient; a 0 in a tensor takes infinities and NaN out of its h.
        impl: force an implementation.

    Returns:
        `lse` and `target_logit`, each of the shape of `targets`, float32 (float64 for float64).

    Raises:
        ArgumentError: shapes, dtypes, devices or lengths of lists do not go together.
    """
    heads = as_heads("linear_lse_gather", h, weight, bias, mix, targets)
    lse, target_logit, _ = _LSE_GATHER(LseCall(*heads, targets.reshape(-1)), impl)
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
    """Cross-entropy of the targets under the logits h · weightᵀ + bias, in nats.

    Args:
        h: [..., d] float; or a list of K, which may differ in d, and may be float32 beside weights
            of half precision: each is rounded to their dtype after it is mixed.
        weight: [V, d]; or a list of K, used where they lie.
        targets: [...] int64 or int32, the leading shape of `h`; each in [0, V) or `ignore_index`.
        bias: [V], or None; or a list of K of these.
        mix: with lists, K numbers, a tensor [K] or [..., K] by which the logits of the K heads are
            multiplied before they are added; 1/K each by default. A number 0 leaves its head out,
            which then gets no gradient; a 0 in a tensor takes infinities and NaN out of its h.
        ignore_index: targets of this value count nothing and get no gradient.
        reduction: `mean` (NaN if every target is ignored, as torch has it), `sum` or `none`.
        label_smoothing: share of the target spread evenly over the vocabulary, in [0, 1].
        z_loss: weight of the squared log-partition (PaLM, arXiv 2204.02311, §5).
        impl: force an implementation. `chunked`, in torch alone, never has all logits in memory.

    Returns:
        A scalar, or the shape of `targets` for `none`; float32 for half-precision inputs. On a GPU
        a target out of range makes its row's loss NaN.

    Raises:
        ArgumentError: an unknown reduction, smoothing out of range, shapes, dtypes or devices
            that do not go together; on a CPU, and elsewhere under FASTGROW_DEBUG=1, also a target
            out of range.
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
    """Check the arguments of an operation, and bring them into one form.

    Raises:
        ArgumentError: shapes, dtypes, devices or lengths of lists do not go together.
    """
    if isinstance(h, Tensor):
        if mix is not None:
            raise argument_error(name, "mix", "None where h is one tensor", "weights")
        if not isinstance(weight, Tensor):
            raise argument_error(name, "weight", "a tensor as h is", f"a {type(weight).__name__}")
        if not (bias is None or isinstance(bias, Tensor)):
            raise argument_error(
                name, "bias", "a tensor as h is, or None", f"a {type(bias).__name__}"
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
    """Refuse h [..., d], weight [V, d] and bias [V] that do not go together.

    Args:
        names: of the three arguments.
        like: the h and V of an earlier head.
        narrow: whether the weight may be of half precision where h is float32.
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
    """h, weight and bias of the weighted sum of several heads, which have been checked.

    Raises:
        ArgumentError: `mix` is of another length, shape or device.
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
    # Biases that each row weights in its own way are one more product, of their number's width.
    of_bias = torch.stack([b for b, _ in given], dim=1)
    columns = torch.cat([share for _, share in given], dim=1)
    return [*h, columns.to(of_bias.dtype)], [*weights, of_bias], None


def _is_wider(h: Tensor, weight: Tensor) -> bool:
    """Whether h is float32 beside a weight of half precision."""
    half = (torch.bfloat16, torch.float16)
    return h.dtype == torch.float32 and weight.dtype in half and weight.device == h.device


def _folded(h: Tensor, share: Tensor | float, weight: Tensor) -> Tensor:
    """A head's input with its share, rounded once; to the weight's dtype where that is narrower."""
    return _scaled(h, share).to(weight.dtype if _is_wider(h, weight) else h.dtype)


def _scaled(x: Tensor, share: Tensor | float) -> Tensor:
    if isinstance(share, Tensor):
        # Numbers stay where the share is 0, for its gradient; 0 · inf would be NaN.
        x = torch.where(share == 0, x.nan_to_num(0.0, 0.0, 0.0), x)
    elif share == 1:
        return x
    return (x * share).to(x.dtype)


def _kernels_can_serve(call: HeadsCall) -> Answer:
    if len(call.h) > MAX_HEADS:
        return False, f"it takes at most {MAX_HEADS} products, got {len(call.h)}"
    return True, ""


def _kernels_pay(call: LseCall | HeadLossCall) -> Answer:
    """By reasoning, not measured: half-precision products run on the matrix units.

    Rows that load slowly, at no multiple of 16 elements, do so too: all logits are the alternative.
    """
    if autocast_dtype(call) == torch.float32:
        return False, "the library's float32 products are faster"
    return True, ""


def _kernels_pay_for_a_loss(call: HeadLossCall) -> Answer:
    """By counting products and passes over memory, not measured."""
    if call.reduction == "none" or not _gradients_fit(call)[0]:
        return True, ""
    if differentiated(call):
        return False, "gradients made beside the loss take three products, afterwards four"
    if any(x.stride(0) % 16 for x in (*call.h, *call.weight) if x.shape[-1] > MAX_HEADS):
        return False, "rows that start at no multiple of 16 elements load slowly"
    return _kernels_pay(call)


def _library_can_serve(call: HeadLossCall) -> Answer:
    ok, reason = dispatch.triton_can_run(call.h[0])
    if ok and call.reduction == "none" and differentiated(call):
        return False, "gradients of single rows' losses are not known beside the loss"
    return _gradients_fit(call) if ok else (False, reason)


def _gradients_fit(call: HeadLossCall) -> Answer:
    """Whether the dtype holds gradients that have not been multiplied by a loss scale.

    One of float16 is applied to the loss, after its gradients are made; a probability over the
    number of rows is often below the smallest number of float16.
    """
    if autocast_dtype(call) == torch.float16 and differentiated(call):
        return False, "float16 gradients made beside the loss vanish before a loss scale is applied"
    return True, ""


def saves(call: HeadsCall) -> Answer:
    """On a CPU few logits are sooner made at once, and take little memory."""
    h = call.h[0]
    if h.device.type == "cpu" and h.shape[0] * call.weight[0].shape[0] <= FEW_ELEMENTS:
        return False, f"it saves nothing to speak of on at most {FEW_ELEMENTS} logits"
    return True, ""


def _chunks_pay(call: LseCall | HeadLossCall) -> Answer:
    """Where it saves memory, with products as fast as the formula's."""
    dtype = call.h[0].dtype
    if dtype not in (torch.float32, torch.float64):
        many = f"; the formula takes more than {MAX_HEADS} heads, with all logits in memory"
        left = many if len(call.h) > MAX_HEADS else ""
        return False, f"it widens what {dtype} products give{left}"
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
    """What `linear_cross_entropy` holds beside its inputs while it makes a loss and its gradients.

    Args:
        implementation: that serves.
        rows: whose logits are in memory together.
        nbytes: at the worst moment.
    """

    implementation: str
    rows: int
    nbytes: int


def loss_workspace(
    rows: int, width: int, vocabulary: int, *, itemsize: int, device: str, head_bytes: int
) -> Workspace:
    """Of `mean` or `sum`, with gradients, as it is chosen by itself.

    Args:
        rows: N.
        width: d.
        vocabulary: V.
        itemsize: of a number that a product reads: 4 in float32, 2 under bf16 autocast.
        device: its type, `cpu` or `cuda`.
        head_bytes: of the gradients of weight and bias; 0 where they do not train.
    """
    if device != "cuda" and rows * vocabulary <= FEW_ELEMENTS:
        # The logits' logarithms, the gradient by these and the gradient by the logits.
        return Workspace("eager", rows, 3 * torch.float32.itemsize * rows * vocabulary)
    gradients = itemsize * rows * width + head_bytes
    if device == "cuda":
        name, part = "cublas", cublas.rows_at_a_time(rows, vocabulary, itemsize, head_bytes > 0)
    else:
        name, part = "chunked", chunked.rows_at_a_time(rows, vocabulary)
    # In the end the gradients are multiplied by that of the loss itself, into new memory.
    return Workspace(name, part, gradients + max(itemsize * part * vocabulary, gradients))
