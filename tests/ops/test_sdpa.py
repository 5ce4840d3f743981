"""The order of SDPA's backends on a GPU, and the precedence of the user's settings.

The order and the switches are torch's, also on a CPU; only the device of a call is simulated.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from fastgrow.kernels.calls import AttentionCall
from fastgrow.ops.softmax_attention import explain_sdpa, sdpa
from fastgrow.ops.softmax_attention.sdpa import (
    active_release,
    cudnn_comes_first,
    installed_releases,
)

FLASH, EFFICIENT, CUDNN, MATH = (
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.MATH,
)
ON_HOPPER = [int(backend) for backend in (CUDNN, FLASH, EFFICIENT, MATH, SDPBackend.OVERRIDEABLE)]
FLASH_FIRST = [int(backend) for backend in sdpa.FLASH_FIRST]
GPU = torch.device("cuda", 0)


def order() -> list[int]:
    return [int(backend) for backend in torch._C._get_sdp_priority_order()]


@pytest.fixture
def hopper(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Set torch's order as on a GPU where it tries cuDNN first."""
    monkeypatch.setattr(sdpa, "_settle", lambda: None)
    before = order()
    torch._C._set_sdp_priority_order(ON_HOPPER)
    yield
    torch._C._set_sdp_priority_order(before)


def asked(queries: int, mask: torch.Tensor | None = None) -> list[int]:
    """The order in which the backends are tried for such a call on a GPU."""
    q: Any = SimpleNamespace(device=GPU, shape=(1, 2, queries, 32))
    with sdpa._order_for(q, mask):
        return order()


@pytest.mark.usefixtures("hopper")
def test_cudnn_comes_first_for_many_queries_only() -> None:
    assert asked(9) == ON_HOPPER
    assert asked(8) == FLASH_FIRST
    assert asked(9, torch.ones(9, 9)) == FLASH_FIRST
    assert FLASH_FIRST[:4] == [int(backend) for backend in (FLASH, EFFICIENT, CUDNN, MATH)]
    assert order() == ON_HOPPER


@pytest.mark.usefixtures("hopper")
def test_torchs_order_is_restored_if_a_call_fails() -> None:
    q: Any = SimpleNamespace(device=GPU, shape=(1, 2, 1, 32))
    with pytest.raises(RuntimeError, match="stop"), sdpa._order_for(q, None):
        raise RuntimeError("stop")
    assert order() == ON_HOPPER


@pytest.mark.usefixtures("hopper")
def test_settings_of_the_user_have_precedence() -> None:
    with sdpa_kernel([CUDNN, MATH], set_priority=True):
        before = order()
        assert not cudnn_comes_first()
        assert asked(1) == before
    with sdpa_kernel([MATH, CUDNN, *sdpa.FLASH_FIRST[:2]], set_priority=True):
        assert asked(1)[0] == int(MATH)
    torch.backends.cuda.enable_flash_sdp(False)
    try:
        assert asked(1) == ON_HOPPER
    finally:
        torch.backends.cuda.enable_flash_sdp(True)
    assert asked(1) == FLASH_FIRST


def test_torchs_order_is_not_changed_if_cudnn_is_not_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sdpa, "_settle", lambda: None)
    before = order()
    assert before[0] == int(FLASH)
    assert asked(1) == before


def test_torch_settles_its_order_before_it_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    before = order()
    monkeypatch.setattr(sdpa, "_settle", lambda: torch._C._set_sdp_priority_order(ON_HOPPER))
    try:
        assert asked(1) == FLASH_FIRST
        assert order() == ON_HOPPER
    finally:
        torch._C._set_sdp_priority_order(before)


@pytest.mark.usefixtures("hopper")
def test_an_activated_flash_attention_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    assert asked(64) == ON_HOPPER
    monkeypatch.setattr(sdpa.choice, "current_flash_attention_impl", lambda: "FA4")
    assert active_release() == "FA4"
    assert asked(64) == FLASH_FIRST


@pytest.mark.usefixtures("hopper")
@pytest.mark.parametrize(("queries", "set_in_graph"), [(1, 2), (16, 0)])
def test_compiles_without_graph_breaks_with_the_order_in_the_graph(
    monkeypatch: pytest.MonkeyPatch, queries: int, set_in_graph: int
) -> None:
    monkeypatch.setattr(sdpa, "DEVICE_TYPE", "cpu")
    found = []

    def count(graph: Any, inputs: Any) -> Any:
        calls = [n for n in graph.graph.nodes if n.target is torch.nn.attention._sdpa_kernel]
        found.append(len(calls))
        return graph

    torch._dynamo.reset()
    q, k = torch.randn(1, 2, queries, 8), torch.randn(1, 2, 16, 8)
    compiled = torch.compile(
        lambda q, k: sdpa.run(AttentionCall(q, k, k, scale=0.5, causal=False)),
        fullgraph=True,
        backend=count,
    )
    expected = F.scaled_dot_product_attention(q, k, k, scale=0.5)
    torch.testing.assert_close(compiled(q, k), expected)
    # Set, and restored.
    assert found == [set_in_graph]
    assert order() == ON_HOPPER


def test_the_report_names_the_backends(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    assert explain_sdpa(cpu) == ["training and prefill: flash", "one query: flash"]
    chosen = {32: MATH, 64: FLASH, 128: FLASH}
    monkeypatch.setattr(torch, "_fused_sdp_choice", lambda q, *rest: int(chosen[q.shape[3]]))
    line = "training and prefill: math at head dimension 32, flash at head dimension 64, 128"
    assert explain_sdpa(cpu)[0] == line


def test_the_report_names_an_installed_flash_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    assert installed_releases() == []
    there = importlib.util.find_spec("torch")

    def find(name: str) -> Any:
        if name == "flash_attn.cute":
            return there
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(importlib.util, "find_spec", find)
    assert installed_releases() == ["FA4"]
    line = explain_sdpa(torch.device("cpu"))[-1]
    assert line.startswith("FA4 is installed and not active: torch.nn.attention.activate_flash")
    monkeypatch.setattr(sdpa.choice, "current_flash_attention_impl", lambda: "FA4")
    assert explain_sdpa(torch.device("cpu"))[-1] == "flash is FA4, which was activated"
