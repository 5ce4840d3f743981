"""How much memory a head's loss takes, for those who plan with it: no tensors are made."""

from __future__ import annotations

from typing import NamedTuple

from fastgrow.ops.heads import chunked, cublas, reference
from fastgrow.ops.heads.call import FEW_ELEMENTS


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
        return Workspace("eager", rows, reference.workspace_bytes(rows, vocabulary))
    gradients = itemsize * rows * width + head_bytes
    if device == "cuda":
        name, part = "cublas", cublas.rows_at_a_time(rows, vocabulary, itemsize, head_bytes > 0)
    else:
        name, part = "chunked", chunked.rows_at_a_time(rows, vocabulary)
    # In the end the gradients are multiplied by that of the loss itself, into new memory.
    return Workspace(name, part, gradients + max(itemsize * part * vocabulary, gradients))
