"""The loss of a causal language model without its logits."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from transformers.loss.loss_utils import ForCausalLMLoss
from transformers.utils.generic import can_return_tuple

from fastgrow import ops
from fastgrow.interop.functions import is_plain


def without_logits(original: Callable[..., Any], output: type[Any]) -> Callable[..., Any]:
    """Wrap a forward so that calls with labels compute the loss without logits.

    Args:
        original: the forward of a model with `base_model` and `lm_head`.
        output: class of its return value.
    """

    @can_return_tuple
    def forward_without_logits(model: Any, *args: Any, labels: Tensor, **kwargs: Any) -> Any:
        outputs = model.base_model(*args, **kwargs)
        loss = causal_lm_loss(outputs.last_hidden_state, model.lm_head, labels, **kwargs)
        kept = {name: value for name, value in outputs.items() if name != "last_hidden_state"}
        return output(loss=loss, **kept)

    # Keeps the signature, which generation and the Trainer inspect.
    @wraps(original)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        # Labels passed by position are rare; such calls compute the logits.
        if kwargs.get("labels") is None or not _supported(self, kwargs):
            return original(self, *args, **kwargs)
        kwargs.pop("logits_to_keep", None)
        return forward_without_logits(self, *args, **kwargs)

    return forward


def causal_lm_loss(
    hidden: Tensor,
    head: nn.Linear,
    labels: Tensor,
    *,
    num_items_in_batch: Tensor | int | None = None,
    ignore_index: int = -100,
    shift_labels: Tensor | None = None,
    **kwargs: Any,
) -> Tensor:
    """Compute transformers' `ForCausalLMLoss` from hidden states instead of logits.

    Args:
        hidden: hidden states, [B, T, d].
        head: output head.
        labels: [B, T]; the label of a position is the target of the position before it.
        num_items_in_batch: divisor of the sum; None for the mean.
        ignore_index: labels of this value are ignored.
        shift_labels: [B, T], the target of each position; used instead of `labels`.
    """
    if shift_labels is None:
        shift_labels = F.pad(labels, (0, 1), value=ignore_index)[..., 1:]
    total = ops.linear_cross_entropy(
        hidden,
        head.weight,
        shift_labels.to(hidden.device),
        head.bias,
        ignore_index=ignore_index,
        reduction="mean" if num_items_in_batch is None else "sum",
    )
    if num_items_in_batch is None:
        return total
    if isinstance(num_items_in_batch, Tensor):
        num_items_in_batch = num_items_in_batch.to(total.device)
    return total / num_items_in_batch


def _supported(model: Any, kwargs: dict[str, Any]) -> bool:
    kept = kwargs.get("logits_to_keep", 0)
    all_logits = isinstance(kept, int) and kept == 0
    standard = model.loss_function is ForCausalLMLoss
    return all_logits and standard and is_plain(model.lm_head, nn.Linear)
