"""Error bounds of the extension's exponential and logarithm, compared with fp64."""

from __future__ import annotations

import math

import numpy as np
import torch
from expert_logits import needs_native
from torch import Tensor

pytestmark = needs_native


def units(result: Tensor, exact: Tensor) -> Tensor:
    """Error in units of the last place of a float32 of that size, the subnormals' included."""
    spacing = torch.from_numpy(np.spacing(exact.abs().float().numpy())).double()
    return (result.double() - exact).abs() / spacing


def of(name: str, x: Tensor) -> Tensor:
    """Apply a vector function, which supports only whole vectors."""
    padded = torch.cat([x, torch.ones(-len(x) % 64)])
    getattr(torch.ops.fastgrow_native, name)(padded)
    return padded[: len(x)]


def test_exponential_is_within_its_bound() -> None:
    x = torch.cat([torch.linspace(-104, 88.7, 2_000_001), torch.linspace(-1, 1, 1_000_001)])
    assert units(of("exponential_", x), x.double().exp()).max() <= 1.5


def test_logarithm_is_within_its_bound() -> None:
    x = torch.cat([torch.logspace(-37.5, 38, 2_000_001), torch.linspace(0.4, 1.6, 1_000_001)])
    x = x[x != 1]
    assert units(of("logarithm_", x), x.double().log()).max() <= 1.5
    assert of("logarithm_", torch.ones(1)).item() == 0


def test_special_values() -> None:
    inf, nan = math.inf, math.nan
    x = torch.tensor([-inf, inf, nan, 0.0, -0.0, 1e30, -1e30, 1e-40])
    expected = torch.tensor([0.0, inf, nan, 1.0, 1.0, inf, 0.0, 1.0])
    torch.testing.assert_close(of("exponential_", x), expected, rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(of("logarithm_", x), x.log(), rtol=1e-6, atol=0, equal_nan=True)
