"""Attention's kernels compiled for GPUs: they compile, fit and do not spill."""

from __future__ import annotations

from unittest import mock

import pytest
import torch
from cross_compile import SHARED_LIMIT, TARGETS, Launch, compile_for, recorded

from fastgrow.kernels import tuned
from fastgrow.kernels.calls import AttentionCall

attention = pytest.importorskip("fastgrow.kernels.attention", reason="triton is not installed")

F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
MATRIX_KERNELS = ("forward_kernel", "d_query_kernel", "d_key_kernel")


def launches(dim: int, dtype: torch.dtype, **rules: object) -> list[Launch]:
    """Return all launches of a training step."""
    q = torch.zeros(1, 2, 256, dim, dtype=dtype)
    lse = torch.zeros(1, 2, 256)
    table = torch.zeros(256, dim // 2)
    call = AttentionCall(q, q, q, table, table, **rules)  # type: ignore[arg-type]

    def step() -> None:
        attention.forward(call)
        attention.backward(call, q, q, lse)

    return recorded(step)


def uses_wgmma(kernel: str, dim: int) -> bool:
    """Whether a kernel's products use the matrix instructions of sm_90 in half precision.

    They need tiles of 64 rows or more. Beyond head dimension 128 the backward kernels hold several
    such tiles of 256 features, which spill at 64 rows with any number of warps; at 32 rows they do
    not, and the compiler falls back to the matrix instructions of sm_80.
    """
    return kernel in MATRIX_KERNELS and (dim <= 128 or kernel == "forward_kernel")


def check(dim: int, dtype: torch.dtype, capability: int, **rules: object) -> None:
    names = []
    with mock.patch.object(attention, "capability_of", return_value=capability):
        # A launcher caches its choice for a device, which is another GPU each time here.
        tuned.forget()
        found = launches(dim, dtype, **rules)
    tuned.forget()
    for launch in found:
        names.append(launch.name)
        compiled = compile_for(launch, capability)
        what = f"{launch.name} {dtype} D={dim} sm_{capability}"
        assert compiled.shared <= SHARED_LIMIT[capability], f"{what}: {compiled.shared} bytes"
        assert compiled.spills == 0, f"{what}: {compiled.spills} spills"
        if uses_wgmma(launch.name, dim) and capability == 90 and dtype != F32:
            assert compiled.count("HGMMA") > 0, f"{what}: the matrix units are not used"
            assert compiled.count("HMMA") == 0, f"{what}: the old matrix units are used"
    assert set(MATRIX_KERNELS) <= set(names)


def test_reference_head_dimension() -> None:
    check(32, BF16, 90)


def forward_of_the_reference_head_dimension() -> Launch:
    (forward,) = (x for x in launches(32, BF16) if x.name == "forward_kernel")
    return forward


def test_three_programs_of_the_reference_head_dimension_share_a_processor() -> None:
    compiled = compile_for(forward_of_the_reference_head_dimension(), 90)
    assert compiled.spills == 0
    assert 3 * 4 * 32 * compiled.registers <= 64 * 1024
    assert 3 * (compiled.shared + 1024) <= 228 * 1024


def test_issue_slots_of_the_reference_head_dimension() -> None:
    """Limit the instructions per score in the loop over whole blocks, without and with a pivot."""
    forward = forward_of_the_reference_head_dimension()
    tile = forward.arguments["BLOCK_M"] * forward.arguments["BLOCK_N"]
    scores_of_thread = tile / (32 * forward.options["num_warps"])
    loops = compile_for(forward, 90).loops("HGMMA")
    whole_blocks = [len(loop) for loop in loops if not any("FSEL" in line for line in loop)]
    without, with_pivot = sorted(n / scores_of_thread for n in whole_blocks)
    assert without <= 3.4
    assert with_pivot <= 6.8
    for loop in loops:
        assert not any(name in line for line in loop for name in ("LDL", "STL", " HMMA"))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [BF16, F16, F32], ids=str)
@pytest.mark.parametrize("dim", [32, 64, 128, 256])
def test_decoding(dim: int, dtype: torch.dtype) -> None:
    q, k = torch.zeros(1, 8, 1, dim, dtype=dtype), torch.zeros(1, 2, 1024, dim, dtype=dtype)
    table, lengths = torch.zeros(1024, dim // 2), torch.zeros(1, dtype=torch.int32)
    call = AttentionCall(q, k, k, table, table, lengths=lengths, k_rotated=True)
    step = recorded(lambda: attention.inference(call))
    assert [launch.name for launch in step] == ["decode_kernel", "join_kernel"]
    for capability in TARGETS:
        for launch in step:
            compiled = compile_for(launch, capability)
            assert compiled.shared <= SHARED_LIMIT[capability]
            assert compiled.spills == 0


@pytest.mark.slow
@pytest.mark.parametrize("capability", TARGETS)
@pytest.mark.parametrize("dtype", [BF16, F16, F32], ids=str)
@pytest.mark.parametrize("dim", [16, 32, 64, 128, 256])
def test_every_configuration(dim: int, dtype: torch.dtype, capability: int) -> None:
    check(dim, dtype, capability)


@pytest.mark.slow
@pytest.mark.parametrize("dim", [24, 32, 80, 128])
def test_with_every_rule(dim: int) -> None:
    ids = torch.zeros(1, dtype=torch.int32)
    check(dim, BF16, 90, window=64, lengths=ids, starts=ids)
    check(dim, BF16, 90, cu_seqlens=torch.tensor([0, 100, 256], dtype=torch.int32))
