"""Embedding lookup with the lift to the model's width.

    y[..., j] = table[ids, j // repeat]      for j in 0 … repeat·n_embed − 1

Repeating features is how a table of any width feeds a wider model without a projection
(arXiv 2507.07129, `scale = d_model // n_embed`).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastgrow.ops._check import check_float, check_ids, describe, refuse
from fastgrow.ops._debug import check_range, out_of_range
from fastgrow.ops._dispatch import Operation


def embedding(ids: Tensor, table: Tensor, *, repeat: int = 1, impl: str | None = None) -> Tensor:
    """Look up rows of a table and repeat each feature `repeat` times.

    Args:
        ids: [...] int64 or int32, each in [0, V).
        table: [V, n_embed] float.
        repeat: copies of each feature, side by side.
        impl: force an implementation.

    Returns:
        [..., n_embed · repeat], dtype of `table`.

    Raises:
        ArgumentError: wrong shapes, dtypes or devices; on a CPU also an id out of range (on other
            devices only under FASTGROW_DEBUG=1: reading the ids costs a synchronisation).
    """
    check_ids("embedding", "ids", ids)
    check_float("embedding", "table", table)
    if table.dim() != 2:
        raise refuse("embedding", "table", "of shape [V, n_embed]", describe(table))
    if ids.device != table.device:
        raise refuse("embedding", "ids", f"on {table.device}", describe(ids))
    if repeat < 1:
        raise refuse("embedding", "repeat", "at least 1", repeat)
    check_range("embedding", "ids", ids, 0, table.shape[0])
    if torch.compiler.is_compiling():
        return _OPERATION(ids, table, repeat, impl=impl)
    try:
        return _OPERATION(ids, table, repeat, impl=impl)
    except IndexError:
        raise out_of_range("embedding", "ids", ids, table.shape[0]) from None


def _example(device: torch.device) -> tuple[tuple[Any, ...], dict[str, Any]]:
    ids = torch.zeros(1, 2, dtype=torch.int64, device=device)
    return (ids, torch.zeros(4, 32, device=device), 1), {}


_OPERATION = Operation("embedding", example=_example)


@_OPERATION.implementation("eager")
def embedding_eager(ids: Tensor, table: Tensor, repeat: int) -> Tensor:
    """The formula, as it stands."""
    rows = F.embedding(ids, table)
    return rows if repeat == 1 else rows.repeat_interleave(repeat, dim=-1)
