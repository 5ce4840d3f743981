"""Loss module: cross-entropy of a linear head."""

from __future__ import annotations

from torch import Tensor, nn

from fastgrow import ops
from fastgrow.errors import argument_error
from fastgrow.ops.heads import REDUCTIONS


class LinearCrossEntropyLoss(nn.Module):
    """`torch.nn.CrossEntropyLoss` of the logits h · weightᵀ + bias, without storing all logits.

    The module has no parameters: the head's weight and bias are passed to `forward`, so that they
    may be tied to another layer.

    Args:
        ignore_index: targets of this value do not contribute to the loss or the gradients.
        reduction: `mean` (NaN if every target is ignored, as in torch), `sum` or `none`.
        label_smoothing: probability in [0, 1] that is spread evenly over the vocabulary.
        z_loss: weight of the squared log-partition (PaLM, arXiv 2204.02311, §5).

    Shapes:
        h [..., d], weight [V, d], targets [...], bias [V] → a scalar, or the shape of `targets` for
        `none`.

    Raises:
        ArgumentError: the reduction is unknown, or label_smoothing is not in [0, 1].
    """

    def __init__(
        self,
        *,
        ignore_index: int = -100,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
        z_loss: float = 0.0,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        if reduction not in REDUCTIONS:
            raise argument_error(
                name, "reduction", f"one of {', '.join(REDUCTIONS)}", repr(reduction)
            )
        if not 0.0 <= label_smoothing <= 1.0:
            raise argument_error(name, "label_smoothing", "between 0 and 1", label_smoothing)
        self.ignore_index = ignore_index
        self.reduction = reduction
        self.label_smoothing = label_smoothing
        self.z_loss = z_loss

    def forward(
        self, h: Tensor, weight: Tensor, targets: Tensor, bias: Tensor | None = None
    ) -> Tensor:
        return ops.linear_cross_entropy(
            h,
            weight,
            targets,
            bias,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
            label_smoothing=self.label_smoothing,
            z_loss=self.z_loss,
        )

    def extra_repr(self) -> str:
        return f"reduction={self.reduction}, ignore_index={self.ignore_index}"
