"""Which implementation a call uses, precedence of overrides, and errors if one cannot run."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest
import torch

from fastgrow.errors import ConfigError
from fastgrow.ops.core import dispatch
from fastgrow.ops.core.dispatch import (
    OPERATIONS,
    Implementation,
    Operation,
    explain_all,
    parse_overrides,
    triton_kernels,
    use_impl,
)


@pytest.fixture
def double(monkeypatch: pytest.MonkeyPatch) -> Iterator[Operation]:
    """An operation whose implementations return their names."""
    monkeypatch.setattr(dispatch, "_environment", None)
    dispatch._log_once.cache_clear()
    operation = Operation(
        "double",
        [
            Implementation(
                "triton",
                lambda x: x * 3,
                lambda x: (x.dtype == torch.float16, f"{x.dtype} is not served"),
            ),
            Implementation(
                "blas",
                lambda x: x * 4,
                pays=lambda x: (len(x) > 4, "the tensor is small"),
                alias="vendor",
            ),
            Implementation("eager", lambda x: x * 2),
        ],
        example=lambda device: torch.ones(2, device=device),
    )
    yield operation
    del OPERATIONS["double"]


ONES, LONG, HALF = torch.ones(2), torch.ones(5), torch.ones(2, dtype=torch.float16)


def served(operation: Operation, x: torch.Tensor, impl: str | None = None) -> str:
    return {2: "eager", 3: "triton", 4: "blas"}[int(operation(x, impl)[0])]


def test_automatic_choice_follows_preference_can_serve_and_pays(double: Operation) -> None:
    assert served(double, HALF) == "triton"
    assert served(double, ONES) == "eager"
    assert served(double, LONG) == "blas"


def test_precedence_of_overrides(double: Operation, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "_environment", "vendor")
    assert served(double, ONES) == "blas"
    with use_impl("eager"):
        assert served(double, LONG) == "eager"
        with use_impl("double=vendor"):
            assert served(double, ONES) == "blas"
            with use_impl("eager"):
                assert served(double, ONES) == "eager"
            assert served(double, HALF, impl="triton") == "triton"
        assert served(double, LONG) == "eager"
    assert served(double, ONES) == "blas"


def test_environment_names_single_operations(
    double: Operation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatch, "_environment", "eager, double=vendor")
    assert served(double, ONES) == "blas"


def test_blanket_override_skips_operations_without_that_implementation(
    double: Operation,
) -> None:
    with use_impl("native"):
        assert served(double, LONG) == "blas"


def test_forced_choice_that_cannot_run_raises_with_the_reason(double: Operation) -> None:
    with use_impl("triton"), pytest.raises(ConfigError, match=r"use_impl .*torch.float32 is not"):
        double(ONES)
    with pytest.raises(ConfigError, match="'native'; available are triton, blas, eager"):
        double(ONES, impl="native")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("fast", "'fast' is not an implementation"),
        ("nothing=eager", "'nothing' is not an operation"),
        ("double=fast", "'fast' is not an implementation"),
        ("", "'' is not an implementation"),
    ],
)
def test_misspelt_overrides_are_rejected(double: Operation, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_overrides(text, "here")


def test_override_ends_with_its_block_even_after_an_error(double: Operation) -> None:
    with pytest.raises(RuntimeError, match="stop"), use_impl("vendor"):
        raise RuntimeError("stop")
    assert served(double, ONES) == "eager"


def test_override_stays_in_its_thread(double: Operation) -> None:
    seen = []
    with use_impl("vendor"):
        thread = threading.Thread(target=lambda: seen.append(served(double, ONES)))
        thread.start()
        thread.join()
    assert seen == ["eager"]


def test_fallback_is_logged_once(double: Operation, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "fastgrow.ops"):
        double(ONES)
        double(ONES)
    assert [record.getMessage() for record in caplog.records] == [
        "double: triton is not used: torch.float32 is not served",
        "double: blas is not used: the tensor is small",
    ]


def test_explain_reports_what_would_run_and_why(double: Operation) -> None:
    explanation = double.explain(ONES)
    assert explanation.active == "eager"
    assert explanation.reason == (
        "not triton: torch.float32 is not served; not blas: the tensor is small"
    )
    assert explanation.answers["triton"] == (False, "torch.float32 is not served")
    assert double.explain(LONG, impl="eager").reason == "requested by impl="
    rejected = double.explain(ONES, impl="triton")
    assert rejected.active is None
    assert "cannot run: torch.float32 is not served" in rejected.reason
    assert "double" in [e.operation for e in explain_all("cpu")]


def test_compiles_without_graph_breaks_and_follows_the_override(double: Operation) -> None:
    compiled = torch.compile(lambda x: double(x), fullgraph=True, backend="eager")
    assert compiled(ONES)[0] == 2
    with use_impl("vendor"):
        assert compiled(ONES)[0] == 4
    assert compiled(ONES)[0] == 2


def test_the_environment_of_a_process_is_read() -> None:
    code = (
        "from fastgrow.ops.core.dispatch import explain_all\n"
        "print([str(x) for x in explain_all('cpu') if x.operation == 'layer_norm'][0])"
    )
    for override, expected in (
        ("layer_norm=eager", "layer_norm: eager (requested by FASTGROW_IMPL)"),
        ("layer_norm=fast", "'fast' is not an implementation"),
    ):
        done = subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "FASTGROW_IMPL": override},
            capture_output=True,
            text=True,
            check=True,
        )
        assert expected in done.stdout


def test_a_gpu_too_old_for_the_kernels_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from types import SimpleNamespace

    from fastgrow.ops.core import dispatch

    tensor = SimpleNamespace(device=torch.device("cuda", 0), dtype=torch.float32)
    monkeypatch.setattr(dispatch, "TRITON_INSTALLED", True)
    monkeypatch.setattr(dispatch, "is_new_enough", dispatch.is_new_enough.__wrapped__)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for capability, ok in (((7, 5), False), ((8, 0), True), ((9, 0), True)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, c=capability: c)
        assert dispatch.triton_can_run(tensor)[0] == ok  # type: ignore[arg-type]
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 0))
    reason = dispatch.triton_can_run(tensor)[1]  # type: ignore[arg-type]
    assert reason == "it needs a GPU of compute capability 8.0 or newer"


@pytest.mark.parametrize("question", ["can_serve", "pays"])
@pytest.mark.parametrize("call", [(ONES, 1), ([ONES, None], 1)], ids=["tensor", "list"])
def test_requirements_of_all_kernels_are_checked_first(
    monkeypatch: pytest.MonkeyPatch, question: str, call: tuple[object, int]
) -> None:
    called: list[object] = []
    of_tensor = {ONES: (False, "of the tensor")}
    name = "triton_can_run" if question == "can_serve" else "triton_pays_on"
    monkeypatch.setattr(dispatch, name, of_tensor.__getitem__)
    entry = triton_kernels(print, **{question: lambda call: called.append(call) or (False, "no")})
    assert entry.name == "triton"
    assert getattr(entry, question)(call) == (False, "of the tensor")
    assert not called
    of_tensor[ONES] = (True, "")
    assert getattr(entry, question)(call) == (False, "no")
    assert called == [call]
