"""Kernels compiled ahead have the keys that a launch looks up, in the installed Triton.

Launches go through Triton's own `JITFunction.run`, with a fake driver. A key is that of Triton's
cache on disk: source, signature, attributes, options, versions and environment.
"""

from __future__ import annotations

import functools
import importlib
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch

triton = pytest.importorskip("triton", reason="triton is not installed")

import test_attention_compiled as attention_compiled  # noqa: E402
import test_linear_lse_compiled as linear_lse_compiled  # noqa: E402
import test_lora_compiled as lora_compiled  # noqa: E402
import test_norm_compiled as norm_compiled  # noqa: E402
import triton.language as tl  # noqa: E402
from standin_driver import standing_in  # noqa: E402
from triton._C.libtriton import get_cache_invalidating_env_vars  # noqa: E402
from triton.compiler import get_cache_key, make_backend  # noqa: E402
from triton.runtime.jit import JITFunction  # noqa: E402

from fastgrow.kernels import compile_offline, norm, norm_tuning  # noqa: E402
from fastgrow.kernels.calls import (  # noqa: E402
    EmbeddingCall,
    MlpHidden,
    MlpHiddenGradient,
    MlpOutput,
)
from fastgrow.kernels.embedding import lookup  # noqa: E402
from fastgrow.kernels.tunable import Tunable, all_tunables  # noqa: E402
from fastgrow.kernels.tuned import assumed  # noqa: E402

BF16, F16, F32 = torch.bfloat16, torch.float16, torch.float32
H200 = 132  # multiprocessors


class Keys:
    """A fake of Triton's compiler that records its calls and compiles nothing."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def compile(self, source: Any, target: Any, options: dict[str, Any]) -> SimpleNamespace:
        backend = make_backend(target)
        parsed = backend.parse_options(dict(options))
        self.asked.append(
            get_cache_key(source, backend, parsed, env_vars=get_cache_invalidating_env_vars())
        )
        nothing = functools.partial(lambda *arguments: None)
        return SimpleNamespace(
            asm={"cubin": b""}, metadata=SimpleNamespace(shared=0), function=None,
            packed_metadata=(), run=nothing, launch_metadata=nothing,
        )  # fmt: skip


@pytest.fixture
def keys(monkeypatch: pytest.MonkeyPatch) -> Keys:
    found = Keys()
    monkeypatch.setattr(triton, "compile", found.compile)
    # A launch takes it from here.
    monkeypatch.setattr(triton.compiler, "compile", found.compile)
    monkeypatch.setattr(compile_offline, "inspect", lambda *a, **k: "REG:1 STACK:0")
    return found


def of_launching(keys: Keys, call: Callable[[], object], capability: int = 90) -> set[str]:
    """Return the keys that launches look up."""
    keys.asked.clear()
    with standing_in(capability):
        call()
    return set(keys.asked)


def of_compiling(
    keys: Keys, launches: list[compile_offline.Launch], capability: int = 90
) -> set[str]:
    keys.asked.clear()
    for launch in launches:
        compile_offline.compile_launch(launch, capability)
    return set(keys.asked)


def launch_of(call: Callable[[], object], kernel: str) -> compile_offline.Launch:
    """Return the only launch of a kernel within a call; nothing runs."""
    (launch,) = [x for x in compile_offline.recorded(call) if x.name == kernel]
    return launch


def again(launch: compile_offline.Launch) -> None:
    launch.kernel[launch.grid](**launch.arguments, **launch.options)


FIRST_OF_EACH_KERNEL = list({t.kernel: t for t in reversed(all_tunables(90))}.values())


def check(keys: Keys, tunables: list[Tunable[Any]], step: int) -> int:
    """Compile every `step`-th candidate as the tuning does, launch it, and count the keys."""
    built, launched = set(), set()
    for tunable in tunables:
        candidates = tunable.candidates[::step]
        keys.asked.clear()
        with assumed(multiprocessors=H200):
            for configuration in (None, *candidates):
                for code in tunable.codes(configuration):
                    tunable.build(configuration, code)
            built |= set(keys.asked)
            launched |= of_launching(keys, functools.partial(launch_all, tunable, candidates))
    assert built == launched, "nothing is compiled again, and nothing in vain"
    return len(launched)


def launch_all(tunable: Tunable[Any], candidates: list[dict[str, int]]) -> None:
    """Make the inputs and launch each candidate, on a fake GPU."""
    launch = tunable.prepare("meta")
    for configuration in candidates:
        launch(type(tunable.default)(**configuration))


def test_every_tunable_kernel(keys: Keys) -> None:
    assert check(keys, FIRST_OF_EACH_KERNEL, 4) > 40


@pytest.mark.slow
def test_every_candidate_of_every_bucket(keys: Keys) -> None:
    assert check(keys, all_tunables(90), 1) > 500


STEPS = {
    "attention": lambda: attention_compiled.launches(32, BF16),
    "attention with all rules": lambda: attention_compiled.launches(
        48, F16, window=40, lengths=torch.ones(1, dtype=torch.int32)
    ),
    "attention in fp32": lambda: attention_compiled.launches(64, F32, causal=False),
    "linear_lse": lambda: linear_lse_compiled.launches(BF16, 90),
    "linear_lse of heads": lambda: linear_lse_compiled.launches(
        F16, 90, rows=17, heads=3, width=100, bias=False, mean=True, vocabulary=1000
    ),
    "lora": lambda: lora_compiled.launches(BF16, 512, 1024, 1000, 10),
    "norm": lambda: norm_compiled.launches(1024, BF16, F32),
    "norm of odd rows": lambda: norm_compiled.launches(100, F32, F32, centred=False),
    "mlp": lambda: mlp_step(),
    "embedding": lambda: compile_offline.recorded(
        lambda: lookup(
            EmbeddingCall(
                torch.empty(100, dtype=torch.int64, device="meta"),
                torch.empty(65536, 2, dtype=torch.uint8, device="meta"),
                *(65536, 64, 16, 0.0, 1.0, BF16),
            )
        )
    ),
}


def mlp_step() -> list[compile_offline.Launch]:
    from fastgrow.kernels import mlp

    def empty(*shape: int) -> torch.Tensor:
        return torch.empty(shape, dtype=BF16, device="meta")

    x, up, pre = empty(100, 64), empty(256, 64), empty(100, 256)

    def layer() -> None:
        for fused in (1, 2):
            product = mlp.ProductChoice(64, 64, 32, 8, 4, 3, fused)
            mlp.hidden(MlpHidden(x, up, up, empty(256), "swiglu", True), product=product)
            mlp.output(MlpOutput(pre, up.T, None, x), product=product)
            gradient = MlpHiddenGradient(x, up.T, pre, pre, "swiglu", True, True)
            mlp.d_hidden(gradient, product=product)

    return compile_offline.recorded(layer)


@pytest.mark.parametrize("capability", [80, 90, 100])
@pytest.mark.parametrize("step", STEPS)
def test_every_launch_of_a_training_step(keys: Keys, step: str, capability: int) -> None:
    launches = STEPS[step]()
    compiled = of_compiling(keys, launches, capability)
    relaunched = of_launching(keys, lambda: [again(x) for x in launches], capability)
    assert launches
    assert compiled == relaunched


@triton.jit
def takes(a, b, c, tuple_, MODE: tl.constexpr):  # type: ignore[no-untyped-def]
    pass


def launch_of_takes(
    *arguments: object, mode: object = "ieee", **options: Any
) -> compile_offline.Launch:
    return launch_of(lambda: takes[(1,)](*arguments, MODE=mode, **options), "takes")


ALIGNED = torch.empty(64, dtype=BF16, device="meta")
VALUES = {
    "integers": (16, 17, 1),
    "zero and negative integers": (0, -16, -1),
    "large integers": (2**31, 2**31 - 1, -(2**31) - 1),
    "more than a signed integer holds": (2**63, 0.5, float("inf")),
    "booleans and None": (True, False, None),
    "tensors": (ALIGNED, ALIGNED[8:], ALIGNED[1:]),
    "tensors without elements": (ALIGNED[1:1], ALIGNED[:0], torch.empty(0, device="meta")),
    "dtypes": tuple(torch.empty(4, dtype=d, device="meta") for d in (torch.bool, F16, torch.uint8)),
}


@pytest.mark.parametrize("values", VALUES)
def test_arguments_of_every_kind(keys: Keys, values: str) -> None:
    a, b, c = VALUES[values]
    launch = launch_of_takes(a, b, c, (a, (b, c), ALIGNED[3:], 1), num_warps=2)
    assert of_compiling(keys, [launch]) == of_launching(keys, lambda: again(launch))


class Pair(NamedTuple):
    first: torch.Tensor
    second: int


def test_members_of_a_named_tuple(keys: Keys) -> None:
    launch = launch_of_takes(1, 2, 3, Pair(ALIGNED[1:], 16))
    assert of_compiling(keys, [launch]) == of_launching(keys, lambda: again(launch))


@pytest.mark.parametrize(
    "options",
    [
        {"num_warps": 8, "num_stages": 2, "maxnreg": 64},
        {"debug": True},
        {"enable_fp_fusion": False, "mode": 7},
        {"mode": tl.float32},
        {"mode": None},
    ],
    ids=str,
)
def test_options_and_constants_of_every_kind(keys: Keys, options: dict[str, Any]) -> None:
    launch = launch_of_takes(ALIGNED, 3, 4, (), **options)
    assert of_compiling(keys, [launch]) == of_launching(keys, lambda: again(launch))
    plain = launch_of_takes(ALIGNED, 3, 4, ())
    assert of_compiling(keys, [launch]) != of_compiling(keys, [plain])


def test_a_tensor_counts_as_it_would_lie_on_a_gpu(keys: Keys) -> None:
    """A GPU's memory begins at a multiple of 256 bytes, wherever a CPU tensor's begins."""
    raw = torch.empty(64 + 1, dtype=torch.uint8)
    assert raw.data_ptr() % 16 == 0
    # Memory that torch did not allocate, from its second byte on.
    odd = torch.from_numpy(raw.numpy()[1:])
    assert odd.data_ptr() % 16 == 1
    aligned, view = torch.empty(64, dtype=torch.uint8, device="meta"), raw[1:]

    def key(tensor: torch.Tensor) -> set[str]:
        return of_compiling(keys, [launch_of_takes(tensor, 2, 2, ())])

    assert key(odd) == key(aligned) == key(raw[16:])
    assert key(view) != key(aligned)
    assert key(view) == of_launching(keys, lambda: takes[(1,)](view, 2, 2, (), MODE="ieee"))


def test_the_same_code_is_the_same_key(keys: Keys) -> None:
    launches = [launch_of_takes(ALIGNED, n, 2, (n,)) for n in (1, 2, 3, 16, 32)]
    codes = [compile_offline.code(launch, 90) for launch in launches]
    of_each = [of_compiling(keys, [launch]) for launch in launches]
    for i, j in [(i, j) for i in range(5) for j in range(5)]:
        assert (codes[i] == codes[j]) == (of_each[i] == of_each[j])
    assert len(set(codes)) == 3
    assert compile_offline.code(launches[0], 80) != codes[0]


def keys_of_all_kernels(*, reverse: bool) -> dict[str, str]:
    """Return Triton's keys of the functions of kernels/, computed in one order or the other.

    The modules are loaded again, because a key is computed once. The tests' copies are restored.
    """
    ours = "fastgrow.kernels."
    before = {name: sys.modules.pop(name) for name in [*sys.modules] if name.startswith(ours)}
    try:
        names = sorted(file.stem for file in Path(compile_offline.__file__).parent.glob("*.py"))
        modules = [importlib.import_module(ours + name) for name in names]
        functions = {
            f"{module.__name__}.{name}": function
            for module in modules
            for name, function in vars(module).items()
            if isinstance(function, JITFunction) and function.__module__ == module.__name__
        }
        return {name: functions[name].cache_key for name in sorted(functions, reverse=reverse)}
    finally:
        for name in [name for name in sys.modules if name.startswith(ours)]:
            del sys.modules[name]
        sys.modules.update(before)
        for name, module in before.items():
            setattr(sys.modules["fastgrow.kernels"], name.removeprefix(ours), module)


def test_a_kernel_has_the_same_key_whatever_was_launched_before() -> None:
    """Otherwise one process would not find what another compiled: see `common.stable_cache_key`."""
    forwards, backwards = keys_of_all_kernels(reverse=False), keys_of_all_kernels(reverse=True)
    assert len(forwards) > 40
    assert forwards == backwards


def test_the_driver_of_the_process_is_left_alone(
    keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Absent:
        def __getattr__(self, name: str) -> object:
            raise AssertionError(f"the driver is asked for {name}")

    launch = launch_of_takes(ALIGNED, 3, 4, ())
    monkeypatch.setattr(triton.runtime.driver, "_active", Absent())
    caches = len(takes.device_caches)
    compile_offline.compile_launch(launch, 90)
    assert isinstance(triton.runtime.driver.active, Absent)
    assert len(takes.device_caches) == caches, "nothing is kept as compiled for a device"


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[Path]:
    """An empty cache of Triton's."""
    with triton.knobs.cache.scope():
        triton.knobs.cache.dir = str(tmp_path / "cache")
        yield tmp_path / "cache"


def launched(tunable: Tunable[Any], candidate: dict[str, int]) -> list[str]:
    with standing_in(90) as driver, assumed(multiprocessors=H200):
        launch_all(tunable, [candidate])
    return driver.launched


def test_a_launch_finds_on_disk_what_was_compiled(cache: Path) -> None:
    """Only the GPU is replaced by a fake: a norm's forward and backward pass."""
    tunable = next(t for t in norm_tuning.tunables(90) if t.kernel == "norm_backward")
    (default, other) = tunable.candidates[:2]
    with assumed(multiprocessors=H200), compile_offline.compilations() as compiled:
        for configuration in (None, default):
            tunable.build(configuration)
    assert compiled == ["forward_kernel", "backward_kernel", "sum_kernel"]
    before = sorted(cache.rglob("*"))
    with compile_offline.compilations() as compiled:
        names = launched(tunable, default)
    assert compiled == []
    assert names == ["forward_kernel", "backward_kernel", "sum_kernel"]
    assert sorted(cache.rglob("*")) == before
    with compile_offline.compilations() as compiled:
        launched(tunable, other)
    assert compiled == ["backward_kernel"], "what was not compiled ahead is compiled"


@pytest.mark.slow
@pytest.mark.parametrize("tunable", FIRST_OF_EACH_KERNEL, ids=lambda t: f"{t.kernel} {t.bucket}")
def test_a_launch_of_every_tunable_kernel_finds_it_on_disk(
    tunable: Tunable[Any], cache: Path
) -> None:
    # The first candidate of our kernel: the default may be the library's.
    candidate = next(
        c for c in tunable.candidates
        if tunable.function in [launch.name for launch in tunable.launches(c)]
    )  # fmt: skip
    with assumed(multiprocessors=H200):
        for configuration in (None, candidate):
            tunable.build(configuration)
    with compile_offline.compilations() as compiled:
        names = launched(tunable, candidate)
    assert compiled == []
    assert tunable.function in names


def test_compilations_of_all_threads_are_noticed_and_other_listeners_hear_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    heard: list[str] = []
    monkeypatch.setattr(
        triton.knobs.compilation, "listener", lambda **event: heard.append(event["src"].name)
    )
    before = triton.knobs.compilation.listener

    def compile_it(name: str, cache_hit: bool) -> None:
        triton.knobs.compilation.listener(src=SimpleNamespace(name=name), cache_hit=cache_hit)

    with compile_offline.compilations() as compiled:
        for name, cache_hit in (("a", False), ("b", True)):
            thread = threading.Thread(target=compile_it, args=(name, cache_hit))
            thread.start()
            thread.join()
    assert (compiled, heard) == (["a"], ["a", "b"])
    assert triton.knobs.compilation.listener is before


def test_norms_split_by_the_multiprocessors_that_are_assumed() -> None:
    def programs() -> int:
        x, row = torch.empty(10**6, 64, device="meta"), torch.empty(10**6, device="meta")
        wanted = {"for_input": True, "for_weight": True, "for_bias": False}
        launch = launch_of(
            lambda: norm.backward(x, None, x, row, row, None, parameter_dtype=F32, **wanted),
            "backward_kernel",
        )
        return launch.grid[0]

    own = programs()
    with assumed(multiprocessors=2 * norm.WITHOUT_GPU):
        assert programs() == 2 * own
    assert programs() == own
