"""The check on a smaller shape uses the timed implementation with the same tiles."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.case import Case, Shape, select
from benchmarks.cases import FAMILIES
from fastgrow.ops.core import dispatch

pytest.importorskip("triton", reason="triton is not installed")

from fastgrow.kernels import attention, compile_offline, linear_lse, mlp, norm
from fastgrow.kernels.attention import bucket, decode_bucket
from fastgrow.kernels.calls import AttentionCall
from fastgrow.kernels.tuned import assumed

BF16 = torch.bfloat16
CASES = [
    case
    for case in select(FAMILIES, device="cuda", grid="gpu", dtypes=["bf16"])
    if case.family.checked(case.shape) != case.shape
]


class OnMeta:
    """A fake generator on the meta device: shapes without numbers."""

    device = torch.device("meta")


@pytest.fixture
def chosen(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Records what the automatic choice would select on a GPU for each call; runs the formula."""
    choices: list[str] = []

    def run(operation: dispatch.Operation, call: Any, impl: object = None) -> Any:
        active = dispatch.Operation.explain(operation, call).active
        choices.append(f"{operation.name} by {active}")
        return operation.implementations["eager"].run(call)

    def without_generator(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda *size, generator, **named: make(*size, **named)

    monkeypatch.setattr(dispatch.Operation, "__call__", run)
    monkeypatch.setattr(dispatch, "_environment", None)
    monkeypatch.setattr(dispatch, "triton_can_run", lambda tensor, dtype=None: (True, ""))
    monkeypatch.setattr(dispatch, "triton_pays_on", lambda tensor: (True, ""))
    # torch has no such switch for meta.
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda kind: False)
    monkeypatch.setattr(torch, "randn", without_generator(torch.randn))
    monkeypatch.setattr(torch, "randint", without_generator(torch.randint))
    return choices


def choices_of(case: Case, shape: Shape, chosen: list[str]) -> list[str]:
    chosen.clear()
    inputs = case.family.inputs(shape, BF16, OnMeta())  # type: ignore[arg-type]
    with_gradients = case.pass_ != "forward"
    for tensor in case.family.differentiated(inputs).values() if with_gradients else ():
        tensor.requires_grad_()
    with torch.set_grad_enabled(with_gradients):
        case.family.call(inputs, None)
    return chosen[:]


def test_the_same_implementation(chosen: list[str]) -> None:
    for case in CASES:
        checked = choices_of(case, case.family.checked(case.shape), chosen)
        assert checked == choices_of(case, case.shape, chosen), case.name
    seen = {case.family.op for case in CASES}
    assert {"mlp", "attention", "lora_linear", "growth_step", "linear_cross_entropy"} <= seen


def test_the_same_tiles() -> None:
    def tiles(case: Case, shape: Shape) -> list[object]:
        name, s = case.family.name, shape
        if name == "growth_step":
            tokens = s["B"] * s["T"]
            return [
                bucket(BF16, s["d"] // s["H"], s["T"]),
                mlp.bucket(BF16, "gelu", s["d"], 4 * s["d"], tokens),
                linear_lse.key(BF16, tokens),
                norm.bucket(BF16, s["d"]),
            ]
        if name == "attention":
            return [bucket(BF16, s["D"], s["T"])]
        if name == "attention-decode":
            return [decode_bucket(BF16, s["D"], s["T"], s["B"] * s["H_kv"])]
        if case.family.op == "mlp":
            return [mlp.bucket(BF16, "gelu", s["d"], 4 * s["d"], s["N"])]
        if name in ("linear_cross_entropy", "linear_kl"):
            return [linear_lse.key(BF16, s["N"])]
        return []

    for case in CASES:
        assert tiles(case, case.family.checked(case.shape)) == tiles(case, case.shape), case.name


def attend(shape: Shape) -> None:
    B, T, D = shape["B"], shape["T"], shape["D"]

    def random(heads: int) -> Tensor:
        return torch.empty(B, T, heads, D, dtype=BF16, device="meta").transpose(1, 2)

    q, k, v, d_out = (random(shape[heads]) for heads in ("H", "H_kv", "H_kv", "H"))
    cos, sin = (torch.empty(T, D // 2, device="meta") for _ in range(2))
    call = AttentionCall(q, k, v, cos, sin, scale=D**-0.5)
    out, lse = attention.forward(call)
    assert lse is not None
    attention.backward(call, d_out, out, lse)


def test_attention_compiles_nothing_for_the_check() -> None:
    """Attention's kernels are specialised for the number of heads."""

    def codes(shape: Shape) -> set[str]:
        with assumed(multiprocessors=132):
            return {
                compile_offline.code(launch, 90)
                for launch in compile_offline.recorded(lambda: attend(shape))
            }

    cases = {c.shape["D"]: c for c in CASES if c.family.name == "attention"}
    assert cases.keys() == {32, 64, 128}
    for case in cases.values():
        assert codes(case.family.checked(case.shape)) <= codes(case.shape), case.name
