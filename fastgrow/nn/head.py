"""Language model head: computes logits, or the loss without storing all logits."""

from __future__ import annotations

from torch import Tensor, nn

from fastgrow import ops


class LMHead(nn.Linear):
    """Linear layer from d_model to the vocabulary; its weight [V, d_model] is not tied."""

    def loss(
        self,
        hidden: Tensor,
        targets: Tensor,
        *,
        ignore_index: int = -100,
        reduction: str = "mean",
    ) -> Tensor:
        """Return the cross-entropy of the targets in nats.

        Args:
            hidden: [..., d_model].
            targets: [...] int64.
            ignore_index: targets of this value do not contribute to the loss.
            reduction: `mean`, `sum` or `none`.
        """
        return ops.linear_cross_entropy(
            hidden,
            self.weight,
            targets,
            self.bias,
            ignore_index=ignore_index,
            reduction=reduction,
        )
