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
    """A forward like `original` that leaves the logits out where labels are given.

    Args:
        original: the forward of a model with `base_model` and `lm_head`.
        output: what it returns.
    """

    @can_return_tuple
    def loss_alone(model: Any, *args: Any, labels: Tensor, **kwargs: Any) -> Any:
        outputs = model.base_model(*args, **kwargs)
        loss = causal_lm_loss(outputs.last_hidden_state, model.lm_head, labels, **kwargs)
        kept = {name: value for name, value in outputs.items() if name != "last_hidden_state"}
        return output(loss=loss, **kept)

    # The signature stays: generation and the Trainer read it.
    @wraps(original)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        # Labels given by position are rare and take the path with logits.
        if kwargs.get("labels") is None or not _can_serve(self, kwargs):
            return original(self, *args, **kwargs)
        kwargs.pop("logits_to_keep", None)
        return loss_alone(self, *args, **kwargs)

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
    """Their loss for causal language models, from hidden states instead of logits.

    Args:
        hidden: [B, T, d].
        head: to the vocabulary.
        labels: [B, T]; the label of a position is what the position before it predicts.
        num_items_in_batch: divides the sum; without it the mean is taken.
        ignore_index: labels of this value count nothing.
        shift_labels: [B, T], what each position predicts, instead of `labels`.
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


def _can_serve(model: Any, kwargs: dict[str, Any]) -> bool:
    kept = kwargs.get("logits_to_keep", 0)
    all_logits = isinstance(kept, int) and kept == 0
    standard = model.loss_function is ForCausalLMLoss
    return all_logits and standard and is_plain(model.lm_head, nn.Linear)
