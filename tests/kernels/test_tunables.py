"""The kernels' candidates: many configurations, and none that spills."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import pytest
import torch

attention = pytest.importorskip("fastgrow.kernels.attention", reason="triton is not installed")

from fastgrow.kernels import attention_tuning, compile_offline, tuned  # noqa: E402
from fastgrow.kernels import tunable as tunable_module  # noqa: E402
from fastgrow.kernels.digest import digest  # noqa: E402
from fastgrow.kernels.mlp_forward import output_kernel  # noqa: E402
from fastgrow.kernels.tunable import Tunable, all_tunables, with_stages  # noqa: E402

BF16 = torch.bfloat16


def tunable(kernel: str, key: str) -> Tunable:  # type: ignore[type-arg]
    (found,) = (t for t in attention_tuning.tunables(90) if (t.kernel, t.bucket) == (kernel, key))
    return found


def test_candidates_are_many_different_and_begin_with_the_default() -> None:
    found = attention_tuning.tunables(90)
    assert len({(t.kernel, t.bucket) for t in found}) == len(found)
    for t in found:
        assert len(t.candidates) >= 8, t.bucket
        assert len({tuple(c.values()) for c in t.candidates}) == len(t.candidates)
        assert t.candidates[0] == dataclasses.asdict(t.default)
    forward = tunable("attention_forward", "bf16/D=64/T=8192")
    assert forward.default == attention.own_tiles("attention_forward", 64, BF16)


@pytest.mark.parametrize("dtype", [BF16, torch.float16], ids=str)
def test_launchers_ask_for_the_keys_that_there_are(dtype: torch.dtype) -> None:
    known = {(t.kernel, t.bucket) for t in attention_tuning.tunables(90)}
    for dim in (32, 64, 128):
        for keys, heads in ((1024, 8), (5000, 8), (5000, 900)):
            assert ("attention_d_key", attention.bucket(dtype, dim, keys)) in known
            key = attention.decode_bucket(dtype, dim, keys, heads)
            assert ("attention_decode", key) in known


def test_shapes_are_taken_with_every_number_of_stages() -> None:
    tiles = with_stages(attention.AttentionTiles, [(16, 32, 4), (64, 64, 8)], (2, 3))
    assert tiles == [
        *(attention.AttentionTiles(16, 32, 4, n) for n in (2, 3)),
        *(attention.AttentionTiles(64, 64, 8, n) for n in (2, 3)),
    ]


def label(tunable: Tunable) -> str:  # type: ignore[type-arg]
    return f"{tunable.kernel} {tunable.bucket}"


def first_of_each_kernel() -> list[Tunable]:  # type: ignore[type-arg]
    return list({t.kernel: t for t in reversed(all_tunables(90))}.values())


@pytest.mark.parametrize("tunable", first_of_each_kernel(), ids=label)
def test_every_configuration_is_launched_on_the_same_inputs(
    tunable: Tunable,  # type: ignore[type-arg]
) -> None:
    prepared = []
    # Making the inputs may launch kernels too.
    compile_offline.recorded(lambda: prepared.append(tunable.prepare("meta")))
    (launch,) = prepared
    launches: list[compile_offline.Launch] = []
    shared, different = [], set()
    for configuration in tunable.others:
        for made in compile_offline.recorded(functools.partial(launch, configuration)):
            launches.append(made)  # so that no tensor takes the place of another
            # The library's candidates launch another kernel, or none.
            if made.name == tunable.function:
                different.add(compile_offline.code(made, 90))
                tensors = [x for x in made.arguments.values() if isinstance(x, torch.Tensor)]
                shared.append({id(x) for x in tensors})
    assert len(different) >= 4, "the configuration is not launched"
    assert set.intersection(*shared)


# Arguments that a kernel writes its results to, by the names of its functions.
WRITTEN = {
    "attention_decode": {"OUT"},
    "attention_d_key": {"DK", "DV"},
    "attention_d_query": {"DQ"},
    "attention_forward": {"OUT", "LSE"},
    "linear_lse": {"lse", "target_logit"},
    "linear_lse_gradient": {"out"},
    "lora_d_input": {"Y"},
    "lora_forward": {"Y"},
    # A sum of its outputs.
    "lora_narrow": set(),
    "mlp_d_hidden": {"D_PRE", "HIDDEN"},
    "mlp_hidden": {"HIDDEN"},
    "mlp_hidden_kept": {"HIDDEN", "PRE"},
    "mlp_output": {"Y"},
    "norm_backward": {"DX", "D_WEIGHT", "D_BIAS"},
    "norm_forward": {"Y", "TOTAL", "MEAN", "RSTD"},
}


@pytest.mark.parametrize("tunable", first_of_each_kernel(), ids=label)
def test_a_launch_returns_what_it_computes(tunable: Tunable) -> None:  # type: ignore[type-arg]
    """A result that is not returned could be wrong for the fastest configuration."""
    prepared: list[Callable[[object], object]] = []
    compile_offline.recorded(lambda: prepared.append(tunable.prepare("meta")))
    results: list[object] = []
    # The last one is not the library's.
    launches = compile_offline.recorded(lambda: results.append(prepared[0](tunable.others[-1])))
    result = results[0] if isinstance(results[0], tuple) else (results[0],)
    returned = {id(tensor) for tensor in result if tensor is not None}
    assert returned
    arguments = [item for launch in launches for item in launch.arguments.items()]
    assert {name for name, x in arguments if id(x) in returned} >= WRITTEN[tunable.kernel]


def test_a_build_takes_the_most_of_all_that_is_launched(monkeypatch: pytest.MonkeyPatch) -> None:
    def compiled(launch: compile_offline.Launch, capability: int) -> compile_offline.Binary:
        spills = {"rotate_kernel": 1, "prepare_kernel": 3, "d_key_kernel": 2}[launch.name]
        return compile_offline.Binary(2 * spills, capability, spills, b"")

    monkeypatch.setattr(tunable_module, "compile_launch", compiled)
    d_key = tunable("attention_d_key", "bf16/D=32/T=1024")
    default = d_key.candidates[0]
    assert d_key.build(default) == {"spills": 3, "shared": 6, "registers": 90}
    assert [d_key.build(default, code)["spills"] for code in d_key.codes(default)] == [1, 3, 2]
    with pytest.raises(ValueError, match="attention_d_key bf16/D=32/T=1024 has no launch with"):
        d_key.build(default, "of another process")


def test_no_table_has_a_part_in_what_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise a GPU with a table would launch a kernel that was not compiled ahead."""

    def asked(gpu: str, kernel: str, key: str, kind: type) -> None:
        raise AssertionError(f"a table is asked for {kernel} {key}")

    monkeypatch.setattr(tuned, "gpu_name", lambda device: "NVIDIA Abacus 9")
    monkeypatch.setattr(tuned, "_shipped_configuration", asked)
    for t in all_tunables(90):
        t.launches(None)
        t.launches(t.candidates[0])


def test_what_is_left_to_the_library_compiles_nothing() -> None:
    (output,) = (t for t in all_tunables(90) if t.bucket == "bf16/plain/K=4096/N=1024/M=16384")
    library = output.candidates[0]
    assert library["fused"] == 1
    assert output.codes(library) == []
    assert output.build(library) == {"spills": 0, "shared": 0, "registers": 0}
    assert output.digest == digest(output_kernel)


def test_a_build_reports_spills() -> None:
    d_key = tunable("attention_d_key", "bf16/D=32/T=1024")
    small = {"block_m": 16, "block_n": 64, "num_warps": 4, "num_stages": 2}
    assert d_key.build(small)["spills"] == 0
    assert d_key.build(small | {"block_m": 64, "block_n": 128})["spills"] > 0


def test_a_build_that_needs_too_much_shared_memory_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(compile_offline.SHARED_LIMIT, 90, 1024)
    with pytest.raises(ValueError, match=r"bytes of shared memory, allowed 1024"):
        attention_tuning.tunables(90)[0].build(
            {"block_m": 64, "block_n": 32, "num_warps": 4, "num_stages": 2}
        )


def of_dtype(name: str, capability: int = 90) -> list[Tunable]:  # type: ignore[type-arg]
    """Return the tunables of a dtype that compile to different code."""
    found = [t for t in attention_tuning.tunables(capability) if t.bucket.startswith(name)]
    return [t for t in found if "T=1024" in t.bucket and "N=256" not in t.bucket]


@pytest.mark.slow
@pytest.mark.parametrize("tunable", of_dtype("bf16"), ids=label)
def test_no_candidate_spills(tunable: Tunable) -> None:  # type: ignore[type-arg]
    for candidate in tunable.candidates:
        assert tunable.build(candidate)["spills"] == 0, candidate


@pytest.mark.slow
@pytest.mark.parametrize("tunable", [*of_dtype("fp16"), *of_dtype("fp32")], ids=label)
def test_the_largest_candidate_of_other_dtypes_does_not_spill(
    tunable: Tunable,  # type: ignore[type-arg]
) -> None:
    def registers(candidate: dict[str, int]) -> float:
        return candidate.get("block_m", 1) * candidate["block_n"] / candidate["num_warps"]

    largest = max(tunable.candidates, key=registers)
    assert tunable.build(largest)["spills"] == 0, largest


@pytest.mark.slow
@pytest.mark.parametrize("tunable", of_dtype("bf16", 80), ids=label)
def test_the_default_fits_sm_80(tunable: Tunable) -> None:  # type: ignore[type-arg]
    assert tunable.build(tunable.candidates[0])["spills"] == 0
