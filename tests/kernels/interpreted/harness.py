"""The rule by which a kernel's numbers are judged, and the device they are made on."""

from __future__ import annotations

import os

import torch
from torch import Tensor

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"

# Largest root-mean-square error, relative to that of the truth; fp32 is for exact (ieee) products.
RMS_CEILING = {torch.float32: 1e-5, torch.bfloat16: 5e-3, torch.float16: 5e-3}


def assert_accurate(
    name: str,
    result: Tensor,
    eager: Tensor,
    truth: Tensor,
    *,
    condition: float = 1.0,
    terms: float = 0.0,
) -> None:
    """error(result) ≤ 2 · error(eager) + 2 ulp, both against fp64, and an RMS below the ceiling.

    Args:
        name: what is compared, for the message.
        result: the kernel's.
        eager: the eager formula's, in the same dtype.
        truth: the eager formula's in fp64, of the same inputs.
        condition: by how much the formula magnifies a relative error of 1 ulp in its exponents:
            exp(s) of a score s held in fp32 is known to |s| · eps of it. Counts where it is more
            than the bounds are.
        terms: size of the numbers whose difference or sum the result is, where they may cancel:
            it cannot be known better than to 2 ulp of them in fp32.
    """
    assert result.dtype == eager.dtype
    assert result.shape == truth.shape
    assert not result.isnan().any(), f"{name}: NaN, in {result.isnan().sum()} places"
    if truth.numel() == 0:
        return
    error, allowed = (result.double() - truth).abs(), (eager.double() - truth).abs().max()
    ulp = torch.finfo(result.dtype).eps * truth.abs().max()
    # The interpreter cuts bf16 off where a GPU rounds.
    ulps = 3 if INTERPRETED and result.dtype == torch.bfloat16 else 2
    conditioned = condition * torch.finfo(torch.float32).eps
    cancelled = 2 * torch.finfo(torch.float32).eps * terms
    bound = 2 * allowed + max(ulps * ulp, conditioned * truth.abs().max(), cancelled)
    assert error.max() <= bound, f"{name}: error {error.max():.3g}, allowed {bound:.3g}"
    size, rms = truth.square().mean().sqrt(), error.square().mean().sqrt()
    ceiling = max(RMS_CEILING[result.dtype], conditioned)
    ceiling += (ulps - 2) * torch.finfo(result.dtype).eps
    assert rms <= ceiling * size + cancelled, f"{name}: RMS error {rms / size:.3g} of {ceiling:.3g}"
