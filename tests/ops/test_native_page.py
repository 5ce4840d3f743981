"""The page says of `native` what its implementations answer, on a GPU that is not there, too."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_map

from fastgrow import _native
from fastgrow.kernels.tuned import NAMES
from fastgrow.ops.core.dispatch import OPERATIONS, Implementation, Operation

PAGE = Path(__file__).resolve().parents[2] / "docs" / "kernels.md"
DTYPES = {**NAMES, torch.float64: "fp64"}


@pytest.fixture
def extensions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both are there, as far as implementations are told."""
    for name in ("CPU", "CUDA"):
        extension = dataclasses.replace(getattr(_native, name), loaded=True)
        monkeypatch.setattr(_native, name, extension)


def serves(
    operation: Operation, native: Implementation, device: str, dtype: torch.dtype, trained: bool
) -> bool:
    """Whether it can serve the operation's example on a device, in a dtype and with gradients."""

    def asked(value: Any) -> Any:
        if isinstance(value, Tensor) and value.is_floating_point():
            return value.to(dtype).requires_grad_(trained)
        return value

    assert operation.example is not None
    return native.can_serve(tree_map(asked, operation.example(torch.device(device))))[0]


def cell(operation: Operation, native: Implementation, device: str) -> str:
    found = {d: serves(operation, native, device, d, trained=False) for d in DTYPES}
    trained = any(serves(operation, native, device, dtype, trained=True) for dtype in DTYPES)
    if not any(found.values()):
        return "–"
    names = ", ".join(name for dtype, name in DTYPES.items() if found[dtype])
    return names if trained else f"{names}; no gradients"


def table() -> str:
    """Operations that answer alike share a line."""
    lines: dict[tuple[str, ...], list[str]] = {}
    with FakeTensorMode():
        for name, operation in OPERATIONS.items():
            native = operation.implementations.get("native")
            if native is not None:
                cells = tuple(cell(operation, native, device) for device in ("cpu", "cuda"))
                lines.setdefault(cells, []).append(f"`{name}`")
    rows = [[", ".join(names), *cells] for cells, names in lines.items()]
    header = [["`native` of", "on a CPU", "on a GPU"], ["---"] * 3]
    return "".join(f"| {' | '.join(row)} |\n" for row in [*header, *rows])


@pytest.mark.usefixtures("extensions")
def test_the_page_has_what_native_answers() -> None:
    expected = table()
    assert "`mean_argmax`" in expected
    assert expected in PAGE.read_text(encoding="utf-8"), f"it is:\n{expected}"
