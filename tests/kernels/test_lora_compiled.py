"""The LoRA kernels compiled for GPUs: they compile, fit and do not spill."""

from __future__ import annotations

import pytest
import torch
from cross_compile import SHARED_LIMIT, TARGETS, Launch, compile_for, recorded

lora = pytest.importorskip("fastgrow.kernels.lora", reason="triton is not installed")

from fastgrow.kernels import lora_tuning, tuned  # noqa: E402
from fastgrow.kernels.calls import LoraCall, LoraGradient  # noqa: E402

F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16


def launches(dtype: torch.dtype, n: int, width: int, out: int, rank: int) -> list[Launch]:
    """Return the launches of a training step: y, dx, da and db."""

    def empty(*shape: int) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    x, weight, a, b = empty(n, width), empty(out, width), empty(rank, width), empty(out, rank)

    def step() -> None:
        lora.forward(LoraCall(x, weight, a, b, empty(out), 0.5))
        lora.backward(LoraGradient(empty(n, out), x, empty(n, rank), weight, a, b, 0.5))

    return recorded(step)


def check(
    dtype: torch.dtype,
    capability: int,
    *,
    n: int = 512,
    width: int = 1024,
    out: int = 1024,
    rank: int = 16,
) -> None:
    step = launches(dtype, n, width, out, rank)
    assert [x.name for x in step] == ["low_rank_kernel"] * 2 + ["narrow_kernel"] * 2
    for launch in step:
        compiled = compile_for(launch, capability)
        what = f"{launch.name} {dtype} {n}x{width}x{out} rank {rank} sm_{capability}"
        assert compiled.shared <= SHARED_LIMIT[capability], f"{what}: {compiled.shared} bytes"
        assert compiled.spills == 0, f"{what}: {compiled.spills} spills"
        if capability == 90 and dtype != F32:
            assert compiled.count("HGMMA") > 0, f"{what}: the matrix units are not used"
            assert compiled.count("HMMA") == 0, f"{what}: the old matrix units are used"


@pytest.mark.parametrize("of_input", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_instructions_of_the_product(of_input: bool) -> None:
    """Limit a thread's instructions in the loop over features, forward or for the gradient of x."""
    compiled = compile_for(launches(BF16, 512, 1024, 1024, 16)[of_input], 90)
    assert compiled.spills == 0
    loop = max(compiled.loops("HGMMA"), key=len)
    products = [line for line in loop if "HGMMA" in line]
    # Each half of the warps has 64 x 128 of the tile, in steps of 16 of its 64 features.
    assert len(products) == 4
    assert all("64x128x16" in line for line in products)
    assert len(loop) <= 125
    assert not any(name in line for line in loop for name in ("LDL", "STL", " HMMA"))


@pytest.mark.slow
@pytest.mark.parametrize("capability", TARGETS)
@pytest.mark.parametrize("dtype", [BF16, F16, F32], ids=str)
def test_every_dtype(dtype: torch.dtype, capability: int) -> None:
    check(dtype, capability)
    check(dtype, capability, rank=64)


@pytest.mark.slow
def test_odd_sizes_and_ranks() -> None:
    check(BF16, 90, n=300, width=1000, out=520, rank=5)
    check(BF16, 90, width=1024, out=4096, rank=130)


@pytest.mark.slow
def test_candidates_do_not_spill() -> None:
    """One bucket of each kernel; for the narrow kernel the larger one."""
    first = {tunable.kernel: tunable for tunable in lora_tuning.tunables(90)}
    assert set(first) == {"lora_forward", "lora_d_input", "lora_narrow"}
    for tunable in first.values():
        fit = [tunable.build(candidate)["spills"] == 0 for candidate in tunable.candidates]
        assert all(fit)
        assert len(fit) >= 8


def test_launchers_ask_for_the_tuned_tiles_by_their_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = set()

    def note(kernel: str, key: str, device: torch.device, kind: type) -> None:
        asked.add((kernel, key))

    monkeypatch.setattr(lora, "measured", note)
    tuned.forget()
    for width, rank in ((1024, 8), (4096, 64)):
        launches(BF16, 512, width, width, rank)
    assert asked == {(tunable.kernel, tunable.bucket) for tunable in lora_tuning.tunables(90)}
