"""FASTGROW_AUTOTUNE=1: what is measured when, what is kept where. Launches are stood in for."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")

from fastgrow.kernels import autotune, tunable, tuned
from fastgrow.kernels.multiprocessors import multiprocessors

GPU, VERSION, SOURCE = "NVIDIA Abacus 9", "3.99", "0123456789abcdef"
DEVICE = torch.device("meta")


@dataclass(frozen=True)
class Beads:
    """A configuration; `cost` is what a launch is taken to last."""

    cost: int
    num_warps: int = 4


SLOW, FAST, SPILLING, FAILING, LARGE, WRONG = (Beads(n) for n in (8, 4, 1, 2, 16, 3))


class Device:
    """Stands for the GPU: counts what is launched on it."""

    def __init__(self) -> None:
        self.prepared = 0
        self.launches: list[int] = []
        self.scratch = torch.ones(64)
        self.others: list[Beads] = [SPILLING, FAILING, LARGE, FAST]
        self.within: Callable[[], object] = lambda: None

    def prepare(self, device: str) -> Callable[[Beads], object]:
        self.prepared += 1

        def launch(beads: Beads) -> torch.Tensor:
            if beads == LARGE:
                raise torch.OutOfMemoryError("2 GiB more")
            self.launches.append(beads.cost)
            self.within()
            return torch.full((16,), 2.0 if beads == WRONG else 1.0)

        return launch

    def milliseconds(self, run: Callable[[], object]) -> float:
        assert not self.scratch.any(), "the launch finds its inputs in the cache"
        run()
        self.scratch.fill_(1.0)
        return float(self.launches[-1])


class Abacus(tunable.Tunable[Beads]):
    digest = SOURCE

    def build(self, configuration: Any, only: str | None = None) -> dict[str, int]:
        beads = Beads(**configuration)
        if beads == FAILING:
            raise ValueError("it needs more wire")
        return {"spills": 8 if beads == SPILLING else 0, "shared": 0}


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Device]:
    """A GPU without a table, whose kernel `count` has five candidates under the key `fp32`."""
    found = Device()

    def tunables(capability: int) -> list[Abacus]:
        about = (found.others, "count_kernel", found.prepare, capability)
        return [Abacus("count", "fp32", SLOW, *about)]

    monkeypatch.setattr(autotune, "all_tunables", tunables)
    monkeypatch.setattr(autotune, "milliseconds", found.milliseconds)
    monkeypatch.setattr(autotune, "more_than_the_cache", lambda: found.scratch)
    monkeypatch.setattr(autotune.triton, "__version__", VERSION)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    monkeypatch.setattr(torch.random, "fork_rng", lambda devices: contextlib.nullcontext())
    monkeypatch.setattr(tuned, "gpu_name", lambda device: GPU)
    monkeypatch.setattr(tuned, "FOLDER", tmp_path / "shipped")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("FASTGROW_AUTOTUNE", "1")
    tuned.forget()
    autotune.forget()
    yield found
    tuned.forget()
    autotune.forget()


@pytest.fixture
def file(device: Device, tmp_path: Path) -> Path:
    """Where the user's table is."""
    return tmp_path / "cache" / "fastgrow" / "tuning" / "nvidia-abacus-9.json"


def ask(key: str = "fp32") -> Beads | None:
    return tuned.measured("count", key, DEVICE, Beads)


def keep(
    file: Path, configuration: dict[str, int], triton: str = VERSION, source: str | None = SOURCE
) -> None:
    entries = {"count": {"fp32": {"configuration": configuration, "source": source}}}
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"schema": 1, "triton": triton, "entries": entries}))


def test_the_fastest_that_runs_is_taken_and_kept(device: Device, file: Path) -> None:
    assert ask() == FAST
    assert set(device.launches) == {SLOW.cost, FAST.cost}
    assert device.prepared == 1, "the candidates share the inputs"
    assert json.loads(file.read_text()) == {
        "schema": 1, "device": GPU, "capability": 90, "triton": VERSION,
        "entries": {"count": {"fp32": {
            "configuration": vars(FAST), "median_ms": 4.0, "default_ms": 8.0, "candidates": 5,
            "left_out": 3, "source": SOURCE,
        }}},
    }  # fmt: skip
    assert [path.name for path in file.parent.iterdir() if path.suffix != ".lock"] == [file.name]


def test_it_is_measured_once_and_read_by_the_next_process(device: Device, file: Path) -> None:
    assert ask() == ask() == FAST
    assert len(device.launches) == 2 * (1 + autotune.WARM_UP + autotune.ROUNDS)
    autotune.forget()
    device.launches.clear()
    assert ask() == FAST
    assert device.launches == []


def test_one_that_computes_something_else_is_not_taken_however_fast(
    device: Device, file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    device.others = [WRONG, FAST]
    assert ask() == FAST
    assert json.loads(file.read_text())["entries"]["count"]["fp32"]["left_out"] == 1
    told = f"count fp32: {vars(WRONG)} is not what {vars(SLOW)} computes: 16 of 16 elements"
    assert [record.message for record in caplog.records if record.levelname == "WARNING"] == [
        f"{told} of result 0"
    ]


@pytest.mark.parametrize("value", [None, "", "0"])
def test_without_the_variable_the_user_s_file_is_neither_written_nor_read(
    device: Device, file: Path, monkeypatch: pytest.MonkeyPatch, value: str | None
) -> None:
    if value is None:
        monkeypatch.delenv("FASTGROW_AUTOTUNE")
    else:
        monkeypatch.setenv("FASTGROW_AUTOTUNE", value)
    assert ask() is None
    assert not file.exists()
    keep(file, vars(SLOW))
    assert ask() is None
    assert device.launches == []


def test_the_shipped_table_comes_first(device: Device, file: Path, tmp_path: Path) -> None:
    keep(tmp_path / "shipped" / file.name, {"cost": 32, "num_warps": 1})
    assert ask() == Beads(32, 1)
    assert device.launches == []
    assert not file.exists()


def test_what_has_no_candidates_is_left_to_the_launcher(device: Device, file: Path) -> None:
    assert ask("fp64") is None
    assert not file.exists()


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (torch.compiler, "is_compiling"),
        (torch, "are_deterministic_algorithms_enabled"),
        (torch.cuda, "is_current_stream_capturing"),
    ],
)
def test_there_are_times_when_nothing_may_be_measured(
    device: Device, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    with monkeypatch.context() as now:
        now.setattr(owner, name, lambda: True)
        assert ask() is None
        assert device.launches == []
    assert ask() == FAST
    autotune.forget()
    device.launches.clear()
    with monkeypatch.context() as now:
        # What was measured before may be used.
        now.setattr(owner, name, lambda: True)
        assert ask() == FAST
        assert device.launches == []


def test_a_measurement_does_not_measure_within(device: Device) -> None:
    inner: list[Beads | None] = []
    device.within = lambda: inner.append(tuned.measured("count", "fp32", DEVICE, Beads))
    assert ask() == FAST
    assert set(inner) == {None}


def test_threads_measure_once(device: Device) -> None:
    found: list[Beads | None] = []
    threads = [threading.Thread(target=lambda: found.append(ask())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [FAST] * 4
    assert len(device.launches) == 2 * (1 + autotune.WARM_UP + autotune.ROUNDS)


def test_another_version_of_triton_begins_anew(device: Device, file: Path) -> None:
    keep(file, vars(SLOW), triton="3.1")
    assert ask() == FAST
    assert json.loads(file.read_text())["triton"] == VERSION


def test_what_is_no_candidate_any_more_is_measured_again(device: Device, file: Path) -> None:
    keep(file, {"cost": 64, "num_warps": 4})
    assert ask() == FAST


@pytest.mark.parametrize("source", ["fedcba9876543210", None])
def test_what_was_measured_of_another_source_is_measured_again(
    device: Device, file: Path, source: str | None
) -> None:
    keep(file, vars(SLOW), source=source)
    assert ask() == FAST
    assert json.loads(file.read_text())["entries"]["count"]["fp32"]["source"] == SOURCE


def test_what_was_measured_of_this_source_is_not_measured_again(device: Device, file: Path) -> None:
    keep(file, vars(SLOW))
    assert ask() == SLOW
    assert device.launches == []


def test_it_compiles_for_the_multiprocessors_of_the_gpu(
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []

    def build(tunable: Abacus, configuration: object) -> dict[str, int]:
        seen.append(multiprocessors(DEVICE, 0))
        return {"spills": 0}

    monkeypatch.setattr(autotune, "multiprocessors", lambda device, otherwise: 77)
    monkeypatch.setattr(Abacus, "build", build)
    ask()
    assert seen == [77] * 5


def test_entries_of_others_are_kept(device: Device, file: Path) -> None:
    keep(file, vars(SLOW))
    tree = json.loads(file.read_text())
    tree["entries"] = {"other": {"bf16": {"configuration": {"block_m": 16}, "median_ms": 3.0}}}
    file.write_text(json.dumps(tree))
    ask()
    entries = json.loads(file.read_text())["entries"]
    assert entries["other"] == tree["entries"]["other"]
    assert entries["count"]["fp32"]["configuration"] == vars(FAST)


@pytest.mark.parametrize("content", [b"{", b"\xff", b'{"schema": 2}'])
def test_a_damaged_file_is_named_and_set_aside(device: Device, file: Path, content: bytes) -> None:
    file.parent.mkdir(parents=True)
    file.write_bytes(content)
    with pytest.warns(UserWarning, match="is set aside as nvidia-abacus-9.damaged") as said:
        assert ask() == FAST
    assert str(file) in str(said[0].message)
    assert len(said) == 1
    assert file.with_suffix(".damaged").read_bytes() == content
    assert json.loads(file.read_text())["entries"]["count"]


def test_a_cache_that_cannot_be_written_is_told(
    device: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "occupied").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "occupied"))
    with pytest.warns(UserWarning, match="is not kept|cannot be read"):
        assert ask() == FAST
    assert ask() == FAST


def test_where_no_candidate_runs_the_launcher_decides(
    device: Device, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Abacus, "build", lambda self, configuration: {"spills": 8})
    with pytest.warns(UserWarning, match="no configuration of count fp32"):
        assert ask() is None
    assert ask() is None
    assert not file.exists()


def test_an_interrupted_measurement_is_made_again(device: Device) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    device.within = interrupt
    with pytest.raises(KeyboardInterrupt):
        ask()
    device.within = lambda: None
    assert ask() == FAST


def test_a_relative_cache_folder_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """So the XDG base directory specification says."""
    monkeypatch.setenv("XDG_CACHE_HOME", "here")
    monkeypatch.setenv("HOME", "/nobody")
    expected = Path("/nobody/.cache/fastgrow/tuning/nvidia-h200.json")
    assert autotune.user_file("NVIDIA H200") == expected


def test_a_system_without_file_locks_measures_and_keeps(
    device: Device, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Windows has no module `fcntl`."""
    monkeypatch.setitem(sys.modules, "fcntl", None)
    spec = importlib.util.spec_from_file_location("autotune_on_windows", autotune.__file__)
    assert spec is not None
    assert spec.loader is not None
    spec.loader.exec_module(importlib.util.module_from_spec(spec))
    assert ask() == FAST
    assert json.loads(file.read_text())["entries"]["count"]["fp32"]["configuration"] == vars(FAST)


def test_a_process_waits_while_another_stores(
    device: Device, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fcntl = pytest.importorskip("fcntl")
    file.parent.mkdir(parents=True)
    with (file.parent / f".{file.name}.lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        waits, flock = threading.Event(), fcntl.flock
        monkeypatch.setattr(fcntl, "flock", lambda *what: (waits.set(), flock(*what)))
        storing = threading.Thread(target=ask)
        storing.start()
        waits.wait()
        assert device.launches, "it has measured"
        assert not file.exists()
    storing.join()
    assert file.exists()


def test_without_memory_for_the_inputs_the_launcher_decides(
    device: Device, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def launcher(self: Abacus) -> None:
        raise torch.OutOfMemoryError("17 GiB more")

    monkeypatch.setattr(Abacus, "launcher", launcher)
    with pytest.warns(UserWarning, match="no configuration of count fp32"):
        assert ask() is None
    assert not file.exists()
