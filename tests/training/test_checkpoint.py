"""Checkpoints are restored exactly, written atomically, and report what is wrong."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from fastgrow.errors import CheckpointError, ConfigError
from fastgrow.training import Checkpointer, verify_checkpoint
from fastgrow.training.checkpoint import load_checkpoint
from fastgrow.training.state_tree import flatten_state, unflatten_state


def equal(a: Any, b: Any) -> bool:
    """Same types, same values, same bits."""
    if type(a) is not type(b):
        return False
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and _bytes(a) == _bytes(b)
    if isinstance(a, np.ndarray | np.generic):
        return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    if isinstance(a, dict):
        return list(a) == list(b) and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(equal(x, y) for x, y in zip(a, b, strict=True))
    return a == b or (isinstance(a, float) and math.isnan(a) and math.isnan(b))


def _bytes(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def sample_state() -> dict[str, Any]:
    table = torch.randn(6, 5)
    return {
        "none": None,
        "flag": True,
        "big": 2**127 - 1,
        "float": 0.1 + 0.2,
        "infinite": [math.inf, -math.inf, math.nan],
        "text": 'жук 汉 "quoted" \n',
        "tuple": (1, (2.5, [3])),
        "empty": {"dict": {}, "list": [], "tuple": (), "tensor": torch.zeros(0, 4)},
        "integer keys": {0: "a", 1: {"b": torch.ones(2)}, (2, "c"): None},
        "$tensor": "a user's own key",
        "a/b": torch.tensor(1.0),
        "a": {"b": torch.tensor(2.0), "": torch.tensor(3.0)},
        "dtypes": [
            torch.tensor([1.5, -0.0, math.nan]).to(dtype)
            for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16)
        ]
        + [
            torch.tensor([1, 0, 1]).to(t)
            for t in (torch.int64, torch.int32, torch.uint8, torch.bool)
        ],
        "views": [table.t(), table[1], table[:, ::2], table, table],
        "arrays": [
            np.arange(6, dtype=np.uint32).reshape(2, 3),
            np.array(2**63, dtype=np.uint64),
            np.array([[1.0, math.nan]]),
            np.zeros((0, 3), np.int8),
            np.array([True, False]),
        ],
        "scalars": [np.float64(0.1), np.int64(-3), np.bool_(True), np.float32(0.1)],
    }


def test_a_state_is_restored_exactly(tmp_path: Path) -> None:
    state = sample_state()
    checkpoints = Checkpointer(tmp_path)
    path = checkpoints.save(123, {"sample": state, "bare": torch.arange(3), "plain": {"x": 1}})
    assert path == tmp_path / "step-00000123"
    loaded = Checkpointer(tmp_path).load()
    assert equal(loaded["sample"], state)
    assert equal(loaded["bare"], torch.arange(3))
    assert loaded["plain"] == {"x": 1}
    assert list(loaded) == ["sample", "bare", "plain"]


def test_views_are_saved_without_their_whole_storage(tmp_path: Path) -> None:
    table = torch.zeros(1000, 1000)
    path = Checkpointer(tmp_path).save(1, {"row": table[3], "same": [table[4], table[4]]})
    assert sum(file.stat().st_size for file in path.iterdir()) < 20_000


def test_optimizer_state_is_restored_exactly(tmp_path: Path) -> None:
    model = nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    for _ in range(3):
        model(torch.randn(4, 3)).square().sum().backward()
        optimizer.step()
    checkpoints = Checkpointer(tmp_path)
    checkpoints.save(3, {"model": model, "optimizer": optimizer})
    loaded = checkpoints.load()
    assert equal(loaded["optimizer"], optimizer.state_dict())
    assert loaded["optimizer"]["state"][0]["step"].shape == ()
    assert equal(loaded["model"], dict(model.state_dict()))


def test_nothing_is_pickled(tmp_path: Path) -> None:
    path = Checkpointer(tmp_path).save(1, {"sample": sample_state()})
    assert sorted(file.name for file in path.iterdir()) == [
        "manifest.json",
        "sample.json",
        "sample.safetensors",
    ]
    for file in path.glob("*.json"):
        json.loads(file.read_text())
    with (path / "sample.safetensors").open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        json.loads(file.read(length))


def test_what_cannot_be_stored_is_named_and_leaves_nothing(tmp_path: Path) -> None:
    checkpoints = Checkpointer(tmp_path)
    for value, complaint in (
        ({"a": [1, object()]}, r"thing\['a'\]\[1\]: builtins\.object cannot be stored"),
        ({"a": np.array(["x", None])}, r"thing\['a'\]: numpy dtype object cannot be stored"),
        ({"a": b"bytes"}, r"thing\['a'\]: builtins\.bytes"),
    ):
        with pytest.raises(TypeError, match=complaint):
            checkpoints.save(1, {"thing": value})
    with pytest.raises(ConfigError, match="cannot name a state"):
        checkpoints.save(1, {"../escape": {}})
    assert list(tmp_path.iterdir()) == []


def test_a_missing_tensor_is_named() -> None:
    tree, tensors = flatten_state({"a": torch.ones(1)}, "x")
    with pytest.raises(CheckpointError, match="'/a', which is missing"):
        unflatten_state(tree, {})
    assert equal(unflatten_state(tree, tensors), {"a": torch.ones(1)})


# -- keeping --------------------------------------------------------------------------------------


def steps(folder: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("step-")) for path in folder.glob("step-*"))


def test_the_newest_are_kept(tmp_path: Path) -> None:
    checkpoints = Checkpointer(tmp_path, keep=2)
    for step in (5, 10, 100_000_000, 20):
        checkpoints.save(step, {"x": {"step": step}})
    assert steps(tmp_path) == [20, 100_000_000]
    assert checkpoints.load()["x"] == {"step": 100_000_000}
    with pytest.raises(ConfigError, match="keep must be at least 1"):
        Checkpointer(tmp_path, keep=0)


def test_damaged_ones_do_not_count_as_kept(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        Checkpointer(tmp_path, keep=3).save(step, {"x": torch.full((4,), float(step))})
    (tmp_path / "step-00000003" / "x.safetensors").write_bytes(b"")
    (tmp_path / "step-00000002" / "x.safetensors").unlink()
    Checkpointer(tmp_path, keep=2).save(4, {"x": torch.full((4,), 4.0)})
    # 4 and 1 are the two intact ones.
    assert steps(tmp_path) == [1, 2, 3, 4]
    Checkpointer(tmp_path, keep=2).save(5, {"x": torch.full((4,), 5.0)})
    assert steps(tmp_path) == [4, 5]


def test_a_checkpoint_is_replaced_by_one_of_the_same_step(tmp_path: Path) -> None:
    checkpoints = Checkpointer(tmp_path)
    checkpoints.save(1, {"x": {"v": 1}, "old": {}})
    checkpoints.save(1, {"x": {"v": 2}})
    assert checkpoints.load() == {"x": {"v": 2}}


def test_other_files_in_the_folder_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "step-x").mkdir()
    checkpoints = Checkpointer(tmp_path, keep=1)
    for step in (1, 2):
        checkpoints.save(step, {"x": {}})
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert (tmp_path / "step-x").is_dir()


def test_an_empty_folder_has_no_checkpoint(tmp_path: Path) -> None:
    checkpoints = Checkpointer(tmp_path / "new" / "run")
    assert checkpoints.latest() is None
    with pytest.raises(CheckpointError, match="there is no intact checkpoint"):
        checkpoints.load()


# -- damage ---------------------------------------------------------------------------------------


def damaged(folder: Path, file: str, damage: str) -> None:
    path = folder / file
    content = bytearray(path.read_bytes())
    if damage == "remove":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(content[:-3])
    elif damage == "empty":
        path.write_bytes(b"")
    else:
        content[len(content) // 2] ^= 1
        path.write_bytes(content)


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "remove"])
@pytest.mark.parametrize("file", ["x.safetensors", "x.json", "manifest.json"])
def test_damage_is_named_and_the_checkpoint_before_is_used(
    tmp_path: Path, file: str, damage: str
) -> None:
    checkpoints = Checkpointer(tmp_path)
    for step in (1, 2):
        checkpoints.save(step, {"x": {"weights": torch.full((64,), float(step)), "step": step}})
    newest = tmp_path / "step-00000002"
    damaged(newest, file, damage)
    with pytest.raises(CheckpointError, match=file):
        checkpoints.load(newest)
    fresh = Checkpointer(tmp_path)
    with pytest.warns(RuntimeWarning, match=f"{file}.*using the checkpoint before it"):
        assert fresh.latest() == tmp_path / "step-00000001"
    with pytest.warns(RuntimeWarning):
        assert fresh.load()["x"]["step"] == 1


def test_a_changed_byte_names_both_hashes(tmp_path: Path) -> None:
    path = Checkpointer(tmp_path).save(1, {"x": torch.zeros(8)})
    expected = verify_checkpoint(path)["files"]["x.safetensors"]["sha256"]
    damaged(path, "x.safetensors", "flip")
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(path)
    message = str(caught.value)
    assert str(path / "x.safetensors") in message
    assert expected in message
    assert len([word for word in re.findall(r"\w+", message) if len(word) == 64]) == 2


def test_every_single_bit_flip_is_noticed(tmp_path: Path) -> None:
    path = Checkpointer(tmp_path).save(1, {"x": {"w": torch.ones(2), "n": 1}})
    for file in sorted(path.iterdir()):
        content = file.read_bytes()
        for index in range(len(content)):
            changed = bytearray(content)
            changed[index] ^= 1 << (index % 8)
            file.write_bytes(changed)
            with pytest.raises(CheckpointError):
                verify_checkpoint(path)
        file.write_bytes(content)
    verify_checkpoint(path)


def test_a_newer_format_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastgrow.training.checkpoint._FORMAT", 2)
    path = Checkpointer(tmp_path).save(1, {"x": {}})
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match="format 2, this version of fastgrow reads format 1"):
        load_checkpoint(path)


# -- disks ----------------------------------------------------------------------------------------


def test_an_unwritable_folder_is_found_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match=r"file/run: checkpoints cannot be written there"):
        Checkpointer(tmp_path / "file" / "run")


def test_a_read_only_folder_is_found_at_the_start() -> None:
    # pytest's folders are closed to other users, and root can write to read-only folders.
    program = """
        import os, sys
        from fastgrow.training import Checkpointer
        if os.geteuid() == 0:
            os.setuid(65534)
        Checkpointer(sys.argv[1])
    """
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o555)
        result = run_python(program, folder)
    assert "checkpoints cannot be written there (Permission denied)" in result.stderr


def run_python(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )


def assert_previous_stands(folder: Path) -> None:
    assert [entry.name for entry in folder.iterdir()] == ["step-00000001"]
    assert equal(Checkpointer(folder).load(), {"x": torch.zeros(1000)})


@pytest.mark.parametrize("function", ["save_file", "_dump", "sha256_file"])
def test_a_full_disk_leaves_the_checkpoint_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: str
) -> None:
    checkpoints = Checkpointer(tmp_path)
    checkpoints.save(1, {"x": torch.zeros(1000)})

    def full(*arguments: Any, **options: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(f"fastgrow.training.checkpoint.{function}", full)
    with pytest.raises(CheckpointError) as caught:
        checkpoints.save(2, {"x": torch.ones(1000)})
    message = str(caught.value)
    assert "step-00000002: the checkpoint could not be written (No space left on device)" in message
    assert "step-00000001 is unchanged" in message
    assert isinstance(caught.value.__cause__, OSError)
    monkeypatch.undo()
    assert_previous_stands(tmp_path)


def test_a_write_that_the_system_cuts_off(tmp_path: Path) -> None:
    program = """
        import resource, signal, sys, torch
        from fastgrow.errors import CheckpointError
        from fastgrow.training import Checkpointer
        checkpoints = Checkpointer(sys.argv[1])
        checkpoints.save(1, {"x": torch.zeros(1000)})
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
        try:
            checkpoints.save(2, {"x": torch.ones(100_000)})
        except CheckpointError as error:
            print(error)
    """
    result = run_python(program, str(tmp_path))
    assert "step-00000002: the checkpoint could not be written (" in result.stdout, result.stderr
    assert "File too large" in result.stdout
    assert_previous_stands(tmp_path)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
def test_a_small_disk_that_really_fills_up(tmp_path: Path) -> None:
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("this system mounts no tmpfs")
    try:
        checkpoints = Checkpointer(folder)
        checkpoints.save(1, {"x": torch.zeros(1000)})
        with pytest.raises(CheckpointError, match="No space left on device"):
            checkpoints.save(2, {"x": torch.ones(100_000)})
        assert_previous_stands(folder)
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_process_killed_while_it_writes(tmp_path: Path) -> None:
    program = """
        import os, signal, sys, torch
        from fastgrow.training import Checkpointer, checkpoint
        checkpoints = Checkpointer(sys.argv[1])
        checkpoints.save(1, {"x": torch.zeros(1000)})
        checkpoint._dump = lambda path, value: os.kill(os.getpid(), signal.SIGKILL)
        checkpoints.save(2, {"x": torch.ones(1000)})
    """
    assert run_python(program, str(tmp_path)).returncode == -signal.SIGKILL
    leftovers = [entry for entry in tmp_path.iterdir() if entry.name != "step-00000001"]
    assert len(leftovers) == 1
    checkpoints = Checkpointer(tmp_path)
    assert equal(checkpoints.load(), {"x": torch.zeros(1000)})
    checkpoints.save(2, {"x": torch.ones(1000)})
    assert steps(tmp_path) == [1, 2]
    assert not leftovers[0].exists()


def test_a_folder_copied_elsewhere_loads(tmp_path: Path) -> None:
    path = Checkpointer(tmp_path / "a").save(1, {"x": torch.ones(3)})
    shutil.copytree(path, tmp_path / "elsewhere")
    assert equal(load_checkpoint(tmp_path / "elsewhere"), {"x": torch.ones(3)})
