"""From the losses of rows to the loss that was asked for."""

from __future__ import annotations

from torch import Tensor

from fastgrow.errors import argument_error

REDUCTIONS = ("mean", "sum", "none")


def check_reduction(operation: str, reduction: str) -> None:
    """Refuse a reduction that is none of `REDUCTIONS`."""
    if reduction not in REDUCTIONS:
        raise argument_error(
            operation, "reduction", f"one of {', '.join(REDUCTIONS)}", repr(reduction)
        )


def reduced(losses: Tensor, targets: Tensor, ignore_index: int, reduction: str) -> Tensor:
    """Losses that are 0 where the target is ignored, as `reduction` wants them.

    `mean` divides by the number of targets that are not ignored.
    """
    if reduction == "none":
        return losses
    total = losses.sum()
    return total / (targets != ignore_index).sum() if reduction == "mean" else total
