"""Random experts for the tests of the operations over several of them."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from hypothesis import strategies as st
from random_logits import make
from torch import Tensor

from fastgrow import _native

IMPLEMENTATIONS = ["eager", "native"] if _native.CPU.loaded else ["eager"]
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
needs_native = pytest.mark.skipif(not _native.CPU.loaded, reason=_native.CPU.reason)

# Around the lengths of vectors, blocks (1,024) and tasks (16,384).
COLUMNS = [1, 2, 15, 63, 64, 65, 300, 1023, 1025, 4100, 16_385]
SPECIAL = [float("inf"), float("-inf"), float("nan")]


@dataclass(frozen=True)
class Experts:
    """Arguments of an operation; the strides of the experts differ."""

    logits: list[Tensor]
    weights: Tensor
    temperatures: list[float]
    targets: Tensor

    @property
    def scale(self) -> Tensor:
        return self.weights.double() / torch.tensor(self.temperatures, dtype=torch.float64)

    @property
    def exact(self) -> list[Tensor]:
        return [x.double() for x in self.logits]

    @property
    def rounding(self) -> float:
        """Error bound of an fp32 (fp64) sum over the experts, plus a few roundings."""
        terms = torch.stack(self.exact, -1).nan_to_num(0, 0, 0).abs()
        scale = self.scale.abs().expand(*terms.shape[:-2], -1)[..., None, :]
        dtype = torch.float64 if self.logits[0].dtype == torch.float64 else torch.float32
        largest = (terms * scale).sum(-1).max().item() if terms.numel() else 0.0
        return (len(self.logits) + 4) * torch.finfo(dtype).eps * (1 + largest)


@st.composite
def experts(draw: st.DrawFn, *, special: bool = True, negative: bool = True) -> Experts:
    """1 to 5 experts with random strides; with infinities, NaN and excluded experts."""
    k = draw(st.integers(1, 5))
    columns = draw(st.sampled_from(COLUMNS))
    shape = draw(st.sampled_from([(), (3,), (2, 2)] if columns <= 300 else [(2,)]))
    dtype = draw(st.sampled_from(DTYPES))
    logits = []
    for x in make(k, (*shape, columns), dtype, draw(st.integers(0, 1000))):
        offset, gap = draw(st.integers(0, 3)), draw(st.integers(0, 3))
        stored = torch.full((*shape, columns + offset + gap), float("nan"), dtype=dtype)
        logits.append(stored[..., offset : offset + columns].copy_(x))
        if special and draw(st.integers(0, 3)) == 0:
            flat = x.new_tensor(draw(st.sampled_from(SPECIAL)))
            logits[-1][..., draw(st.integers(0, columns - 1))] = flat
    values = st.integers(-128 if negative else 4, 128).map(lambda n: n / 64)
    per_row = bool(shape) and draw(st.booleans())
    rows = torch.Size(shape).numel() if per_row else 1
    drawn = draw(st.lists(values, min_size=k * rows, max_size=k * rows))
    weights = torch.tensor(drawn).view(*(shape if per_row else ()), k)
    if draw(st.booleans()):
        absent = draw(st.lists(st.booleans(), min_size=k * rows, max_size=k * rows))
        weights = weights.masked_fill(torch.tensor(absent).view(weights.shape), 0)
    temperatures = draw(st.lists(st.sampled_from([0.5, 0.75, 1.0, 2.0]), min_size=k, max_size=k))
    targets = torch.tensor(draw(st.integers(0, columns - 1))).expand(shape).clone()
    return Experts(logits, weights, temperatures, targets)
