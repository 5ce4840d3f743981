"""The extension's passes over a tile of logits, compared with fp64 and torch operations."""

from __future__ import annotations

import dataclasses
import itertools
from dataclasses import dataclass

import pytest
import torch
from expert_logits import SPECIAL, needs_native
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fastgrow import _native
from fastgrow.kernels.calls import LseCall
from fastgrow.ops.heads import chunked

pytestmark = needs_native

# Around the lengths of vectors and groups of them (64), of blocks (1,024) and tasks (16,384).
COLUMNS = [1, 2, 15, 63, 64, 65, 130, 1023, 1024, 1089, 4100, 16_385]
EPS = torch.finfo(torch.float32).eps


@dataclass(frozen=True)
class Tile:
    """Logits [rows, columns] in memory with gaps, and targets, some of them out of range."""

    logits: Tensor
    bias: Tensor | None
    targets: Tensor
    first_column: int

    @property
    def exact(self) -> Tensor:
        z = self.logits.double()
        return z if self.bias is None else (self.logits + self.bias).double()

    @property
    def here(self) -> Tensor:
        last = self.first_column + self.logits.shape[1]
        return (self.targets >= self.first_column) & (self.targets < last)

    @property
    def index(self) -> Tensor:
        return torch.where(self.here, self.targets - self.first_column, 0)[:, None]


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@st.composite
def tiles(draw: st.DrawFn) -> Tile:
    rows = draw(st.sampled_from([0, 1, 3, 70]))
    columns = draw(st.sampled_from(COLUMNS if rows < 70 else COLUMNS[:7]))
    seed, size = draw(st.integers(0, 1000)), draw(st.sampled_from([0.1, 3.0, 60.0]))
    offset, gap = draw(st.integers(0, 3)), draw(st.integers(0, 3))
    stored = torch.full((rows, columns + offset + gap), float("nan"))
    logits = stored[:, offset : offset + columns]
    logits.copy_(size * normal(rows, columns, seed=seed) + draw(st.sampled_from([0.0, -300.0])))
    for _ in range(draw(st.integers(0, 2)) if rows else 0):
        row, column = draw(st.integers(0, rows - 1)), draw(st.integers(0, columns - 1))
        logits[row, column] = draw(st.sampled_from(SPECIAL))
    if rows and draw(st.booleans()):
        logits[draw(st.integers(0, rows - 1))] = draw(st.sampled_from(SPECIAL))
    bias = normal(columns, seed=seed + 1) if draw(st.booleans()) else None
    first = draw(st.sampled_from([0, 5, 1 << 40]))
    near = st.integers(first - 2, first + columns + 1)
    target = st.one_of(near, st.sampled_from([-100, -(1 << 63), (1 << 63) - 1]))
    targets = torch.tensor(draw(st.lists(target, min_size=rows, max_size=rows)), dtype=torch.int64)
    return Tile(logits, bias, targets, first)


def added(tile: Tile, parts: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """lse, target logit and sum of a tile, computed in `parts` of its columns."""
    rows, columns = tile.logits.shape
    sums = torch.tensor([float("-inf"), 0, 0], dtype=torch.float64).repeat(rows, 1)
    target_logits = torch.full((rows,), 7.0)
    edges = [columns * i // parts for i in range(parts + 1)]
    for a, b in itertools.pairwise(edges):
        torch.ops.fastgrow_native.logit_tile_add_log_sums(
            *(tile.logits[:, a:b], None if tile.bias is None else tile.bias[a:b]),
            *(tile.targets, tile.first_column + a, sums, target_logits),
        )
    top, mass, total = sums.unbind(1)
    return torch.where(top.isfinite(), top, 0) + mass.log(), target_logits, total


def assert_near(got: Tensor, exact: Tensor, allowed: Tensor | float) -> None:
    """Within `allowed` where the expected value is finite, else the same infinity or NaN."""
    finite = exact.isfinite()
    torch.testing.assert_close(
        got.double()[~finite], exact[~finite], rtol=0, atol=0, equal_nan=True
    )
    error = (got.double() - exact)[finite].abs()
    limit = torch.as_tensor(allowed, dtype=torch.float64).expand(exact.shape)[finite]
    assert bool((error <= limit).all()), f"off by {error.max()}, allowed {limit.max()}"


@settings(max_examples=60)
@given(tiles(), st.sampled_from([1, 2, 5]))
def test_native_log_sums_agree_with_fp64(tile: Tile, parts: int) -> None:
    lse, target_logits, total = added(tile, parts)
    z = tile.exact
    # x − top is rounded once, which its exponential multiplies by; sums of up to 16 and 4 terms a
    # lane, each group's, and an exponential of 1.5 units in the last place.
    spread = z.nan_to_num(0, 0, 0).abs().amax(1) if z.numel() else z.sum(1)
    assert_near(lse, z.logsumexp(1), (24 + 2 * spread) * EPS)
    expected = torch.where(tile.here, z.gather(1, tile.index).squeeze(1), 7.0)
    assert_near(target_logits, expected, 0.0)
    absolute = z.nan_to_num(0, 0, 0).abs().sum(1)
    assert_near(total, z.sum(1), 24 * EPS * absolute)


@settings(max_examples=60)
@given(tiles(), st.booleans(), st.integers(0, 1000))
def test_native_gradients_agree_with_fp64(tile: Tile, with_each: bool, seed: int) -> None:
    rows = len(tile.targets)
    of_lse, of_target, each = normal(3, rows, seed=seed).unbind()
    z = tile.exact
    lse = z.logsumexp(1).float()
    pivot = torch.where(lse == float("-inf"), 0, lse).double()[:, None]
    exact = of_lse.double()[:, None] * (z - pivot).exp()
    if with_each:
        exact += each.double()[:, None]
    exact.scatter_add_(1, tile.index, torch.where(tile.here, of_target, 0).double()[:, None])
    around = tile.logits.clone()
    torch.ops.fastgrow_native.logit_tile_gradient_(
        *(tile.logits, tile.bias, tile.targets, tile.first_column),
        *(lse, of_lse, of_target, each if with_each else None),
    )
    assert tile.logits.shape == around.shape
    spread = torch.where(z.isfinite(), z - pivot, 0).abs()
    terms = exact.abs() + each.abs()[:, None] + of_target.abs()[:, None]
    assert_near(tile.logits, exact, (4 + spread) * EPS * terms)


@settings(max_examples=30)
@given(tiles())
def test_results_do_not_depend_on_the_number_of_threads(tile: Tile) -> None:
    found = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            copied = dataclasses.replace(tile, logits=tile.logits.clone())
            one = torch.ones(len(tile.targets))
            found.append(added(copied))
            torch.ops.fastgrow_native.logit_tile_gradient_(
                *(copied.logits, tile.bias, tile.targets, tile.first_column),
                *(found[-1][0].float(), one, -one, None),
            )
            found[-1] = (*found[-1], copied.logits)
    finally:
        torch.set_num_threads(before)
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)


def test_special_rows_follow_the_formula() -> None:
    inf, nan = float("inf"), float("nan")
    rows = [[inf, 1.0], [-inf, -inf], [nan, inf], [inf, inf], [-inf, 2.0], [1e4, -1e4]]
    logits = torch.tensor([[*row, *([-inf] * 98)] for row in rows])
    tile = Tile(logits, None, torch.zeros(len(rows), dtype=torch.int64), 0)
    for parts in (1, 2, 100):
        lse, _, _ = added(tile, parts)
        torch.testing.assert_close(
            lse, logits.double().logsumexp(1), rtol=1e-6, atol=0, equal_nan=True
        )


@pytest.mark.parametrize("bias", [False, True])
def test_tiles_of_a_head_bypass_the_extension_alike(
    bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With and without it: the same terms and gradients, within float32's roundings."""
    monkeypatch.setattr(chunked, "TILE_ROWS", 5)
    monkeypatch.setattr(chunked, "TILE_ELEMENTS", 5 * 67)
    h = [normal(13, 6, seed=k) for k in range(2)]
    weight = [normal(301, 6, seed=10 + k) for k in range(2)]
    b = normal(602, seed=20)[::2] if bias else None
    targets = torch.tensor([0, 66, 67, 300, 301, -1, -100, *range(6)])
    found = []
    for loaded in (True, False):
        state = _native.Extension("_C", loaded, "turned off here")
        monkeypatch.setattr(_native, "CPU", state)
        leaves = [x.clone().requires_grad_() for x in h]
        terms = chunked.linear_lse_gather(LseCall(leaves, weight, b, targets, True))
        gradient = torch.autograd.grad(sum(x.sum() * (i + 1) for i, x in enumerate(terms)), leaves)
        found.append((*terms, *gradient))
    for a, b_ in zip(*found, strict=True):
        torch.testing.assert_close(a, b_, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("change", ["dtype", "columns", "bias", "targets", "sums"])
def test_wrong_shapes_are_rejected_before_memory_is_read(change: str) -> None:
    logits, targets = torch.zeros(3, 70), torch.zeros(3, dtype=torch.int64)
    bias, sums = torch.zeros(70), torch.zeros(3, 3, dtype=torch.float64)
    if change == "dtype":
        logits = logits.double()
    elif change == "columns":
        logits = torch.zeros(70, 3).T
    elif change == "bias":
        bias = bias[1:]
    elif change == "targets":
        targets = targets[1:]
    else:
        sums = sums[1:]
    with pytest.raises(RuntimeError, match="logit_tile"):
        torch.ops.fastgrow_native.logit_tile_add_log_sums(
            logits, bias, targets, 0, sums, torch.zeros(3)
        )
