"""Linear heads whose logits an operation needs the logarithmic sum of, but never in memory.

    z = Σ_k mix_k · (h_k · weight_kᵀ + bias_k)

Mixing weights are multiplied into h, which is small, so that what is left is a plain sum of
products. Weights of a vocabulary's size are used where they lie.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastgrow.errors import argument_error, describe
from fastgrow.ops.core.checks import check_float, check_ids, check_like

Tensors = Tensor | Sequence[Tensor]
Mix = Tensor | Sequence[float]


@dataclass(frozen=True)
class Heads:
    """z = Σ_k h[k] · weight[k]ᵀ + bias.

    Args:
        h: [N, d_k] each.
        weight: [V, d_k] each.
        bias: [V] or None.
    """

    h: list[Tensor]
    weight: list[Tensor]
    bias: Tensor | None

    @property
    def rows(self) -> int:
        return self.h[0].shape[0]

    @property
    def vocabulary(self) -> int:
        return self.weight[0].shape[0]

    @property
    def dtype(self) -> torch.dtype:
        return self.h[0].dtype

    @property
    def device(self) -> torch.device:
        return self.h[0].device

    def tensors(self) -> list[Tensor]:
        """Everything that may have a gradient."""
        return [*self.h, *self.weight, *([] if self.bias is None else [self.bias])]

    def need_grad(self) -> bool:
        return torch.is_grad_enabled() and any(x.requires_grad for x in self.tensors())

    @property
    def autocast_dtype(self) -> torch.dtype:
        """That of `autocast()`."""
        kind = self.device.type
        return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else self.dtype

    def autocast(self) -> Heads:
        """In autocast's dtype where it is on."""
        return self.to(self.autocast_dtype) if torch.is_autocast_enabled(self.device.type) else self

    def rounded(self) -> Heads:
        """As autocast rounds them, which leaves float64 alone, in the dtype they have."""
        return self if self.dtype == torch.float64 else self.autocast().to(self.dtype)

    def to(self, dtype: torch.dtype) -> Heads:
        """The same heads in another dtype."""
        bias = None if self.bias is None else self.bias.to(dtype)
        return Heads([x.to(dtype) for x in self.h], [w.to(dtype) for w in self.weight], bias)

    def logits(self) -> Tensor:
        """All logits, [N, V]; float32 for half-precision inputs."""
        z = F.linear(self.h[0], self.weight[0], self.bias)
        z = z if z.dtype == torch.float64 else z.float()
        for h, weight in zip(self.h[1:], self.weight[1:], strict=True):
            z = z + F.linear(h, weight).to(z.dtype)
        return z


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
        _check_pair(name, "", h, weight, bias, h, weight.shape[:1], targets)
        return Heads([h.reshape(-1, h.shape[-1])], [weight], bias)
    hidden, weights = list(h), _listed(name, "weight", weight, len(h))
    biases = [None] * len(h) if bias is None else _listed(name, "bias", bias, len(h))
    if not hidden:
        raise argument_error(name, "h", "a tensor, or a list of at least one", "an empty list")
    for k, (x, w, b) in enumerate(zip(hidden, weights, biases, strict=True)):
        _check_pair(name, f"[{k}]", x, w, b, hidden[0], weights[0].shape[:1], targets)
    return _mixed(name, hidden, weights, biases, mix, targets)


def _listed(name: str, argument: str, given: object, count: int) -> list[Any]:
    if isinstance(given, Tensor) or not isinstance(given, Sequence) or len(given) != count:
        got = len(given) if isinstance(given, Sequence) else f"a {type(given).__name__}"
        raise argument_error(name, argument, f"a list of {count}, one for each h", got)
    return list(given)


def _check_pair(
    name: str,
    which: str,
    h: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    first: Tensor,
    vocabulary: torch.Size,
    targets: Tensor,
) -> None:
    check_float(name, f"h{which}", h)
    if h.dim() == 0 or h.shape[:-1] != first.shape[:-1]:
        expected = f"of shape {[*first.shape[:-1], 'd']}" if which else "of shape [..., d]"
        raise argument_error(name, f"h{which}", expected, describe(h))
    check_like(name, f"h{which}", h, tuple(h.shape), first)
    if weight.dim() != 2 or weight.shape[1] != h.shape[-1] or weight.shape[:1] != vocabulary:
        rows = vocabulary[0] if which not in ("", "[0]") else "V"
        raise argument_error(
            name, f"weight{which}", f"of shape [{rows}, {h.shape[-1]}]", describe(weight)
        )
    if weight.shape[0] == 0:
        raise argument_error(name, f"weight{which}", "of at least one row", describe(weight))
    if not (which and _is_wider(h, weight)):
        check_like(name, f"weight{which}", weight, tuple(weight.shape), h)
    check_like(name, f"bias{which}", bias, (weight.shape[0],), weight)
    check_ids(name, "targets", targets)
    if targets.shape != h.shape[:-1] or targets.device != h.device:
        expected = f"of shape {list(h.shape[:-1])} on {h.device}"
        raise argument_error(name, "targets", expected, describe(targets))


def _mixed(
    name: str,
    hidden: list[Tensor],
    weights: list[Tensor],
    biases: list[Tensor | None],
    mix: Mix | None,
    targets: Tensor,
) -> Heads:
    count = len(hidden)
    rows = [x.reshape(-1, x.shape[-1]) for x in hidden]
    if isinstance(mix, Tensor) and mix.dim() > 1:
        _check_mix(name, mix, count, targets)
        return _mixed_by_row(rows, weights, biases, mix.reshape(-1, count))
    shares: list[Tensor | float]
    if mix is None:
        shares = [1 / count] * count
    elif isinstance(mix, Tensor):
        _check_mix(name, mix, count, targets)
        shares = list(mix.unbind())
    elif len(mix) != count:
        raise argument_error(name, "mix", f"of {count} numbers, one for each h", len(mix))
    else:
        shares = list(mix)
    h = [_folded(x, share, w) for x, share, w in zip(rows, shares, weights, strict=True)]
    bias: Tensor | None = None
    for b, share in zip(biases, shares, strict=True):
        if b is not None:
            bias = _scaled(b, share) if bias is None else bias + _scaled(b, share)
    return Heads(h, weights, bias)


def _mixed_by_row(
    rows: list[Tensor], weights: list[Tensor], biases: list[Tensor | None], mix: Tensor
) -> Heads:
    """Biases that each row weights in its own way are one more product, of their number's width."""
    shares = mix.split(1, dim=1)
    h = [_folded(x, share, w) for x, share, w in zip(rows, shares, weights, strict=True)]
    which = [k for k, b in enumerate(biases) if b is not None]
    if not which:
        return Heads(h, weights, None)
    of_bias = torch.stack([b for b in biases if b is not None], dim=1)
    return Heads([*h, mix[:, which].to(of_bias.dtype)], [*weights, of_bias], None)


def _check_mix(name: str, mix: Tensor, count: int, targets: Tensor) -> None:
    per_row = (*targets.shape, count)
    if tuple(mix.shape) not in ((count,), per_row) or mix.device != targets.device:
        expected = f"of shape [{count}] or {list(per_row)} on {targets.device}"
        raise argument_error(name, "mix", expected, describe(mix))


def _is_wider(h: Tensor, weight: Tensor) -> bool:
    half = (torch.bfloat16, torch.float16)
    return h.dtype == torch.float32 and weight.dtype in half and weight.device == h.device


def _folded(h: Tensor, share: Tensor | float, weight: Tensor) -> Tensor:
    """A head's input with its share, rounded once; to the weight's dtype where that is narrower."""
    scaled = _scaled(h, share)
    return scaled.to(weight.dtype) if _is_wider(h, weight) else scaled


def _scaled(x: Tensor, share: Tensor | float) -> Tensor:
    return x if isinstance(share, float) and share == 1 else (x * share).to(x.dtype)
