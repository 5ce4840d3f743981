"""How the losses of rows become one number."""

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
    """Losses of rows, zero where the target is ignored, to the loss asked for.

    The mean is over the targets that are not ignored; NaN without any, as torch has it.
    """
    if reduction == "none":
        return losses
    total = losses.sum()
    return total / (targets != ignore_index).sum() if reduction == "mean" else total
