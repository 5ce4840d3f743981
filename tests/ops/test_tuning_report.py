"""The report on tuning tables: what is used, what is not and why, with a simulated GPU."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

triton = pytest.importorskip("triton", reason="triton is not installed")

from fastgrow import _native  # noqa: E402
from fastgrow.kernels import tuned  # noqa: E402
from fastgrow.kernels.tunable import digests  # noqa: E402
from fastgrow.ops import explain_tuning  # noqa: E402
from fastgrow.ops.core import dispatch  # noqa: E402

NAME = "nvidia-abacus-9.json"
NOTHING = "cuda:0 NVIDIA Abacus 9 has no table in use: kernels use their default configurations"


@pytest.fixture
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Path of the GPU's shipped table."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "NVIDIA Abacus 9")
    monkeypatch.setattr(tuned, "FOLDER", tmp_path / "tuning")
    monkeypatch.setattr(tuned, "AUTOTUNING", False)
    (tmp_path / "tuning").mkdir()
    return tmp_path / "tuning" / NAME


def write(path: Path, version: str | None, source: str | None = None) -> None:
    entry = {"configuration": {"block_m": 16}, "source": source}
    entries = {"attention_forward": {"a": entry, "b": entry}, "attention_decode": {"c": entry}}
    path.write_text(json.dumps({"schema": 1, "triton": version, "entries": entries}))


def test_without_a_table_kernels_use_their_defaults(shipped: Path) -> None:
    assert explain_tuning() == [NOTHING]


SHIPPED = "cuda:0 shipped table kernels/tuning/nvidia-abacus-9.json"
KERNELS = "attention_decode 1, attention_forward 2"


def test_a_shipped_table_is_used_with_any_triton_version(shipped: Path) -> None:
    here = triton.__version__
    same_minor = ".".join([*here.split(".")[:2], "99"])
    for version, origin in (
        ("3.1", f"measured with triton 3.1 (this is {here})"),
        (same_minor, f"measured with triton {same_minor}"),
        (None, f"measured with triton of unknown version (this is {here})"),
    ):
        write(shipped, version)
        assert explain_tuning() == [f"{SHIPPED}: used, 3 entries {origin}: {KERNELS}"]


def test_kernels_that_changed_since_are_named(shipped: Path) -> None:
    """All entries of the table have the current digest of attention_forward."""
    current = digests(90)["attention_forward"]
    write(shipped, triton.__version__, current)
    (line,) = explain_tuning()
    assert line.endswith(f"{KERNELS}; changed since they were measured: attention_decode")


def write_native(path: Path, **sources: str | None) -> None:
    times = {"native_ms": 0.25, "other_ms": 0.5, "other": "compile"}
    of_keys = {
        "bf16/full/N=64": times | {"native_ms": 0.6125},
        "bf16/forward/N=4096": times,
        "bf16/forward/N=64": times,
    }
    native = {"mean_argmax": {key: entry | sources for key, entry in of_keys.items()}}
    path.write_text(json.dumps({"schema": 1, "triton": "9.9", "entries": {}, "native": native}))


TAKEN = (
    "cuda:0 native is used automatically: mean_argmax bf16/forward/N=4096 (0.25 ms, compile 0.5), "
    "mean_argmax bf16/forward/N=64 (0.25 ms, compile 0.5)"
)
SLOWER = "cuda:0 native is slower: mean_argmax bf16/full/N=64 (0.613 ms, compile 0.5)"


def test_operations_of_the_extension_are_listed_with_their_times(shipped: Path) -> None:
    write_native(shipped, source=_native.CUDA.source)
    assert explain_tuning()[1:] == [TAKEN, SLOWER]
    write_native(shipped)
    assert explain_tuning()[1:] == [TAKEN, SLOWER]


def test_an_extension_that_has_changed_is_reported(shipped: Path) -> None:
    write_native(shipped, source="of other code")
    changed = "cuda:0 fastgrow._C_cuda has changed since native was measured"
    assert explain_tuning()[1:] == [TAKEN, SLOWER, changed]


def test_without_triton_only_the_extension_is_reported(
    shipped: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatch, "TRITON_INSTALLED", False)
    monkeypatch.setitem(sys.modules, "triton", None)
    nothing = "triton is not installed: there is nothing to tune"
    assert explain_tuning() == [nothing, "cuda:0 NVIDIA Abacus 9 has no table in use"]
    write_native(shipped)
    assert explain_tuning() == [nothing, TAKEN, SLOWER]


def test_autotuning_is_reported_with_the_folder_of_its_measurements(
    shipped: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(tuned, "AUTOTUNING", True)
    monkeypatch.setenv("HOME", str(tmp_path))
    for folder, shown in ((tmp_path / "x", "~/x"), (Path("/elsewhere"), "/elsewhere")):
        monkeypatch.setenv("TRITON_CACHE_DIR", str(folder))
        assert explain_tuning() == [
            "cuda:0 NVIDIA Abacus 9 has no table in use",
            "FASTGROW_AUTOTUNE is on: kernels without an entry are measured when first called; "
            f"the measurements are kept in Triton's cache, {shown}",
        ]


def test_a_malformed_table_is_named_with_the_reason(shipped: Path) -> None:
    shipped.write_text('{"schema": 7}')
    assert explain_tuning() == [
        f"{SHIPPED}: cannot be used: expected an object with schema 1",
        NOTHING,
    ]
    shipped.write_text("{")
    first, nothing = explain_tuning()
    assert first.startswith(f"{SHIPPED}: cannot be used: Expecting property name")
    assert nothing == NOTHING


def test_every_gpu_is_reported(shipped: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert explain_tuning() == [NOTHING, NOTHING.replace("cuda:0", "cuda:1")]


def test_a_table_that_cannot_be_read_is_named(shipped: Path) -> None:
    shipped.mkdir()
    assert "cannot be used: Is a directory" in explain_tuning()[0]
