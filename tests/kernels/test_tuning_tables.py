"""Tables of measured tiles: which launches use them, and the errors of invalid ones."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

attention = pytest.importorskip("fastgrow.kernels.attention", reason="triton is not installed")

import triton  # noqa: E402

from fastgrow.kernels import attention_tiles, compile_offline, tuned  # noqa: E402
from fastgrow.kernels.calls import AttentionCall  # noqa: E402
from fastgrow.kernels.tuned import Table, read_table  # noqa: E402

BF16 = torch.bfloat16
TILES = {"block_m": 32, "block_n": 16, "num_warps": 2, "num_stages": 5}
OTHER = {"block_m": 16, "block_n": 32, "num_warps": 8, "num_stages": 4}


def table(configuration: object = TILES, schema: int = 1, source: object = None) -> dict[str, Any]:
    entries = {
        "attention_forward": {
            "bf16/D=32/T=1024": {"configuration": configuration, "source": source},
            "bf16/D=32/T=8192": {"configuration": OTHER, "median_ms": 1.0},
        },
        "attention_d_query": {"bf16/D=32/T=1024": {"configuration": OTHER}},
    }
    return {"schema": schema, "device": "NVIDIA Abacus 9", "entries": entries}


TIMES = {"native_ms": 1.5, "other_ms": 2, "other": "compile", "source": "0123"}


def with_times(times: object) -> str:
    """Return a file with this entry for the extension's operations too."""
    return json.dumps(table() | {"native": {"mean_argmax": {"bf16/full/N=64": times}}})


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Return the path of the table for a fake GPU, which `meta` tensors are on."""
    monkeypatch.setattr(tuned, "FOLDER", tmp_path)
    monkeypatch.setattr(tuned, "gpu_name", lambda device: "NVIDIA Abacus 9")
    tuned.forget()
    yield tmp_path / "nvidia-abacus-9.json"
    tuned.forget()


def tiles_of(call: Callable[[], object], kernel: str) -> dict[str, int]:
    (launch,) = [launch for launch in compile_offline.recorded(call) if launch.name == kernel]
    blocks = {"block_m": launch.arguments["BLOCK_M"], "block_n": launch.arguments["BLOCK_N"]}
    return blocks | launch.options


def forward(
    length: int = 256, dim: int = 32, dtype: torch.dtype = BF16, **rules: Any
) -> dict[str, int]:
    q = torch.empty(1, 2, length, dim, dtype=dtype, device="meta")
    call = AttentionCall(q, q, q, **rules)
    return tiles_of(lambda: attention.forward(call), "forward_kernel")


def backward(kernel: str) -> dict[str, int]:
    q, lse = torch.empty(1, 2, 64, 32, dtype=BF16, device="meta"), torch.empty(1, 2, 64)
    return tiles_of(lambda: attention.backward(AttentionCall(q, q, q), q, q, lse), kernel)


def own(kernel: str, dim: int = 32, dtype: torch.dtype = BF16) -> dict[str, int]:
    return dict(vars(attention_tiles.own_tiles(kernel, dim, dtype)))


def test_an_entry_is_taken_before_the_launcher_s_own_rule(file: Path) -> None:
    file.write_text(json.dumps(table()))
    assert forward() == TILES
    assert backward("d_query_kernel") == OTHER
    assert backward("d_key_kernel") == own("attention_d_key")


def test_a_table_may_say_how_long_the_extension_took(file: Path) -> None:
    file.write_text(with_times(TIMES))
    assert forward() == TILES
    assert read_table(file).native == {"mean_argmax": {"bf16/full/N=64": TIMES}}
    file.write_text(json.dumps(table()))
    assert read_table(file).native == {}


def test_lengths_share_two_entries(file: Path) -> None:
    file.write_text(json.dumps(table()))
    assert forward(1) == forward(17) == forward(2048) == TILES
    assert forward(2049) == forward(100_000) == OTHER


def test_what_was_not_measured_keeps_the_launcher_s_own_rule(file: Path) -> None:
    file.write_text(json.dumps(table()))
    assert forward(dim=64) == own("attention_forward", dim=64)
    assert forward(dtype=torch.float32) == own("attention_forward", dtype=torch.float32)
    for rules in ({"window": 9}, {"causal": False}, {"starts": torch.zeros(1, dtype=torch.int32)}):
        assert forward(**rules) == own("attention_forward")


def test_without_a_table_nothing_is_said(file: Path, recwarn: pytest.WarningsRecorder) -> None:
    assert forward() == own("attention_forward")
    assert not recwarn.list


def test_a_cpu_has_no_table() -> None:
    assert tuned.gpu_name(torch.device("cpu")) is None


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{", "Expecting property name"),
        ("[]", "expected an object with schema 1"),
        ("\xff", "codec can't decode byte"),
        (json.dumps(table(schema=2)), "expected an object with schema 1"),
        (json.dumps({"schema": 1}), "entries: expected an object of objects"),
        (json.dumps(table({"block": 16})), "expected a configuration of block_m, block_n, num_w"),
        (json.dumps(table([])), "attention_forward bf16/D=32/T=1024: expected a configuration"),
        (json.dumps(table(TILES | {"block_m": 48})), "block_m must be a power of two, got 48"),
        (json.dumps(table(TILES | {"block_n": 8})), "blocks must be at least 16"),
        (json.dumps(table(TILES | {"num_warps": "4"})), "num_warps must be a positive integer"),
        (json.dumps(table(TILES | {"num_stages": 0})), "num_stages must be a positive integer"),
        (json.dumps(table(source=7)), "bf16/D=32/T=1024: source must be a digest, got 7"),
        (json.dumps(table() | {"native": [1]}), "native: expected an object of objects"),
        (with_times(7), "mean_argmax bf16/full/N=64: expected an object, got 7"),
        (with_times(TIMES | {"native_ms": 0}), "native_ms must be a positive number, got 0"),
        (with_times(TIMES | {"other_ms": True}), "other_ms must be a positive number, got True"),
        (with_times(TIMES | {"other_ms": math.inf}), "other_ms must be a positive number, got inf"),
        (with_times({"native_ms": 1}), "other_ms must be a positive number, got None"),
        (with_times(TIMES | {"other": 7}), "bf16/full/N=64: other must be a name, got 7"),
        (with_times(TIMES | {"source": 7}), "bf16/full/N=64: source must be a digest, got 7"),
    ],
)
def test_a_malformed_table_is_ignored_and_named(file: Path, content: str, reason: str) -> None:
    file.write_bytes(content.encode("latin-1"))
    with pytest.warns(UserWarning, match=reason) as said:
        assert forward() == own("attention_forward")
    assert str(file) in str(said[0].message)
    assert forward() == own("attention_forward")
    assert len(said) == 1


def test_a_table_just_measured_stands_in_for_the_shipped_one(file: Path) -> None:
    file.write_text(json.dumps(table()))
    made = Table({"attention_forward": {"bf16/D=64/T=1024": {"configuration": OTHER}}})
    with tuned.standing_in("NVIDIA Abacus 9", made):
        assert forward(dim=64) == OTHER
        assert forward() == own("attention_forward")
    assert forward() == TILES


def decoded(rows: int = 1, batch: int = 1, keys: int = 4096, **rules: Any) -> dict[str, int]:
    """Configuration of a decoding step of `rows` queries a head."""
    q = torch.empty(batch, 32, rows, 32, dtype=BF16, device="meta")
    k = torch.empty(batch, 32, keys, 32, dtype=BF16, device="meta")
    call = AttentionCall(q, k, k, **rules)
    launches = compile_offline.recorded(lambda: attention.inference(call))
    (launch,) = [launch for launch in launches if launch.name == "decode_kernel"]
    return {"block_n": launch.arguments["BLOCK_N"], **launch.options}


def test_a_table_of_another_triton_is_told_once_and_used(
    file: Path, caplog: pytest.LogCaptureFixture, recwarn: pytest.WarningsRecorder
) -> None:
    caplog.set_level("INFO", "fastgrow.kernels")
    here = triton.__version__
    same_minor = ".".join([*here.split(".")[:2], "99"])
    for version, told in (
        ("3.1.0", [f"measured with triton 3.1.0, used with {here}"]),
        (same_minor, []),
    ):
        caplog.clear()
        tuned.forget()
        file.write_text(json.dumps({**table(), "triton": version}))
        assert forward() == forward() == TILES
        assert backward("d_query_kernel") == OTHER
        assert [message.split(": ", 1)[1] for message in caplog.messages] == told
    assert not recwarn.list


def test_an_entry_of_another_source_is_used(file: Path) -> None:
    file.write_text(json.dumps(table(source="0123456789abcdef")))
    assert forward() == TILES
    entries = read_table(file).entries["attention_forward"]
    sources = {key: entry.get("source") for key, entry in entries.items()}
    assert sources == {"bf16/D=32/T=1024": "0123456789abcdef", "bf16/D=32/T=8192": None}


def test_decoding_has_entries_of_its_own(file: Path) -> None:
    split = {"block_n": 64, "programs": 4, "num_warps": 2, "num_stages": 5}
    entries = {"attention_decode": {"bf16/D=32/T=8192/N=32": {"configuration": split}}}
    file.write_text(json.dumps({"schema": 1, "entries": entries}))
    mine = {name: split[name] for name in ("block_n", "num_warps", "num_stages")}
    default = dict(vars(attention_tiles.split_of(32, BF16)))
    del default["programs"]
    lengths = torch.empty(1, dtype=torch.int32, device="meta")
    assert decoded() == decoded(rows=8) == decoded(lengths=lengths) == mine
    assert decoded(keys=1024) == decoded(batch=16) == decoded(window=9) == default


def test_more_programs_a_processor_are_more_runs(file: Path) -> None:
    def runs(programs: int) -> int:
        split = attention_tiles.Split(16, programs, 4, 2)
        return attention_tiles.runs_of_keys(1, 4096, split, torch.device("meta"))[0]

    assert (runs(1), runs(2), runs(8)) == (4, 8, 32)


def test_a_choice_is_made_once_until_tables_are_read_again() -> None:
    asked = []

    @tuned.chosen_once
    def tiles(dtype: torch.dtype, dim: int) -> tuple[int, int]:
        asked.append(dim)
        return dim, len(asked)

    assert [tiles(BF16, 32), tiles(BF16, 32), tiles(BF16, 64)] == [(32, 1), (32, 1), (64, 2)]
    tuned.forget()
    assert tiles(BF16, 32) == (32, 3)
    assert not hasattr(tiles, "__code__"), "a known call enters a function of Python"


def test_with_autotuning_a_choice_is_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A configuration that cannot be measured now may be measured later."""
    monkeypatch.setattr(tuned, "AUTOTUNING", True)
    asked = []

    @tuned.chosen_once
    def tiles(dim: int) -> int:
        asked.append(dim)
        return len(asked)

    assert [tiles(32), tiles(32)] == [1, 2]


@pytest.mark.parametrize(("value", "on"), [(None, False), ("", False), ("0", False), ("1", True)])
def test_the_environment_says_whether_kernels_are_autotuned(value: str | None, on: bool) -> None:
    environment = {name: x for name, x in os.environ.items() if name != "FASTGROW_AUTOTUNE"}
    if value is not None:
        environment["FASTGROW_AUTOTUNE"] = value
    ask = "from fastgrow.kernels import tuned; print(tuned.AUTOTUNING)"
    command = [sys.executable, "-c", ask]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(on)
