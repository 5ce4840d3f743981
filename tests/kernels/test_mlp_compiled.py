"""The feed-forward layer's kernels compiled for GPUs: they compile, fit and do not spill."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import pytest
import torch
from cross_compile import SHARED_LIMIT, Compiled, Launch, compile_for, recorded

mlp = pytest.importorskip("fastgrow.kernels.mlp", reason="triton is not installed")

from fastgrow.kernels import mlp_tuning as tuning  # noqa: E402
from fastgrow.kernels import tuned  # noqa: E402
from fastgrow.kernels.calls import MlpHidden, MlpHiddenGradient, MlpOutput  # noqa: E402
from fastgrow.kernels.tunable import Tunable  # noqa: E402

F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
ACTIVATIONS = ("gelu", "gelu_tanh", "relu2", "swiglu")
MATRIX_KERNELS = ("hidden_kernel", "output_kernel", "d_hidden_kernel")
ROWS = 16384


def check(
    activation: str, dtype: torch.dtype, capability: int, dim: int = 1024, width: int = 4096
) -> None:
    """Return all launches of the layer by its default rules; in fp32 the library is used."""

    def empty(*shape: int) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    x, up, down, pre = empty(ROWS, dim), empty(width, dim), empty(dim, width), empty(ROWS, width)
    gate, pre_gate = (up, pre) if activation == "swiglu" else (None, None)
    frozen, kept = (
        mlp.default_product(kernel, dtype, activation, capability=capability)
        for kernel in ("mlp_hidden", "mlp_hidden_kept")
    )
    assert (frozen.fused, kept.fused) == ((1, 1) if dtype == F32 else (2, 1))
    second = mlp.default_product("mlp_output", dtype, "residual")
    if dtype != F32:
        # The rule does not choose this, but a table may.
        second = mlp.ProductChoice(second.block_m, second.block_n, 64, 8, 8, 3)

    def layer() -> None:
        mlp.hidden(MlpHidden(x, up, gate, empty(width), activation, False), product=frozen)
        mlp.hidden(MlpHidden(x, up, gate, empty(width), activation, True), product=kept)
        mlp.output(MlpOutput(pre, down, empty(dim), x), product=second)
        mlp.d_hidden(MlpHiddenGradient(x, down, pre, pre_gate, activation, True, True))

    names = []
    for launch in recorded(layer):
        names.append(launch.name)
        compiled = compile_for(launch, capability)
        what = f"{launch.name} {activation} {dtype} sm_{capability}"
        assert compiled.shared <= SHARED_LIMIT[capability], f"{what}: {compiled.shared} bytes"
        assert compiled.spills == 0, f"{what}: {compiled.spills} spills"
        if launch.name in MATRIX_KERNELS and capability == 90:
            assert compiled.count("HMMA") == 0, f"{what}: the old matrix units are used"
            assert compiled.loops("HGMMA"), f"{what}: the matrix units are not used"
            assert compiled.count("LDGSTS") > 0, f"{what}: operands are not loaded ahead"
    if dtype == F32:
        assert names == ["activate_kernel", "activate_kernel", "d_activate_kernel"]
    else:
        assert names == ["hidden_kernel", "activate_kernel", "output_kernel", "d_hidden_kernel"]


def test_gelu_in_training() -> None:
    check("gelu", BF16, 90)


def test_two_gradient_tiles_fit_an_sm() -> None:
    """Two programs fit a multiprocessor: one multiplies while the other is in its epilogue.

    The test also limits the epilogue's instructions, those of a kernel outside its loop, per
    element of a thread, because the matrix units are idle while they run.
    """
    x = torch.empty(ROWS, 1024, dtype=BF16, device="meta")
    down = torch.empty(1024, 4096, dtype=BF16, device="meta")
    pre = torch.empty(ROWS, 4096, dtype=BF16, device="meta")
    gradient = MlpHiddenGradient(x, down, pre, None, "gelu", True, True)
    (backward,) = recorded(lambda: mlp.d_hidden(gradient))
    (forward,) = recorded(lambda: mlp.hidden(MlpHidden(x, down.T, None, pre[0], "gelu", False)))
    compiled = compile_for(backward, 90)
    assert 2 * compiled.registers * 32 * backward.options["num_warps"] <= 65536
    assert 2 * (compiled.shared + 1024) <= 228 * 1024
    assert per_element(backward, compiled) <= 36
    assert per_element(forward, compile_for(forward, 90)) <= 24


def per_element(launch: Launch, compiled: Compiled) -> float:
    """Return a thread's instructions outside the loop per element of its tile."""
    tile = launch.arguments["BLOCK_M"] * launch.arguments["BLOCK_N"]
    (loop,) = compiled.loops("HGMMA")
    code = re.findall(r"^\s*/\*[0-9a-f]{4,}\*/\s+\S.*;", compiled.sass, re.MULTILINE)
    return (len(code) - len(loop)) / (tile / (32 * launch.options["num_warps"]))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("activation", "dtype", "capability"),
    [
        *[(a, BF16, 90) for a in ACTIVATIONS],
        *[(a, BF16, c) for a in ("gelu", "swiglu") for c in (80, 100)],
        *[("gelu", t, 90) for t in (F16, F32)],
    ],
    ids=str,
)
def test_every_activation(activation: str, dtype: torch.dtype, capability: int) -> None:
    check(activation, dtype, capability)


@pytest.mark.slow
def test_sizes_that_are_no_multiples_of_tiles() -> None:
    check("swiglu", BF16, 90, 1008, 2736)


@pytest.mark.parametrize(("dim", "width"), [(1000, 4096), (1024, 2730)])
def test_rows_that_are_no_whole_vectors_are_the_library_s(dim: int, width: int) -> None:
    """Together with an epilogue such loads spill hundreds of registers."""
    x, pre = (torch.empty(ROWS, n, dtype=BF16, device="meta") for n in (dim, width))
    up = torch.empty(width, dim, dtype=BF16, device="meta")

    def layer() -> None:
        mlp.hidden(MlpHidden(x, up, up, None, "swiglu", False))
        mlp.d_hidden(MlpHiddenGradient(x, up.T, pre, pre, "swiglu", True, True))

    assert [launch.name for launch in recorded(layer)] == ["activate_kernel", "d_activate_kernel"]


def products() -> list[Tunable[mlp.ProductChoice]]:
    """Return the tunables whose launches compile to different code, for one batch length."""
    return [
        t
        for t in tuning.tunables(90)
        if t.bucket.endswith(f"M={ROWS}")
        and "gelu_tanh" not in t.bucket
        and "plain" not in t.bucket
    ]


def test_the_length_of_a_batch_changes_no_code() -> None:
    def codes(rows: int) -> list[list[str]]:
        of_rows = [t for t in tuning.tunables(90) if t.bucket.endswith(f"M={rows}")]
        return [t.codes(t.candidates[-1]) for t in of_rows]

    assert codes(2048) == codes(ROWS)


def test_candidates_are_many_different_and_leave_it_to_the_library_too() -> None:
    found = tuning.tunables(90)
    assert len({(t.kernel, t.bucket) for t in found}) == len(found)
    for t in found:
        fused = [c for c in t.candidates if c["fused"] == 2]
        assert len(fused) >= 8
        assert len(t.candidates) > len(fused)
        assert t.candidates[0] == dataclasses.asdict(t.default)


@pytest.mark.slow
@pytest.mark.parametrize("product", products(), ids=lambda t: f"{t.kernel} {t.bucket}")
def test_no_candidate_spills(product: Tunable[mlp.ProductChoice]) -> None:
    for candidate in product.candidates:
        assert product.build(candidate)["spills"] == 0, candidate


def test_a_table_s_entry_decides_how_a_product_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = torch.empty(ROWS, 64, dtype=BF16, device="meta")
    up = torch.empty(128, 64, dtype=BF16, device="meta")

    def names() -> list[str]:
        launches = recorded(lambda: mlp.hidden(MlpHidden(x, up, None, None, "gelu", False)))
        return [launch.name for launch in launches]

    assert names() == ["hidden_kernel"]
    library = dataclasses.asdict(tuning.LIBRARY)
    entries = {"mlp_hidden": {"bf16/gelu/K=64/N=128/M=16384": {"configuration": library}}}
    table = {"schema": 1, "device": "NVIDIA Abacus 9", "entries": entries}
    (tmp_path / "nvidia-abacus-9.json").write_text(json.dumps(table))
    monkeypatch.setattr(tuned, "FOLDER", tmp_path)
    monkeypatch.setattr(tuned, "gpu_name", lambda device: "NVIDIA Abacus 9")
    tuned.forget()
    try:
        assert names() == ["activate_kernel"]
    finally:
        tuned.forget()
