"""The norms' kernels compiled for GPUs: they compile, fit, do not spill and move vectors."""

from __future__ import annotations

import pytest
import torch
from cross_compile import SHARED_LIMIT, TARGETS, Compiled, Launch, compile_for, recorded

from fastgrow.kernels.calls import NormCall

norm = pytest.importorskip("fastgrow.kernels.norm", reason="triton is not installed")

F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
ROWS = 16384


def launches(
    dim: int,
    dtype: torch.dtype,
    parameters: torch.dtype,
    *,
    centred: bool = True,
    residual: bool = True,
    frozen: bool = False,
) -> list[Launch]:
    """Return all launches of a training step."""
    x = torch.empty(ROWS, dim, dtype=dtype, device="meta")
    weight = torch.empty(dim, dtype=parameters, device="meta")
    statistics = torch.empty(ROWS, device="meta")
    bias, mean = (weight, statistics) if centred else (None, None)
    other = x if residual else None

    def step() -> None:
        norm.forward(NormCall(x, other, weight, bias, 1e-5, centred, dtype))
        wanted = {"for_weight": not frozen, "for_bias": not frozen and centred}
        norm.backward(
            x, other, x, mean, statistics, weight,
            for_input=True, parameter_dtype=parameters, **wanted,
        )  # fmt: skip

    return recorded(step)


def check(found: list[Launch], capability: int) -> dict[str, Compiled]:
    binaries = {}
    for launch in found:
        compiled = compile_for(launch, capability)
        what = f"{launch.name} D={launch.arguments['D']} sm_{capability}"
        assert compiled.shared <= SHARED_LIMIT[capability], f"{what}: {compiled.shared} bytes"
        assert compiled.spills == 0, f"{what}: {compiled.spills} spills"
        binaries[launch.name] = compiled
    return binaries


def vectors(compiled: Compiled) -> dict[str, int]:
    """Count the instructions that move 16 bytes between a thread and GPU memory, and fewer bytes.

    Loads to shared memory (LDGSTS) count as loads.
    """
    found = {"load": 0, "narrow load": 0, "store": 0, "narrow store": 0}
    for line in compiled.sass.splitlines():
        for name, opcodes in (("load", ("LDG.", "LDGSTS.")), ("store", ("STG.",))):
            if any(f" {opcode}E" in line for opcode in opcodes):
                found[name if ".128" in line else f"narrow {name}"] += 1
    return found


def test_bytes_move_in_vectors_and_once() -> None:
    """bf16, 1,024 features, sm_90: a thread loads and stores its part of a tile and no more."""
    binaries = check(launches(1024, BF16, BF16), 90)
    # One warp holds a row: 8 features a vector, 4 vectors of a thread. x, residual and twice weight
    # and bias; then y and the sum. mean and rstd of the row are the narrow stores.
    assert vectors(binaries["forward_kernel"]) == {
        "load": 4 * 4, "narrow load": 0, "store": 2 * 4, "narrow store": 2,
    }  # fmt: skip
    assert binaries["forward_kernel"].count("BAR") == 0, "a row of one warp needs no barrier"
    # Four warps hold a row, one vector a thread: dy, the sum and its gradient, thrice in the code,
    # as two tiles are fetched before the loop; the weight. dx, and the fp32 sums at the end. mean
    # and rstd are narrow.
    assert vectors(binaries["backward_kernel"]) == {
        "load": 3 * 3 + 1, "narrow load": 3 * 2, "store": 1 + 4, "narrow store": 0,
    }  # fmt: skip
    assert vectors(binaries["sum_kernel"])["narrow load"] == 0


def test_programs_of_a_multiprocessor_fit_its_registers() -> None:
    """A program that has to wait for another one would double the time of the pass."""
    for dim in (256, 1024, 4096):
        (launch,) = [x for x in launches(dim, BF16, BF16) if x.name == "backward_kernel"]
        rows = norm.backward_rows(dim)
        threads = 32 * rows.num_warps * rows.programs
        assert compile_for(launch, 90).registers * threads <= 65536


WIDTHS = (32, 100, 768, 1600, 4096, 8192, 65536)


@pytest.mark.slow
@pytest.mark.parametrize("capability", TARGETS)
@pytest.mark.parametrize("dim", WIDTHS)
def test_the_most_registers_everywhere(dim: int, capability: int) -> None:
    """Parameters in fp32 with rows in bf16 leave the fewest registers."""
    check(launches(dim, BF16, F32), capability)


@pytest.mark.slow
@pytest.mark.parametrize("dim", WIDTHS)
def test_other_dtypes_and_what_is_frozen(dim: int) -> None:
    check(launches(dim, BF16, BF16), 90)
    check(launches(dim, F32, F32), 90)
    check(launches(dim, BF16, BF16, frozen=True, residual=False), 90)


@pytest.mark.slow
def test_rms_norm_and_fp16() -> None:
    for dim in (1024, 20000):
        check(launches(dim, BF16, BF16, centred=False), 90)
        check(launches(dim, F16, F16), 90)
