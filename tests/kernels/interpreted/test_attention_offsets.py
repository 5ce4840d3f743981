"""Attention on tensors that span more than 2³¹ elements, most of which are not in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from harness import DEVICE, INTERPRETED
from torch import Tensor

from fastgrow.kernels import attention as launchers
from fastgrow.kernels import attention_tiles
from fastgrow.kernels.calls import AttentionCall
from fastgrow.kernels.common import ROW_STRIDE_LIMIT
from fastgrow.ops import rope_table

F16 = torch.float16
DIM, SCALE = 16, 0.25
BEYOND = 2**30 + 64  # twice this passes 2³¹; it does not by itself
Place = Callable[[Tensor], Tensor]


def vast(path: Path, size: int) -> Tensor:
    """A tensor of that many numbers; on a CPU in a sparse file, where only touched pages exist."""
    if INTERPRETED:
        return torch.from_file(str(path), shared=True, size=size, dtype=F16)
    return torch.empty(size, dtype=F16, device=DEVICE)


@pytest.fixture(autouse=True)
def _gives_memory_back() -> Iterator[None]:
    """Of a GPU's, tens of gigabytes: other processes of tests want theirs."""
    yield
    if not INTERPRETED:
        torch.cuda.empty_cache()


STRIDES = ["batch", "head", "token"]


@pytest.fixture(params=["batch", "head", pytest.param("token", marks=pytest.mark.slow)])
def stride(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def place(stride: str, tmp_path: Path) -> Place:
    """Copy a tensor [B, H, T, D] so that one of its strides reaches beyond 2³¹ elements."""
    far = STRIDES.index(stride)
    files = 0

    def move(tensor: Tensor) -> Tensor:
        nonlocal files
        strides = list(tensor.contiguous().stride())
        strides[far] = BEYOND if far < 2 else min(BEYOND, ROW_STRIDE_LIMIT)
        size = 1 + sum((n - 1) * s for n, s in zip(tensor.shape, strides, strict=True))
        files += 1
        return vast(tmp_path / str(files), size).as_strided(tensor.shape, strides).copy_(tensor)

    return move


def inputs(far: str, queries: int | None = None, keys: int = 70) -> list[Tensor]:
    """q, k, v and the gradient of the output; as few numbers as pass 2³¹ with that stride."""
    planes = {"batch": (3, 1), "head": (1, 3), "token": (1, 1)}[far]
    if far == "token":
        keys = max(keys, 260)
    generator = torch.Generator().manual_seed(5)
    lengths = (queries or keys, keys, keys, queries or keys)
    shapes = [(*planes, length, DIM) for length in lengths]
    return [torch.randn(s, generator=generator).to(DEVICE, F16) for s in shapes]


def step(tensors: list[Tensor]) -> list[Tensor]:
    """out, dq, dk and dv."""
    q, k, v, d_out = tensors
    table = rope_table(k.shape[2], DIM, device=DEVICE)
    call = AttentionCall(q, k, v, *table, scale=SCALE)
    out, lse = launchers.forward(call)
    assert lse is not None
    return [out, *launchers.backward(call, d_out, out, lse)]  # type: ignore[list-item]


def decoded(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    assert attention_tiles.can_decode(q, k)
    table = rope_table(k.shape[2], DIM, device=DEVICE)
    call = AttentionCall(q, k, v, *table, k_rotated=True, scale=SCALE)
    return launchers.inference(call)


def test_forward_and_backward(stride: str, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = inputs(stride)
    near = step(tensors)
    # What the launchers write lies as far apart as what they read.
    monkeypatch.setattr(launchers, "empty_by_token", place)
    far = [place(x) for x in tensors]
    assert all(x.untyped_storage().nbytes() > 2**31 * x.itemsize for x in far)
    for name, result, expected in zip("oqkv", step(far), near, strict=True):
        assert torch.equal(result, expected), name


def test_decoding(stride: str, place: Place) -> None:
    # Enough of them to be split, at whatever number the kernel reads at a time on this device.
    q, k, v, _ = inputs(stride, 3, 4 * attention_tiles.block_n_of(DIM, F16) + 6)
    near = decoded(q, k, v)
    assert torch.equal(decoded(q, place(k), place(v)), near)


def test_rows_further_apart_than_a_tile_reaches_are_copied(tmp_path: Path) -> None:
    q, k, v, _ = inputs("head", 3)
    far = vast(tmp_path / "keys", 70 * 2**26).as_strided(k.shape, (1, 1024, 2**26, 1)).copy_(k)
    call = AttentionCall(q, k, v, scale=SCALE)
    near = launchers.forward(call)[0]
    assert torch.equal(launchers.forward(call._replace(k=far))[0], near)
