"""The measured alternatives: each has a row, even if it is not installed."""

from __future__ import annotations

import dataclasses
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from fake_time import FakeClock, Ticking
from torch.nn.attention import SDPBackend

from benchmarks import worker
from benchmarks.case import Absent, Case, Compiled, Family, Inputs, Refused, select
from benchmarks.cases import FAMILIES, attention_libraries, packages
from benchmarks.contenders import contenders
from benchmarks.measure import Budget, Settings, measure
from benchmarks.results import Row
from benchmarks.worker import warmed
from fastgrow.ops import attention

PACKAGES = {
    "attention": ("flash-attn 4", "flash-attn 3", "flash-attn 2"),
    "attention-decode": ("flash-attn 4", "flash-attn 3", "flash-attn 2"),
    "linear_cross_entropy": ("liger", "quack"),
    "linear_cross_entropy-unbiased": ("liger", "quack"),
    "layer_norm": ("liger", "quack"),
    "rms_norm-alone": ("liger", "quack"),
    "mlp-swiglu": ("liger", "quack"),
    "mlp-tanh": ("quack",),
}


def family_of(name: str) -> Family:
    return next(family for family in FAMILIES if family.name == name)


def on_gpu(name: str, pass_: str = "forward") -> dict[str, str]:
    """Why each library of a GPU's case is absent; empty for those that are installed."""
    family = family_of(name)
    case = Case(family, family.grids["gpu"][0], "bf16", pass_, "cuda")
    return {c.name: c.absent for c in contenders(case, ("library",)) if c.role == "library"}


@pytest.mark.parametrize("name", PACKAGES)
def test_what_is_not_installed_has_a_cell(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "is_there", lambda module: False)
    for package in PACKAGES[name]:
        assert on_gpu(name)[package] == "not installed"
    family = family_of(name)
    case = Case(family, family.grids["cpu"][0], "fp32", "forward", "cpu")
    assert not set(PACKAGES[name]) & set(family.libraries(case))


def test_an_installed_library_is_measured_or_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "is_there", lambda module: True)
    assert on_gpu("linear_cross_entropy-unbiased")["quack"] == ""
    assert on_gpu("linear_cross_entropy")["quack"] == "refused: it takes no bias"
    assert on_gpu("linear_cross_entropy", "full")["liger"] == ""
    assert on_gpu("mlp-tanh")["quack"] == ""
    assert on_gpu("mlp-tanh", "full")["quack"] == "refused: its biases have no gradient"
    assert on_gpu("mlp-tanh", "full")["addmm_activation"] == "refused: it has no gradient"
    assert on_gpu("rms_norm", "full") == {"torch": "", "liger": "", "quack": ""}


def test_torchs_own_chunked_loss_is_told_where_there_is_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delattr(torch.nn, "LinearCrossEntropyOptions", raising=False)
    why = on_gpu("linear_cross_entropy")["torch chunked"]
    assert why == f"not installed: torch {torch.__version__} has none"


def refusing(inputs: Inputs) -> torch.Tensor:
    raise Refused("head_dim should be a multiple of 8")


def rows_of(family: Family, libraries: dict[str, Any], against: tuple[str, ...]) -> dict[str, Row]:
    """Rows of a case with a budget of 10 s, too little time to compile."""
    family = dataclasses.replace(family, libraries=lambda case: libraries)
    case = Case(family, {"N": 64}, "fp32", "forward")
    settings = Settings(against, seconds=0.0, min_rounds=1)
    return {r.contender: r for r in measure(case, settings, FakeClock(), Budget(10, Ticking()))}


def test_the_absent_and_the_refusing_have_rows_and_withhold_nothing(family: Family) -> None:
    libraries = {
        "torch": lambda inputs: 3 * inputs["x"],
        "liger": Absent("not installed"),
        "cudnn": refusing,
    }
    rows = rows_of(family, libraries, ("library",))
    assert rows["liger"].status == "not installed"
    assert rows["cudnn"].status == "refused: head_dim should be a multiple of 8"
    assert rows["liger"].median_ms is None
    assert rows["fastgrow"].ratio == pytest.approx(1.0)
    assert rows["fastgrow"].withheld == ""


def test_a_library_that_compiles_is_of_the_kind_that_takes_time(family: Family) -> None:
    libraries = {"torch": lambda inputs: 3 * inputs["x"], "whole": Compiled(lambda i: 3 * i["x"])}
    rows = rows_of(family, libraries, ("library", "compile"))
    assert rows["torch"].status == "ok"
    assert (
        rows["whole"].status
        == rows["compile"].status
        == "skipped: not enough of 10 s left to compile it"
    )
    assert rows["fastgrow"].withheld == "compile and whole are not ready"
    assert "whole" not in rows_of(family, libraries, ("library",))
    growth = select([family_of("growth_step")], device="cpu", grid="tiny", dtypes=["fp32"])[0]
    (compiled,) = [c for c in contenders(growth, ("compile",)) if c.name == "plain torch, compiled"]
    assert compiled.is_compiled


def attention_inputs(queries: int) -> Inputs:
    family = family_of("attention" if queries > 1 else "attention-decode")
    return Case(family, family.grids["tiny"][0], "fp32", "forward").inputs(seed=0)


def test_a_backend_that_refuses_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def ask(params: object, debug: bool) -> bool:
        assert debug
        warnings.warn(
            "cuDNN SDPA does not support key/value sequence length 1. (Triggered internally at x)",
            stacklevel=1,
        )
        return False

    # On a CPU, torch has none of these functions.
    run = attention_libraries._sdpa
    with pytest.raises(Refused, match="No viable backend"):
        run(SDPBackend.EFFICIENT_ATTENTION, attention_inputs(64))
    monkeypatch.setitem(attention_libraries.ASKED, SDPBackend.CUDNN_ATTENTION, ask)
    with pytest.raises(Refused) as refusal:
        run(SDPBackend.CUDNN_ATTENTION, attention_inputs(64))
    assert str(refusal.value) == "cuDNN SDPA does not support key/value sequence length 1."


def test_an_error_that_is_no_refusal_stays_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: object, **options: object) -> None:
        raise RuntimeError("out of luck")

    monkeypatch.setattr(F, "scaled_dot_product_attention", broken)
    with pytest.raises(RuntimeError, match="out of luck"):
        attention_libraries._sdpa(SDPBackend.MATH, attention_inputs(64))


@pytest.mark.parametrize("queries", [64, 1])
@pytest.mark.parametrize("with_lse", [False, True])
def test_flash_attentions_packages_are_called_in_their_layout(
    monkeypatch: pytest.MonkeyPatch, queries: int, with_lse: bool
) -> None:
    def flash_attn_func(q: Any, k: Any, v: Any, *, causal: bool) -> Any:
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=causal).transpose(1, 2)
        return (y, None) if with_lse else y

    monkeypatch.setattr(attention_libraries, "function", lambda module, name: flash_attn_func)
    inputs = attention_inputs(queries)
    y = attention_libraries._flash_attention("flash_attn_interface", inputs)
    q, k, v = (inputs[name] for name in "qkv")
    expected = attention(q, k, v, rope=inputs["rope"], k_rotated=queries == 1, impl="eager")
    torch.testing.assert_close(y, expected.transpose(1, 2))


def test_a_rival_rotates_in_one_launch_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    requested: list[str | None] = []

    def rope(x: object, table: object, *, offset: int, impl: str | None) -> object:
        requested.append(impl)
        return x

    monkeypatch.setattr(attention_libraries, "rope", rope)
    for is_cuda in (True, False):
        x: Any = SimpleNamespace(is_cuda=is_cuda)
        attention_libraries.rotate(x, None, 0)  # type: ignore[arg-type]
    assert requested == ["triton", "eager"]


def test_ours_is_compiled_beforehand_first_and_the_formula_not_at_all() -> None:
    family = family_of("growth_step")
    case = Case(family, family.grids["gpu"][0], "bf16", "full", "cuda")
    names = [c.name for c in warmed(contenders(case, ("eager", "compile", "library")))]
    assert names == ["fastgrow", "compile", "plain torch, compiled", "plain torch"]


def test_a_contender_that_loses_the_device_leaves_no_mark(
    family: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others were not compiled, and are not to be taken for it."""

    class Ended(Exception):
        pass

    def end(status: int) -> None:
        raise Ended

    def broken(inputs: Inputs, impl: str | None) -> Any:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(worker, "families", lambda names: [dataclasses.replace(family, call=call)])
    monkeypatch.setattr(worker.os, "_exit", end)
    work = {"rehearse": True, "against": ["library"], "ready": str(tmp_path)} | {
        "cell": {"family": "triple", "shape": {"N": 64}, "dtype": "fp32", "pass": "forward"}
    }
    call = family.call
    worker._warm(work, print)
    assert len(list(tmp_path.iterdir())) == 2
    call = broken
    for path in tmp_path.iterdir():
        path.unlink()
    monkeypatch.setattr(worker, "is_lost", lambda device: True)
    with pytest.raises(Ended):
        worker._warm(work, print)
    assert not list(tmp_path.iterdir())
