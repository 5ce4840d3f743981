"""Kernels of a head's loss compiled for GPUs: they compile, fit and do not spill."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from cross_compile import SHARED_LIMIT, TARGETS, Launch, compile_for, recorded

linear_lse = pytest.importorskip("fastgrow.kernels.linear_lse", reason="triton is not installed")

from fastgrow.kernels import linear_lse_tuning  # noqa: E402
from fastgrow.kernels.calls import HeadLossCall, LseCall, LseGradientCall  # noqa: E402
from fastgrow.kernels.logit_loss import fill_losses  # noqa: E402

F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
MATRIX_KERNELS = ("lse_kernel", "gradient_kernel")
N, VOCABULARY, WORDS = 8192, 65536, 8192


def empty(*shape: int, dtype: torch.dtype = F32) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def launches(
    dtype: torch.dtype,
    capability: int,
    *,
    rows: int = N,
    heads: int = 1,
    width: int = 1024,
    bias: bool = True,
    mean: bool = False,
    vocabulary: int = VOCABULARY,
) -> list[Launch]:
    """Return all launches of both implementations of the loss."""
    given = (
        [empty(rows, width, dtype=dtype)] * heads,
        [empty(vocabulary, width, dtype=dtype)] * heads,
        empty(vocabulary, dtype=dtype) if bias else None,
    )
    targets, row = empty(rows, dtype=torch.int64), empty(rows)
    forward, gradient = (
        linear_lse.default_tiles(name, dtype, rows, capability)
        for name in ("linear_lse", "linear_lse_gradient")
    )

    def step() -> None:
        linear_lse.forward(LseCall(*given, targets, mean), tiles=forward)
        out = empty(rows, min(WORDS, vocabulary), dtype=dtype)
        backward = LseGradientCall(*given, targets, row, row, row, row if mean else None, [])
        linear_lse.logits_gradient(backward, 0, out, with_sums=bias, tiles=gradient)
        dz = empty(2048, vocabulary, dtype=dtype)
        loss = HeadLossCall(*given, targets, label_smoothing=0.1 if mean else 0.0)
        part = slice(0, len(dz))
        fill_losses(loss, part, dz.float() if heads > 1 else dz, row, row, dz)

    return recorded(step)


def check(dtype: torch.dtype, capability: int, **changes: int | bool) -> None:
    names = []
    for launch in launches(dtype, capability, **changes):
        names.append(launch.name)
        compiled = compile_for(launch, capability)
        what = f"{launch.name} {dtype} {changes} sm_{capability}"
        assert compiled.shared <= SHARED_LIMIT[capability], f"{what}: {compiled.shared} bytes"
        assert compiled.spills == 0, f"{what}: {compiled.spills} spills"
        if launch.name in MATRIX_KERNELS and capability == 90 and dtype != F32:
            assert compiled.count("HGMMA") > 0, f"{what}: the matrix units are not used"
            assert compiled.count("HMMA") == 0, f"{what}: the old matrix units are used"
    assert names == ["lse_kernel", "merge_kernel", "gradient_kernel", "loss_kernel"]


def test_head_of_the_reference() -> None:
    check(BF16, 90)


@pytest.mark.parametrize("vocabulary", [1, 100, 200])
def test_one_tile_of_words(vocabulary: int) -> None:
    """Integers equal to 1 are constants in a kernel."""
    check(BF16, 90, rows=64, mean=True, vocabulary=vocabulary)


def test_issue_slots_beside_the_products() -> None:
    """Limit the instructions that the loop over features issues per matrix instruction.

    One of m64n256k16 keeps the matrix unit busy for 128 cycles, in which a scheduler issues up to
    128 instructions for each of its warps.
    """
    launch = launches(BF16, 90)[0]
    (loop,) = compile_for(launch, 90).loops("HGMMA")
    products = sum("HGMMA" in line for line in loop)
    assert len(loop) / products <= 36
    assert not any(name in line for line in loop for name in ("LDL", "STL", " HMMA"))


@pytest.mark.slow
@pytest.mark.parametrize("capability", TARGETS)
def test_every_target(capability: int) -> None:
    check(BF16, capability)
    check(BF16, capability, rows=64, mean=True)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [F16, F32], ids=str)
def test_other_dtypes(dtype: torch.dtype) -> None:
    check(dtype, 90)


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [{"mean": True}, {"heads": 4}, {"heads": 2, "bias": False, "mean": True, "width": 1040}],
    ids=str,
)
def test_variants(changes: dict[str, int]) -> None:
    check(BF16, 90, **changes)


@pytest.mark.slow
@pytest.mark.parametrize("which", range(len(linear_lse_tuning.SHAPES)))
def test_no_candidate_spills(which: int) -> None:
    tunable = linear_lse_tuning.tunables(90)[which]
    assert len(tunable.candidates) >= 8
    assert tunable.candidates[0] == dataclasses.asdict(tunable.default)
    for candidate in tunable.candidates:
        assert tunable.build(candidate)["spills"] == 0, candidate
