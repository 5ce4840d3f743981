"""The rules for comparing a device's results with those of the CPU."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

# Largest relative error of rounding to bf16: half a unit in the last place.
ROUNDING = 2.0**-9


def assert_follows(
    losses: Sequence[float], truth: Sequence[float], in_bf16: Sequence[float]
) -> None:
    """Assert that the losses of a training in bf16 equal those in fp32 except for rounding.

    As for kernels, no error may exceed twice the largest error of the same formulas in the same
    dtype. The latter is that of a run on the CPU in bf16, which rounds as often; the error of
    rounding the largest loss once is added, in case the CPU's errors happen to cancel.

    Args:
        losses: losses of each step or stage on the device.
        truth: losses on the CPU in fp32.
        in_bf16: losses on the CPU in bf16.
    """
    assert len(losses) == len(truth) == len(in_bf16)
    found, exact, rounded = (torch.tensor(x, dtype=torch.float64) for x in (losses, truth, in_bf16))
    error, allowed = (found - exact).abs().max(), (rounded - exact).abs().max()
    bound = 2 * allowed + ROUNDING * exact.abs().max()
    assert error <= bound, f"error {error:.3g}, allowed {bound:.3g}: {losses} against {truth}"


def assert_close(result: Tensor, truth: Tensor, in_bf16: Tensor | None = None) -> None:
    """Assert that the result of a forward pass is correct; its sums have another order.

    Args:
        result: the result on any device.
        truth: the result on the CPU in fp32.
        in_bf16: the result on the CPU in bf16, if `result` is in bf16: twice its root-mean-square
            error is allowed. None for fp32: 1e-5 of the values' size is allowed, as for kernels.
    """
    found, exact = (x.detach().double().cpu() for x in (result, truth))
    bound = 1e-5 * _size(exact)
    if in_bf16 is not None:
        assert result.dtype == in_bf16.dtype == torch.bfloat16
        bound = 2 * _size(in_bf16.detach().double() - exact)
    error = _size(found - exact)
    assert error <= bound, f"error {error:.3g}, allowed {bound:.3g}, of {_size(exact):.3g}"


def _size(x: Tensor) -> float:
    return float(x.square().mean().sqrt())
