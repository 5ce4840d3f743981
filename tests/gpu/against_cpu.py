"""The rules by which numbers of a device are held against the CPU's."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

# Half a unit in the last place of bf16, relative: what rounding to it costs a number.
ROUNDING = 2.0**-9


def assert_follows(
    losses: Sequence[float], truth: Sequence[float], in_bf16: Sequence[float]
) -> None:
    """The losses of a training in bf16 are those of fp32 but for rounding.

    As for kernels, no error may pass twice the largest of the same formulas in the same dtype,
    plainly computed. Those are a run on the CPU in bf16, whose steps round as often: to them is
    added what one rounding makes of the largest loss, for where the CPU's errors happen to cancel.

    Args:
        losses: of each step or stage, on the device.
        truth: the CPU's in fp32.
        in_bf16: the CPU's in bf16.
    """
    assert len(losses) == len(truth) == len(in_bf16)
    found, exact, rounded = (torch.tensor(x, dtype=torch.float64) for x in (losses, truth, in_bf16))
    error, allowed = (found - exact).abs().max(), (rounded - exact).abs().max()
    bound = 2 * allowed + ROUNDING * exact.abs().max()
    assert error <= bound, f"error {error:.3g}, allowed {bound:.3g}: {losses} against {truth}"


def assert_close(result: Tensor, truth: Tensor, *, roundings: int = 0) -> None:
    """A result of one forward pass, whose sums run in another order on each device.

    Args:
        result: on any device.
        truth: the CPU's in fp32.
        roundings: how often numbers are rounded to bf16 on the way, whose errors add like
            independent ones; 0 for fp32 throughout, which leaves 1e-5 of the values' size, as for
            kernels.
    """
    error = (result.detach().double().cpu() - truth.detach().double()).square().mean().sqrt()
    size = truth.detach().double().square().mean().sqrt()
    bound = roundings**0.5 * ROUNDING if roundings else 1e-5
    assert error <= bound * size, f"error {error / size:.3g}, allowed {bound:.3g} of the size"
