"""A candidate that ends its process is not tried again, and the tuning continues."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks import candidates, faults, gpu, processes, rehearsal, worker
from benchmarks.faults import Watch
from benchmarks.gpu import Options, run_gpu
from benchmarks.results import Result
from benchmarks.ship import TABLE

pytest.importorskip("triton", reason="triton is not installed")

ILLEGAL = "RuntimeError: CUDA error: an illegal memory access was encountered"
TUNING = Options(minutes=600.0, stages=("tuning", "rest"), families=(), rehearse=True)


class Ended(BaseException):
    """How a process ends."""


class Gpu:
    """A fake device that some launches make unusable for their process, and that process.

    Args:
        faulty: buckets and warps of candidates that do so, or None for the bucket's inputs.
        hanging: buckets and warps of candidates that never return.
    """

    def __init__(self) -> None:
        self.faulty: set[tuple[str, int | None]] = set()
        self.hanging: set[tuple[str, int | None]] = set()
        self.is_lost = False
        self.launched: list[tuple[str, int | None]] = []
        self.works: list[dict[str, Any]] = []

    def __enter__(self) -> Gpu:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def run(self, work: Any, limit: float, on_answer: Any) -> str:
        """As `processes.Workers` does; both sides see JSON alone."""
        work = json.loads(json.dumps(work))
        self.is_lost = False
        self.works.append(work)
        try:
            worker.KINDS[work["work"]](work, lambda **line: on_answer(json.loads(json.dumps(line))))
        except Ended as ended:
            return str(ended)
        return ""

    def launch(self, bucket: str, warps: int | None) -> None:
        self.launched.append((bucket, warps))
        if (bucket, warps) in self.hanging:
            raise Ended("cut short after 70 s")
        self.is_lost |= (bucket, warps) in self.faulty
        if self.is_lost:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

    def launcher(self, kernel: rehearsal.Kernel) -> Callable[[dict[str, int]], object]:
        self.launch(kernel.bucket, None)
        return lambda configuration: self.launch(kernel.bucket, configuration["num_warps"])

    def end(self) -> None:
        raise Ended("lost the device")


@pytest.fixture
def device(compiled_in_this_process: None, monkeypatch: pytest.MonkeyPatch) -> Gpu:
    """Of the rehearsal, which has candidates of 4 and 8 warps in the buckets a, b and c."""
    found = Gpu()
    for module in (candidates, worker):
        monkeypatch.setattr(module, "is_lost", lambda device: found.is_lost)
    monkeypatch.setattr(worker, "_end_at_once", found.end)
    monkeypatch.setattr(rehearsal.Kernel, "launcher", lambda kernel: found.launcher(kernel))
    monkeypatch.setattr(gpu, "Workers", lambda: found)
    monkeypatch.setattr(gpu._Run, "_grow", lambda *a, **k: None)
    return found


def tune(out: Path, **options: Any) -> Result:
    return run_gpu(out, dataclasses.replace(TUNING, **options))


def entries(out: Path) -> dict[str, Any]:
    """The configurations' warps, and how many candidates were left out, by bucket."""
    table = json.loads((out / TABLE).read_text())
    found = table["entries"].get("stand_in", {})
    return {b: (e["configuration"]["num_warps"], e["left_out"]) for b, e in found.items()}


def of_tuning(result: Result) -> list[str]:
    return [note for note in result.notes if "tuning: " in note and "entries" not in note]


def test_the_buckets_after_it_are_tuned_and_it_is_named_and_not_tried_again(
    device: Gpu, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device.faulty = {("a", 4)}
    result = tune(tmp_path, stages=("tuning",))
    assert entries(tmp_path) == {"a": (8, 1), "b": (entries(tmp_path)["b"][0], 0)}
    fault = "stand_in a {'num_warps': 4}: its process lost the device: "
    assert of_tuning(result) == [f"tuning: {fault}{ILLEGAL}"]
    assert device.launched.count(("a", 4)) == 1
    # Its bucket again, as where the time was over before it had an entry; and other code elsewhere.
    monkeypatch.setattr(gpu.code, "digest_of_everything", lambda: "of other code")
    record = tmp_path / gpu.RECORD
    lines = record.read_text().splitlines(True)
    record.write_text("".join(x for x in lines if '"entry"' not in x or '"bucket": "a"' not in x))
    result = tune(tmp_path)
    assert entries(tmp_path)["a"] == (8, 1)
    assert set(entries(tmp_path)) == {"a", "b", "c"}
    assert of_tuning(result) == [f"tuning: {fault}{ILLEGAL}"]
    assert device.launched.count(("a", 4)) == 1, "it was tried again"


def test_what_had_an_entry_before_it_is_not_measured_again(device: Gpu, tmp_path: Path) -> None:
    device.faulty = {("b", 8)}
    tune(tmp_path, stages=("tuning",), again=True)
    assert set(entries(tmp_path)) == {"a", "b"}
    assert device.launched.count(("a", None)) == 1
    assert device.launched.count(("b", None)) == 2


def test_it_is_tried_again_when_its_kernel_has_changed(
    device: Gpu, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device.faulty = {("a", 8)}
    tune(tmp_path)
    assert entries(tmp_path)["a"] == (4, 1)
    device.faulty.clear()
    fixed = [dataclasses.replace(kernel, digest="fixed") for kernel in rehearsal.tunables(90)]
    monkeypatch.setattr(rehearsal, "tunables", lambda capability: fixed)
    result = tune(tmp_path)
    assert entries(tmp_path)["a"][1] == 0
    assert of_tuning(result) == []


def test_inputs_that_end_the_process_cost_their_bucket_alone(device: Gpu, tmp_path: Path) -> None:
    device.faulty = {("a", None)}
    result = tune(tmp_path)
    assert set(entries(tmp_path)) == {"b", "c"}
    (first, second) = of_tuning(result)
    assert first.startswith(f"tuning: stand_in a inputs: its process lost the device: {ILLEGAL}; ")
    assert first.endswith("stand_in a is not tuned: every candidate is rejected")
    assert second.startswith("rest of tuning: stand_in a inputs: ")
    tune(tmp_path)
    assert device.launched.count(("a", None)) == 1


def test_one_that_hangs_is_not_tried_by_the_next_call(
    device: Gpu, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(faults, "HANGS", 0.0)
    device.hanging = {("a", 4)}
    result = tune(tmp_path, stages=("tuning",))
    assert "tuning: stand_in a {'num_warps': 4}: did not return within 0 s" in of_tuning(result)[0]
    tune(tmp_path, stages=("tuning",))
    assert device.launched.count(("a", 4)) == 1
    assert entries(tmp_path)["a"] == (8, 1)


def test_one_that_was_only_cut_short_is_tried_again(device: Gpu, tmp_path: Path) -> None:
    device.hanging = {("a", 4)}
    result = tune(tmp_path, stages=("tuning",))
    assert of_tuning(result) == ["tuning: cut short after 70 s"]
    device.hanging.clear()
    tune(tmp_path, stages=("tuning",))
    assert entries(tmp_path)["a"][1] == 0


def test_only_what_takes_long_is_said_to_hang() -> None:
    time = 0.0
    watch = Watch(lambda: time)
    trial = {"kernel": "k", "bucket": "b", "source": "s", "configuration": {"num_warps": 4}}
    assert watch.fault("died of SIGSEGV", was_killed=False) is None, "it tried nothing"
    watch.tries(trial)
    time = faults.HANGS - 1.0
    assert watch.fault("cut short after 9 s", was_killed=True) is None
    watch.tries(trial)
    time += faults.HANGS + 1.0
    assert watch.fault("cut short after 9 s", was_killed=True) == faults.Fault(
        **trial, why="did not return within 6 s"
    )
    assert str(watch.fault("died of SIGSEGV", was_killed=False)) == (
        "k b {'num_warps': 4}: its process died of SIGSEGV"
    )
    watch.tries(None)
    assert watch.fault("died of SIGSEGV", was_killed=False) is None


def test_processes_that_die_before_they_try_anything_end_the_stage(
    device: Gpu, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deaths: list[None] = []

    def dies(work: Any, answer: Any) -> None:
        deaths.append(None)
        if len(deaths) <= most:
            raise Ended("ended with status 1")
        live(work, answer)

    live = worker.KINDS["tune"]
    monkeypatch.setitem(worker.KINDS, "tune", dies)
    most = 100
    assert of_tuning(tune(tmp_path, stages=("tuning",))) == [
        "tuning: ended with status 1; ended with status 1"
    ]
    assert len(deaths) == 2
    deaths.clear()
    most = 1
    tune(tmp_path, stages=("tuning",))
    assert set(entries(tmp_path)) == {"a", "b"}


@pytest.mark.slow
def test_processes_that_are_ended_by_candidates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Real ones: a sticky error in bucket a, a crash in b, and in c a candidate that hangs."""
    script = Path(__file__).with_name("faulty_worker.py")
    monkeypatch.setattr(processes, "WORKER", (str(script),))
    monkeypatch.setattr(gpu._Run, "_grow", lambda *a, **k: None)
    monkeypatch.setattr(faults, "HANGS", 2.0)
    notes = ""
    for _ in range(4):
        notes += "; ".join(of_tuning(tune(tmp_path, stages=("rest",), minutes=1.0)))
        if "did not return within" in notes:
            break
        # On a busy machine, starting the processes took the whole minute; the next call continues.
    assert f"stand_in a {{'num_warps': 8}}: its process lost the device: {ILLEGAL}" in notes
    assert "stand_in b {'num_warps': 8}: its process died of SIGSEGV" in notes
    assert "stand_in c {'num_warps': 4}: did not return within " in notes
    assert entries(tmp_path) == {"a": (4, 1), "b": (4, 1)}
    tune(tmp_path, stages=("rest",), minutes=1.0)
    assert entries(tmp_path) == {"a": (4, 1), "b": (4, 1), "c": (8, 1)}
