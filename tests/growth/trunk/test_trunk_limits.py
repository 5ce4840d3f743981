"""Cached activations stay within the limit, and if a disk fails, only the cache is lost."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from growing import make_model, make_train
from test_trunk_runs import (
    NO_SPACE,
    SCHEDULE,
    WINDOWS,
    assert_same,
    data,
    grown,
    measured,
    plain,
    trunk_events,
)

from fastgrow.errors import FastgrowError, Interrupted
from fastgrow.evaluation import uniform_bits
from fastgrow.growth import GrowthSchedule, Trunk, grow
from fastgrow.growth.trunk.activations import CachedActivations
from fastgrow.growth.trunk.cache import ActivationCache
from fastgrow.growth.trunk.costs import free_bytes
from fastgrow.growth.trunk.engine import TrunkEngine
from fastgrow.growth.trunk.stores import DamagedEntries, DiskStore, MemoryStore, remove_caches
from fastgrow.nn import Decoder
from fastgrow.training import Trainer

__all__ = ["assert_same", "data", "grown", "plain"]


def test_outputs_of_evaluations_are_freed_for_activations(
    grown, plain, tmp_path, monkeypatch, assert_same
) -> None:
    """Old and new activations fit together; with the evaluation's outputs they would not."""
    limit = 2 * WINDOWS * (16 * 16 * 4 + 12) + 100
    taken: list[int] = []
    engines: list[TrunkEngine] = []
    begin, store = TrunkEngine.begin, ActivationCache._new_store

    def watched_begin(engine: TrunkEngine, *arguments: Any) -> object:
        engines.append(engine)
        return begin(engine, *arguments)

    def watched_store(cache: ActivationCache, place: str, wanted, windows, example, old):
        new = store(cache, place, wanted, windows, example, old)
        evaluations = engines[-1]._evaluations
        stores = {id(s): s.nbytes for s in (new, *([] if old is None else [old.store]))}
        taken.append(sum(stores.values()) + (0 if evaluations is None else evaluations[0].nbytes))
        return new

    monkeypatch.setattr(TrunkEngine, "begin", watched_begin)
    monkeypatch.setattr(ActivationCache, "_new_store", watched_store)
    assert_same(measured(grown(Trunk(cache="disk", limit=limit), out=tmp_path)), plain)
    assert len(taken) == 3
    assert max(taken) <= limit
    assert max(taken) > limit // 2, "at some moment the activations of two stages are stored"


def stopped(grown, trunk: Trunk, out: Path, monkeypatch) -> None:
    """Stop a run in its third stage."""
    step = Trainer._train_step

    def stopping(trainer: Trainer, **options: bool) -> None:
        if trainer.labels["stage"] == "3/4" and trainer.step == 5:
            raise Interrupted("here")
        step(trainer, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_train_step", stopping)
        with pytest.raises(Interrupted):
            grown(trunk, out=out, checkpoint_every=3)


def test_a_lower_limit_holds_for_a_resumed_run(
    grown, plain, tmp_path, monkeypatch, assert_same
) -> None:
    stopped(grown, Trunk(cache="disk"), tmp_path, monkeypatch)
    messages: list[str] = []
    monkeypatch.setattr(TrunkEngine, "_report", lambda self, text, **v: messages.append(text))
    resumed = grown(Trunk(cache="disk", limit=NO_SPACE), out=tmp_path, checkpoint_every=3)
    assert_same(measured(resumed), plain)
    assert "the limit is 0.0 MB" in messages[0]


def test_files_are_removed_if_the_run_is_resumed_without_a_cache(
    grown, plain, tmp_path, monkeypatch, assert_same
) -> None:
    stopped(grown, Trunk(cache="disk"), tmp_path, monkeypatch)
    assert list((tmp_path / "trunk").glob("*.rows"))
    assert_same(measured(grown(None, out=tmp_path, checkpoint_every=3)), plain)
    assert not (tmp_path / "trunk").exists()


@pytest.mark.parametrize("failing", ["write", "finish"])
def test_a_disk_that_fails_while_activations_are_written_ends_no_run(
    grown, plain, tmp_path: Path, monkeypatch, failing: str
) -> None:
    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(DiskStore, failing, full)
    assert measured(grown(Trunk(cache="disk"), out=tmp_path)) == plain
    messages = [event["message"] for event in trunk_events(tmp_path)]
    assert len(messages) == len(SCHEDULE.stages) - 1
    assert all("recomputed: disk failed" in text and "No space" in text for text in messages)
    assert not (tmp_path / "trunk").exists()


def test_a_part_of_the_disk_that_cannot_be_read_is_damaged(tmp_path: Path, monkeypatch) -> None:
    rows = torch.arange(36, dtype=torch.float32).reshape(3, 3, 4)
    store = DiskStore.create(tmp_path, {"n": 1}, np.arange(3), (3, 4), torch.float32)
    store.write(np.arange(3), rows)
    preadv = os.preadv

    def bad_sector(file: int, buffers: Any, offset: int) -> int:
        if offset == 48:
            raise OSError(errno.EIO, "Input/output error")
        return preadv(file, buffers, offset)

    monkeypatch.setattr(os, "preadv", bad_sector)
    with pytest.raises(DamagedEntries) as damaged:
        store.read(np.arange(3))
    assert damaged.value.slots.tolist() == [1]
    store.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        store.read(np.arange(1))


def test_files_of_a_killed_process_are_removed(tmp_path: Path) -> None:
    folder = tmp_path / "trunk"
    (folder / ".probe.abc").mkdir(parents=True)
    (folder / ".probe.abc" / "x.trunk.rows").write_bytes(b"rows")
    (folder / ".0123.trunk.json.abcdefgh.tmp").write_text("{")
    remove_caches(folder)
    assert not folder.exists()


def test_reading_a_window_that_is_not_cached_raises() -> None:
    windows = np.array([2, 5, 7])
    store = MemoryStore("ram", (3, 2, 4), torch.empty(0))
    store.write(np.arange(3), torch.arange(24.0).reshape(3, 2, 4))
    cached = CachedActivations(windows, store, {"n": 1})
    assert torch.equal(cached.read(np.array([7, 2])), store.read(np.array([2, 0])))
    for foreign in (0, 3, 8):
        with pytest.raises(FastgrowError, match=f"window {foreign} has no cached activations"):
            cached.read(np.array([5, foreign]))


class Shifted(Decoder):
    """A model whose head reads zeros."""

    def hidden(self, ids: torch.Tensor, *arguments: Any, **options: Any) -> torch.Tensor:
        return 0 * super().hidden(ids, *arguments, **options)


def test_a_model_that_overrides_hidden_is_not_split(substrate, data) -> None:
    schedule, train = GrowthSchedule.blocks(2, tokens=256), make_train(lr=1e-9)
    model = make_model(substrate)
    model.__class__ = Shifted
    second = grow(model, data, schedule, train=train, quiet=True).stages[1]
    # Only the head's bias is left, which is near zero.
    assert second.bits["validation"] == pytest.approx(
        uniform_bits(data.validation).bits_per_character, rel=1e-3
    )


def test_a_loss_set_on_the_model_is_called(substrate, data) -> None:
    model = make_model(substrate)
    called: list[bool] = []
    loss = model.loss

    def counted(*arguments: Any, **options: Any) -> torch.Tensor:
        called.append(model.training)
        return loss(*arguments, **options)

    model.loss = counted  # type: ignore[method-assign]
    grow(model, data, GrowthSchedule.doubling(2, tokens=512), train=make_train(), quiet=True)
    assert sum(called) == 8


def test_a_disk_that_cannot_be_examined_has_no_space(tmp_path: Path, monkeypatch) -> None:
    def forbidden(path: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(shutil, "disk_usage", forbidden)
    assert free_bytes("disk", torch.device("cpu"), tmp_path) == 0
