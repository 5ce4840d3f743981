"""Losses of linear heads, and log-sum-exp and target logits, without storing all logits."""

from fastgrow.ops.heads.call import (
    Workspace,
    linear_cross_entropy,
    linear_lse_gather,
    loss_workspace,
    merge_lse,
)
from fastgrow.ops.heads.chunked import rows_at_a_time as rows_in_chunks
from fastgrow.ops.heads.heads import REDUCTIONS, reduced
from fastgrow.ops.heads.kl import linear_kl

__all__ = [
    "REDUCTIONS",
    "Workspace",
    "linear_cross_entropy",
    "linear_kl",
    "linear_lse_gather",
    "loss_workspace",
    "merge_lse",
    "reduced",
    "rows_in_chunks",
]
