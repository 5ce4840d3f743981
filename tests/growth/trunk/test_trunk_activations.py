"""Cached activations in memory and in files: batches in order, damaged entries not returned."""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from growing import make_data, make_model
from torch._subclasses.fake_tensor import FakeTensorMode

from fastgrow.errors import CheckpointError
from fastgrow.growth.trunk.activations import (
    CachedActivations,
    CachedBatches,
    CacheWriter,
    can_advance,
    identity,
)
from fastgrow.growth.trunk.engine import EvaluationCache
from fastgrow.growth.trunk.frozen import FrozenTrunk, trunk_digests
from fastgrow.growth.trunk.stores import (
    DamagedEntries,
    DiskStore,
    MemoryStore,
    headers,
    remove_caches,
)
from fastgrow.training import Batches

ENTRIES = torch.arange(5 * 3 * 4, dtype=torch.float32).reshape(5, 3, 4)


def written(folder: Path, entries: torch.Tensor = ENTRIES) -> DiskStore:
    windows = np.arange(10, 10 + len(entries))
    store = DiskStore.create(folder, {"n": 1}, windows, (3, 4), entries.dtype)
    store.write(np.arange(len(entries)), entries)
    store.finish()
    return store


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_file_returns_its_entries_and_windows(tmp_path: Path, dtype: torch.dtype) -> None:
    written(tmp_path, ENTRIES.to(dtype)).close()
    (header,) = headers(tmp_path)
    store = DiskStore.open(header)
    assert store.identity == {"n": 1}
    assert store.windows.tolist() == [10, 11, 12, 13, 14]
    slots = np.array([3, 0, 3])
    entries = store.read(slots)
    assert entries.dtype == dtype
    assert torch.equal(entries, ENTRIES.to(dtype)[[3, 0, 3]])
    store.discard()
    assert not list(tmp_path.iterdir())


def test_a_changed_byte_damages_its_entry_only(tmp_path: Path) -> None:
    store = written(tmp_path)
    with store._path.open("r+b") as file:
        file.seek(2 * 48 + 7)
        file.write(b"\x99")
    assert torch.equal(store.read(np.array([0, 1, 3, 4])), ENTRIES[[0, 1, 3, 4]])
    with pytest.raises(DamagedEntries) as damaged:
        store.read(np.array([1, 2]))
    assert damaged.value.slots.tolist() == [2]
    store.write(np.array([2]), ENTRIES[2:3])
    assert torch.equal(store.read(np.arange(5)), ENTRIES)


def test_a_truncated_file_is_damaged(tmp_path: Path) -> None:
    store = written(tmp_path)
    os.truncate(store._path, 48 + 10)
    with pytest.raises(DamagedEntries) as damaged:
        store.read(np.arange(5))
    assert damaged.value.slots.tolist() == [1, 2, 3, 4]
    store.close()
    (header,) = headers(tmp_path)
    with pytest.raises(CheckpointError, match="does not match its file of entries"):
        DiskStore.open(header)


def test_an_unfinished_or_damaged_cache_is_not_found(tmp_path: Path) -> None:
    windows = np.arange(5)
    DiskStore.create(tmp_path, {"n": 1}, windows, (3, 4), torch.float32).close()
    assert not list(headers(tmp_path))
    written(tmp_path).close()
    (header,) = headers(tmp_path)
    text = header.read_text()
    for damage in (text[:40], "[]", text.replace('"n": 1', '"n": 2')):
        header.write_text(damage)
        with pytest.raises(CheckpointError):
            DiskStore.open(header)
    remove_caches(tmp_path)
    assert not tmp_path.exists()


def test_a_full_disk_raises_before_anything_is_written(tmp_path, monkeypatch) -> None:
    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match="No space"):
        written(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.fixture
def trunk(substrate) -> FrozenTrunk:
    model = make_model(substrate)
    model.append_blocks(3)
    return FrozenTrunk(model, 2)


@pytest.fixture
def filled(trunk: FrozenTrunk, substrate, tmp_path: Path):
    data = make_data(substrate, tmp_path / "tokens")

    def fill(place: str) -> tuple[CachedActivations, CacheWriter, Batches]:
        batches = Batches(data.train, 4, 16, seed=3)
        windows = batches.windows_of(6)
        wanted = identity(trunk, trunk_digests(trunk.model, 2)[2], batches, windows)
        like = torch.empty(0)
        store = (
            DiskStore.create(tmp_path / "trunk", wanted, windows, (16, 16), torch.float32)
            if place == "disk"
            else MemoryStore(place, (len(windows), 16, 16), like)
        )
        cached, writer = CachedActivations(windows, store, wanted), CacheWriter(trunk, batches)
        writer.write(cached, None)
        return cached, writer, batches

    return fill


def assert_close(found: torch.Tensor, expected: torch.Tensor) -> None:
    """The same windows' activations, computed at other positions, which may round differently."""
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("ahead", [0, 2])
@pytest.mark.parametrize("place", ["ram", "disk"])
def test_batches_are_in_order_and_resume_at_their_position(filled, trunk, place, ahead) -> None:
    cached, writer, batches = filled(place)
    plain = Batches(batches.stream, 4, 16, seed=3)
    expected = []
    for _ in range(6):
        ids, targets = next(plain)
        expected.append((trunk(ids), targets, plain.state_dict()))

    def repair(slots: np.ndarray) -> None:
        writer.repair(cached, slots)

    reader = CachedBatches(batches, cached, repair, ahead, compute=writer.compute_any)
    states = [reader.state_dict()]
    for x, targets, state in expected:
        got = next(reader)
        assert_close(got[0], x)
        assert torch.equal(got[1], targets)
        assert reader.state_dict() == state
        states.append(state)
    for position in (3, 1):
        reader.load_state_dict(states[position])
        assert_close(next(reader)[0], expected[position][0])
    reader.close()


@pytest.mark.parametrize("ahead", [0, 2])
def test_damaged_entries_are_computed_again_and_not_returned(filled, trunk, ahead: int) -> None:
    cached, writer, batches = filled("disk")
    cached.store._path.write_bytes(bytes(cached.store.nbytes))
    repaired: list[int] = []

    def repair(slots: np.ndarray) -> None:
        repaired.extend(slots)
        writer.repair(cached, slots)

    plain = Batches(batches.stream, 4, 16, seed=3)
    reader = CachedBatches(batches, cached, repair, ahead, compute=writer.compute_any)
    for _ in range(6):
        assert_close(next(reader)[0], trunk(next(plain)[0]))
    assert sorted(repaired) == list(range(len(cached.windows)))
    reader.close()


@pytest.mark.parametrize("ahead", [0, 2])
def test_windows_that_are_not_cached_are_computed(filled, trunk, ahead: int) -> None:
    """A stage may train beyond its planned length, if the user ends the run and the decay lasts."""
    cached, writer, batches = filled("ram")
    plain = Batches(batches.stream, 4, 16, seed=3)
    assert len(cached.windows) < batches.n_windows
    reader = CachedBatches(
        batches,
        cached,
        lambda slots: pytest.fail("nothing is damaged"),
        ahead,
        compute=writer.compute_any,
    )
    for _ in range(12):
        x, targets = next(reader)
        ids, expected = next(plain)
        assert_close(x, trunk(ids))
        assert torch.equal(targets, expected)
    reader.close()


def test_activations_of_any_windows_have_the_bits_of_cached_ones(filled) -> None:
    """Also if several windows have the same position in a micro-batch."""
    cached, writer, _ = filled("ram")
    windows = cached.windows[[9, 1, 5, 0, 13, 2, 17]]
    assert len({int(w) % 4 for w in windows}) < len(windows)
    assert torch.equal(writer.compute_any(windows), cached.read(windows))


def test_activations_read_ahead_are_made_on_the_stream_of_the_caller(
    filled, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached, writer, batches = filled("ram")
    entered: list[tuple[object, bool]] = []

    @contextlib.contextmanager
    def stream(given: object) -> Iterator[None]:
        entered.append((given, threading.current_thread() is threading.main_thread()))
        yield

    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: "the caller's")
    monkeypatch.setattr(torch.cuda, "stream", stream)
    reader = CachedBatches(batches, cached, lambda slots: None, 2, compute=writer.compute_any)
    next(reader)
    reader.close()
    assert set(entered) == {("the caller's", False)}


def test_for_a_gpu_only_what_is_read_from_host_memory_is_pinned(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A pinned allocation of the whole store would be rounded up to a power of two."""
    with FakeTensorMode():
        like = torch.empty(0, device="cuda")
    store = MemoryStore("ram", (5, 3, 4), like)
    store.write(np.arange(5), ENTRIES)
    pinned: list[tuple[int, ...]] = []
    empty = torch.empty

    def noted(shape: tuple[int, ...], *, pin_memory: bool, **options: Any) -> torch.Tensor:
        assert pin_memory
        pinned.append(shape)
        return empty(shape, **options)

    monkeypatch.setattr(torch, "empty", noted)
    assert torch.equal(store.read(np.array([3, 0])), ENTRIES[[3, 0]])
    assert pinned == [(2, 3, 4)]


def test_every_weight_text_and_setting_changes_identity(trunk, substrate, tmp_path: Path) -> None:
    model = trunk.model
    data = make_data(substrate, tmp_path)
    batches = Batches(data.train, 4, 16)
    windows = np.arange(8)
    digests = trunk_digests(model, 2)
    key = identity(trunk, digests[2], batches, windows)
    assert can_advance({**key, "n": 1, "trunk": digests[1]}, key, digests)
    assert can_advance({**key, "windows": "others"}, key, digests)
    assert not can_advance({**key, "n": 1}, key, digests)
    assert not can_advance({**key, "n": 3, "trunk": digests[2]}, key, digests)
    for name in ("dtype", "precision", "data", "substrate", "seq_len", "batch_size", "torch"):
        assert not can_advance({**key, name: "another"}, key, digests), name
    tensors = [p for n, p in model.named_parameters() if n.startswith(("blocks.0", "blocks.1"))]
    for tensor in [*tensors, model.embedding.table]:
        kept = tensor.detach().clone()
        tensor.data.view(-1)[-1] += 1
        assert trunk_digests(model, 2)[2] != digests[2]
        tensor.data.copy_(kept)
    next(model.blocks[2].parameters()).data.add_(1)
    assert trunk_digests(model, 2) == digests
    assert identity(trunk, digests[2], batches, windows[:7]) != key
    assert identity(trunk, digests[2], Batches(data.validation, 4, 16), windows) != key


def test_the_evaluation_cache_returns_the_computed_bits_within_its_limit() -> None:
    calls = []

    def compute(ids: torch.Tensor) -> torch.Tensor:
        calls.append(ids)
        return ids.float()[..., None] * 2

    cache = EvaluationCache(limit=100)
    one, two, large = torch.arange(4)[None], torch.arange(4)[None] + 1, torch.arange(50)[None]
    for ids in (one, two, large, one, two, large):
        assert torch.equal(cache.output(ids, compute), ids.float()[..., None] * 2)
    assert [len(ids[0]) for ids in calls] == [4, 4, 50, 50]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cache.output(one, compute)
    assert len(calls) == 5
    assert cache.nbytes <= 100
