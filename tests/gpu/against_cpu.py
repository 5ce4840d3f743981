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


def assert_close(result: Tensor, truth: Tensor, in_bf16: Tensor | None = None) -> None:
    """A result of one forward pass, whose sums run in another order on each device.

    Args:
        result: on any device.
        truth: the CPU's in fp32.
        in_bf16: the CPU's in bf16 where `result` is in bf16, of whose root-mean-square error
            twice as much is allowed; without, in fp32, 1e-5 of the values' size, as for kernels.
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
