"""From the last hidden state to logits, and to the loss without them."""

from __future__ import annotations

from torch import Tensor, nn

from fastgrow import ops


class LMHead(nn.Linear):
    """A linear layer to the vocabulary, [V, d_model] and bias, not tied to the embedding."""

    def loss(
        self,
        hidden: Tensor,
        targets: Tensor,
        *,
        ignore_index: int = -100,
        reduction: str = "mean",
    ) -> Tensor:
        """Cross-entropy in nats.

        Args:
            hidden: [..., d_model].
            targets: [...] int64.
            ignore_index: targets of this value count nothing.
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
