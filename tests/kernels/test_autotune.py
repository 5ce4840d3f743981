"""FASTGROW_AUTOTUNE=1: what is measured and saved, and when. Launches are replaced by fakes."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

triton = pytest.importorskip("triton", reason="triton is not installed")

from triton.runtime.cache import FileCacheManager  # noqa: E402

from fastgrow.kernels import autotune, tunable, tuned  # noqa: E402
from fastgrow.kernels.tuned import multiprocessors  # noqa: E402

GPU, VERSION, SOURCE = "NVIDIA Abacus 9", "3.99", "0123456789abcdef"
DEVICE = torch.device("meta")


@dataclass(frozen=True)
class Beads:
    """A configuration; `cost` is the assumed duration of a launch."""

    cost: int
    num_warps: int = 4


SLOW, FAST, SPILLING, FAILING, LARGE, WRONG = (Beads(n) for n in (8, 4, 1, 2, 16, 3))


class Device:
    """A fake GPU that counts its launches."""

    def __init__(self) -> None:
        self.prepared = 0
        self.launches: list[int] = []
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
        run()
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
    """A GPU without a table, with a kernel `count` of five candidates under the key `fp32`."""
    found = Device()

    def tunables(capability: int) -> list[Abacus]:
        about = (found.others, "count_kernel", found.prepare, capability)
        return [Abacus("count", "fp32", SLOW, *about)]

    monkeypatch.setattr(autotune, "all_tunables", tunables)
    monkeypatch.setattr(autotune, "milliseconds", found.milliseconds)
    monkeypatch.setattr(autotune.triton, "__version__", VERSION)
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    monkeypatch.setattr(torch.random, "fork_rng", lambda devices: contextlib.nullcontext())
    monkeypatch.setattr(tuned, "gpu_name", lambda device: GPU)
    monkeypatch.setattr(tuned, "FOLDER", tmp_path / "shipped")
    monkeypatch.setattr(tuned, "AUTOTUNING", True)
    tuned.forget()
    with triton.knobs.cache.scope():
        triton.knobs.cache.dir = str(tmp_path / "cache")
        yield found
    tuned.forget()


@pytest.fixture
def cache(device: Device, tmp_path: Path) -> Path:
    """Triton's cache."""
    return tmp_path / "cache"


def kept(cache: Path) -> list[Any]:
    """Return the files saved in Triton's cache."""
    return [json.loads(file.read_text()) for file in sorted(cache.rglob("*.json"))]


def ask(key: str = "fp32") -> Beads | None:
    return tuned.measured("count", key, DEVICE, Beads)


def ask_in_another_process() -> Beads | None:
    tuned.forget()
    return ask()


def test_the_fastest_that_runs_is_taken_and_kept(device: Device, cache: Path) -> None:
    assert ask() == FAST
    assert set(device.launches) == {SLOW.cost, FAST.cost}
    assert device.prepared == 1, "the candidates share the inputs"
    times = [[8.0, vars(SLOW)], [4.0, vars(FAST)]]
    assert kept(cache) == [{"configuration": vars(FAST), "milliseconds": times}]
    assert len([path for path in cache.rglob("*") if path.is_file()]) == 1


def test_it_is_measured_once_and_read_by_the_next_process(device: Device) -> None:
    assert ask() == ask() == FAST
    assert device.launches == [SLOW.cost] * 2 + [FAST.cost] * 2
    device.launches.clear()
    assert ask_in_another_process() == FAST
    assert device.launches == []


def test_one_that_computes_something_else_is_not_taken_however_fast(
    device: Device, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    device.others = [WRONG, FAST]
    assert ask() == FAST
    (entry,) = kept(cache)
    assert [candidate for _, candidate in entry["milliseconds"]] == [vars(SLOW), vars(FAST)]
    difference = "differs from the first candidate's result: 16 of 16 elements"
    logged = f"count fp32: {vars(WRONG)} {difference}"
    assert [record.message for record in caplog.records if record.levelname == "WARNING"] == [
        f"{logged} of result 0"
    ]


def test_without_autotuning_what_was_measured_is_neither_written_nor_read(
    device: Device, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tuned, "AUTOTUNING", False)
    assert ask() is None
    assert device.launches == []
    assert not cache.exists()
    monkeypatch.setattr(tuned, "AUTOTUNING", True)
    assert ask() == FAST
    monkeypatch.setattr(tuned, "AUTOTUNING", False)
    assert ask_in_another_process() is None


def test_the_shipped_table_comes_first(device: Device, cache: Path, tmp_path: Path) -> None:
    entry = {"configuration": {"cost": 32, "num_warps": 1}}
    (tmp_path / "shipped").mkdir()
    table = {"schema": 1, "triton": VERSION, "entries": {"count": {"fp32": entry}}}
    (tmp_path / "shipped" / "nvidia-abacus-9.json").write_text(json.dumps(table))
    assert ask() == Beads(32, 1)
    assert device.launches == []
    assert not cache.exists()


def test_what_has_no_candidates_is_left_to_the_launcher(device: Device, cache: Path) -> None:
    assert ask("fp64") is None
    assert not cache.exists()


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
    device.launches.clear()
    with monkeypatch.context() as now:
        # Earlier measurements may be used.
        now.setattr(owner, name, lambda: True)
        assert ask_in_another_process() == FAST
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
    assert device.launches == [SLOW.cost] * 2 + [FAST.cost] * 2


@pytest.mark.parametrize(
    ("owner", "name", "changed"),
    [
        (autotune.triton, "__version__", "3.1"),
        (Abacus, "digest", "fedcba9876543210"),
        (tuned, "gpu_name", lambda device: "NVIDIA Abacus 10"),
    ],
)
def test_what_was_measured_of_something_else_is_measured_again(
    device: Device, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, changed: object
) -> None:
    assert ask() == FAST
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(owner, name, changed)
        device.launches.clear()
        assert ask_in_another_process() == FAST
        assert device.launches
    device.launches.clear()
    assert ask_in_another_process() == FAST
    assert device.launches == [], "what was measured before is kept"


def test_other_candidates_are_measured_again(device: Device) -> None:
    assert ask() == FAST
    device.others = [Beads(2, 8), Beads(6)]
    assert ask_in_another_process() == Beads(2, 8)


def test_kernels_that_share_their_function_and_key_are_kept_apart(
    device: Device, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask()
    about = ([FAST], "count_kernel", device.prepare, 90)
    other = [Abacus("count_down", "fp32", SLOW, *about)]
    monkeypatch.setattr(autotune, "all_tunables", lambda capability: other)
    assert tuned.measured("count_down", "fp32", DEVICE, Beads) == FAST
    assert len(kept(cache)) == 2


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"{", b"\xff", b"[]", b"{}"),
        b'{"configuration": null}',
        b'{"configuration": {"cost": 64, "num_warps": 4}}',
        b'{"configuration": {"cost": "4", "num_warps": 4}}',
    ],
)
def test_a_broken_entry_is_measured_again(device: Device, cache: Path, content: bytes) -> None:
    ask()
    (file,) = cache.rglob("*.json")
    file.write_bytes(content)
    device.launches.clear()
    assert ask_in_another_process() == FAST
    assert device.launches
    assert kept(cache)[0]["configuration"] == vars(FAST)


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


def test_a_cache_that_cannot_be_written_is_reported(
    device: Device, cache: Path, recwarn: pytest.WarningsRecorder
) -> None:
    cache.write_text("occupied")
    assert ask() == FAST
    assert ask() == FAST
    (warning,) = recwarn.list
    assert str(warning.message).startswith("autotuning count fp32: ")
    assert str(cache) in str(warning.message)


def test_a_cache_elsewhere_that_fails_is_reported(
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cache like one on a server that does not respond; `TRITON_CACHE_MANAGER` is its class."""

    class Remote(FileCacheManager):
        def __init__(self, key: str) -> None:
            raise ConnectionError("no answer")

    triton.knobs.cache.manager_class = Remote
    with pytest.warns(UserWarning, match="autotuning count fp32: no answer"):
        assert ask() == FAST


def test_where_no_candidate_runs_the_launcher_decides(
    device: Device, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Abacus, "build", lambda self, configuration: {"spills": 8})
    nothing = "autotuning count fp32: no configuration could be measured"
    with pytest.warns(UserWarning, match=nothing):
        assert ask() is None
    assert ask() is None
    assert not kept(cache)


def test_without_memory_for_the_inputs_the_launcher_decides(
    device: Device, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def launcher(self: Abacus) -> None:
        raise torch.OutOfMemoryError("17 GiB more")

    monkeypatch.setattr(Abacus, "launcher", launcher)
    with pytest.warns(UserWarning, match="autotuning count fp32: 17 GiB more"):
        assert ask() is None
    assert not kept(cache)


def test_without_memory_while_timing_the_others_are_taken(
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails_at_first(run: Callable[[], object]) -> float:
        if device.milliseconds(run) == SLOW.cost:
            raise torch.OutOfMemoryError("256 MiB more")
        return float(device.launches[-1])

    monkeypatch.setattr(autotune, "milliseconds", fails_at_first)
    assert ask() == FAST


def test_an_interrupted_measurement_is_made_again(device: Device) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    device.within = interrupt
    with pytest.raises(KeyboardInterrupt):
        ask()
    device.within = lambda: None
    assert ask() == FAST


class Events:
    """A fake of torch.cuda and Triton's driver that records the work of the device."""

    def __init__(self) -> None:
        self.order: list[str] = []
        self.recorded = 0

    def __call__(self, *, enable_timing: bool) -> Events:
        return self

    def record(self) -> None:
        self.order.append("start" if self.recorded % 2 == 0 else "end")
        self.recorded += 1

    def synchronize(self) -> None:
        self.order.append("wait")

    def elapsed_time(self, end: Events) -> float:
        rounds = self.recorded // 2
        return 100.0 if rounds <= autotune.WARM_UP else float(rounds)

    def get_empty_cache_for_benchmark(self) -> str:
        return "other memory"

    def clear_cache(self, memory: str) -> None:
        assert memory == "other memory"
        self.order.append("clear")


def test_a_launch_is_timed_with_a_cold_cache_and_a_device_that_is_behind_the_host(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    events = Events()
    monkeypatch.setattr(torch.cuda, "Event", events)
    monkeypatch.setattr(torch.cuda, "_sleep", lambda cycles: events.order.append("spin"))
    monkeypatch.setattr(triton.runtime.driver, "_active", events)
    median = autotune.milliseconds(lambda: events.order.append("launch"))
    once = ["clear", "spin", "start", "launch", "end", "wait"]
    assert events.order == once * (autotune.WARM_UP + autotune.ROUNDS)
    assert median == autotune.WARM_UP + (autotune.ROUNDS + 1) / 2, "without the first ones"


def test_what_is_measured_with_leaves_the_caller_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    forked: list[Any] = []
    on: list[Any] = []

    @contextlib.contextmanager
    def noted(into: list[Any], what: Any) -> Iterator[None]:
        into.append(what)
        yield

    monkeypatch.setattr(torch.cuda, "device", lambda device: noted(on, device))
    monkeypatch.setattr(torch.random, "fork_rng", lambda devices: noted(forked, devices))
    with autotune._alone(DEVICE):
        assert not torch.is_grad_enabled()
    assert torch.is_grad_enabled()
    assert (forked, on) == ([[DEVICE]], [DEVICE])
