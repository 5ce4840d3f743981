"""LoRA: a frozen linear layer with a trainable low-rank correction."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fastgrow import ops
from fastgrow.errors import ConfigError
from fastgrow.nn.draw import draw


@dataclass(frozen=True)
class Merged:
    """A linear layer with its correction merged, and the rounding error of the merge.

    Attributes:
        linear: the merged layer.
        drift: largest absolute difference of a merged weight from the sum in float32.
        relative_drift: root mean square of these differences divided by that of the correction,
            the share of the correction lost by rounding; 0 if the correction is zero.
    """

    linear: nn.Linear
    drift: float
    relative_drift: float


class LoRALinear(nn.Module):
    """An `nn.Linear` with frozen weight and bias plus α / r · B · A (arXiv 2106.09685, §4.1).

    The layer's parameters are shared, not copied, and stop requiring gradients. In the state dict
    they keep their names, `weight` and `bias`; `lora_A` [rank, in] and `lora_B` [out, rank]
    correspond to `lora_A.weight` and `lora_B.weight` in PEFT's files.

    A is initialised as in the paper's code (Kaiming uniform) and B with zeros, so that the initial
    output is that of the wrapped layer.

    Args:
        linear: the layer to wrap.
        rank: rank of the correction, at most the smaller of the layer's widths.
        alpha: scale of the correction times `rank`; None for `rank`, a scale of 1.
        parts: row counts of the weight's parts, for a weight that joins several layers, such as
            (queries, keys, values). Each part has a separate correction: `lora_A` is
            [parts · rank, in], the parts stacked, and `lora_B` [out, rank]. None for one part.
        generator: random number generator for A; torch's global one by default.
        dtype: dtype of A and B; the weight's by default. float32 can be combined with
            half-precision weights.

    Shapes:
        x [..., in] → [..., out].

    Raises:
        ConfigError: the rank is out of range, or the parts do not add up to the layer's rows.
    """

    bias: nn.Parameter | None

    def __init__(
        self,
        linear: nn.Linear,
        rank: int,
        alpha: float | None = None,
        *,
        parts: tuple[int, ...] | None = None,
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.parts = (linear.out_features,) if parts is None else parts
        if sum(self.parts) != linear.out_features:
            raise ConfigError(
                f"LoRALinear: parts must add up to {linear.out_features}, got {self.parts}"
            )
        narrow = min(linear.in_features, *self.parts)
        if not 1 <= rank <= narrow:
            raise ConfigError(f"LoRALinear: rank must be in [1, {narrow}], got {rank}")
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.rank = rank
        self.alpha = float(rank if alpha is None else alpha)
        linear.requires_grad_(False)
        self.weight = linear.weight
        self.register_parameter("bias", linear.bias)
        device, dtype = linear.weight.device, dtype or linear.weight.dtype
        rows = rank * len(self.parts)
        self.lora_A = nn.Parameter(torch.empty(rows, self.in_features, device=device, dtype=dtype))
        self.lora_B = nn.Parameter(torch.zeros(self.out_features, rank, device=device, dtype=dtype))
        draw(
            self.lora_A,
            lambda x: nn.init.kaiming_uniform_(x, a=math.sqrt(5), generator=generator),
            generator,
        )

    @property
    def scale(self) -> float:
        """Scale of the correction, alpha / rank."""
        return self.alpha / self.rank

    @property
    def factors(self) -> tuple[Tensor, Tensor]:
        """A [parts · rank, in] and B [out, parts · rank], whose product is the correction."""
        if len(self.parts) == 1:
            return self.lora_A, self.lora_B
        return self.lora_A, torch.block_diag(*self.lora_B.split(self.parts))

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.factors
        return ops.lora_linear(x, self.weight, a, b, self.bias, scale=self.scale)

    @torch.no_grad()
    def merge(self) -> Merged:
        """Return a linear layer with the correction added to a copy of the weight.

        The sum is computed in float32 (float64 for float64 weights) and rounded once. The bias is
        copied too; the merged layer's parameters require gradients, as those of any new layer.
        """
        wide = torch.promote_types(self.weight.dtype, torch.float32)
        a, b = self.factors
        correction = self.scale * (b.to(wide) @ a.to(wide))
        total = self.weight.to(wide) + correction
        linear = nn.Linear(
            self.in_features, self.out_features, self.bias is not None, device="meta"
        )
        linear.weight = nn.Parameter(total.to(self.weight.dtype))
        if self.bias is not None:
            linear.bias = nn.Parameter(self.bias.detach().clone())
        lost = linear.weight.to(wide) - total
        learnt = float(correction.square().mean())
        relative = math.sqrt(float(lost.square().mean()) / learnt) if learnt else 0.0
        return Merged(linear.train(self.training), float(lost.abs().max()), relative)

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"rank={self.rank}, alpha={self.alpha:g}, bias={self.bias is not None}"
        )
